//! (module runtime)
