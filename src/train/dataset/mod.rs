//! Photos with words and masks, from WebDataset tars and from folders in published layouts ([`layout`]).
//!
//! A tar holds samples as neighbouring members: `KEY.jpg` and, each optional, `KEY.json` ([`SampleInfo`]), `KEY.txt`
//! (one caption), `KEY.mask.png` (8-bit class index per pixel) and `KEY.seg.png` (segment id per pixel). `classes.json`
//! beside the tars names the indices: 0 is unlabelled, 1 background.
//!
//! A tar may also be one of SA-1B, whose JSON has the segments of its photo.
//!
//! What stays in memory is words and where each picture is, in its tar or in its folder: pictures are read and decoded on
//! demand, so a collection may be larger than memory, and every process of a run reads what it shows alone. A sample that
//! cannot be used is skipped, counted and named; a tar that ends early is an error, because nobody can tell what it lacks.

pub mod augment;
mod indexed;
pub mod layout;
pub mod names;
pub mod paste;
mod raw;
mod sample;
mod shape;
mod shard;

use std::path::{Path, PathBuf};

use rand::seq::SliceRandom as _;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng as _;
use sha2::{Digest as _, Sha256};

pub use indexed::IndexTable;
pub use layout::{Layout, Purpose};
pub use raw::{MaskSource, RawSample, SegmentSource, Stored};
pub use sample::{ClassMask, ClassNames, Photo, Sample, SampleInfo, Segments};
pub use shape::{Outline, Shape};
pub use shard::{read_shard, read_shard_file};

/// Why samples could not be read.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// A pattern is not a path or a glob.
    #[error("data pattern {pattern:?}: {reason}; expected a tar file or a glob such as data/train-*.tar")]
    Pattern {
        /// The pattern as given.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A pattern names no file.
    #[error("data pattern {pattern:?} matches no file")]
    NoTar {
        /// The pattern as given.
        pattern: String,
    },
    /// A file could not be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// A tar stops in the middle.
    #[error("{path}: tar ends early, after {complete} complete members (last: {last:?}); copy the file again")]
    Truncated {
        /// The tar.
        path: PathBuf,
        /// Members read completely.
        complete: usize,
        /// Name of the last complete member, empty if there is none.
        last: String,
    },
    /// Masks without a usable table of names.
    #[error("{path}: {reason}; expected an object of class index to name, 0 to at most 255 without gaps")]
    ClassTable {
        /// The `classes.json`.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Two folders number the classes differently.
    #[error("{first} and {second} name classes differently; open them as two datasets")]
    ClassTablesDiffer {
        /// One `classes.json`.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// One sample cannot be used.
    #[error("sample {key:?} in {origin}: {part}: {reason}")]
    Corrupt {
        /// Key of the sample.
        key: String,
        /// The tar, folder or list that holds it.
        origin: PathBuf,
        /// What is at fault: the extension of a member, a key of a list.
        part: String,
        /// What was found and what was expected.
        reason: String,
    },
    /// A folder that is none of the known layouts.
    #[error("{folder}: not recognised as a data set; expected tars, or one of: {known}; name it with --layout NAME")]
    Unrecognised {
        /// The folder.
        folder: PathBuf,
        /// Layouts and what each looks like.
        known: String,
    },
    /// A file or folder of a layout that is missing or cannot be used.
    #[error("{path}: {reason}")]
    Layout {
        /// The file or folder.
        path: PathBuf,
        /// What was found and what was expected.
        reason: String,
    },
    /// An index past the end.
    #[error("sample {index} asked for, the dataset has {len}")]
    OutOfRange {
        /// The index.
        index: usize,
        /// Number of samples.
        len: usize,
    },
}

/// A part of the data, decided by the key alone, so that no file order or seed can move a photo across.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// Nine tenths.
    Train,
    /// One tenth, never trained on.
    Validation,
}

/// The part that a key belongs to: validation if the first 8 bytes of its SHA-256, big-endian, divide by 10.
#[must_use]
pub fn split(key: &str) -> Split {
    let digest = Sha256::digest(key.as_bytes());
    let head = u64::from_be_bytes(digest[..8].try_into().expect("a SHA-256 has 32 bytes"));
    if head % 10 == 0 {
        Split::Validation
    } else {
        Split::Train
    }
}

/// Most bytes of tars that a fingerprint reads.
const FINGERPRINTED_BYTES: u64 = 2 << 30;

/// All samples of some tars and folders, in file order.
#[derive(Debug)]
pub struct Dataset {
    samples: Vec<RawSample>,
    names: ClassNames,
    skipped: Vec<DatasetError>,
}

impl Dataset {
    /// Reads every tar that the patterns (paths or globs) name, in order of pattern, then path.
    ///
    /// Reads words only: a picture that is damaged is found by [`Dataset::get`] or [`Dataset::skip_corrupt`].
    ///
    /// # Errors
    /// [`DatasetError`] for a pattern without files, an unreadable or truncated tar and missing class names; single
    /// bad samples land in [`Dataset::skipped`].
    pub fn open<P: AsRef<str>>(patterns: &[P]) -> Result<Self, DatasetError> {
        Self::open_as(patterns, None, Purpose::Measuring)
    }

    /// As [`Dataset::open`]; a pattern may also be a folder in one of the published layouts ([`layout`]), which is
    /// recognised by what is in it unless `layout` names it; `purpose` decides its set unless the pattern does.
    ///
    /// # Errors
    /// As [`Dataset::open`]; [`DatasetError::Unrecognised`] and [`DatasetError::Layout`] for folders.
    pub fn open_as<P: AsRef<str>>(
        patterns: &[P],
        layout: Option<Layout>,
        purpose: Purpose,
    ) -> Result<Self, DatasetError> {
        let mut dataset = Self {
            samples: Vec::new(),
            names: ClassNames::default(),
            skipped: Vec::new(),
        };
        let mut table: Option<PathBuf> = None;
        for pattern in patterns {
            if let Some(folder) = layout::Folder::of(pattern.as_ref()) {
                let found = layout::open(&folder, layout, purpose)?;
                if !found.names.is_empty() {
                    dataset.add_names(found.names, folder.path, &mut table)?;
                }
                dataset.samples.extend(found.samples);
                dataset.skipped.extend(found.skipped);
                continue;
            }
            for tar in expand(pattern.as_ref())? {
                let mut has_masks = false;
                read_shard_file(&tar, |sample| match sample {
                    Ok(sample) => {
                        has_masks |= sample.mask.is_some();
                        dataset.samples.push(sample);
                    }
                    Err(error) => dataset.skipped.push(error),
                })?;
                let path = tar.parent().unwrap_or(Path::new(".")).join("classes.json");
                if table.as_ref() != Some(&path) && (has_masks || path.exists()) {
                    let names = ClassNames::read(&path)?;
                    dataset.add_names(names, path, &mut table)?;
                }
            }
        }
        Ok(dataset)
    }

    /// Takes a class table; a second one has to be the same.
    fn add_names(&mut self, names: ClassNames, path: PathBuf, table: &mut Option<PathBuf>) -> Result<(), DatasetError> {
        if let Some(first) = table.take().filter(|_| names != self.names) {
            return Err(DatasetError::ClassTablesDiffer { first, second: path });
        }
        (self.names, *table) = (names, Some(path));
        Ok(())
    }

    /// Number of samples.
    #[must_use]
    pub fn len(&self) -> usize {
        self.samples.len()
    }

    /// Whether there is no sample.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }

    /// Names of the class indices; empty without masks.
    #[must_use]
    pub fn names(&self) -> &ClassNames {
        &self.names
    }

    /// The samples left out so far, each with its reason.
    #[must_use]
    pub fn skipped(&self) -> &[DatasetError] {
        &self.skipped
    }

    /// The samples as they are stored: keys, words and where their pictures are.
    #[must_use]
    pub fn samples(&self) -> &[RawSample] {
        &self.samples
    }

    /// Decodes one sample.
    ///
    /// # Errors
    /// [`DatasetError::OutOfRange`], or [`DatasetError::Corrupt`] for damaged pictures and unknown class indices.
    pub fn get(&self, index: usize) -> Result<Sample, DatasetError> {
        let raw = self.samples.get(index).ok_or(DatasetError::OutOfRange {
            index,
            len: self.samples.len(),
        })?;
        raw.decode(&self.names)
    }

    /// Decodes everything once, on all cores, and moves what fails to [`Dataset::skipped`]. Returns how many.
    pub fn skip_corrupt(&mut self) -> usize {
        use rayon::prelude::*;
        let before = self.skipped.len();
        let verdicts: Vec<_> = self
            .samples
            .par_iter()
            .map(|raw| raw.decode(&self.names).err())
            .collect();
        let mut verdicts = verdicts.into_iter();
        let skipped = &mut self.skipped;
        self.samples.retain(|_| match verdicts.next().flatten() {
            Some(error) => {
                skipped.push(error);
                false
            }
            None => true,
        });
        self.skipped.len() - before
    }

    /// Indices of one part, in file order.
    #[must_use]
    pub fn indices(&self, part: Split) -> Vec<usize> {
        (0..self.samples.len())
            .filter(|&index| split(&self.samples[index].key) == part)
            .collect()
    }

    /// SHA-256 over keys, words and bytes of all samples in order and the table of names, as 64 hexadecimal digits; a checkpoint
    /// stores it. Of pictures in folders it takes names and lengths in place of the bytes, of tars of more than 2 GiB in all
    /// the lengths.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let mut hasher = Sha256::new();
        let read = self.samples.iter().map(RawSample::member_bytes).sum::<u64>() <= FINGERPRINTED_BYTES;
        for raw in &self.samples {
            let words = format!("{:?}", raw.info);
            let photo = raw.photo.identity(read);
            let mask = raw.mask.as_ref().map_or(Vec::new(), |mask| mask.identity(read));
            let segments = raw.segments.as_ref().map_or(Vec::new(), |s| s.identity(read));
            for part in [raw.key.as_bytes(), words.as_bytes(), &photo, &mask, &segments] {
                hasher.update((part.len() as u64).to_be_bytes());
                hasher.update(part);
            }
        }
        for name in self.names.iter() {
            hasher.update((name.len() as u64).to_be_bytes());
            hasher.update(name);
        }
        hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The given indices in the order of one epoch: a shuffle that depends on `seed` and `epoch` only.
#[must_use]
pub fn epoch_order(indices: &[usize], seed: u64, epoch: u64) -> Vec<usize> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(epoch);
    let mut order = indices.to_vec();
    order.shuffle(&mut rng);
    order
}

/// Paths that a pattern names, in alphabetical order.
fn expand(pattern: &str) -> Result<Vec<PathBuf>, DatasetError> {
    let bad = |reason: String| DatasetError::Pattern {
        pattern: pattern.into(),
        reason,
    };
    if Path::new(pattern).is_file() {
        return Ok(vec![pattern.into()]);
    }
    let mut paths = Vec::new();
    for path in glob::glob(pattern).map_err(|error| bad(error.to_string()))? {
        let path = path.map_err(|error| bad(error.to_string()))?;
        if path.is_dir() {
            return Err(bad(format!("{} is a folder", path.display())));
        }
        paths.push(path);
    }
    if paths.is_empty() {
        return Err(DatasetError::NoTar {
            pattern: pattern.into(),
        });
    }
    Ok(paths)
}

#[cfg(test)]
pub(in crate::train) mod tests {
    use super::shard::tests::tar_of;
    pub(in crate::train) use super::shard::tests::{grey_png, jpeg};
    use super::*;

    /// A tar of these members, with its classes; and the pattern that opens it.
    pub(in crate::train) fn folder(members: &[(&str, Vec<u8>)]) -> (tempfile::TempDir, String) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("train-0000.tar"), tar_of(members)).unwrap();
        std::fs::write(
            dir.path().join("classes.json"),
            r#"{"0":"unlabelled","1":"background","2":"cat"}"#,
        )
        .unwrap();
        let pattern = format!("{}/train-*.tar", dir.path().display());
        (dir, pattern)
    }

    /// A key that [`split`] puts into `part`.
    pub(in crate::train) fn key_of(part: Split) -> String {
        let mut keys = (0..).map(|n| format!("p{n}"));
        keys.find(|key| split(key) == part).expect("both parts have keys")
    }

    #[test]
    fn open_reads_photos_masks_and_words() {
        let info =
            br#"{"classes":["cat"],"vocab":["cat","dog"],"labels":["tabby"],"captions":["a cat ."],"source":"x"}"#;
        let (_dir, pattern) = folder(&[
            ("a.jpg", jpeg(13, 7)),
            ("a.json", info.to_vec()),
            ("a.mask.png", grey_png(13, 7, 2)),
            ("a.seg.png", grey_png(13, 7, 9)),
            ("sub/b.jpg", jpeg(5, 9)),
            ("sub/b.txt", b"two words\n".to_vec()),
        ]);
        let dataset = Dataset::open(&[pattern]).unwrap();
        assert_eq!((dataset.len(), dataset.skipped().len()), (2, 0));
        let a = dataset.get(0).unwrap();
        assert_eq!((a.key.as_str(), a.photo.width, a.photo.height), ("a", 13, 7));
        assert_eq!(a.mask.unwrap().classes, vec![2; 91]);
        assert_eq!(a.segments.unwrap().ids, vec![9; 91]);
        assert_eq!(
            (a.info.labels, a.info.captions),
            (vec!["tabby".to_owned()], vec!["a cat .".to_owned()])
        );
        let b = dataset.get(1).unwrap();
        assert_eq!(
            (b.key.as_str(), b.info.captions),
            ("sub/b", vec!["two words".to_owned()])
        );
        assert!(matches!(
            dataset.get(2),
            Err(DatasetError::OutOfRange { index: 2, len: 2 })
        ));
    }

    #[test]
    fn corrupt_samples_are_skipped_and_named() {
        let mut cut = jpeg(64, 64);
        cut.truncate(cut.len() / 2);
        let (_dir, pattern) = folder(&[
            ("small.jpg", jpeg(8, 8)),
            ("small.mask.png", grey_png(8, 7, 1)),
            ("json.jpg", jpeg(8, 8)),
            ("json.json", b"{".to_vec()),
            ("blind.mask.png", grey_png(8, 8, 1)),
            ("class.jpg", jpeg(8, 8)),
            ("class.mask.png", grey_png(8, 8, 3)),
            ("cut.jpg", cut),
            ("good.jpg", jpeg(8, 8)),
        ]);
        let mut dataset = Dataset::open(&[pattern]).unwrap();
        let text = |dataset: &Dataset| dataset.skipped().iter().map(ToString::to_string).collect::<Vec<_>>();
        let skipped = text(&dataset);
        assert_eq!(skipped.len(), 2, "{skipped:?}");
        assert!(skipped[0].contains("\"json\""));
        assert!(skipped[1].contains("\"blind\""));
        assert_eq!(dataset.skip_corrupt(), 3);
        let skipped = text(&dataset);
        for (found, expected) in skipped[2..].iter().zip([
            ["\"small\"", "mask.png: is 8x7, its photo is 8x8"],
            ["\"class\"", "index 3"],
            ["\"cut\"", "end marker"],
        ]) {
            assert!(expected.iter().all(|part| found.contains(part)), "{found}");
        }
        assert_eq!((dataset.len(), dataset.samples()[0].key.as_str()), (1, "good"));
    }

    #[test]
    fn a_tar_cut_anywhere_is_one_clear_error() {
        let whole = tar_of(&[("a.jpg", jpeg(32, 32)), ("b.jpg", jpeg(32, 32))]);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cut.tar");
        for keep in [100, 512, 600, 1024, whole.len() / 2, whole.len() - 1024] {
            std::fs::write(&path, &whole[..keep]).unwrap();
            let error = Dataset::open(&[path.to_str().unwrap()]).unwrap_err();
            assert!(matches!(error, DatasetError::Truncated { .. }), "{keep}: {error}");
        }
        std::fs::write(&path, &whole).unwrap();
        assert_eq!(Dataset::open(&[path.to_str().unwrap()]).unwrap().len(), 2);
    }

    #[test]
    fn a_pattern_without_files_and_masks_without_names_are_refused() {
        assert!(matches!(
            Dataset::open(&["/nonexistent/*.tar"]),
            Err(DatasetError::NoTar { .. })
        ));
        let (dir, pattern) = folder(&[("a.jpg", jpeg(4, 4)), ("a.mask.png", grey_png(4, 4, 1))]);
        let table = dir.path().join("classes.json");
        for bad in ["[", r#"{"0":"unlabelled","2":"cat"}"#, r#"{"zero":"x"}"#] {
            std::fs::write(&table, bad).unwrap();
            assert!(
                matches!(Dataset::open(&[&pattern]), Err(DatasetError::ClassTable { .. })),
                "{bad}"
            );
        }
        std::fs::remove_file(&table).unwrap();
        assert!(Dataset::open(&[&pattern]).is_err());
    }

    #[test]
    fn the_split_depends_on_the_key_alone() {
        // reference: python3 -c "import hashlib; int.from_bytes(hashlib.sha256(b'KEY').digest()[:8], 'big') % 10"
        let validation = (0..1000)
            .filter(|i| split(&format!("photo_{i}")) == Split::Validation)
            .count();
        assert_eq!(validation, 104);
        assert_eq!((split("a"), split("ccp_0886")), (Split::Validation, Split::Train));
    }

    #[test]
    fn an_epoch_order_is_a_permutation_that_seed_and_epoch_decide() {
        let indices: Vec<usize> = (10..47).collect();
        let order = epoch_order(&indices, 3, 1);
        assert_eq!(order, epoch_order(&indices, 3, 1));
        assert_ne!(order, epoch_order(&indices, 3, 2));
        assert_ne!(order, epoch_order(&indices, 4, 1));
        let mut sorted = order;
        sorted.sort_unstable();
        assert_eq!(sorted, indices);
    }
}
