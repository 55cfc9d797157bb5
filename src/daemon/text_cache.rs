//! Text embeddings on disk: computed once per bundle and text, so that the text encoder stays unloaded.
//!
//! ```text
//! <cache>/text/<bundle>/<text>.emb    both names are hashes
//! ```
//!
//! One small file per text: magic and version, width, numbers, SHA-256 of all that. The text's hash covers the bundle
//! and the templates too, so no entry answers for another model. Nothing here can fail a query: an entry that cannot be
//! read is computed again, a directory that cannot be written is told of once.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use sha2::{Digest, Sha256};
use tracing::{debug, warn};

use crate::contract::{Bundle, sha256_hex, write_whole};
use crate::text::templates::TEMPLATES;

/// First bytes of an entry; the last one is the version.
const MAGIC: &[u8; 8] = b"samemb\0\x01";

/// Most entries of one bundle; those not used for longest go first.
const MAX_ENTRIES: usize = 1024;

/// Most bundles; the ones whose folders were changed longest ago go first.
const MAX_BUNDLES: usize = 8;

/// The entries of one bundle.
#[derive(Debug)]
pub(super) struct TextCache {
    folder: PathBuf,
    bundle: String,
    /// False after a failure to write; what is there is still read.
    writable: bool,
}

impl TextCache {
    /// The entries of `bundle` below `cache`, the program's cache directory.
    pub(super) fn new(cache: &Path, bundle: &Bundle) -> Self {
        let folder = cache.join("text").join(bundle.hash.get(..16).unwrap_or(&bundle.hash));
        Self {
            folder,
            bundle: bundle.hash.clone(),
            writable: true,
        }
    }

    fn path(&self, text: &str) -> PathBuf {
        let templates = TEMPLATES.join("\n");
        let key = sha256_hex(format!("{}\n{templates}\n{text}", self.bundle).as_bytes());
        self.folder.join(format!("{}.emb", key.get(..32).unwrap_or(&key)))
    }

    /// The embedding of a text, if it is there and whole.
    pub(super) fn get(&self, text: &str, width: usize) -> Option<Vec<f32>> {
        let path = self.path(text);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
            Err(error) => {
                debug!(path = %path.display(), %error, "text embedding cannot be read and is computed again");
                return None;
            }
        };
        let entry = decode(&bytes, width);
        if entry.is_some() {
            // What is in use must not be the oldest; where nothing can be written, nothing is removed either.
            let opened = File::options().append(true).open(&path);
            let _ = opened.and_then(|file| file.set_modified(SystemTime::now()));
        } else {
            warn!(path = %path.display(), "text embedding is damaged and is computed again");
        }
        entry
    }

    /// Keeps an embedding, and says whether it did; after the first failure nothing is kept any more.
    pub(super) fn put(&mut self, text: &str, embedding: &[f32]) -> bool {
        if !self.writable {
            return false;
        }
        let (folder, path) = (&self.folder, self.path(text));
        let fresh = !folder.exists();
        let written = std::fs::create_dir_all(folder).and_then(|()| write_whole(&path, &encode(embedding)));
        if let Err(error) = written {
            warn!(path = %path.display(), %error, "text embeddings are not kept; the text encoder is loaded for each new one");
            self.writable = false;
            return false;
        }
        remove_oldest(folder, MAX_ENTRIES);
        if let (true, Some(parent)) = (fresh, folder.parent()) {
            remove_oldest(parent, MAX_BUNDLES);
        }
        true
    }
}

fn encode(embedding: &[f32]) -> Vec<u8> {
    let width = u32::try_from(embedding.len()).unwrap_or(u32::MAX);
    let mut bytes = [MAGIC.as_slice(), &width.to_le_bytes()].concat();
    bytes.extend(embedding.iter().flat_map(|v| v.to_le_bytes()));
    let sum = Sha256::digest(&bytes);
    bytes.extend_from_slice(&sum);
    bytes
}

fn decode(bytes: &[u8], width: usize) -> Option<Vec<f32>> {
    let (body, sum) = bytes.split_last_chunk::<32>()?;
    if Sha256::digest(body).as_slice() != sum {
        return None;
    }
    let rest = body.strip_prefix(MAGIC.as_slice())?;
    let (stored, numbers) = rest.split_first_chunk::<4>()?;
    if usize::try_from(u32::from_le_bytes(*stored)) != Ok(width) || numbers.len() != 4 * width {
        return None;
    }
    Some(
        numbers
            .as_chunks::<4>()
            .0
            .iter()
            .map(|b| f32::from_le_bytes(*b))
            .collect(),
    )
}

/// Removes what was changed longest ago, until `most` entries are left.
fn remove_oldest(folder: &Path, most: usize) {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<(SystemTime, PathBuf)> = entries
        .map(|entry| {
            let changed = entry.metadata().and_then(|m| m.modified());
            (changed.unwrap_or(SystemTime::UNIX_EPOCH), entry.path())
        })
        .collect();
    let surplus = found.len().saturating_sub(most);
    found.sort();
    for (_, path) in found.into_iter().take(surplus) {
        let removed = if path.is_dir() {
            std::fs::remove_dir_all(&path)
        } else {
            std::fs::remove_file(&path)
        };
        debug!(path = %path.display(), ok = removed.is_ok(), "old text embeddings removed");
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn cache(dir: &Path) -> TextCache {
        TextCache {
            folder: dir.join("text"),
            bundle: "0".repeat(64),
            writable: true,
        }
    }

    #[test]
    fn after_a_failure_to_write_what_is_there_is_still_read() {
        let dir = tempfile::tempdir().unwrap();
        let mut cache = cache(dir.path());
        assert!(cache.put("red", &[1.0]));
        // The place of the next entry is taken.
        std::fs::create_dir(cache.path("green")).unwrap();
        assert!(!cache.put("green", &[2.0]) && !cache.put("blue", &[3.0]));
        assert_eq!(cache.get("red", 1), Some(vec![1.0]));
    }

    #[test]
    fn an_entry_that_is_read_is_not_the_oldest_any_more() {
        let dir = tempfile::tempdir().unwrap();
        let mut cache = cache(dir.path());
        for (text, age) in [("daily", 9), ("once", 5)] {
            assert!(cache.put(text, &[1.0]));
            let file = File::options().append(true).open(cache.path(text)).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_hours(age))
                .unwrap();
        }
        cache.get("daily", 1).unwrap();
        remove_oldest(&cache.folder, 1);
        assert!(cache.get("daily", 1).is_some() && cache.get("once", 1).is_none());
    }

    #[test]
    fn what_was_encoded_is_read_back_and_any_changed_byte_is_noticed() {
        let bytes = encode(&[1.5, -2.0, 0.25]);
        assert_eq!(decode(&bytes, 3), Some(vec![1.5, -2.0, 0.25]));
        assert_eq!(decode(&bytes, 4), None);
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 4;
            assert_eq!(decode(&damaged, 3), None, "byte {at}");
            assert_eq!(decode(&bytes[..at], 3), None, "cut at {at}");
        }
    }

    #[test]
    fn another_version_is_not_read() {
        let mut bytes = encode(&[1.0]);
        bytes.truncate(bytes.len() - 32);
        bytes[7] = 2;
        let sum = Sha256::digest(&bytes);
        bytes.extend_from_slice(&sum);
        assert_eq!(decode(&bytes, 1), None);
    }

    #[test]
    fn the_oldest_entries_go_first() {
        let dir = tempfile::tempdir().unwrap();
        for age in 0..5u64 {
            let file = std::fs::File::create(dir.path().join(format!("{age}.emb"))).unwrap();
            let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000 - age);
            file.set_modified(time).unwrap();
        }
        remove_oldest(dir.path(), 2);
        let mut left: Vec<_> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["0.emb", "1.emb"]);
    }
}
