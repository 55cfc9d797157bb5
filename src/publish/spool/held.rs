//! Events that could not be written, in memory: bounded, by their sequence number.

use std::collections::BTreeMap;

/// Most events.
pub(super) const MOST: usize = 1_024;

/// Most bytes of them.
const MOST_BYTES: usize = 4 << 20;

/// Bodies by sequence number.
#[derive(Debug, Default)]
pub(super) struct Held {
    bodies: BTreeMap<u64, Vec<u8>>,
    bytes: usize,
}

impl Held {
    /// Whether a body can be held at all.
    pub(super) fn takes(body: &[u8]) -> bool {
        body.len() <= MOST_BYTES / 4
    }

    /// The oldest one that has to go before another body is held, if any.
    pub(super) fn in_the_way(&self, body: &[u8]) -> Option<u64> {
        let full = self.bodies.len() >= MOST || self.bytes + body.len() > MOST_BYTES;
        full.then(|| self.bodies.first_key_value().map(|(sequence, _)| *sequence))?
    }

    pub(super) fn insert(&mut self, sequence: u64, body: Vec<u8>) {
        self.bytes += body.len();
        self.bodies.insert(sequence, body);
    }

    pub(super) fn get(&self, sequence: u64) -> Option<&[u8]> {
        self.bodies.get(&sequence).map(Vec::as_slice)
    }

    /// Lets one go; nothing happens if it is not held.
    pub(super) fn remove(&mut self, sequence: u64) {
        self.bytes -= self.bodies.remove(&sequence).map_or(0, |body| body.len());
    }
}
