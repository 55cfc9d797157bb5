//! One tar, gone through once: neighbouring members with the same key become one sample.
//!
//! Words are read, pictures only found: a sample keeps where in the tar they are, so that a collection larger than memory
//! costs an index.

use std::cell::Cell;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::raw::{MAX_STORED_BYTES, MaskSource, RawSample, SegmentSource, Stored};
use super::{DatasetError, SampleInfo};

/// Name that a JSON without one of [`SampleInfo`]'s, but with annotations, is taken to come from.
const SEGMENT_ANYTHING: &str = "sa-1b";

/// Bytes of a JSON among which the annotations of SA-1B begin, behind those about the photo.
const JSON_HEAD: u64 = 1_024;

/// What a stream has shown of its end so far.
#[derive(Debug, Default)]
struct End {
    reached: Cell<bool>,
    /// Zero bytes since the last other byte; a complete tar ends with two blocks of them.
    zeros: Cell<usize>,
}

/// A reader that watches for the end of the stream.
struct Watched<R> {
    inner: R,
    end: Rc<End>,
}

impl<R: Read> Read for Watched<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(buffer)?;
        let zeros = buffer[..count].iter().rev().take_while(|&&byte| byte == 0).count();
        self.end.zeros.set(if zeros == count {
            self.end.zeros.get() + zeros
        } else {
            zeros
        });
        if count == 0 && !buffer.is_empty() {
            self.end.reached.set(true);
        }
        Ok(count)
    }
}

impl<R: Seek> Seek for Watched<R> {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        self.end.zeros.set(0);
        self.inner.seek(to)
    }
}

/// Goes through one tar from start to end and hands every sample to `take`: the sample, or [`DatasetError::Corrupt`] for
/// one that cannot be used. Samples read their pictures from `path` when they are decoded.
///
/// # Errors
/// [`DatasetError::Truncated`] if the tar stops in the middle, [`DatasetError::Io`] if it cannot be read.
pub fn read_shard(
    mut tar: impl Read + Seek,
    path: &Path,
    mut take: impl FnMut(Result<RawSample, DatasetError>),
) -> Result<(), DatasetError> {
    let path: Arc<Path> = path.into();
    let io = |source| DatasetError::Io {
        path: path.to_path_buf(),
        source,
    };
    let bytes = tar.seek(SeekFrom::End(0)).map_err(io)?;
    tar.rewind().map_err(io)?;
    let end = Rc::new(End::default());
    let mut archive = tar::Archive::new(Watched {
        inner: tar,
        end: Rc::clone(&end),
    });
    let (mut complete, mut last) = (0, String::new());
    let mut group = Group::default();
    let truncated = |complete, last: &str| DatasetError::Truncated {
        path: path.to_path_buf(),
        complete,
        last: last.into(),
    };
    let failed = |source, complete, last: &str| match end.reached.get() {
        true => truncated(complete, last),
        false => io(source),
    };
    for entry in archive.entries_with_seek().map_err(|source| failed(source, 0, ""))? {
        let mut entry = entry.map_err(|source| failed(source, complete, &last))?;
        let name = entry
            .path()
            .map_err(|source| failed(source, complete, &last))?
            .to_string_lossy()
            .into_owned();
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let (key, extension) = split_name(&name);
        if key != group.key && !group.is_empty() {
            take(std::mem::take(&mut group).finish(&path));
        }
        group.key = key.into();
        let (offset, length) = (entry.raw_file_position(), entry.size());
        if offset.checked_add(length).is_none_or(|behind| behind > bytes) {
            return Err(truncated(complete, &last));
        }
        let stored = Stored::Member {
            tar: Arc::clone(&path),
            offset,
            length,
        };
        if length > MAX_STORED_BYTES {
            let reason = format!("has {length} bytes, at most {MAX_STORED_BYTES} are accepted");
            group.fault.get_or_insert((extension.into(), reason));
        } else {
            let part = match extension.to_ascii_lowercase().as_str() {
                "json" => words(&mut entry).map(|words| match words {
                    Some(words) => Part::Words(words),
                    None => Part::Stored(stored),
                }),
                "txt" => whole(&mut entry).map(Part::Words),
                _ => Ok(Part::Stored(stored)),
            };
            group.add(extension, part.map_err(|source| failed(source, complete, &last))?);
        }
        (complete, last) = (complete + 1, name);
    }
    if end.zeros.get() < 512 {
        return Err(truncated(complete, &last));
    }
    if !group.is_empty() {
        take(group.finish(&path));
    }
    Ok(())
}

/// Opens a tar file and goes through it with [`read_shard`].
///
/// # Errors
/// As [`read_shard`].
pub fn read_shard_file(path: &Path, take: impl FnMut(Result<RawSample, DatasetError>)) -> Result<(), DatasetError> {
    let file = File::open(path).map_err(|source| DatasetError::Io {
        path: path.into(),
        source,
    })?;
    read_shard(BufReader::new(file), path, take)
}

/// All bytes of a member.
fn whole(member: &mut impl Read) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    member.read_to_end(&mut bytes).map(|_| bytes)
}

/// A JSON of words; none for one of SA-1B, which is long, and read when its sample is decoded.
fn words(member: &mut impl Read) -> std::io::Result<Option<Vec<u8>>> {
    let key = br#""annotations":"#;
    let mut bytes = whole(&mut member.take(JSON_HEAD))?;
    if bytes.windows(key.len()).any(|window| window == key) {
        return Ok(None);
    }
    member.read_to_end(&mut bytes)?;
    let annotated = serde_json::from_slice(&bytes).is_ok_and(|json: Annotated| json.annotations.is_some());
    Ok((!annotated).then_some(bytes))
}

/// A JSON that may be one of SA-1B.
#[derive(Deserialize)]
struct Annotated {
    annotations: Option<IgnoredAny>,
}

/// Splits a member name at the first dot of its last component, as WebDataset does.
fn split_name(name: &str) -> (&str, &str) {
    let file = name.rfind('/').map_or(0, |slash| slash + 1);
    match name[file..].find('.') {
        Some(dot) => (&name[..file + dot], &name[file + dot + 1..]),
        None => (name, ""),
    }
}

/// What is known of a member.
enum Part {
    /// The bytes of a text.
    Words(Vec<u8>),
    /// Where the bytes are.
    Stored(Stored),
}

/// The members of one sample.
#[derive(Default)]
struct Group {
    key: String,
    parts: Vec<(String, Part)>,
    fault: Option<(String, String)>,
}

impl Group {
    fn is_empty(&self) -> bool {
        self.parts.is_empty() && self.fault.is_none()
    }

    fn add(&mut self, extension: &str, part: Part) {
        let extension = match extension.to_ascii_lowercase().as_str() {
            "jpeg" | "png" => "jpg".to_owned(),
            other => other.to_owned(),
        };
        if self.parts.iter().any(|(known, _)| *known == extension) {
            self.fault.get_or_insert((extension, "occurs twice".into()));
        } else {
            self.parts.push((extension, part));
        }
    }

    fn take(&mut self, extension: &str) -> Option<Part> {
        let place = self.parts.iter().position(|(known, _)| known == extension)?;
        Some(self.parts.swap_remove(place).1)
    }

    fn stored(&mut self, extension: &str) -> Option<Stored> {
        match self.take(extension)? {
            Part::Stored(stored) => Some(stored),
            Part::Words(_) => None,
        }
    }

    fn finish(mut self, tar: &Arc<Path>) -> Result<RawSample, DatasetError> {
        let key = self.key.clone();
        let corrupt = |part: &str, reason: String| DatasetError::Corrupt {
            key: key.clone(),
            origin: tar.to_path_buf(),
            part: part.into(),
            reason,
        };
        if let Some((part, reason)) = self.fault.take() {
            return Err(corrupt(&part, reason));
        }
        let photo = self.stored("jpg").ok_or_else(|| corrupt("jpg", "is missing".into()))?;
        let (mut info, annotations) = match self.take("json") {
            Some(Part::Words(json)) => {
                let info = serde_json::from_slice(&json).map_err(|error| corrupt("json", error.to_string()))?;
                (info, None)
            }
            Some(Part::Stored(annotations)) => {
                let info = SampleInfo {
                    source: SEGMENT_ANYTHING.into(),
                    ..SampleInfo::default()
                };
                (info, Some(SegmentSource::SegmentAnything(annotations)))
            }
            None => (SampleInfo::default(), None),
        };
        let text = match self.take("txt") {
            Some(Part::Words(text)) => Some(String::from_utf8_lossy(&text).trim().to_owned()),
            _ => None,
        };
        for caption in [info.caption.take(), text].into_iter().flatten() {
            if !caption.is_empty() && !info.captions.contains(&caption) {
                info.captions.push(caption);
            }
        }
        let (mask, segments) = (self.stored("mask.png"), self.stored("seg.png"));
        Ok(RawSample {
            key: self.key,
            origin: Arc::clone(tar),
            info,
            photo,
            mask: mask.map(MaskSource::Png),
            segments: segments.map(SegmentSource::Png).or(annotations),
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::Cursor;

    use image::ImageFormat;
    use proptest::collection;
    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::*;

    pub(in crate::train) fn jpeg(width: u32, height: u32) -> Vec<u8> {
        let picture = image::RgbImage::from_fn(width, height, |x, y| image::Rgb([(x * 9) as u8, (y * 7) as u8, 90]));
        let mut bytes = Cursor::new(Vec::new());
        picture.write_to(&mut bytes, ImageFormat::Jpeg).unwrap();
        bytes.into_inner()
    }

    pub(in crate::train) fn grey_png(width: u32, height: u32, value: u8) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image::GrayImage::from_pixel(width, height, image::Luma([value]))
            .write_to(&mut bytes, ImageFormat::Png)
            .unwrap();
        bytes.into_inner()
    }

    pub(in crate::train) fn tar_of(members: &[(&str, Vec<u8>)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, bytes) in members {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, name, bytes.as_slice()).unwrap();
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn a_member_name_splits_at_the_first_dot_of_its_last_component() {
        assert_eq!(split_name("ccp_0886.mask.png"), ("ccp_0886", "mask.png"));
        assert_eq!(split_name("v1.0/00012.jpg"), ("v1.0/00012", "jpg"));
        assert_eq!(split_name("README"), ("README", ""));
    }

    #[test]
    fn a_stream_yields_each_sample_as_soon_as_the_next_begins() {
        let tar = tar_of(&[
            ("a.jpg", jpeg(3, 5)),
            ("a.json", b"{}".to_vec()),
            ("b.png", grey_png(3, 5, 0)),
        ]);
        let mut keys = Vec::new();
        read_shard(Cursor::new(tar), Path::new("x.tar"), |sample| {
            keys.push(sample.unwrap().key)
        })
        .unwrap();
        assert_eq!(keys, ["a", "b"]);
    }

    #[test]
    fn bytes_that_are_no_tar_are_an_error() {
        let noise: Vec<u8> = (0..4096u32).map(|i| (i * 37 % 251) as u8).collect();
        let error = read_shard(Cursor::new(noise), Path::new("x.tar"), |_| ()).unwrap_err();
        assert!(error.to_string().starts_with("x.tar: "), "{error}");
    }

    #[test]
    fn a_tar_of_sa_1b_gives_segments_however_long_its_json_is() {
        use super::super::{ClassNames, Dataset};
        let code = r#"{"segmentation":{"size":[2,2],"counts":"04"}}"#;
        let published = format!(
            r#"{{"image":{{"image_id":1}},"annotations":[{code}],"more":"{}"}}"#,
            "x".repeat(5_000)
        );
        let late = format!(r#"{{"more":"{}","annotations" : [{code}]}}"#, "x".repeat(5_000));
        let said = br#"{"captions":["\"annotations\": none"]}"#.to_vec();
        let members = [
            ("./sa_1.jpg", jpeg(2, 2)),
            ("./sa_1.json", published.into_bytes()),
            ("./sa_2.jpg", jpeg(2, 2)),
            ("./sa_2.json", late.into_bytes()),
            ("./sa_3.jpg", jpeg(2, 2)),
            (
                "./sa_3.json",
                br#"{"annotations":[{"segmentation":{"size":[3,2],"counts":"04"}}]}"#.to_vec(),
            ),
            ("words.jpg", jpeg(2, 2)),
            ("words.json", said),
        ];
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sa_000000.tar");
        std::fs::write(&path, tar_of(&members)).unwrap();
        let mut dataset = Dataset::open(&[path.to_str().unwrap()]).unwrap();
        for index in [0, 1] {
            let sample = dataset.get(index).unwrap();
            assert_eq!(sample.segments.unwrap().ids, [1; 4]);
            assert_eq!(sample.info.source, "sa-1b");
        }
        let words = dataset.samples()[3].decode(&ClassNames::default()).unwrap();
        assert_eq!((words.segments, words.info.captions.len()), (None, 1));
        assert_eq!(dataset.skip_corrupt(), 1);
        let reason = dataset.skipped()[0].to_string();
        assert!(
            reason.contains("\"sa_3\"") && reason.contains("json: annotation 0: size is 2x3"),
            "{reason}"
        );
    }

    #[test]
    fn pictures_stay_in_the_tar_until_they_are_decoded() {
        use super::super::Dataset;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.tar");
        std::fs::write(&path, tar_of(&[("a.jpg", jpeg(3, 5)), ("b.jpg", jpeg(4, 2))])).unwrap();
        let dataset = Dataset::open(&[path.to_str().unwrap()]).unwrap();
        let size = |index| {
            dataset
                .get(index)
                .map(|sample| (sample.photo.width, sample.photo.height))
        };
        assert_eq!((size(0).unwrap(), size(1).unwrap()), ((3, 5), (4, 2)));
        std::fs::remove_file(&path).unwrap();
        let error = size(0).unwrap_err().to_string();
        assert!(error.contains("a.tar: No such file"), "{error}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn a_damaged_tar_is_an_error_or_samples_that_say_what_is_wrong(
            damage in collection::vec((any::<Index>(), any::<u8>()), 1..6),
            keep in any::<Index>(),
            cut in any::<bool>(),
        ) {
            use super::super::ClassNames;
            let code = br#"{"annotations":[{"segmentation":{"size":[2,2],"counts":"04"}}]}"#;
            let mut tar = tar_of(&[
                ("a.jpg", jpeg(4, 4)),
                ("a.json", br#"{"captions":["a cat"]}"#.to_vec()),
                ("sa_1.jpg", jpeg(2, 2)),
                ("sa_1.json", code.to_vec()),
                ("b.jpg", jpeg(2, 2)),
                ("b.seg.png", grey_png(2, 2, 3)),
            ]);
            for (place, value) in damage {
                let place = place.index(tar.len());
                tar[place] = value;
            }
            if cut {
                tar.truncate(keep.index(tar.len()));
            }
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("x.tar");
            std::fs::write(&path, &tar).unwrap();
            let read = read_shard_file(&path, |sample| match sample {
                Ok(sample) => {
                    if let Err(error) = sample.decode(&ClassNames::default()) {
                        assert!(error.to_string().starts_with("sample "), "{error}");
                    }
                }
                Err(error) => assert!(error.to_string().contains("x.tar"), "{error}"),
            });
            if let Err(error) = read {
                prop_assert!(error.to_string().contains("x.tar"), "{}", error);
            }
        }
    }
}
