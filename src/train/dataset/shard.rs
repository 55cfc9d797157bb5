//! One tar, read as a stream: neighbouring members with the same key become one sample.

use std::cell::Cell;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;
use std::rc::Rc;

use super::raw::{MaskSource, RawSample, SegmentSource, Stored};
use super::{DatasetError, SampleInfo};

/// Largest accepted member; a larger one is damage or a trap, not a training photo.
const MAX_MEMBER_BYTES: u64 = 64 << 20;

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

/// Reads one tar from start to end and hands every sample to `take`: the sample, or [`DatasetError::Corrupt`] for one
/// that cannot be used. `path` is for messages only.
///
/// # Errors
/// [`DatasetError::Truncated`] if the tar stops in the middle, [`DatasetError::Io`] if it cannot be read.
pub fn read_shard(
    tar: impl Read,
    path: &Path,
    mut take: impl FnMut(Result<RawSample, DatasetError>),
) -> Result<(), DatasetError> {
    let end = Rc::new(End::default());
    let mut archive = tar::Archive::new(Watched {
        inner: tar,
        end: Rc::clone(&end),
    });
    let (mut complete, mut last) = (0, String::new());
    let mut group = Group::default();
    let truncated = |complete, last: &str| DatasetError::Truncated {
        path: path.into(),
        complete,
        last: last.into(),
    };
    let failed = |source, complete, last: &str| match end.reached.get() {
        true => truncated(complete, last),
        false => DatasetError::Io {
            path: path.into(),
            source,
        },
    };
    for entry in archive.entries().map_err(|source| failed(source, 0, ""))? {
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
            take(std::mem::take(&mut group).finish(path));
        }
        group.key = key.into();
        let size = entry.size();
        if size > MAX_MEMBER_BYTES {
            let reason = format!("has {size} bytes, at most {MAX_MEMBER_BYTES} are accepted");
            group.fault.get_or_insert((extension.into(), reason));
        } else {
            let mut bytes = Vec::new();
            entry
                .read_to_end(&mut bytes)
                .map_err(|source| failed(source, complete, &last))?;
            if bytes.len() as u64 != size {
                return Err(truncated(complete, &last));
            }
            group.add(extension, bytes);
        }
        (complete, last) = (complete + 1, name);
    }
    if end.zeros.get() < 512 {
        return Err(truncated(complete, &last));
    }
    if !group.is_empty() {
        take(group.finish(path));
    }
    Ok(())
}

/// Opens a tar file and reads it with [`read_shard`].
///
/// # Errors
/// As [`read_shard`].
pub fn read_shard_file(path: &Path, take: impl FnMut(Result<RawSample, DatasetError>)) -> Result<(), DatasetError> {
    let file = File::open(path).map_err(|source| DatasetError::Io {
        path: path.into(),
        source,
    })?;
    read_shard(BufReader::with_capacity(1 << 18, file), path, take)
}

/// Splits a member name at the first dot of its last component, as WebDataset does.
fn split_name(name: &str) -> (&str, &str) {
    let file = name.rfind('/').map_or(0, |slash| slash + 1);
    match name[file..].find('.') {
        Some(dot) => (&name[..file + dot], &name[file + dot + 1..]),
        None => (name, ""),
    }
}

/// The members of one sample.
#[derive(Default)]
struct Group {
    key: String,
    parts: Vec<(String, Vec<u8>)>,
    fault: Option<(String, String)>,
}

impl Group {
    fn is_empty(&self) -> bool {
        self.parts.is_empty() && self.fault.is_none()
    }

    fn add(&mut self, extension: &str, bytes: Vec<u8>) {
        let extension = match extension.to_ascii_lowercase().as_str() {
            "jpeg" | "png" => "jpg".to_owned(),
            other => other.to_owned(),
        };
        if self.parts.iter().any(|(known, _)| *known == extension) {
            self.fault.get_or_insert((extension, "occurs twice".into()));
        } else {
            self.parts.push((extension, bytes));
        }
    }

    fn take(&mut self, extension: &str) -> Option<Vec<u8>> {
        let place = self.parts.iter().position(|(known, _)| known == extension)?;
        Some(self.parts.swap_remove(place).1)
    }

    fn finish(mut self, tar: &Path) -> Result<RawSample, DatasetError> {
        let key = self.key.clone();
        let corrupt = |part: &str, reason: String| DatasetError::Corrupt {
            key: key.clone(),
            origin: tar.into(),
            part: part.into(),
            reason,
        };
        if let Some((part, reason)) = self.fault.take() {
            return Err(corrupt(&part, reason));
        }
        let photo = self.take("jpg").ok_or_else(|| corrupt("jpg", "is missing".into()))?;
        let mut info: SampleInfo = match self.take("json") {
            Some(json) => serde_json::from_slice(&json).map_err(|error| corrupt("json", error.to_string()))?,
            None => SampleInfo::default(),
        };
        let text = self
            .take("txt")
            .map(|text| String::from_utf8_lossy(&text).trim().to_owned());
        for caption in [info.caption.take(), text].into_iter().flatten() {
            if !caption.is_empty() && !info.captions.contains(&caption) {
                info.captions.push(caption);
            }
        }
        let (mask, segments) = (self.take("mask.png"), self.take("seg.png"));
        let sample = RawSample {
            key: self.key,
            origin: tar.into(),
            info,
            photo: Stored::Bytes(photo),
            mask: mask.map(|bytes| MaskSource::Png(Stored::Bytes(bytes))),
            segments: segments.map(|bytes| SegmentSource::Png(Stored::Bytes(bytes))),
        };
        sample.check_headers().map(|()| sample)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::Cursor;

    use image::ImageFormat;

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
        read_shard(tar.as_slice(), Path::new("x.tar"), |sample| {
            keys.push(sample.unwrap().key)
        })
        .unwrap();
        assert_eq!(keys, ["a", "b"]);
    }

    #[test]
    fn bytes_that_are_no_tar_are_an_error() {
        let noise: Vec<u8> = (0..4096u32).map(|i| (i * 37 % 251) as u8).collect();
        let error = read_shard(noise.as_slice(), Path::new("x.tar"), |_| ()).unwrap_err();
        assert!(error.to_string().starts_with("x.tar: "), "{error}");
    }
}
