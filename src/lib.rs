//! samclip: text in, masks out, on the camera.
//!
//! One merged SAM-CLIP image encoder (Wang et al., arXiv 2310.15308) runs once per camera frame; the
//! CLIP head answers free-text queries, the SAM head sharpens the answers, MQTT carries the masks.
//!
//! ```text
//! capture ─Frame→ preprocess ─ImageTensor→ encoder ─Features→ query ─QueryMasks→ decoder + refine
//!                                      ─RefinedMasks→ track ─Changes→ payload ─bytes→ spool, mqtt
//! ```
//!
//! | layer | folder | may use |
//! |---|---|---|
//! | L0 | [`clock`], [`contract`] | nothing |
//! | L1 | [`vision`] | `contract` |
//! | L1 | [`text`] | `contract` |
//! | L1 | [`track`] | `vision` |
//! | L1 | [`message`] | `vision` |
//! | L2 | [`capture`] | `vision`, `clock` |
//! | L2 | [`runtime`] | `vision`, `contract` |
//! | L2 | [`publish`] | `message`, `clock` |
//! | L3 | [`daemon`] | everything above |
//! | L3 | `train` (feature `train`) | `vision`, `contract`, `text`; `runtime` in `eval` and `quantize` only |
//!
//! Invariants: L2 folders never import each other. No stage reads a later stage's type. `vision`
//! and `track` never see a file, socket or clock. Only `capture`, `runtime` and two files of `train::kernels` may contain
//! `unsafe`. Every queue is bounded and says what it drops. Coordinates cross between frame and model space only through
//! [`vision::geometry::Letterbox`]. `tests/layering.rs` checks the table.

pub mod capture;
pub mod clock;
pub mod contract;
pub mod daemon;
pub mod message;
pub mod publish;
pub mod runtime;
pub mod text;
pub mod track;
#[cfg(feature = "train")]
pub mod train;
pub mod vision;
