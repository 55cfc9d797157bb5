//! (module publish)
