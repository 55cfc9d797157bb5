//! Messages out: bytes to an MQTT broker, whatever state the broker is in.
//!
//! * [`outbox`]: what waits to be sent; bounded, drops the oldest, keeps the last of every retained topic. Pure state
//! * [`spool`]: events on disk until the broker has acknowledged them; bounded, drops the oldest
//! * [`mqtt`]: what the daemon uses: hand over, ask, stop; `session` is its thread: availability, reconnecting
//! * [`link`]: one connection, MQTT 3.1.1 or 5, plain or TLS
//! * [`probe`]: asks a broker once whether it would accept the daemon
//! * [`broker`]: a small broker inside the program, for `demo` and for tests

pub mod broker;
pub mod link;
pub mod mqtt;
pub mod outbox;
pub mod probe;
mod session;
pub mod spool;
