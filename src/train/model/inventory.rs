//! What a model part asks for: every weight's name and shape, found by running it on a [`Ledger`].

use super::mask_decoder::decode;
use super::prompt_encoder::Prompts;
use super::{ClipConfig, MergedConfig, SamConfig, TextConfig, clip, clip_head, encode, encoder};
use crate::train::cost::{Ledger, inventory};
use crate::train::weights::Inventory;

/// Runs the mask decoder on `prompts` prompts of `points` points, each with a mask.
pub(in crate::train) fn decoder(ledger: &Ledger, sam: &SamConfig, prompts: usize, points: usize) {
    let g = sam.grid();
    let questions = Prompts {
        coords: ledger.input(&[prompts, points, 2]),
        labels: ledger.input(&[prompts, points]),
        mask: Some((ledger.input(&[prompts, 1, 4 * g, 4 * g]), ledger.input(&[prompts]))),
    };
    let _ = decode(ledger, sam, &ledger.input(&[1, sam.out_chans, g, g]), &questions);
}

/// A whole SAM: image encoder, prompt encoder, mask decoder.
#[must_use]
pub fn sam(config: &SamConfig) -> Inventory {
    inventory(|l| {
        let image = l.input(&[1, 3, config.image_size, config.image_size]);
        let tokens = encoder::tokens(l, config, &image);
        let _ = encoder::neck(l, config, &tokens);
        decoder(l, config, 1, 1);
    })
}

/// A text tower (without `logit_scale`).
#[must_use]
pub fn text(config: &TextConfig, embed_dim: usize) -> Inventory {
    inventory(|l| {
        let _ = clip::encode_text(l, config, embed_dim, false, &[1, config.context_length]);
    })
}

/// A whole CLIP, `logit_scale` included (a scalar).
#[must_use]
pub fn clip(config: &ClipConfig) -> Inventory {
    let mut weights = inventory(|l| {
        let side = config.vision_cfg.image_size;
        let _ = clip::encode_image(l, config, &l.input(&[1, 3, side, side]));
    });
    weights.extend(text(&config.text_cfg, config.embed_dim));
    weights.insert("logit_scale".into(), Vec::new());
    weights
}

/// The CLIP head alone.
#[must_use]
pub fn clip_head(config: &MergedConfig) -> Inventory {
    inventory(|l| {
        let g = config.sam.grid();
        let _ = clip_head::embed(l, config, &l.input(&[1, g, g, config.sam.embed_dim]));
    })
}

/// The merged model with its text tower and `logit_scale`.
#[must_use]
pub fn merged(config: &MergedConfig) -> Inventory {
    let mut weights = inventory(|l| {
        let side = config.sam.image_size;
        let _ = encode(l, config, &l.input(&[1, 3, side, side]));
        decoder(l, &config.sam, 1, 1);
    });
    weights.extend(text(&config.text, config.clip_head.text_dim));
    weights.insert("logit_scale".into(), Vec::new());
    weights
}
