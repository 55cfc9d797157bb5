//! Camera-space and model-space geometry.
