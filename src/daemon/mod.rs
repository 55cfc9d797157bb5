//! The program: the only place that knows every part and puts them together.
//!
//! [`config`] is the file a user writes. [`pipeline`] is a model that frames go through; [`segment`], [`demo`] and
//! [`run`] are three ways to feed it. [`prepare`] makes beforehand what they would make at their first start, [`doctor`]
//! says what would stop them, [`tune`] where to set a query's threshold, [`bench`] what a frame costs, `camera_list` what is plugged in.
//!
//! Of the running daemon, [`cameras`] are the threads that frames come from and `serve` is the loop that takes them, each through
//! the input size that `schedule` chooses. Between
//! two frames it carries out [`commands`] (`desk`) and puts new configurations in force (`reload`, `adopt`); `texts` is the
//! thread that does for them what takes long. What anybody may know is on the [`board`].

mod adopt;
pub mod annotate;
pub mod asking;
pub mod bench;
pub mod board;
#[cfg(feature = "v4l2")]
pub mod camera_list;
pub mod cameras;
pub mod commands;
pub mod config;
#[cfg(feature = "dbus")]
pub mod dbus;
pub mod demo;
mod desk;
pub mod directories;
pub mod doctor;
pub mod embedder;
#[cfg(any(feature = "dbus", feature = "http"))]
mod event_loop;
mod gate;
mod health;
#[cfg(feature = "http")]
pub mod http;
pub mod install;
mod intake;
pub mod latest;
mod live;
pub mod models;
pub mod notify;
mod outlet;
pub mod pictures;
pub mod pipeline;
pub mod prepare;
#[cfg(feature = "dbus")]
pub mod query_command;
mod reload;
pub mod report;
pub mod run;
pub mod sample_frames;
mod schedule;
pub mod segment;
mod serve;
mod sight;
mod station;
pub mod tally;
mod text_cache;
mod texts;
pub mod tune;
pub mod view;
pub mod words;
