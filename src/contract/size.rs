//! Further input sizes of a bundle, and the bundle as it is at one of them.
//!
//! A bundle has one size of its own, that of `[encoder]`. Its image encoder may exist at others too, made of the same
//! weights: a small one costs a fraction of the time and sees less. A size has an image encoder and, because the grid of
//! features differs, a mask decoder; the text encoder is shared, so texts are embedded once for all sizes.

use serde::{Deserialize, Serialize};

use super::{Bundle, BundleError, Calibration, Manifest, Precision};

/// A size beside the bundle's own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Size {
    /// Side of the square input, pixels; a multiple of the stride.
    pub side: usize,
    /// Side of the square grid of `patch_embeddings`; divides the side.
    pub patch_grid: usize,
    /// How softmax probabilities become scores at this size; absent: as at the bundle's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<Calibration>,
}

/// The graphs of a variant at a further size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SizeFiles {
    /// Side of one of [`Manifest::size`].
    pub side: usize,
    /// File of the image encoder.
    pub encoder: String,
    /// File of the mask decoder.
    pub mask_decoder: String,
}

impl Precision {
    /// The variant at a further size, as if it had no other; `None` if it lacks that size.
    ///
    /// What was measured of the variant was measured at the bundle's own size.
    #[must_use]
    pub fn at(&self, side: usize) -> Option<Self> {
        let files = self.size.iter().find(|files| files.side == side)?;
        Some(Self {
            encoder: files.encoder.clone(),
            mask_decoder: files.mask_decoder.clone(),
            size: Vec::new(),
            ..self.clone()
        })
    }
}

impl Manifest {
    /// Sides of all sizes in pixels, the bundle's own first.
    #[must_use]
    pub fn sides(&self) -> Vec<usize> {
        let further = self.size.iter().map(|size| size.side);
        std::iter::once(self.encoder.side).chain(further).collect()
    }

    /// The calibration of a size, to be changed: a further size gets one of its own, equal to the bundle's at first.
    ///
    /// # Errors
    /// [`BundleError::NoSize`] if there is no such size.
    pub fn calibration_at(&mut self, side: usize) -> Result<&mut Calibration, BundleError> {
        let (own, known) = (self.calibration, listed(&self.sides()));
        if side == self.encoder.side {
            return Ok(&mut self.calibration);
        }
        let size = self.size.iter_mut().find(|size| size.side == side);
        let size = size.ok_or(BundleError::NoSize { side, known })?;
        Ok(size.calibration.get_or_insert(own))
    }

    /// The bundle as if one of its sizes were its own and there were no other: sizes, tensor tables, calibration and files,
    /// and of the variants those that have this size. The bundle's own side gives the bundle as it is.
    ///
    /// # Errors
    /// [`BundleError::NoSize`] if there is no such size.
    pub fn at(&self, side: usize) -> Result<Self, BundleError> {
        if side == self.encoder.side {
            return Ok(self.clone());
        }
        let size = self.size.iter().find(|size| size.side == side);
        let size = size.ok_or_else(|| BundleError::NoSize {
            side,
            known: listed(&self.sides()),
        })?;
        let mut at = Self {
            calibration: size.calibration.unwrap_or(self.calibration),
            precision: self.precision.iter().filter_map(|p| p.at(side)).collect(),
            size: Vec::new(),
            ..self.clone()
        };
        (at.encoder.side, at.encoder.patch_grid) = (side, size.patch_grid);
        at.graph = Self::standard_graphs(&at.encoder, &at.decoder, &at.text);
        Ok(at)
    }
}

impl Bundle {
    /// As [`Manifest::at`]: the same files and the same hash, seen at one size.
    ///
    /// # Errors
    /// [`BundleError::NoSize`] if there is no such size.
    pub fn at(&self, side: usize) -> Result<Self, BundleError> {
        Ok(Self {
            manifest: self.manifest.at(side)?,
            ..self.clone()
        })
    }
}

/// Numbers as a list for people.
pub(super) fn listed(sides: &[usize]) -> String {
    sides.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// The shipped bundle's manifest, with a further size in its first variant.
    fn manifest() -> Manifest {
        let mut manifest = Manifest::parse(&shipped()).unwrap();
        manifest.size = vec![Size {
            side: 224,
            patch_grid: 7,
            calibration: None,
        }];
        manifest.precision[0].size = vec![files(224)];
        manifest
    }

    fn text_of_nano() -> String {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/nano/manifest.toml");
        std::fs::read_to_string(path).unwrap()
    }

    /// As a bundle of one size.
    fn shipped() -> String {
        let text = text_of_nano();
        let mut manifest: Manifest = toml::from_str(&text).unwrap();
        (manifest.size, manifest.files) = (Vec::new(), std::collections::BTreeMap::new());
        manifest.precision.iter_mut().for_each(|p| p.size.clear());
        toml::to_string_pretty(&manifest).unwrap()
    }

    fn files(side: usize) -> SizeFiles {
        SizeFiles {
            side,
            encoder: format!("encoder.{side}.onnx"),
            mask_decoder: format!("mask_decoder.{side}.onnx"),
        }
    }

    #[test]
    fn a_bundle_of_one_size_is_written_without_a_word_of_sizes() {
        let text = text_of_nano();
        assert_eq!(toml::to_string_pretty(&Manifest::parse(&text).unwrap()).unwrap(), text);
        let text = shipped();
        assert!(!text.contains("[size") && !text.contains("precision.size"), "{text}");
        assert_eq!(toml::to_string_pretty(&Manifest::parse(&text).unwrap()).unwrap(), text);
    }

    #[test]
    fn sizes_are_read_back_and_their_files_are_the_bundles() {
        let text = toml::to_string_pretty(&manifest()).unwrap();
        assert!(
            text.contains("[[size]]") && text.contains("[[precision.size]]"),
            "{text}"
        );
        let read = Manifest::parse(&text).unwrap();
        assert_eq!(read, manifest());
        assert_eq!(read.sides(), [320, 224]);
        for name in ["encoder.224.onnx", "mask_decoder.224.onnx"] {
            assert!(read.referenced_files().contains(name), "{name}");
        }
    }

    #[test]
    fn a_bundle_at_a_size_is_a_bundle_of_that_size_alone() {
        let mut manifest = manifest();
        assert_eq!(manifest.at(320).unwrap(), manifest);
        let at = manifest.at(224).unwrap();
        at.validate().unwrap();
        assert_eq!(
            (at.sides(), at.encoder.patch_grid, at.encoder.low_res_side()),
            (vec![224], 7, 56)
        );
        let names: Vec<&str> = at.precision.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(names, ["fp16-stored"], "the others lack it");
        let files: Vec<&str> = at.precision[0].files().collect();
        assert_eq!(
            files,
            ["encoder.224.onnx", "mask_decoder.224.onnx", "text_encoder.onnx"]
        );
        assert_eq!(at.calibration, manifest.calibration);
        let own = manifest.calibration.threshold;
        manifest.calibration_at(224).unwrap().threshold = 0.3;
        assert_eq!(manifest.at(224).unwrap().calibration.threshold, 0.3);
        assert_eq!(manifest.calibration.threshold, own);
        let error = manifest.at(256).unwrap_err().to_string();
        assert!(error.contains("no size of 256 pixels, it has 320, 224"), "{error}");
        assert!(manifest.calibration_at(256).is_err());
    }

    #[test]
    fn impossible_sizes_are_refused_by_field() {
        type Spoil = fn(&mut Manifest);
        let cases: [(Spoil, &str); 9] = [
            (
                |m| m.size[0].side = 320,
                "size 320 side: found 320, expected a side used once",
            ),
            (
                |m| m.size.push(m.size[0].clone()),
                "size 224 side: found 224, expected a side used once",
            ),
            (
                |m| m.size[0].side = 230,
                "size 230 side: found 230, expected a multiple of the stride",
            ),
            (
                |m| m.size[0].side = 0,
                "size 0 side: found 0, expected a multiple of the stride",
            ),
            (
                |m| m.size[0].patch_grid = 5,
                "size 224 patch_grid: found 5, expected a divisor",
            ),
            (
                |m| m.calibration_at(224).unwrap().threshold = 1.0,
                "size 224 calibration.threshold: found 1, expected between 0 and 1",
            ),
            (|m| m.precision[0].size.clear(), "size 224 graphs: found none"),
            (
                |m| m.precision[1].size.push(files(256)),
                "precision \"fp16-compute\" size: found 256, expected the side of a [[size]], one of 224",
            ),
            (
                |m| m.precision[0].size.push(files(224)),
                "precision \"fp16-stored\" size: found 224, expected a side used once",
            ),
        ];
        for (spoil, expected) in cases {
            let mut spoiled = manifest();
            spoil(&mut spoiled);
            let error = spoiled.validate().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let mut outside = manifest();
        outside.precision[0].size[0].encoder = "../encoder.onnx".into();
        assert!(matches!(outside.validate(), Err(BundleError::FileName { .. })));
    }
}
