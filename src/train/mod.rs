//! The recipe: data → teachers → probe → distill → export.

pub mod dataset;
pub mod synth;
