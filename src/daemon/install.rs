//! `samclipd model`: installs bundles beside the ones in use, switches between them at once, and goes back.
//!
//! A store holds, for each model, a link `<name>` to the version in use, `.versions/<name>/<id>`. Replacing the link is the
//! switch: whoever opens the model finds the old version or the new one, whole. A version is linked only after its
//! signature (where a key is given), its hashes and a run on the built-in pictures; the version before stays for
//! [`roll_back`].

mod archive;
mod download;
mod signature;
mod store;

use std::fs::File;
use std::io::{Read as _, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

use crate::contract::{Bundle, LARGEST_MANIFEST, MANIFEST_FILE, Manifest};
use crate::runtime::RuntimeOptions;
use crate::runtime::progress::Progress;

use super::pipeline::{Pipeline, QuerySpec};
use super::sample_frames::sample_frames;

pub use signature::{DEFAULT_KEY, SIGNATURE_FILE};
pub use store::{Version, default_store, list, roll_back};

use store::Store;

/// What the test asks of the built-in pictures.
const PROBES: [&str; 3] = ["red", "green", "blue"];

/// What to install.
#[derive(Clone, Debug)]
pub struct InstallOptions {
    /// A bundle's directory, a .tar or .tar.gz of one, or the http(s) address of such a file.
    pub source: String,
    /// Directory of the installed models.
    pub store: PathBuf,
    /// Public key (minisign) that must have signed the manifest; without one, hashes alone are compared.
    pub key: Option<PathBuf>,
    /// How the daemon will open the model: engines and text embeddings that the test makes are kept for it.
    pub runtime: RuntimeOptions,
}

/// Installs a bundle and makes it the version in use; tells `out` what was done.
///
/// # Errors
/// What is wrong with source, signature, bundle, model or store. The version in use stays what it was, and nothing of
/// the new one is left behind.
pub fn install(options: &InstallOptions, progress: &dyn Progress, out: &mut dyn Write) -> anyhow::Result<()> {
    let store = Store::open(&options.store)?;
    let incoming = store.incoming()?;
    fetch(&options.source, options.key.is_some(), incoming.path())?;
    match &options.key {
        Some(key) => {
            signature::check(incoming.path(), key)?;
            writeln!(out, "signature: good, by {}", key.display())?;
        }
        None => writeln!(out, "signature: not checked, no key at {DEFAULT_KEY} or --key")?,
    }
    let bundle = Manifest::read(incoming.path()).with_context(|| format!("{} is refused", options.source))?;
    let files = bundle.manifest.referenced_files().len();
    let (name, id) = (bundle.manifest.name.clone(), bundle.id().to_owned());
    writeln!(out, "{name}@{id}: {files} files, hashes good")?;
    let current = store.current(&name)?;
    // One whose files were damaged since is installed anew.
    if current.is_some_and(|current| current.id == id) && Manifest::read(&options.store.join(&name)).is_ok() {
        writeln!(out, "{name}@{id} is in use already")?;
        return Ok(());
    }
    let tested = self_test(&bundle, &options.runtime, progress);
    let provider = tested.with_context(|| format!("{name}@{id} failed its test and is not installed"))?;
    writeln!(out, "test: good, on {provider}")?;
    let link = store.switch(&name, &id, incoming)?;
    writeln!(
        out,
        "{name}@{id} is in use as {}; a running daemon takes it at its next start",
        link.display()
    )?;
    Ok(())
}

/// Puts the source's files into `into`.
fn fetch(source: &str, signed: bool, into: &Path) -> anyhow::Result<()> {
    if download::is_address(source) {
        return archive::unpack(download::open(source, signed)?, into).with_context(|| source.to_owned());
    }
    let path = Path::new(source);
    let kind = std::fs::metadata(path).with_context(|| format!("cannot read {source}"))?;
    if kind.is_dir() {
        return copy(path, into);
    }
    let file = File::open(path).with_context(|| format!("cannot read {source}"))?;
    archive::unpack(file, into).with_context(|| source.to_owned())
}

/// Copies the files that a directory's manifest names, and its signature.
fn copy(from: &Path, into: &Path) -> anyhow::Result<()> {
    let mut text = String::new();
    let path = from.join(MANIFEST_FILE);
    File::open(&path)
        .and_then(|file| file.take(LARGEST_MANIFEST).read_to_string(&mut text))
        .with_context(|| format!("cannot read {}", path.display()))?;
    let manifest = Manifest::parse(&text).with_context(|| path.display().to_string())?;
    std::fs::write(into.join(MANIFEST_FILE), &text)?;
    let signature = from.join(SIGNATURE_FILE).is_file().then(|| SIGNATURE_FILE.to_owned());
    for name in manifest.referenced_files().into_iter().chain(signature) {
        std::fs::copy(from.join(&name), into.join(&name))
            .with_context(|| format!("cannot copy {}", from.join(&name).display()))?;
    }
    Ok(())
}

/// Opens the model as the daemon will and runs the built-in pictures through it; returns the provider.
///
/// Outputs of a wrong shape and values that are not finite are refused by the pipeline itself.
fn self_test(bundle: &Bundle, runtime: &RuntimeOptions, progress: &dyn Progress) -> anyhow::Result<String> {
    let mut pipeline = Pipeline::open_watched(&bundle.dir, runtime, progress)?;
    let asked = PROBES.map(QuerySpec::from_text);
    pipeline.set_queries(&asked)?;
    let frames = sample_frames(0)?;
    let mut best = Vec::new();
    for named in &frames {
        let found = pipeline.run(&named.frame)?;
        best.push(found.best);
    }
    let differ = best.iter().any(|scores| scores != &best[0]);
    ensure!(
        differ,
        "{} different pictures got the same scores: the model does not look at its input",
        frames.len()
    );
    Ok(pipeline.provider().to_owned())
}
