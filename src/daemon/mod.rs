//! (module daemon)
pub mod config;
