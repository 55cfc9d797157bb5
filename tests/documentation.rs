//! What the documentation says is so: its links lead somewhere, its configurations and recipes are accepted, its commands
//! have the options that are named, its message fits the schema.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use samclip::daemon::config::Config;
use samclip::message::payload::FRAME_SCHEMA;
use toml::{Table, Value};

const PAGES: [&str; 10] = [
    "README.md",
    "CHANGELOG.md",
    "docs/daemon.md",
    "docs/training.md",
    "docs/study/README.md",
    "docs/study/report.md",
    "models/README.md",
    "models/nano/MODEL_CARD.md",
    "models/samples/README.md",
    "yocto/meta-samclip/README.md",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn page(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The fenced blocks in `language`, each with the number of its first line.
fn blocks(text: &str, language: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        let Some(opened) = line.strip_prefix("```") else {
            continue;
        };
        let block: Vec<&str> = lines
            .by_ref()
            .map(|(_, line)| line)
            .take_while(|line| *line != "```")
            .collect();
        if opened == language {
            found.push((number + 2, block.join("\n")));
        }
    }
    found
}

/// The text outside of fenced blocks.
fn prose(text: &str) -> String {
    let parts = text.split("\n```").enumerate();
    parts.filter(|(n, _)| n % 2 == 0).map(|(_, part)| part).collect()
}

/// The name by which a link reaches a heading, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let kept = heading
        .chars()
        .filter(|c| c.is_alphanumeric() || *c == ' ' || *c == '-');
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

#[test]
fn every_link_within_the_repository_leads_to_a_file_and_a_heading() {
    let mut seen = 0;
    for name in PAGES {
        let text = prose(&page(name));
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") {
                continue;
            }
            seen += 1;
            let (file, heading) = link
                .split_once('#')
                .map_or((link, None), |(file, heading)| (file, Some(heading)));
            let target: PathBuf = if file.is_empty() {
                root().join(name)
            } else {
                root().join(name).parent().unwrap().join(file)
            };
            assert!(target.exists(), "{name}: {link} leads nowhere");
            if let Some(heading) = heading {
                let target = prose(&std::fs::read_to_string(&target).unwrap());
                let headings = target.lines().filter(|line| line.starts_with('#'));
                let mut anchors = headings.map(|line| anchor(line.trim_start_matches('#').trim()));
                assert!(anchors.any(|a| a == heading), "{name}: {link}: no such heading");
            }
        }
    }
    assert!(seen > 20, "{seen} links");
}

/// `part` over `base`: tables key by key, everything else replaced. A table named `camera` is of the only camera.
fn lay_over(base: &mut Table, part: Table) {
    for (key, value) in part {
        match (base.get_mut(&key), value) {
            (Some(Value::Table(under)), Value::Table(over)) => lay_over(under, over),
            (Some(Value::Array(under)), Value::Table(over)) => match under.first_mut() {
                Some(Value::Table(under)) => lay_over(under, over),
                _ => panic!("{key} is a list without a table"),
            },
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

#[test]
fn every_configuration_is_accepted_by_the_daemon() {
    let shown = page("README.md");
    let (_, base) = &blocks(&shown, "toml")[0];
    let base: Table = toml::from_str(base).unwrap();
    let mut keys = BTreeSet::new();
    for name in ["README.md", "docs/daemon.md"] {
        for (line, block) in blocks(&page(name), "toml") {
            let part: Table = toml::from_str(&block).unwrap_or_else(|error| panic!("{name}:{line}: {error}"));
            keys.extend(part.keys().cloned());
            let mut whole = base.clone();
            lay_over(&mut whole, part);
            let text = toml::to_string(&whole).unwrap();
            if let Err(error) = Config::parse(&text, Path::new("samclipd.toml")) {
                panic!("{name}:{line}: {error}\n{text}");
            }
        }
    }
    let all = [
        "background",
        "camera",
        "dbus",
        "events",
        "http",
        "model",
        "mqtt",
        "output",
        "query",
        "runtime",
        "state",
    ];
    assert_eq!(keys.iter().map(String::as_str).collect::<Vec<_>>(), all);
}

#[cfg(feature = "train")]
#[test]
fn every_part_of_a_recipe_is_accepted() {
    use samclip::train::recipe::Recipe;
    let base: Table = toml::from_str(&page("models/nano/recipe.toml")).unwrap();
    let parts = blocks(&page("docs/training.md"), "toml");
    assert!(!parts.is_empty());
    let folder = tempfile::tempdir().unwrap();
    for (line, block) in parts {
        let part = toml::from_str(&block).unwrap_or_else(|error| panic!("{line}: {error}"));
        let mut whole = base.clone();
        lay_over(&mut whole, part);
        let path = folder.path().join("recipe.toml");
        std::fs::write(&path, toml::to_string(&whole).unwrap()).unwrap();
        Recipe::read(&path).unwrap_or_else(|error| panic!("docs/training.md:{line}: {error}"));
    }
}

#[test]
fn the_message_of_the_readme_fits_its_schema() {
    let schema = jsonschema::draft202012::new(&serde_json::from_str(FRAME_SCHEMA).unwrap()).unwrap();
    let text = page("README.md");
    let messages = blocks(&text, "json");
    assert_eq!(messages.len(), 1);
    let message = serde_json::from_str(&messages[0].1).unwrap();
    if let Err(error) = schema.validate(&message) {
        panic!("README.md:{}: {error}", messages[0].0);
    }
}

/// The commands of `program` that a page shows, in blocks and within lines: its words up to the first option, and its options.
fn commands(text: &str, program: &str) -> Vec<(Vec<String>, Vec<String>)> {
    let shown = ["sh", "console"]
        .into_iter()
        .flat_map(|language| blocks(text, language));
    let mut lines: Vec<String> = Vec::new();
    for (_, block) in shown {
        let block = block.replace("\\\n", " ");
        let alone = block.lines().map(|line| line.split(" #").next().unwrap_or_default());
        lines.extend(alone.flat_map(|line| line.split("&&").map(str::to_owned)));
    }
    // Within lines the words behind the command are not always one.
    let words = prose(text);
    let within = words
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|code| !code.contains(['|', '…']));
    lines.extend(
        within
            .filter(|code| code.starts_with(&format!("{program} ")))
            .map(str::to_owned),
    );
    let mut found = Vec::new();
    for line in lines {
        let mut words = line.split_whitespace();
        let ours = |word: &str| word == program || word == format!("target/release/{program}");
        let demo = program == "samclipd" && line.trim_start().starts_with("cargo run --release -- ");
        if demo {
            words.by_ref().take(4).for_each(drop);
        } else if !words.any(ours) {
            continue;
        }
        let words: Vec<String> = words.map(|word| word.trim_matches(['\'', '"']).to_owned()).collect();
        let options = words.iter().filter(|word| word.starts_with("--"));
        let before = words.iter().take_while(|word| !word.starts_with('-'));
        found.push((before.cloned().collect(), options.cloned().collect()));
    }
    found
}

/// Asks `program`, which lies at `path`, for the help of every command that the documentation shows.
fn has_what_is_shown(program: &str, path: &str, at_least: usize) {
    let mut seen = 0;
    for name in PAGES {
        for (words, options) in commands(&page(name), program) {
            // The first word is the command, the second may be one of its own.
            let help = Command::new(path)
                .args(&words)
                .arg("--help")
                .output()
                .expect("the program starts");
            let text = String::from_utf8_lossy(&help.stdout);
            assert!(help.status.success(), "{name}: {program} {words:?}: no such command");
            for option in options {
                let option = option.split('=').next().unwrap_or_default();
                let known = text
                    .split(|c: char| c.is_whitespace() || c == ',')
                    .any(|word| word == option);
                assert!(known, "{name}: {program} {words:?} has no {option}");
            }
            seen += 1;
        }
    }
    assert!(seen >= at_least, "{seen} commands");
}

#[test]
fn every_command_of_the_daemon_has_the_options_that_are_shown() {
    has_what_is_shown("samclipd", env!("CARGO_BIN_EXE_samclipd"), 20);
}

#[cfg(feature = "train")]
#[test]
fn every_command_of_training_has_the_options_that_are_shown() {
    has_what_is_shown("train", env!("CARGO_BIN_EXE_train"), 15);
}
