//! Raw V4L2 structures of `linux/videodev2.h`, generated ahead of time; see README.md.

#![allow(clippy::all, clippy::pedantic, missing_docs)]
#![allow(non_camel_case_types, non_snake_case, non_upper_case_globals, dead_code)]

include!("bindings.rs");
