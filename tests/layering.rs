//! The source tree against the layer table of `src/lib.rs`, and the dependency tree against the training crates.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Modules that collect what belongs nowhere.
const FORBIDDEN_MODULES: [&str; 7] = ["util", "utils", "common", "helper", "helpers", "misc", "shared"];

/// What pure folders never name: files, sockets, clocks, threads.
const IMPURE: [&str; 8] = [
    "std::fs",
    "std::net",
    "std::process",
    "std::thread",
    "Instant::now",
    "SystemTime::now",
    "tokio::",
    "std::env",
];

/// Crates that only training needs; their names, or what their names begin with. `tar` and `rayon` are tract's too.
const TRAINING_CRATES: [&str; 6] = ["burn", "cubecl", "pytorch-reader", "indicatif", "rand_chacha", "glob "];

/// Which folder may use which, from the table; with conditions such as "`runtime` in `eval` and `quantize` only".
#[derive(Debug, Default)]
struct Layers {
    allowed: BTreeMap<String, BTreeSet<String>>,
    /// folder → (used folder, a file stem or folder name that may)
    only_in: BTreeMap<String, Vec<(String, String)>>,
}

fn backticked(text: &str) -> Vec<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

impl Layers {
    /// Reads the rows `| L1 | [`vision`] | `contract` |`.
    fn from_table(lib: &str) -> Self {
        let mut layers = Self::default();
        for row in lib.lines().filter_map(|line| line.strip_prefix("//! | L")) {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            let folders = backticked(cells[1].split('(').next().unwrap_or_default());
            let mut allowed = BTreeSet::new();
            for part in cells[2].split(';') {
                let names = backticked(part);
                if part.contains("everything above") {
                    allowed.extend(layers.allowed.keys().cloned());
                } else if part.contains(" in ") {
                    for (folder, stem) in folders.iter().flat_map(|f| names[1..].iter().map(move |n| (f, n))) {
                        let condition = (names[0].clone(), stem.clone());
                        layers.only_in.entry(folder.clone()).or_default().push(condition);
                    }
                } else {
                    allowed.extend(names);
                }
            }
            for folder in folders {
                layers.allowed.insert(folder, allowed.clone());
            }
        }
        layers
    }

    /// What is wrong with one file's imports; `path` is relative to `src/`.
    fn violations(&self, path: &Path, source: &str) -> Vec<String> {
        let parts: Vec<String> = path
            .with_extension("")
            .iter()
            .map(|part| part.to_string_lossy().into())
            .collect();
        let Some(allowed) = self.allowed.get(&parts[0]) else {
            return Vec::new();
        };
        let conditions = self.only_in.get(&parts[0]).map_or(&[][..], Vec::as_slice);
        let may = |used: &str| {
            used == parts[0]
                || allowed.contains(used)
                || conditions
                    .iter()
                    .any(|(name, stem)| name == used && parts[1..].contains(stem))
        };
        let depth = parts.iter().filter(|part| *part != "mod").count();
        let used = top_level_names(source, depth);
        let forbidden = used
            .into_iter()
            .filter(|used| self.allowed.contains_key(used) && !may(used));
        forbidden
            .map(|used| format!("src/{} uses {used}, which {} may not", path.display(), parts[0]))
            .collect()
    }
}

/// Code without line comments.
fn without_comments(source: &str) -> String {
    source
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\n")
}

/// First path components after `crate::`, in braces or not, and after enough `super::` to reach the crate's root.
fn top_level_names(source: &str, depth: usize) -> BTreeSet<String> {
    let code = without_comments(source);
    let root = "super::".repeat(depth);
    let mut names = BTreeSet::new();
    for start in ["crate::", root.as_str()] {
        for (at, _) in code.match_indices(start) {
            let rest = &code[at + start.len()..];
            // pub(in crate::x) and samclip_crate::x are other things
            if at > 0 && code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
                continue;
            }
            match rest.strip_prefix('{') {
                None => drop(names.insert(identifier(rest))),
                Some(group) => names.extend(group_names(group)),
            }
        }
    }
    names
}

fn identifier(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// First components of `a::b, c::{d, e}, f}`.
fn group_names(group: &str) -> Vec<String> {
    let (mut names, mut level, mut fresh) = (Vec::new(), 0, true);
    for (at, c) in group.char_indices() {
        match c {
            '{' => level += 1,
            '}' if level == 0 => break,
            '}' => level -= 1,
            ',' if level == 0 => fresh = true,
            c if fresh && !c.is_whitespace() => {
                names.push(identifier(&group[at..]));
                fresh = false;
            }
            _ => {}
        }
    }
    names
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All Rust files below a folder with their text, in order.
fn sources(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push((
                    path.strip_prefix(folder).unwrap().to_owned(),
                    fs::read_to_string(&path).unwrap(),
                ));
            }
        }
    }
    found.sort();
    found
}

fn lib() -> String {
    fs::read_to_string(root().join("src/lib.rs")).unwrap()
}

#[test]
fn no_folder_uses_one_that_the_table_does_not_allow() {
    let layers = Layers::from_table(&lib());
    let sources = sources(&root().join("src"));
    assert!(sources.len() > 20, "sources were found");
    let wrong: Vec<String> = sources
        .iter()
        .flat_map(|(path, text)| layers.violations(path, text))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_checker_catches_forbidden_edges_however_they_are_written() {
    let layers = Layers::from_table(&lib());
    let check = |path: &str, source: &str| layers.violations(Path::new(path), source).len();
    assert_eq!(
        check(
            "vision/mask.rs",
            "use crate::contract::Manifest;\nuse crate::vision::rle;"
        ),
        0
    );
    assert_eq!(check("vision/mask.rs", "use crate::runtime::Session;"), 1);
    assert_eq!(
        check(
            "publish/mqtt.rs",
            "use crate::{message::topic, capture::{self, Frame}, runtime};"
        ),
        2
    );
    assert_eq!(check("contract/mod.rs", "fn f() { crate::vision::mask::area() }"), 1);
    assert_eq!(check("capture/replay.rs", "use super::super::publish::mqtt;"), 1);
    assert_eq!(check("capture/mod.rs", "use super::publish::mqtt;"), 1);
    assert_eq!(
        check("capture/mod.rs", "//! See [`crate::publish`].\n// use crate::publish;"),
        0
    );
    assert_eq!(check("train/eval/presence.rs", "use crate::runtime::models;"), 0);
    assert_eq!(
        check("train/quantize/calibrate.rs", "use crate::runtime::open_graph;"),
        0
    );
    assert_eq!(check("train/quantize/calibrate.rs", "use crate::daemon;"), 1);
    assert_eq!(check("train/distill.rs", "use crate::runtime::models;"), 1);
    assert_eq!(check("train/model/quantized.rs", "use crate::runtime::models;"), 1);
    assert_eq!(check("daemon/pipeline.rs", "use crate::{capture, runtime, vision};"), 0);
    assert_eq!(check("daemon/pipeline.rs", "use crate::train;"), 1);
}

#[test]
fn the_table_lists_exactly_the_modules_of_the_library() {
    let lib = lib();
    let layers = Layers::from_table(&lib);
    let modules: BTreeSet<String> = lib
        .lines()
        .filter_map(|line| line.strip_prefix("pub mod "))
        .map(|rest| rest.replace(';', ""))
        .collect();
    assert_eq!(layers.allowed.keys().cloned().collect::<BTreeSet<_>>(), modules);
}

#[test]
fn pure_folders_touch_no_file_socket_or_clock() {
    let found = |text: &str| {
        // unit tests may read golden files
        let code = without_comments(text.split("#[cfg(test)]").next().unwrap_or_default());
        IMPURE.iter().filter(move |word| code.contains(**word)).count()
    };
    assert_eq!(found("let t = Instant::now(); std::fs::read(p)"), 2);
    for (path, text) in sources(&root().join("src")) {
        if ["vision", "track", "message", "text"]
            .iter()
            .any(|folder| path.starts_with(folder))
        {
            assert_eq!(found(&text), 0, "src/{} names one of {IMPURE:?}", path.display());
        }
    }
}

#[test]
fn every_file_says_what_it_is_and_no_module_is_a_drawer() {
    for folder in ["src", "tests"] {
        for (path, text) in sources(&root().join(folder)) {
            assert!(
                text.starts_with("//!"),
                "{folder}/{} does not open with //!",
                path.display()
            );
            for part in path.with_extension("").iter() {
                let drawer = FORBIDDEN_MODULES.iter().any(|name| part.to_string_lossy() == **name);
                assert!(
                    !drawer || folder == "tests",
                    "{folder}/{}: name it after what it does",
                    path.display()
                );
            }
        }
    }
}

/// Training crates in what `cargo tree` prints.
fn training_crates(tree: &str) -> Vec<&str> {
    tree.lines()
        .filter(|line| TRAINING_CRATES.iter().any(|name| line.starts_with(name)))
        .collect()
}

#[test]
fn the_daemon_builds_without_any_training_crate() {
    assert_eq!(
        training_crates("serde v1.0.0\nburn-autodiff v0.22.1\nindicatif v0.18.0\ntar v0.4.46").len(),
        2
    );
    for features in [&[][..], &["--no-default-features"]] {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
        command
            .current_dir(root())
            .args(["tree", "--locked", "--edges", "normal", "--prefix", "none"])
            .args(features);
        let output = command.output().unwrap();
        let tree = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(tree.starts_with("samclip v") && tree.lines().count() > 50, "{tree}");
        let found = training_crates(&tree);
        assert!(found.is_empty(), "{features:?}: {found:?}");
    }
}
