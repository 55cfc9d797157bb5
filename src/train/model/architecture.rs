//! The published architectures by name, and which one a checkpoint's shapes belong to.
//!
//! Sources: segment-anything's `build_sam.py`; OpenCLIP's `model_configs/*.json`. A name ending in `-quickgelu`
//! differs from its plain twin in the activation alone, which no shape shows: it must be asked for by name.

use super::{ClipConfig, SamConfig, TextConfig, VisionConfig};
use crate::train::weights::Inventory;

/// Names of SAM's published architectures.
pub const SAM: [&str; 3] = ["vit_b", "vit_l", "vit_h"];
/// Names of the OpenCLIP architectures that are read.
pub const CLIP: [&str; 6] = [
    "ViT-B-32",
    "ViT-B-16",
    "ViT-L-14",
    "ViT-B-32-quickgelu",
    "ViT-B-16-quickgelu",
    "ViT-L-14-quickgelu",
];

impl SamConfig {
    /// SAM ViT-B/16 at 1024 px, exactly (`build_sam_vit_b`).
    #[must_use]
    pub fn vit_b() -> Self {
        Self::published(768, 12, 12, [2, 5, 8, 11])
    }

    fn published(embed_dim: usize, depth: usize, num_heads: usize, global: [usize; 4]) -> Self {
        Self {
            image_size: 1024,
            patch_size: 16,
            embed_dim,
            depth,
            num_heads,
            mlp_ratio: 4,
            window_size: 14,
            global_attn_indexes: global.to_vec(),
            out_chans: 256,
            mask_in_chans: 16,
            decoder_depth: 2,
            decoder_heads: 8,
            decoder_mlp_dim: 2048,
            rel_pos: true,
            stem: Vec::new(),
            detail: Vec::new(),
        }
    }

    /// One of [`SAM`]; `None` for any other name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "vit_b" => Some(Self::vit_b()),
            "vit_l" => Some(Self::published(1024, 24, 16, [5, 11, 17, 23])),
            "vit_h" => Some(Self::published(1280, 32, 16, [7, 15, 23, 31])),
            _ => None,
        }
    }

    /// The one of [`SAM`] whose token width a checkpoint has.
    #[must_use]
    pub fn recognise(shapes: &Inventory) -> Option<Self> {
        let width = shapes.get("image_encoder.pos_embed")?.last()?;
        SAM.into_iter()
            .filter_map(Self::named)
            .find(|config| config.embed_dim == *width)
    }
}

impl TextConfig {
    fn published(width: usize, heads: usize) -> Self {
        Self {
            context_length: 77,
            vocab_size: 49408,
            width,
            heads,
            layers: 12,
        }
    }

    /// The text tower of OpenCLIP ViT-L/14.
    #[must_use]
    pub fn vit_l_14() -> Self {
        Self::published(768, 12)
    }
}

impl ClipConfig {
    /// OpenCLIP ViT-L/14 (`model_configs/ViT-L-14.json`).
    #[must_use]
    pub fn vit_l_14() -> Self {
        Self::published(768, [14, 1024, 24], TextConfig::vit_l_14())
    }

    fn published(embed_dim: usize, [patch_size, width, layers]: [usize; 3], text_cfg: TextConfig) -> Self {
        Self {
            embed_dim,
            vision_cfg: VisionConfig {
                image_size: 224,
                patch_size,
                width,
                layers,
                head_width: 64,
                mlp_ratio: 4.0,
            },
            text_cfg,
            quick_gelu: false,
        }
    }

    /// One of [`CLIP`]; `None` for any other name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let (plain, quick_gelu) = match name.strip_suffix("-quickgelu") {
            Some(plain) => (plain, true),
            None => (name, false),
        };
        let config = match plain {
            "ViT-B-32" => Self::published(512, [32, 768, 12], TextConfig::published(512, 8)),
            "ViT-B-16" => Self::published(512, [16, 768, 12], TextConfig::published(512, 8)),
            "ViT-L-14" => Self::vit_l_14(),
            _ => return None,
        };
        Some(Self { quick_gelu, ..config })
    }

    /// The one of [`CLIP`], with plain GELU, whose patch projection a checkpoint has.
    #[must_use]
    pub fn recognise(shapes: &Inventory) -> Option<Self> {
        let projection = shapes.get("visual.conv1.weight")?;
        CLIP.into_iter().filter_map(Self::named).find(|config| {
            let (width, patch) = (config.vision_cfg.width, config.vision_cfg.patch_size);
            *projection == [width, 3, patch, patch]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::model::inventory;

    #[test]
    fn every_published_architecture_is_recognised_by_its_own_shapes() {
        for name in SAM {
            let config = SamConfig::named(name).unwrap();
            assert_eq!(SamConfig::recognise(&inventory::sam(&config)), Some(config), "{name}");
        }
        for name in CLIP {
            let config = ClipConfig::named(name).unwrap();
            let found = ClipConfig::recognise(&inventory::clip(&config)).unwrap();
            assert_eq!(
                (&found.vision_cfg, &found.text_cfg),
                (&config.vision_cfg, &config.text_cfg),
                "{name}"
            );
            assert!(!found.quick_gelu, "no shape tells the activation");
            assert_eq!(config.quick_gelu, name.ends_with("quickgelu"));
        }
    }

    #[test]
    fn shapes_of_no_published_architecture_are_not_taken_for_one() {
        assert_eq!(SamConfig::recognise(&Inventory::new()), None);
        let odd = Inventory::from([("image_encoder.pos_embed".to_owned(), vec![1, 64, 64, 100])]);
        assert_eq!(SamConfig::recognise(&odd), None);
        assert_eq!(ClipConfig::named("RN50"), None);
    }
}
