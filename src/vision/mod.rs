//! From a camera frame to masks: pure functions on values, no file, socket, clock or thread.
//!
//! ```text
//! Frame ── motion ─→ whether anything moves
//! Frame ── pixels ─→ RGB8 ── preprocess ─→ [1,3,S,S]            geometry::Letterbox crosses between the spaces
//! [1,C,g,g] + [1,D,n,n] + [1,D] ── features ─→ Features
//! Features × Queries ── query ─→ ScoreMap [Q,n,n] ─→ DecoderPrompt per component
//! [Q,4,4g,4g] + [Q,4] ── refine ─→ RefinedMask ── mask, rle, polygon ─→ what messages carry
//! ```

pub mod features;
pub mod frame;
pub mod geometry;
pub mod mask;
pub mod motion;
pub mod pixels;
pub mod polygon;
pub mod preprocess;
pub mod query;
pub mod refine;
pub mod rle;
pub mod tidy;
