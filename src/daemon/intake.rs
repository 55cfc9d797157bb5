//! What a camera's thread counts, for whoever tells of it.

use std::sync::atomic::{AtomicU64, Ordering};

use super::view::SourceCounts;
use crate::capture::Losses;

/// Counters of one camera since start; they outlive its thread.
#[derive(Debug, Default)]
pub(super) struct Intake {
    lost: AtomicU64,
    corrupt: AtomicU64,
    passed: AtomicU64,
    still: AtomicU64,
    opened: AtomicU64,
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

    /// Frames were skipped in a slot of the hand-off that is given back.
    pub(super) fn count_skipped(&self, frames: u64) {
        self.passed.fetch_add(frames, Ordering::Relaxed);
    }

    /// The source was opened, `again` after it had failed.
    pub(super) fn count_opening(&self, again: bool) {
        self.opened.fetch_add(1, Ordering::Relaxed);
        self.reopened.fetch_add(u64::from(again), Ordering::Relaxed);
    }

    /// A frame was left out because nothing moved.
    pub(super) fn count_still(&self) {
        self.still.fetch_add(1, Ordering::Relaxed);
    }

    /// Frames that were left out because nothing moved.
    pub(super) fn still(&self) -> u64 {
        self.still.load(Ordering::Relaxed)
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

    /// All of it, with the frames that were skipped after the thread had handed them over.
    pub(super) fn counts(&self, dropped: u64) -> SourceCounts {
        let Losses { lost, corrupt, passed } = self.losses();
        SourceCounts {
            opened: self.opened.load(Ordering::Relaxed),
            reopened: self.reopened.load(Ordering::Relaxed),
            lost,
            corrupt,
            skipped: dropped + passed,
            still: self.still(),
        }
    }
}
