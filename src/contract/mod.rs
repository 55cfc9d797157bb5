//! (module contract)
