//! Time sources: the only place that asks the system what time it is.
//!
//! Two clocks matter. The monotonic one orders frames and measures ages; it is the kernel's `CLOCK_MONOTONIC`, the
//! same that V4L2 drivers stamp frames with. The wall clock (UTC) is only printed in messages: it may jump.

use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// One moment on both clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment {
    /// Time since an arbitrary start, never going back.
    pub monotonic: Duration,
    /// Microseconds since 1970-01-01 UTC.
    pub unix_micros: i64,
}

impl Moment {
    /// The same moment moved into the past; stops at zero on the monotonic clock.
    #[must_use]
    pub fn earlier_by(self, age: Duration) -> Self {
        let micros = i64::try_from(age.as_micros()).unwrap_or(i64::MAX);
        Self {
            monotonic: self.monotonic.saturating_sub(age),
            unix_micros: self.unix_micros.saturating_sub(micros),
        }
    }

    /// Time from `earlier` to this moment; zero if `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        self.monotonic.saturating_sub(earlier.monotonic)
    }
}

/// A source of time that tests can replace.
pub trait Clock: Send + Sync {
    /// The present moment.
    fn now(&self) -> Moment;
    /// Waits; a simulated clock moves forward instead.
    fn sleep(&self, duration: Duration);
}

/// The machine's clocks.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    /// A clock whose monotonic zero is now.
    #[must_use]
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Moment {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Moment {
            monotonic: self.start.elapsed(),
            unix_micros: i64::try_from(since_epoch.as_micros()).unwrap_or(i64::MAX),
        }
    }

    fn sleep(&self, duration: Duration) {
        std::thread::sleep(duration);
    }
}

/// A clock that moves only when told to.
#[derive(Debug, Default)]
pub struct SimulatedClock {
    now: Mutex<Moment>,
}

impl SimulatedClock {
    /// A clock that stands at `start`.
    #[must_use]
    pub fn new(start: Moment) -> Self {
        Self { now: Mutex::new(start) }
    }

    /// Moves both clocks forward.
    pub fn advance(&self, by: Duration) {
        let mut now = self.now.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        now.monotonic += by;
        now.unix_micros = now
            .unix_micros
            .saturating_add(i64::try_from(by.as_micros()).unwrap_or(i64::MAX));
    }
}

impl Clock for SimulatedClock {
    fn now(&self) -> Moment {
        *self.now.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn sleep(&self, duration: Duration) {
        self.advance(duration);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_simulated_clock_moves_only_when_told() {
        let clock = SimulatedClock::new(Moment {
            monotonic: Duration::from_secs(5),
            unix_micros: 7,
        });
        let start = clock.now();
        clock.sleep(Duration::from_millis(40));
        assert_eq!(clock.now().since(start), Duration::from_millis(40));
        assert_eq!(clock.now().unix_micros, 40_007);
        assert_eq!(clock.now().earlier_by(Duration::from_millis(40)), start);
    }

    #[test]
    fn the_age_of_a_later_moment_is_zero() {
        let early = Moment {
            monotonic: Duration::from_secs(1),
            unix_micros: 0,
        };
        let late = Moment {
            monotonic: Duration::from_secs(2),
            unix_micros: 0,
        };
        assert_eq!(early.since(late), Duration::ZERO);
        assert_eq!(early.earlier_by(Duration::from_secs(9)).monotonic, Duration::ZERO);
    }
}
