//! A sample as it is stored, and its decoding.

use std::fs::File;
use std::io::{Cursor, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image::{DynamicImage, ImageFormat, ImageReader};

use super::indexed::{self, IndexTable};
use super::shape::{self, Shape};
use super::{ClassMask, ClassNames, DatasetError, Photo, Sample, SampleInfo, Segments};

/// Largest accepted picture side in pixels.
const MAX_SIDE: u32 = 16_384;

/// Largest accepted file or member of a tar; a larger one is damage or a trap, not a training photo.
pub(super) const MAX_STORED_BYTES: u64 = 64 << 20;

/// Bytes at the end of a JPEG among which its end marker has to be; some cameras append a few.
const JPEG_TAIL: usize = 4_096;

/// Where the bytes of a picture or a list are; they are read when the sample is decoded.
#[derive(Debug, Clone)]
pub enum Stored {
    /// In a tar.
    Member {
        /// The tar.
        tar: Arc<Path>,
        /// First byte.
        offset: u64,
        /// Number of bytes.
        length: u64,
    },
    /// In a file of its own.
    File(PathBuf),
}

impl Stored {
    /// The bytes, or what is wrong with the file.
    pub(super) fn read(&self) -> Result<Vec<u8>, String> {
        let path: &Path = match self {
            Self::Member { tar, .. } => tar,
            Self::File(path) => path,
        };
        let wrong = |error: std::io::Error| format!("{}: {error}", path.display());
        let mut file = File::open(path).map_err(wrong)?;
        let length = match self {
            Self::Member { offset, length, .. } => {
                file.seek(SeekFrom::Start(*offset)).map_err(wrong)?;
                *length
            }
            Self::File(_) => file.metadata().map_err(wrong)?.len(),
        };
        if length > MAX_STORED_BYTES {
            return Err(format!(
                "{} has {length} bytes, at most {MAX_STORED_BYTES} are accepted",
                path.display()
            ));
        }
        let mut bytes = Vec::new();
        file.take(length).read_to_end(&mut bytes).map_err(wrong)?;
        Ok(bytes)
    }

    /// What a fingerprint takes of it: name and length of the file; the member's bytes where they are to be read and can be, else
    /// its length.
    pub(super) fn identity(&self, read: bool) -> Vec<u8> {
        let known = match self {
            Self::Member { length, .. } => length.to_be_bytes().to_vec(),
            Self::File(path) => {
                let length = std::fs::metadata(path).map_or(0, |m| m.len());
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                return format!("{name} {length}").into_bytes();
            }
        };
        match read {
            true => self.read().unwrap_or(known),
            false => known,
        }
    }

    /// Bytes of a member of a tar, 0 for a file.
    fn member_bytes(&self) -> u64 {
        match self {
            Self::Member { length, .. } => *length,
            Self::File(_) => 0,
        }
    }

    /// What a list is called in an error: its file, or its kind in a tar.
    pub(super) fn list_name(&self) -> String {
        match self {
            Self::Member { .. } => "json".into(),
            Self::File(path) => path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        }
    }
}

/// Where the class of every pixel comes from.
#[derive(Debug, Clone)]
pub enum MaskSource {
    /// 8-bit grey PNG of indices into the table.
    Png(Stored),
    /// PNG of the collection's own indices (grey or palette), and what each means in the table.
    Indexed(Stored, IndexTable),
    /// Outlines; what none covers is background.
    Shapes(Arc<[Shape]>),
}

impl MaskSource {
    /// What a fingerprint takes of it.
    pub(super) fn identity(&self, read: bool) -> Vec<u8> {
        match self {
            Self::Png(stored) | Self::Indexed(stored, _) => stored.identity(read),
            Self::Shapes(shapes) => format!("{shapes:?}").into_bytes(),
        }
    }
}

/// Where the segment of every pixel comes from.
#[derive(Debug, Clone)]
pub enum SegmentSource {
    /// 8-bit or 16-bit grey PNG of segment ids.
    Png(Stored),
    /// PNG of ids (grey or palette), 255 = none.
    Indexed(Stored),
    /// Outlines, each a segment; larger ones lie below smaller ones.
    Shapes(Arc<[Shape]>),
    /// A JSON of SA-1B: `annotations[].segmentation` as COCO RLE.
    SegmentAnything(Stored),
}

impl SegmentSource {
    /// What a fingerprint takes of it.
    pub(super) fn identity(&self, read: bool) -> Vec<u8> {
        match self {
            Self::Png(stored) | Self::Indexed(stored) | Self::SegmentAnything(stored) => stored.identity(read),
            Self::Shapes(shapes) => format!("{shapes:?}").into_bytes(),
        }
    }
}

/// A sample as it is stored.
#[derive(Debug, Clone)]
pub struct RawSample {
    /// Path of the members without extensions.
    pub key: String,
    /// The tar, folder or list it came from.
    pub origin: Arc<Path>,
    /// Words.
    pub info: SampleInfo,
    /// JPEG or PNG.
    pub photo: Stored,
    /// Class of every pixel.
    pub mask: Option<MaskSource>,
    /// Segment of every pixel.
    pub segments: Option<SegmentSource>,
}

impl RawSample {
    /// Bytes that it has in a tar.
    pub(super) fn member_bytes(&self) -> u64 {
        let mask = match &self.mask {
            Some(MaskSource::Png(stored) | MaskSource::Indexed(stored, _)) => stored.member_bytes(),
            _ => 0,
        };
        let segments = match &self.segments {
            Some(
                SegmentSource::Png(stored) | SegmentSource::Indexed(stored) | SegmentSource::SegmentAnything(stored),
            ) => stored.member_bytes(),
            _ => 0,
        };
        self.photo.member_bytes() + mask + segments
    }

    pub(super) fn corrupt(&self, part: &str, reason: impl ToString) -> DatasetError {
        DatasetError::Corrupt {
            key: self.key.clone(),
            origin: self.origin.to_path_buf(),
            part: part.into(),
            reason: reason.to_string(),
        }
    }

    fn same_size<T: PartialEq + std::fmt::Display>(
        &self,
        part: &str,
        found: (T, T),
        expected: (T, T),
    ) -> Result<(), DatasetError> {
        if found == expected {
            return Ok(());
        }
        let reason = format!("is {}x{}, its photo is {}x{}", found.0, found.1, expected.0, expected.1);
        Err(self.corrupt(part, reason))
    }

    /// Decodes all pictures. A mask without a list of the names in it gets one.
    ///
    /// # Errors
    /// [`DatasetError::Corrupt`] for damaged or missing pictures, sizes that differ, wrong pixel formats, outlines that
    /// are none and class indices without a name.
    pub fn decode(&self, names: &ClassNames) -> Result<Sample, DatasetError> {
        let rgb = self.picture("photo", &self.photo)?.into_rgb8();
        let photo = Photo {
            width: rgb.width() as usize,
            height: rgb.height() as usize,
            rgb: rgb.into_raw(),
        };
        let mask = self.mask.as_ref().map(|m| self.classes(m, &photo, names)).transpose()?;
        let segments = self.segments.as_ref().map(|s| self.ids(s, &photo)).transpose()?;
        let mut info = self.info.clone();
        if let (true, Some(mask)) = (info.classes.is_empty(), &mask) {
            let mut present = [false; 256];
            mask.classes.iter().for_each(|&c| present[usize::from(c)] = true);
            let named = (2..=u8::MAX).filter(|&c| present[usize::from(c)]);
            info.classes = named.filter_map(|c| names.name(c)).map(str::to_owned).collect();
        }
        Ok(Sample {
            key: self.key.clone(),
            photo,
            mask,
            segments,
            info,
            regions: Vec::new(),
        })
    }

    fn picture(&self, part: &str, stored: &Stored) -> Result<DynamicImage, DatasetError> {
        let bytes = stored.read().map_err(|error| self.corrupt(part, error))?;
        reader(&bytes)
            .and_then(|reader| reader.decode().map_err(|error| error.to_string()))
            .map_err(|error| self.corrupt(part, error))
    }

    fn classes(&self, source: &MaskSource, photo: &Photo, names: &ClassNames) -> Result<ClassMask, DatasetError> {
        let (width, height) = (photo.width, photo.height);
        let classes = match source {
            MaskSource::Png(stored) => match self.picture("mask.png", stored)? {
                DynamicImage::ImageLuma8(grey) => {
                    self.same_size(
                        "mask.png",
                        (grey.width() as usize, grey.height() as usize),
                        (width, height),
                    )?;
                    grey.into_raw()
                }
                other => {
                    return Err(self.corrupt("mask.png", format!("is {:?}, expected 8-bit grey", other.color())));
                }
            },
            MaskSource::Indexed(stored, table) => {
                let mut indices = self.indices("mask", stored, photo)?;
                indices.iter_mut().for_each(|i| *i = table.get(*i));
                indices
            }
            MaskSource::Shapes(shapes) => {
                shape::classes(shapes, width, height).map_err(|error| self.corrupt("segmentation", error))?
            }
        };
        let highest = classes.iter().copied().max().unwrap_or(0);
        if usize::from(highest) >= names.len() {
            let reason = format!("class index {highest} has no name, the table has {}", names.len());
            return Err(self.corrupt("mask.png", reason));
        }
        Ok(ClassMask { width, height, classes })
    }

    fn ids(&self, source: &SegmentSource, photo: &Photo) -> Result<Segments, DatasetError> {
        let (width, height) = (photo.width, photo.height);
        let ids = match source {
            SegmentSource::Png(stored) => {
                let picture = self.picture("seg.png", stored)?;
                self.same_size(
                    "seg.png",
                    (picture.width() as usize, picture.height() as usize),
                    (width, height),
                )?;
                match picture {
                    DynamicImage::ImageLuma8(grey) => grey.into_raw().into_iter().map(u16::from).collect(),
                    DynamicImage::ImageLuma16(grey) => grey.into_raw(),
                    other => {
                        let reason = format!("is {:?}, expected 8-bit or 16-bit grey", other.color());
                        return Err(self.corrupt("seg.png", reason));
                    }
                }
            }
            SegmentSource::Indexed(stored) => {
                let indices = self.indices("segments", stored, photo)?.into_iter();
                indices.map(|i| if i == u8::MAX { 0 } else { u16::from(i) }).collect()
            }
            SegmentSource::Shapes(shapes) => {
                shape::segments(shapes, width, height).map_err(|error| self.corrupt("segmentation", error))?
            }
            SegmentSource::SegmentAnything(list) => {
                let part = list.list_name();
                let shapes = super::layout::sa1b::shapes(list).map_err(|error| self.corrupt(&part, error))?;
                shape::segments(&shapes, width, height).map_err(|error| self.corrupt(&part, error))?
            }
        };
        Ok(Segments { width, height, ids })
    }

    /// The raw indices of a grey or palette PNG of the photo's size.
    fn indices(&self, part: &str, stored: &Stored, photo: &Photo) -> Result<Vec<u8>, DatasetError> {
        let bytes = stored.read().map_err(|error| self.corrupt(part, error))?;
        let (size, indices) = indexed::read(&bytes).map_err(|error| self.corrupt(part, error))?;
        self.same_size(part, size, (photo.width, photo.height))?;
        Ok(indices)
    }
}

/// A picture reader that knows JPEG and PNG and refuses huge sizes.
fn reader(bytes: &[u8]) -> Result<ImageReader<Cursor<&[u8]>>, String> {
    let format = match image::guess_format(bytes) {
        // the decoder fills what is missing with grey, so that a cut file would pass as a photo
        Ok(ImageFormat::Jpeg) if !bytes.windows(2).rev().take(JPEG_TAIL).any(|pair| pair == [0xff, 0xd9]) => {
            return Err("JPEG ends without its end marker".into());
        }
        Ok(format @ (ImageFormat::Jpeg | ImageFormat::Png)) => format,
        Ok(other) => return Err(format!("is {other:?}, expected JPEG or PNG")),
        Err(_) => return Err("is neither JPEG nor PNG".into()),
    };
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = image::Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    reader.limits(limits);
    Ok(reader)
}

/// A file's name without folders and extension; the whole path where there is none.
pub(super) fn stem(path: &Path) -> String {
    path.file_stem()
        .map_or_else(|| path.display().to_string(), |s| s.to_string_lossy().into_owned())
}
