//! The recipe: data → teachers → probe → distill → export.

pub mod autodiff;
pub mod dataset;
pub mod initial;
pub mod kernels;
pub mod model;
pub mod onnx;
pub mod ops;
pub mod optimizer;
pub mod synth;
pub mod weights;
