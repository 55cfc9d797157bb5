//! (module daemon)
