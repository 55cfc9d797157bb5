//! What frozen networks say of a stage's pictures, kept on disk.
//!
//! In stage 1 the backbone is frozen (paper section 3). With `repeat` in `[probe]` its batches come again, so the backbone and
//! the CLIP teacher look at each picture once, and every step trains the CLIP head alone. One `.safetensors` file per
//! micro-batch, values as `f32`: training from them ends with the very weights of training without.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::contract::sha256_hex;
use crate::train::weights::{self, Values, Weights, WeightsError};

/// Names in a file.
const TOKENS: &str = "tokens";
const TEACHER: &str = "teacher";

/// Metadata: what the values were made from.
const ORIGIN: &str = "origin";

/// What stage 1 needs of a micro-batch beside its names.
#[derive(Clone, Debug, PartialEq)]
pub struct Features {
    /// `[B, h, w, E]`: backbone tokens as the CLIP head takes them, pooled where it pools.
    pub tokens: Values,
    /// `[B, D]`: image embeddings of the CLIP teacher, unit norm.
    pub teacher: Values,
}

/// A folder of features of one stage.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    origin: String,
}

/// The features of a stage cannot be kept.
#[derive(Debug, thiserror::Error)]
#[error("{source}; free space or make the folder writable and run again, or take `repeat` out of the recipe")]
pub struct StoreError {
    /// The cause, with the file.
    source: WeightsError,
}

impl Store {
    /// A store in `folder`, made if it is missing, of features made from `origin`: recipe, photos and teachers in words.
    /// Files of another origin count as missing.
    ///
    /// # Errors
    /// [`StoreError`] if the folder cannot be made.
    pub fn open(folder: &Path, origin: &str) -> Result<Self, StoreError> {
        std::fs::create_dir_all(folder).map_err(|source| StoreError {
            source: WeightsError::Io {
                path: folder.into(),
                source,
            },
        })?;
        Ok(Self {
            folder: folder.into(),
            origin: sha256_hex(origin.as_bytes()),
        })
    }

    fn path(&self, step: u64, index: usize) -> PathBuf {
        self.folder.join(format!("{step:06}-{index:03}.safetensors"))
    }

    /// Whether micro-batch `index` of `step` is here, by the header of its file.
    #[must_use]
    pub fn has(&self, step: u64, index: usize) -> bool {
        weights::read_metadata(&self.path(step, index)).is_ok_and(|found| found.get(ORIGIN) == Some(&self.origin))
    }

    /// Features of micro-batch `index` of `step`, if they are here and whole.
    #[must_use]
    pub fn get(&self, step: u64, index: usize) -> Option<Features> {
        if !self.has(step, index) {
            return None;
        }
        let path = self.path(step, index);
        let mut found = weights::read(&path)
            .inspect_err(|error| tracing::warn!(%error, "features are computed again"))
            .ok()?;
        Some(Features {
            tokens: found.remove(TOKENS)?,
            teacher: found.remove(TEACHER)?,
        })
    }

    /// Keeps features of micro-batch `index` of `step`; a kill leaves the old file or the new one.
    ///
    /// # Errors
    /// [`StoreError`] if they cannot be written.
    pub fn put(&self, step: u64, index: usize, features: Features) -> Result<(), StoreError> {
        let Features { tokens, teacher } = features;
        let values = Weights::from([(TOKENS.to_owned(), tokens), (TEACHER.to_owned(), teacher)]);
        let metadata = BTreeMap::from([(ORIGIN.to_owned(), self.origin.clone())]);
        weights::write(&self.path(step, index), &values, &metadata).map_err(|source| StoreError { source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn features(value: f32) -> Features {
        let values = |shape: &[usize]| Values {
            shape: shape.to_vec(),
            data: vec![value; shape.iter().product()],
        };
        Features {
            tokens: values(&[2, 3, 3, 4]),
            teacher: values(&[2, 5]),
        }
    }

    #[test]
    fn features_come_back_as_they_were_and_for_their_own_run_alone() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("features"), "seed = 1").unwrap();
        assert_eq!((store.has(7, 0), store.get(7, 0)), (false, None));
        store.put(7, 0, features(0.1)).unwrap();
        store.put(7, 1, features(0.2)).unwrap();
        assert_eq!(store.get(7, 0), Some(features(0.1)));
        assert_eq!(store.get(7, 1), Some(features(0.2)));
        let other = Store::open(&folder.path().join("features"), "seed = 2").unwrap();
        assert_eq!((other.has(7, 0), other.get(7, 0)), (false, None));
    }

    #[test]
    fn a_file_that_was_cut_short_counts_as_missing() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), "").unwrap();
        store.put(0, 0, features(0.1)).unwrap();
        let path = store.path(0, 0);
        let bytes = std::fs::read(&path).unwrap();
        for length in [0, 7, 60, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..length]).unwrap();
            assert_eq!((store.has(0, 0), store.get(0, 0)), (false, None), "{length} bytes");
        }
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_one_error_with_a_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let error = Store::open(&file.join("features"), "").unwrap_err().to_string();
        assert!(
            error.contains("file/features: ") && error.contains("take `repeat` out"),
            "{error}"
        );
    }
}
