//! What a camera's thread counts, for whoever tells of it.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::capture::Losses;

/// Counters of one camera since start; they outlive its thread.
#[derive(Debug, Default)]
pub(super) struct Intake {
    lost: AtomicU64,
    corrupt: AtomicU64,
    passed: AtomicU64,
    reopened: AtomicU64,
    next_number: AtomicU64,
}

impl Intake {
    /// Adds what a source did not deliver.
    pub(super) fn add(&self, losses: Losses) {
        self.lost.fetch_add(losses.lost, Ordering::Relaxed);
        self.corrupt.fetch_add(losses.corrupt, Ordering::Relaxed);
        self.passed.fetch_add(losses.passed, Ordering::Relaxed);
    }

    /// The source was opened again.
    pub(super) fn count_reopening(&self) {
        self.reopened.fetch_add(1, Ordering::Relaxed);
    }

    /// All that was not delivered.
    pub(super) fn losses(&self) -> Losses {
        Losses {
            lost: self.lost.load(Ordering::Relaxed),
            corrupt: self.corrupt.load(Ordering::Relaxed),
            passed: self.passed.load(Ordering::Relaxed),
        }
    }

    /// Number of the next frame.
    pub(super) fn next_number(&self) -> u64 {
        self.next_number.load(Ordering::Relaxed)
    }

    /// Sets the number of the next frame.
    pub(super) fn set_next_number(&self, number: u64) {
        self.next_number.store(number, Ordering::Relaxed);
    }

    /// How often the source was opened after the first time.
    pub(super) fn reopened(&self) -> u64 {
        self.reopened.load(Ordering::Relaxed)
    }
}
