//! From masks on single frames to things that stay: identity over time, zones, movement. Pure; time comes in as a value.
//!
//! ```text
//! masks of one frame ── assign (IoU) ─→ tracker ─Track→ scene (zones, loitering, movement) ─Change→ events
//! ```
//!
//! * [`assign`]: which mask belongs to which track: the assignment with the largest total overlap
//! * [`tracker`]: tracks with stable ids, hysteresis and smoothed scores
//! * [`zone`]: polygons on the frame and how much of a mask lies inside
//! * [`scene`]: what one camera sees: things that began, changed and ended, and how many there are

pub mod assign;
pub mod scene;
pub mod tracker;
pub mod zone;
