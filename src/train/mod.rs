//! The recipe: data → teachers → probe → distill → export.
//!
//! The model is written once over [`ops::Ops`] ([`model`]); [`autodiff`] computes it with gradients and
//! [`onnx`] records it. [`teachers`] makes small SAM and CLIP teachers from labelled data, [`distill`] merges
//! two teachers into one encoder (paper, stages 1 to 3), [`words`] teaches its text tower other words, [`finetune`] goes on
//! from there or from a bundle, [`sharpen`] teaches the SAM head the daemon's prompts, `export` writes the bundle that the daemon reads,
//! [`quantize`] adds its fp16 and int8 variants.
//! A stage is a [`session::Session`]: it resumes where it was killed.

pub mod autodiff;
pub mod cost;
pub mod curve;
pub mod dataset;
pub mod device;
pub mod distill;
pub mod eval;
pub mod export;
pub mod feed;
pub mod finetune;
pub mod forgetting;
pub mod frozen;
pub mod import;
pub mod initial;
pub mod kernels;
pub mod loss;
pub mod micro_batch;
pub mod model;
pub mod onnx;
pub mod ops;
pub mod optimizer;
pub mod precision;
pub mod processes;
pub mod quantize;
pub mod questions;
pub mod recipe;
pub mod region_text;
pub mod run;
pub mod sam_loss;
pub mod schedule;
pub mod score_prompts;
pub mod session;
pub mod sharpen;
mod strangers;
pub mod synth;
pub mod teachers;
pub mod text_bank;
pub mod weights;
pub mod words;
