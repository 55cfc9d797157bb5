//! One photo with everything known about it, decoded.

use std::path::Path;

use super::DatasetError;

/// An RGB picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Photo {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// `[height, width, 3]`, 0-255, row-major.
    pub rgb: Vec<u8>,
}

/// A class per pixel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassMask {
    /// Width in pixels, the photo's.
    pub width: usize,
    /// Height in pixels, the photo's.
    pub height: usize,
    /// `[height, width]` indices into [`ClassNames`].
    pub classes: Vec<u8>,
}

/// A segment per pixel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segments {
    /// Width in pixels, the photo's.
    pub width: usize,
    /// Height in pixels, the photo's.
    pub height: usize,
    /// `[height, width]` segment ids, 0 = none.
    pub ids: Vec<u16>,
}

/// The words that come with a photo: its `KEY.json`.
#[derive(Clone, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(default)]
pub struct SampleInfo {
    /// Name of the collection.
    pub source: String,
    /// Terms of the collection.
    pub licence: String,
    /// Names that occur in the class mask.
    pub classes: Vec<String>,
    /// Names that the collection annotates. A name outside the list may be in the photo without a label, so it is
    /// never a negative.
    pub vocab: Vec<String>,
    /// Names of the whole photo.
    pub labels: Vec<String>,
    /// Sentences about the whole photo.
    pub captions: Vec<String>,
    /// One sentence about the whole photo, as img2dataset stores it; decoding appends it to `captions`.
    pub caption: Option<String>,
    /// Which of the collection's classes the photo is of, where two of them share their name.
    #[serde(skip)]
    pub class: Option<String>,
}

/// As derived, without a class that is not there: fingerprints of data are of this text.
impl std::fmt::Debug for SampleInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut fields = f.debug_struct("SampleInfo");
        fields
            .field("source", &self.source)
            .field("licence", &self.licence)
            .field("classes", &self.classes)
            .field("vocab", &self.vocab)
            .field("labels", &self.labels)
            .field("captions", &self.captions)
            .field("caption", &self.caption);
        if let Some(class) = &self.class {
            fields.field("class", class);
        }
        fields.finish()
    }
}

impl SampleInfo {
    /// Whether anything is said about the photo.
    #[must_use]
    pub fn has_words(&self) -> bool {
        !(self.classes.is_empty() && self.labels.is_empty() && self.captions.is_empty())
    }
}

/// One photo with its masks and words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Name of the sample; decides its [`super::Split`].
    pub key: String,
    /// The picture.
    pub photo: Photo,
    /// Class of every pixel.
    pub mask: Option<ClassMask>,
    /// Segment of every pixel, without names.
    pub segments: Option<Segments>,
    /// Words.
    pub info: SampleInfo,
    /// `regions[i]` describes segment `i + 1`; empty if segments have no names.
    pub regions: Vec<String>,
}

/// Names of the class indices: 0 unlabelled, 1 background, then things.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClassNames(Vec<String>);

impl ClassNames {
    /// Index of pixels that nobody labelled; neither positive nor negative for any name.
    pub const UNLABELLED: u8 = 0;
    /// Index of pixels that belong to none of the names the collection annotates.
    pub const BACKGROUND: u8 = 1;

    /// A table from names in order of index; names after the 256th do not fit an 8-bit mask and are cut.
    #[must_use]
    pub fn new(mut names: Vec<String>) -> Self {
        names.truncate(256);
        Self(names)
    }

    /// Reads `classes.json`: an object of index to name.
    ///
    /// # Errors
    /// [`DatasetError::ClassTable`] if it is missing, not such an object, has gaps or more than 256 names.
    pub fn read(path: &Path) -> Result<Self, DatasetError> {
        let bad = |reason: String| DatasetError::ClassTable {
            path: path.into(),
            reason,
        };
        let text = std::fs::read_to_string(path).map_err(|error| bad(error.to_string()))?;
        let table: std::collections::BTreeMap<u8, String> =
            serde_json::from_str(&text).map_err(|error| bad(error.to_string()))?;
        if let Some((place, index)) = table
            .keys()
            .enumerate()
            .find(|&(place, &index)| place != usize::from(index))
        {
            return Err(bad(format!("index {index} found where {place} was expected")));
        }
        Ok(Self(table.into_values().collect()))
    }

    /// Number of names, the two special ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the table is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Name of an index.
    #[must_use]
    pub fn name(&self, index: u8) -> Option<&str> {
        self.0.get(usize::from(index)).map(String::as_str)
    }

    /// Index of a name.
    #[must_use]
    pub fn index(&self, name: &str) -> Option<u8> {
        self.0
            .iter()
            .position(|known| known == name)
            .and_then(|index| u8::try_from(index).ok())
    }

    /// All names in order of index.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::SampleInfo;

    #[test]
    fn fingerprints_of_photos_whose_names_are_their_own_stay() {
        let mut info = SampleInfo {
            source: "a".into(),
            ..SampleInfo::default()
        };
        assert_eq!(
            format!("{info:?}"),
            r#"SampleInfo { source: "a", licence: "", classes: [], vocab: [], labels: [], captions: [], caption: None }"#
        );
        info.class = Some("n01".into());
        assert!(format!("{info:?}").ends_with(r#"caption: None, class: "n01" }"#));
    }
}
