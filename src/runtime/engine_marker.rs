//! The marker of an engine folder: what the engines were built for, and what they are, byte for byte.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::contract::{BundleError, hash_file, sha256_hex, write_whole};

/// Name of the marker.
pub const MARKER: &str = "complete.toml";

/// Format of the marker.
const FORMAT: u32 = 1;

/// Ending of TensorRT's timing caches, which change with every build and decide nothing.
pub(super) const TIMING: &str = "timing";

/// What an engine depends on: if one of these changes, it must be built again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineKey {
    /// Hash of the bundle, hex.
    pub bundle: String,
    /// Variant of the graphs, the arithmetic TensorRT may use, and the side of the size.
    pub precision: String,
    /// GPU model, driver, board.
    pub device: String,
    /// ONNX Runtime's version and build.
    pub onnx_runtime: String,
    /// Versions of TensorRT, CUDA and cuDNN.
    pub tensorrt: String,
}

impl EngineKey {
    /// Name of the folder: the bundle readable, the rest hashed.
    #[must_use]
    pub fn folder(&self) -> String {
        let bundle = self.bundle.get(..12).unwrap_or(&self.bundle);
        format!(
            "{bundle}-{}",
            short(&[
                &self.bundle,
                &self.precision,
                &self.device,
                &self.onnx_runtime,
                &self.tensorrt
            ])
        )
    }

    /// Timing caches are good for every model on the same device and libraries.
    pub(super) fn timing(&self) -> String {
        short(&[&self.device, &self.onnx_runtime, &self.tensorrt])
    }
}

fn short(parts: &[&str]) -> String {
    let mut hash = sha256_hex(parts.join("\n").as_bytes());
    hash.truncate(16);
    hash
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Marker {
    format: u32,
    key: EngineKey,
    files: BTreeMap<String, Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    bytes: u64,
    sha256: String,
}

/// What a folder holds.
#[derive(Debug, PartialEq, Eq)]
pub enum Contents {
    /// Nothing.
    Absent,
    /// Engines that may be loaded.
    Complete,
    /// Something that must not be, and why.
    Broken(String),
}

/// Every engine file of a folder with size and hash; markers and timing caches are none.
pub(super) fn engines(folder: &Path) -> io::Result<BTreeMap<String, Entry>> {
    of_each(folder, entry_of)
}

/// Every engine file of a folder with size and time of its last change: cheap, and enough to see that one was written.
pub(super) fn stamps(folder: &Path) -> io::Result<BTreeMap<String, (u64, SystemTime)>> {
    of_each(folder, |path| {
        let metadata = fs::metadata(path)?;
        Ok((metadata.len(), metadata.modified()?))
    })
}

fn of_each<T>(folder: &Path, look: impl Fn(&Path) -> io::Result<T>) -> io::Result<BTreeMap<String, T>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|n| n.to_str()).map(str::to_owned) else {
            return Err(io::Error::other("a file name is not text"));
        };
        if name.starts_with(MARKER) || path.extension().is_some_and(|e| e == TIMING) || !path.is_file() {
            continue;
        }
        found.insert(name, look(&path)?);
    }
    Ok(found)
}

/// The files that a folder's marker names; `None` if it cannot be read.
pub(super) fn sealed(folder: &Path) -> Option<BTreeMap<String, Entry>> {
    let marker: Marker = toml::from_str(&fs::read_to_string(folder.join(MARKER)).ok()?).ok()?;
    Some(marker.files)
}

/// Compares a folder with its marker and the key.
///
/// # Errors
/// What the system says if the folder cannot be read.
pub fn examine(folder: &Path, key: &EngineKey) -> io::Result<Contents> {
    let mut listing = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Contents::Absent),
        listing => listing?,
    };
    if listing.next().is_none() {
        return Ok(Contents::Absent);
    }
    let text = match fs::read_to_string(folder.join(MARKER)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(Contents::Broken("a build was interrupted".into()));
        }
        Err(error) => return Ok(Contents::Broken(format!("{MARKER}: {error}"))),
        Ok(text) => text,
    };
    let marker: Marker = match toml::from_str(&text) {
        Ok(marker) => marker,
        Err(error) => return Ok(Contents::Broken(format!("{MARKER}: {}", error.message()))),
    };
    if marker.format != FORMAT || marker.key != *key {
        return Ok(Contents::Broken(format!("{MARKER} was written for something else")));
    }
    let found = engines(folder)?;
    for (name, expected) in &marker.files {
        match found.get(name) {
            None => return Ok(Contents::Broken(format!("{name} is missing"))),
            Some(f) if f.bytes != expected.bytes => {
                let (found, expected) = (f.bytes, expected.bytes);
                return Ok(Contents::Broken(format!(
                    "{name} has {found} bytes, {MARKER} says {expected}"
                )));
            }
            Some(f) if f != expected => {
                return Ok(Contents::Broken(format!(
                    "{name} has another SHA-256 than {MARKER} says"
                )));
            }
            Some(_) => {}
        }
    }
    match found.keys().find(|name| !marker.files.contains_key(*name)) {
        Some(name) => Ok(Contents::Broken(format!("{name} is not in {MARKER}"))),
        None => Ok(Contents::Complete),
    }
}

/// Size and hash of one file.
fn entry_of(path: &Path) -> io::Result<Entry> {
    let bytes = fs::metadata(path)?.len();
    let sha256 = hash_file(path).map_err(|error| match error {
        BundleError::Io { source, .. } => source,
        other => io::Error::other(other),
    })?;
    Ok(Entry { bytes, sha256 })
}

/// Declares a folder complete with these files.
///
/// # Errors
/// What the system says; there is no marker then.
pub(super) fn seal(folder: &Path, key: &EngineKey, files: BTreeMap<String, Entry>) -> io::Result<()> {
    for name in files.keys() {
        File::open(folder.join(name)).and_then(|file| file.sync_all())?;
    }
    let marker = Marker {
        format: FORMAT,
        key: key.clone(),
        files,
    };
    let text = toml::to_string_pretty(&marker).map_err(io::Error::other)?;
    write_whole(&folder.join(MARKER), text.as_bytes())
}
