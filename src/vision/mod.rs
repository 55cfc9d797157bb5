//! (module vision)
pub mod geometry;
