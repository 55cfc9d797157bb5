//! Drawn scenes as a WebDataset tar, the form that photos come in.

use std::collections::BTreeMap;
use std::io::{BufWriter, Cursor, Write};
use std::path::{Path, PathBuf};

use image::{ExtendedColorType, ImageEncoder, ImageError, codecs::jpeg::JpegEncoder, codecs::png::PngEncoder};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{draw, names};
use crate::contract::{write_whole, write_whole_with};
use crate::train::dataset::{ClassNames, DatasetError};

/// Why a shard could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ShardError {
    /// The tar cannot be written.
    #[error("shard: {0}")]
    Io(#[from] std::io::Error),
    /// A file cannot be written.
    #[error("cannot write {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The folder's table of names cannot be read.
    #[error(transparent)]
    Names(#[from] DatasetError),
    /// The folder's masks are of other names.
    #[error(
        "{path}: holds other names than drawn scenes have, and one table serves all tars of a folder; write the scenes into another \
         folder (train run takes tars of several)"
    )]
    OtherNames {
        /// The table.
        path: PathBuf,
    },
    /// A picture cannot be encoded.
    #[error("scene {key}: {source}")]
    Picture {
        /// The scene.
        key: String,
        /// The cause.
        source: ImageError,
    },
}

/// Writes scenes `first..first + count` of `seed` to a tar, all of it: `KEY.jpg`, `KEY.json`, `KEY.mask.png`, each `side` pixels.
///
/// # Errors
/// [`ShardError`] if the tar cannot be written.
pub fn write(out: impl Write, seed: u64, first: u64, count: u64, side: usize) -> Result<(), ShardError> {
    let mut tar = tar::Builder::new(out);
    for index in first..first + count {
        let scene = draw(scene_seed(seed, index), side);
        let key = format!("synth_{seed}_{index:06}");
        let (width, height) = (scene.photo.width as u32, scene.photo.height as u32);
        let wrong = |source| ShardError::Picture {
            key: key.clone(),
            source,
        };
        let mut jpeg = Vec::new();
        JpegEncoder::new_with_quality(&mut jpeg, 90)
            .write_image(&scene.photo.rgb, width, height, ExtendedColorType::Rgb8)
            .map_err(wrong)?;
        append(&mut tar, &format!("{key}.jpg"), &jpeg)?;
        let info = serde_json::json!({
            "source": "synth",
            "licence": "drawn by the program, no rights reserved",
            "captions": scene.info.captions,
            "classes": scene.info.classes,
            "vocab": scene.info.vocab,
        });
        append(&mut tar, &format!("{key}.json"), info.to_string().as_bytes())?;
        if let Some(mask) = &scene.mask {
            let mut png = Cursor::new(Vec::new());
            PngEncoder::new(&mut png)
                .write_image(&mask.classes, width, height, ExtendedColorType::L8)
                .map_err(wrong)?;
            append(&mut tar, &format!("{key}.mask.png"), png.get_ref())?;
        }
    }
    tar.into_inner()?.flush()?;
    Ok(())
}

/// The seed of scene `index` of a shard: shards of neighbouring seeds have no scene in common.
fn scene_seed(seed: u64, index: u64) -> u64 {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(index);
    rng.random()
}

/// Writes scenes `0..count` of `seed` to the tar `path`, whole or not at all, and the table of their names to `classes.json` beside
/// it, whose path is returned; a table of the same names stays as it is.
///
/// # Errors
/// [`ShardError`] if either cannot be written, or there is a table of other names or none that can be read; then nothing is
/// written.
pub fn write_files(path: &Path, seed: u64, count: u64, side: usize) -> Result<PathBuf, ShardError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| ShardError::File { path, source }
    };
    let names = names();
    let table: BTreeMap<usize, &str> = names.iter().enumerate().collect();
    let json = serde_json::to_vec_pretty(&table).expect("a table of names is JSON");
    let classes = path.with_file_name("classes.json");
    let there = classes.try_exists().map_err(failed(&classes))?;
    if there && ClassNames::read(&classes)? != names {
        return Err(ShardError::OtherNames { path: classes });
    }
    let written = write_whole_with(path, |file| write(BufWriter::new(file), seed, 0, count, side));
    written.map_err(|error| match error {
        ShardError::Io(source) => failed(path)(source),
        other => other,
    })?;
    if !there {
        write_whole(&classes, &json).map_err(failed(&classes))?;
    }
    Ok(classes)
}

fn append(tar: &mut tar::Builder<impl Write>, name: &str, bytes: &[u8]) -> Result<(), std::io::Error> {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, name, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::dataset::Dataset;
    use crate::train::synth::names;

    #[test]
    fn a_shard_reads_back_with_its_masks_and_words() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("scenes-0000.tar");
        write(std::fs::File::create(&path).unwrap(), 3, 0, 4, 65).unwrap();
        let table: std::collections::BTreeMap<usize, String> = names().iter().map(str::to_owned).enumerate().collect();
        std::fs::write(folder.path().join("classes.json"), serde_json::to_vec(&table).unwrap()).unwrap();
        let dataset = Dataset::open(&[path.display().to_string()]).unwrap();
        assert_eq!(dataset.len(), 4);
        let (found, drawn) = (dataset.get(2).unwrap(), draw(scene_seed(3, 2), 65));
        assert_eq!(found.mask, drawn.mask);
        assert_eq!(found.info.captions, drawn.info.captions);
    }

    #[test]
    fn shards_of_neighbouring_seeds_share_no_scene() {
        let of = |seed| (0..50).map(move |index| scene_seed(seed, index));
        let all: std::collections::BTreeSet<u64> = (0..4).flat_map(of).collect();
        assert_eq!(all.len(), 200);
    }

    #[test]
    fn a_table_of_other_names_is_kept_and_nothing_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let (shard, classes) = (folder.path().join("synth.tar"), folder.path().join("classes.json"));
        std::fs::write(&classes, r#"{"0":"unlabelled","1":"background","2":"cat"}"#).unwrap();
        let refused = write_files(&shard, 0, 1, 65).unwrap_err();
        assert!(matches!(refused, ShardError::OtherNames { .. }), "{refused}");
        assert!(std::fs::read_to_string(&classes).unwrap().contains("cat") && !shard.exists());
        std::fs::remove_file(&classes).unwrap();
        // its own table is no obstacle, however it is written
        for seed in [0, 1] {
            write_files(&shard, seed, 1, 65).unwrap();
            let table = std::fs::read_to_string(&classes).unwrap();
            std::fs::write(&classes, table.replace('\n', " ")).unwrap();
        }
    }

    /// A disk with room for so many bytes more.
    struct Disk(usize);

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let taken = bytes.len().min(self.0);
            self.0 -= taken;
            Ok(taken)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_disk_that_is_full_at_the_very_end_is_an_error_and_a_shard_before_stays() {
        let mut whole = Vec::new();
        write(&mut whole, 0, 0, 1, 65).unwrap();
        write(BufWriter::new(Disk(whole.len())), 0, 0, 1, 65).unwrap();
        write(BufWriter::new(Disk(whole.len() - 1)), 0, 0, 1, 65).unwrap_err();
        let folder = tempfile::tempdir().unwrap();
        let shard = folder.path().join("synth.tar");
        std::fs::create_dir(&shard).unwrap();
        let refused = write_files(&shard, 0, 1, 65).unwrap_err().to_string();
        assert!(refused.contains("synth.tar: "), "{refused}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
