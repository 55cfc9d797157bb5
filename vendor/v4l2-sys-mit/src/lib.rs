//! Raw V4L2 structures of `linux/videodev2.h`, generated ahead of time; see README.md.

#![allow(clippy::all, clippy::pedantic, missing_docs)]
#![allow(non_camel_case_types, non_snake_case, non_upper_case_globals, dead_code)]

#[cfg(not(all(target_pointer_width = "64", target_endian = "little")))]
compile_error!("these V4L2 bindings are of 64-bit little-endian Linux; build samclip without its feature v4l2");

include!("bindings.rs");
