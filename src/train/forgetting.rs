//! How much of SAM a student has kept: masks from box prompts on pictures that training never sees.
//!
//! The paper ends stage 2 early by this kind of measure (its COCO mAP falls after 16 of 20 epochs). Here it is the mean
//! IoU of the single-mask output with the labelled regions of the validation split, prompted with their exact boxes.

use crate::train::autodiff::Graph;
use crate::train::dataset::augment::{Fit, plain};
use crate::train::dataset::{Sample, Split};
use crate::train::feed::{Feed, NORMALISATION, PromptBatch};
use crate::train::kernels::Kernels;
use crate::train::model::{SamConfig, encoder};

use crate::train::sam_loss;
use crate::train::synth;
use crate::train::weights::Weights;

/// Most regions of one picture that are asked for.
const REGIONS: usize = 4;

/// Seeds of the drawn scenes that stand in where there are no photos; training draws its seeds from the whole range
/// and meets them with probability 2⁻⁶⁰.
const SCENES: u64 = 0x5eed_0000;

/// Pictures with box prompts, ready for any SAM of one configuration.
pub struct BoxMasks {
    sam: SamConfig,
    pictures: Vec<(Vec<f32>, PromptBatch)>,
}

impl BoxMasks {
    /// The first `count` pictures with regions of the validation split; drawn scenes if no photo of it has any. `points` is the
    /// number of points of a prompt, at least 2.
    #[must_use]
    pub fn new(feed: &Feed, sam: &SamConfig, points: usize, count: usize) -> Self {
        let photos = feed.dataset().into_iter().flat_map(|dataset| {
            let indices = dataset.indices(Split::Validation).into_iter();
            indices.filter_map(|index| feed.read(dataset, index).ok())
        });
        let scenes = (0..).map(|i| synth::draw(SCENES + i, sam.image_size));
        let asked = |sample: Sample| {
            let view = plain(&sample, sam.image_size, Fit::Letterbox, &NORMALISATION);
            let item = feed.viewed(&sample, view);
            let mut prompts = PromptBatch::default();
            prompts.push_boxes(&item, REGIONS, points, 4 * sam.grid());
            (prompts.per_image > 0).then_some((item.view.pixels, prompts))
        };
        let mut pictures: Vec<_> = photos.filter_map(asked).take(count).collect();
        if pictures.is_empty() {
            pictures = scenes.filter_map(asked).take(count).collect();
        }
        Self {
            sam: sam.clone(),
            pictures,
        }
    }

    /// Pictures that are looked at.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pictures.len()
    }

    /// Whether no picture has a region.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pictures.is_empty()
    }

    /// Mean IoU over all regions in points, 0-100, of the SAM or merged model `weights`.
    #[must_use]
    pub fn iou<B: Kernels>(&self, weights: &Weights, device: &B::Device) -> f32 {
        let graph = Graph::<B>::new(weights, device.clone());
        let side = self.sam.image_size;
        let (mut sum, mut regions) = (0.0, 0.0);
        for (pixels, prompts) in &self.pictures {
            let image = graph.input(pixels.clone(), &[1, 3, side, side]);
            let tokens = encoder::tokens(&graph, &self.sam, &image);
            let embeddings = encoder::embeddings(&graph, &self.sam, &image, &tokens);
            let (masks, _) = sam_loss::decode(&graph, &self.sam, &embeddings, prompts);
            let found = sam_loss::measured_iou(&graph.values(&masks), &prompts.target, 16 * self.sam.grid().pow(2));
            sum += found.chunks(4).map(|outputs| outputs[0]).sum::<f32>();
            regions += prompts.per_image as f32;
        }
        100.0 * sum / f32::max(regions, 1.0)
    }
}

#[cfg(test)]
mod tests {
    use burn_flex::{Flex, FlexDevice};

    use super::*;
    use crate::train::initial;
    use crate::train::model::inventory;
    use crate::train::recipe::Recipe;

    #[test]
    fn the_measure_is_the_overlap_with_what_the_boxes_surround() {
        let mut recipe =
            Recipe::read(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("models/nano/recipe.toml")).unwrap();
        let sam = &mut recipe.sam;
        (sam.image_size, sam.embed_dim, sam.depth, sam.num_heads) = (64, 16, 1, 2);
        (sam.stem, sam.global_attn_indexes, sam.out_chans) = (Vec::new(), vec![0], 32);
        let masks = BoxMasks::new(&Feed::new(None, &recipe), &recipe.sam, 4, 3);
        assert_eq!(masks.len(), 3);
        let mut weights = initial::weights(&inventory::sam(&recipe.sam), 1);
        // The mask is the product of a hyper-network's output and the upscaled embedding; without either it is
        // empty, so the overlap is 0.
        let last = weights
            .keys()
            .filter(|n| n.contains("output_hypernetworks_mlps.0.layers.2"))
            .cloned();
        for name in last.collect::<Vec<_>>() {
            weights.get_mut(&name).unwrap().data.fill(0.0);
        }
        assert!(
            masks.iou::<Flex>(&weights, &FlexDevice) < 1e-6,
            "{}",
            masks.iou::<Flex>(&weights, &FlexDevice)
        );
        // Everything marked: the overlap is each region's share of the picture.
        let bias = weights
            .get_mut("mask_decoder.output_hypernetworks_mlps.0.layers.2.bias")
            .unwrap();
        bias.data.fill(1.0);
        for (name, values) in &mut weights {
            if name.starts_with("mask_decoder.output_upscaling.3.") {
                values.data.fill(if name.ends_with("bias") { 1.0 } else { 0.0 });
            }
        }
        let shares = masks.pictures.iter().flat_map(|(_, prompts)| {
            let pixels = prompts.target.len() / prompts.per_image;
            prompts
                .target
                .chunks(pixels)
                .map(move |t| t.iter().filter(|v| **v > 0.5).count() as f32 / pixels as f32)
        });
        let shares: Vec<f32> = shares.collect();
        let expected = 100.0 * shares.iter().sum::<f32>() / shares.len() as f32;
        let found = masks.iou::<Flex>(&weights, &FlexDevice);
        assert!((found - expected).abs() < 0.01 && expected > 1.0, "{found} {expected}");
    }
}
