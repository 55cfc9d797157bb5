//! Messages out: bytes to an MQTT broker, whatever state the broker is in.
//!
//! * [`outbox`]: what waits to be sent; bounded, drops the oldest, keeps the last of every retained topic. Pure state
//! * [`mqtt`]: the connection: last will, availability, reconnecting
//! * [`probe`]: asks a broker once whether it would accept the daemon
//! * [`broker`]: a small broker inside the program, for `demo` and for tests

pub mod broker;
pub mod mqtt;
pub mod outbox;
pub mod probe;
