//! The program: the only place that knows every part and puts them together.
//!
//! [`config`] is the file a user writes. [`pipeline`] is one frame through all stages; [`segment`], [`demo`] and
//! [`run`] are three ways to feed it. [`prepare`] makes beforehand what they would make at their first start, [`doctor`]
//! says what would stop them, [`tune`] where to set a query's threshold, `camera_list` what is plugged in.

pub mod annotate;
#[cfg(feature = "v4l2")]
pub mod camera_list;
mod commands;
pub mod config;
pub mod demo;
pub mod directories;
pub mod doctor;
mod health;
mod intake;
pub mod latest;
mod live;
pub mod models;
pub mod notify;
mod outlet;
pub mod pictures;
pub mod pipeline;
pub mod prepare;
pub mod report;
pub mod run;
pub mod sample_frames;
pub mod segment;
mod station;
mod text_cache;
pub mod tune;
pub mod words;
