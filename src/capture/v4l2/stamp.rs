//! When a frame was taken: the driver's time stamp as an age.
//!
//! Stamps of `CLOCK_MONOTONIC` are compared with that clock at once, and the age is taken off both of the daemon's clocks.
//! So the wall clock may jump at any time: every frame is told by the wall clock as it stands when the frame is taken
//! from the driver.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use v4l::Timestamp;
use v4l::buffer::Flags;

/// A stamp that is older, or of the future, comes from a driver with another clock.
const OLDEST: Duration = Duration::from_secs(10);

/// How long ago the driver stamped the frame; zero if it does not use the monotonic clock.
#[allow(clippy::useless_conversion, reason = "seconds are 32 bits wide on some boards")]
pub(super) fn age(stamp: Timestamp, flags: Flags) -> Duration {
    if flags & Flags::TIMESTAMP_MASK != Flags::TIMESTAMP_MONOTONIC {
        return Duration::ZERO;
    }
    let Ok(now) = clock_gettime(ClockId::CLOCK_MONOTONIC) else {
        return Duration::ZERO;
    };
    let micros = |seconds: i64, rest: i64| seconds.saturating_mul(1_000_000).saturating_add(rest);
    let now = micros(now.tv_sec().into(), (now.tv_nsec() / 1000).into());
    between(micros(stamp.sec.into(), stamp.usec.into()), now)
}

/// Time from a stamp to now, both in microseconds.
fn between(stamp: i64, now: i64) -> Duration {
    let micros = now.checked_sub(stamp).and_then(|d| u64::try_from(d).ok());
    micros
        .map(Duration::from_micros)
        .filter(|age| *age < OLDEST)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_of_foreign_clocks_are_zero() {
        assert_eq!(age(Timestamp::new(1, 0), Flags::TIMESTAMP_COPY), Duration::ZERO);
        assert_eq!(between(5_000_000, 5_040_000), Duration::from_millis(40));
        for (stamp, now) in [
            (5_000_001, 5_000_000),
            (0, 10_000_000),
            (i64::MIN, i64::MAX),
            (i64::MAX, 0),
        ] {
            assert_eq!(between(stamp, now), Duration::ZERO);
        }
    }
}
