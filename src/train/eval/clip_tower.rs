//! A CLIP teacher under measurement: its image tower as a graph of the runtime, its text tower from a bundle.

use std::path::PathBuf;

use tempfile::TempDir;

use super::centre_crop::centre_crop;
use super::wording::{Words, tokenizer};
use super::{EvalError, ImageText};
use crate::contract::{Bundle, GraphKind, GraphSpec, TensorSpec};
use crate::runtime::{self, Backend, GraphSession, Provider, RuntimeOptions, TextEncoder, Values};
use crate::train::dataset::Sample;
use crate::train::dataset::augment::{Colours, Fit, Region, view};
use crate::train::model::{ClipConfig, clip};
use crate::train::onnx::{Recorder, Storage};
use crate::train::ops::Ops;
use crate::train::teachers::CLIP_NORMALISATION;
use crate::train::weights::Weights;

/// How a whole photo becomes the tower's square. Crops and feature maps are stretched to it either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WholePhoto {
    /// Both sides to the tower's: as teachers of our recipes are trained.
    Stretched,
    /// Shortest side to the tower's, bicubic, then the middle square: the protocol of published checkpoints.
    CentreCrop,
}

impl WholePhoto {
    /// As it is written in the report.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Stretched => "stretched",
            Self::CentreCrop => "shortest side bicubic and centre crop; crops and maps stretched",
        }
    }

    /// The sentence of a protocol.
    #[must_use]
    pub fn protocol(self) -> &'static str {
        match self {
            Self::Stretched => "The CLIP teacher sees the photo stretched to its square, as in its training.",
            Self::CentreCrop => {
                "The CLIP teacher sees the middle of the photo: shortest side to its size (bicubic), centre crop, as \
                 published."
            }
        }
    }

    /// Input `[3, side, side]` of the tower.
    fn pixels(self, photo: &Sample, side: usize) -> Vec<f32> {
        match self {
            Self::Stretched => stretched(photo, Region::whole(&photo.photo), side),
            Self::CentreCrop => centre_crop(&photo.photo, side, &CLIP_NORMALISATION),
        }
    }
}

fn stretched(photo: &Sample, region: Region, side: usize) -> Vec<f32> {
    view(photo, region, side, Fit::Stretch, Colours::SAME, &CLIP_NORMALISATION).pixels
}

/// What the image tower says about one photo.
#[derive(Clone, Debug, Default)]
pub struct TowerOutput {
    /// `[D]`, unit norm.
    pub embedding: Vec<f32>,
    /// Tokens of the last block without the class token, `[n·n, W]`.
    pub tokens: Vec<f32>,
}

/// File of the image tower.
const GRAPH: &str = "clip_image.onnx";

/// A CLIP teacher, open.
pub struct ClipTower {
    /// Head of its column.
    pub name: String,
    /// Where it comes from.
    pub origin: String,
    /// Sizes.
    pub config: ClipConfig,
    /// Factor on cosines, already exponentiated.
    pub logit_scale: f32,
    /// How it sees a whole photo.
    pub whole: WholePhoto,
    /// What runs it.
    pub provider: String,
    /// Bytes of the image tower's graph.
    pub bytes: u64,
    session: Box<dyn GraphSession>,
    spec: GraphSpec,
    text: Box<dyn TextEncoder>,
    words: Words,
    folder: TempDir,
}

impl ClipTower {
    /// Records and opens the image tower of `weights`; `bundle` holds the same teacher's text tower.
    ///
    /// # Errors
    /// [`EvalError`] if the graph cannot be written or opened.
    pub fn open(
        name: &str,
        origin: &str,
        config: &ClipConfig,
        weights: &Weights,
        whole: WholePhoto,
        bundle: &Bundle,
        options: &RuntimeOptions,
    ) -> Result<Self, EvalError> {
        let vision = &config.vision_cfg;
        let (side, n) = (vision.image_size, vision.image_size / vision.patch_size);
        let spec = GraphSpec {
            graph: GraphKind::Encoder,
            inputs: vec![TensorSpec::f32("image", &[1, 3, side, side])],
            outputs: vec![
                TensorSpec::f32("image_embedding", &[1, config.embed_dim]),
                TensorSpec::f32("tokens", &[1, n * n, vision.width]),
            ],
        };
        let folder = tempfile::tempdir().map_err(EvalError::temporary)?;
        let path = folder.path().join(GRAPH);
        let graph = image_graph(config, weights);
        std::fs::write(&path, &graph).map_err(EvalError::temporary)?;
        let engine = runtime::open(bundle, options)?;
        let on_ort = engine.provider.starts_with("ort");
        let on_cpu = RuntimeOptions {
            backend: if on_ort { Backend::Ort } else { Backend::Tract },
            provider: Provider::Cpu,
            ..options.clone()
        };
        Ok(Self {
            name: name.into(),
            origin: origin.into(),
            config: config.clone(),
            whole,
            logit_scale: weights.get("logit_scale").map_or(1.0, |v| v.data[0].exp()),
            provider: format!(
                "{}, {}",
                if on_ort { "ort-cpu" } else { "tract-cpu" },
                Storage::Half.variant()
            ),
            bytes: graph.len() as u64,
            session: runtime::open_graph(&path, &spec, &on_cpu)?,
            spec,
            text: engine.text,
            words: Words::new(tokenizer(bundle)?, config.embed_dim),
            folder,
        })
    }

    /// The image tower's graph, with what goes in and out.
    #[must_use]
    pub fn graph(&self) -> (PathBuf, &GraphSpec) {
        (self.folder.path().join(GRAPH), &self.spec)
    }

    /// Runs the image tower on one region of a photo, stretched to the tower's square as in training.
    ///
    /// # Errors
    /// [`EvalError`] if the graph fails.
    pub fn region(&mut self, photo: &Sample, region: Region) -> Result<TowerOutput, EvalError> {
        self.output(&stretched(photo, region, self.config.vision_cfg.image_size))
    }

    fn output(&mut self, pixels: &[f32]) -> Result<TowerOutput, EvalError> {
        let mut output = TowerOutput::default();
        self.session
            .run(&self.spec, &[Values::F32(pixels)], &mut |index, _, values| {
                let out = if index == 0 {
                    &mut output.embedding
                } else {
                    &mut output.tokens
                };
                *out = values.to_vec();
                Ok(())
            })?;
        Ok(output)
    }
}

impl ImageText for ClipTower {
    fn image(&mut self, photo: &Sample) -> Result<Vec<f32>, EvalError> {
        let pixels = self.whole.pixels(photo, self.config.vision_cfg.image_size);
        Ok(self.output(&pixels)?.embedding)
    }

    fn names(&mut self, names: &[String]) -> Result<Vec<Vec<f32>>, EvalError> {
        self.words.names(&mut *self.text, names)
    }

    fn sentences(&mut self, sentences: &[String]) -> Result<Vec<Option<Vec<f32>>>, EvalError> {
        self.words.sentences(&mut *self.text, sentences)
    }
}

/// `image` → `image_embedding`, `tokens`.
fn image_graph(config: &ClipConfig, weights: &Weights) -> Vec<u8> {
    let (side, n) = (
        config.vision_cfg.image_size,
        (config.vision_cfg.image_size / config.vision_cfg.patch_size).pow(2),
    );
    let recorder = Recorder::new(weights, Storage::Half);
    let image = recorder.input("image", &[1, 3, side, side]);
    let tokens = clip::image_tokens(&recorder, config, &image);
    let embedding = recorder.unit_norm(&clip::pooled(&recorder, config, &tokens));
    let patches = recorder.slice(&tokens, 1, 1, n + 1);
    recorder.finish("clip_image", &[("image_embedding", &embedding), ("tokens", &patches)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::dataset::{Photo, SampleInfo};

    #[test]
    fn a_published_tower_does_not_see_what_lies_beside_the_middle_square() {
        let rgb = (0..4 * 40).flat_map(|i| [if (12..28).contains(&(i % 40)) { 90 } else { 255 }; 3]);
        let photo = Photo {
            width: 40,
            height: 4,
            rgb: rgb.collect(),
        };
        let sample = Sample {
            key: "wide".into(),
            photo,
            mask: None,
            segments: None,
            info: SampleInfo::default(),
            regions: Vec::new(),
        };
        let spread = |whole: WholePhoto| {
            let pixels = whole.pixels(&sample, 4);
            assert_eq!(pixels.len(), 3 * 16);
            pixels[..16].iter().any(|&v| (v - pixels[0]).abs() > 0.1)
        };
        assert!(!spread(WholePhoto::CentreCrop));
        assert!(spread(WholePhoto::Stretched));
    }
}
