//! A sample as it is stored, in memory or on disk, and its decoding.

use std::borrow::Cow;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image::{DynamicImage, ImageFormat, ImageReader};

use super::indexed::{self, IndexTable};
use super::shape::{self, Shape};
use super::{ClassMask, ClassNames, DatasetError, Photo, Sample, SampleInfo, Segments};

/// Largest accepted picture side in pixels.
const MAX_SIDE: u32 = 16_384;

/// Largest accepted file in a folder; a larger one is damage or a trap, not a training photo.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// Bytes at the end of a JPEG among which its end marker has to be; some cameras append a few.
const JPEG_TAIL: usize = 4_096;

/// Where the bytes of a picture are.
#[derive(Debug, Clone)]
pub enum Stored {
    /// In memory: members of tars.
    Bytes(Vec<u8>),
    /// In a file that is read when the sample is decoded.
    File(PathBuf),
}

impl Stored {
    /// The bytes, or what is wrong with the file.
    pub(super) fn read(&self) -> Result<Cow<'_, [u8]>, String> {
        let path = match self {
            Self::Bytes(bytes) => return Ok(Cow::Borrowed(bytes)),
            Self::File(path) => path,
        };
        let wrong = |error: std::io::Error| format!("{}: {error}", path.display());
        let bytes = std::fs::metadata(path).map_err(wrong)?.len();
        if bytes > MAX_FILE_BYTES {
            return Err(format!(
                "{} has {bytes} bytes, at most {MAX_FILE_BYTES} are accepted",
                path.display()
            ));
        }
        std::fs::read(path).map(Cow::Owned).map_err(wrong)
    }

    /// What a fingerprint takes of it: the bytes, or a file's name and length.
    pub(super) fn identity(&self) -> Cow<'_, [u8]> {
        match self {
            Self::Bytes(bytes) => Cow::Borrowed(bytes),
            Self::File(path) => Self::identity_of(path).into(),
        }
    }

    /// A file's name and length.
    pub(super) fn identity_of(path: &Path) -> Vec<u8> {
        let length = std::fs::metadata(path).map_or(0, |m| m.len());
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        format!("{name} {length}").into_bytes()
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
    pub(super) fn identity(&self) -> Cow<'_, [u8]> {
        match self {
            Self::Png(stored) | Self::Indexed(stored, _) => stored.identity(),
            Self::Shapes(shapes) => format!("{shapes:?}").into_bytes().into(),
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
    SegmentAnything(PathBuf),
}

impl SegmentSource {
    /// What a fingerprint takes of it.
    pub(super) fn identity(&self) -> Cow<'_, [u8]> {
        match self {
            Self::Png(stored) | Self::Indexed(stored) => stored.identity(),
            Self::Shapes(shapes) => format!("{shapes:?}").into_bytes().into(),
            Self::SegmentAnything(path) => Stored::identity_of(path).into(),
        }
    }
}

/// A sample as it is stored.
#[derive(Debug, Clone)]
pub struct RawSample {
    /// Path of the members without extensions.
    pub key: String,
    /// The tar, folder or list it came from.
    pub origin: PathBuf,
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
    pub(super) fn corrupt(&self, part: &str, reason: impl ToString) -> DatasetError {
        DatasetError::Corrupt {
            key: self.key.clone(),
            origin: self.origin.clone(),
            part: part.into(),
            reason: reason.to_string(),
        }
    }

    /// Compares the sizes that the headers of pictures in memory state, without decoding.
    pub(super) fn check_headers(&self) -> Result<(), DatasetError> {
        let mut pictures = vec![("photo", &self.photo)];
        if let Some(MaskSource::Png(mask)) = &self.mask {
            pictures.push(("mask.png", mask));
        }
        if let Some(SegmentSource::Png(segments)) = &self.segments {
            pictures.push(("seg.png", segments));
        }
        let mut expected = None;
        for (part, stored) in pictures {
            let Stored::Bytes(bytes) = stored else { continue };
            let found = reader(bytes)
                .and_then(|reader| reader.into_dimensions().map_err(|error| error.to_string()))
                .map_err(|error| self.corrupt(part, error))?;
            let (width, height) = *expected.get_or_insert(found);
            self.same_size(part, found, (width, height))?;
        }
        Ok(())
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
        self.check_headers()?;
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
            SegmentSource::SegmentAnything(path) => {
                let part = path.file_name().unwrap_or_default().to_string_lossy();
                let shapes = super::layout::sa1b::shapes(path).map_err(|error| self.corrupt(&part, error))?;
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
