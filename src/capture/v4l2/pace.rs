//! Numbers and rate of a camera's frames.

use std::time::Duration;

/// The driver's frame numbers, made rising for ever.
#[derive(Debug, Default)]
pub(super) struct Numbering {
    last: Option<u32>,
    /// Number of the last frame.
    pub(super) number: u64,
}

impl Numbering {
    /// Takes the number of the next frame; how many were left out before it. The driver's numbers wrap around.
    pub(super) fn count(&mut self, sequence: u32) -> u64 {
        let Some(last) = self.last.replace(sequence) else {
            return 0;
        };
        // Drivers that do not count, or start again, lose nothing.
        let step = match sequence.wrapping_sub(last) {
            0 | 0x8000_0000.. => 1,
            step => u64::from(step),
        };
        self.number += step;
        step - 1
    }
}

/// Keeps a camera that delivers faster than asked down to the wanted rate.
#[derive(Debug)]
pub(super) struct Pace {
    period: Option<Duration>,
    /// Frames this much early are taken.
    slack: Duration,
    due: Duration,
    /// When the last frame that was taken was due.
    before: Duration,
}

impl Pace {
    pub(super) fn new(wanted: Option<f32>, delivered: Option<f32>) -> Self {
        let slower = wanted.filter(|w| delivered.is_none_or(|d| d > w * 1.02));
        Self {
            period: slower.map(|w| Duration::from_secs_f32(1.0 / w)),
            slack: delivered.map_or(Duration::ZERO, |d| Duration::from_secs_f32(0.5 / d)),
            due: Duration::ZERO,
            before: Duration::ZERO,
        }
    }

    pub(super) fn is_slow(&self) -> bool {
        self.period.is_some()
    }

    /// Whether a frame comes before its time.
    pub(super) fn too_early(&mut self, at: Duration) -> bool {
        let Some(period) = self.period else { return false };
        if at + self.slack < self.due {
            return true;
        }
        self.before = self.due;
        self.due = if at > self.due + period { at } else { self.due } + period;
        false
    }

    /// The last frame that was taken is damaged: the next one takes its place.
    pub(super) fn give_back(&mut self) {
        self.due = self.before;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_in_the_drivers_numbers_are_lost_frames() {
        let mut numbering = Numbering::default();
        let lost: Vec<_> = [7, 8, 11, 11, 3, 4].map(|s| numbering.count(s)).to_vec();
        assert_eq!((lost, numbering.number), (vec![0, 0, 2, 0, 0, 0], 7));
        let mut numbering = Numbering::default();
        assert_eq!([u32::MAX, 1, 2].map(|s| numbering.count(s)), [0, 1, 0]);
        assert_eq!(numbering.number, 3);
    }

    #[test]
    fn a_camera_that_is_too_fast_is_kept_down_to_the_wanted_rate() {
        let taken = |wanted, delivered: f32| {
            let mut pace = Pace::new(Some(wanted), Some(delivered));
            let times = (0..300).map(|i| Duration::from_secs(9) + Duration::from_secs_f32(i as f32 / delivered));
            times.filter(|t| !pace.too_early(*t)).count() as f32 * delivered / 300.0
        };
        assert!((taken(12.0, 30.0) - 12.0).abs() < 0.2);
        assert!((taken(29.0, 30.0) - 29.0).abs() < 0.2);
        assert_eq!((taken(30.0, 30.0), taken(60.0, 30.0)), (30.0, 30.0));
        // After a silence nothing is made up for.
        let mut pace = Pace::new(Some(1.0), Some(10.0));
        let times = [0.0, 5.0, 5.1, 5.9, 6.0].map(Duration::from_secs_f32);
        assert_eq!(times.map(|t| pace.too_early(t)), [false, false, true, true, false]);
    }

    #[test]
    fn after_a_damaged_frame_the_next_one_is_taken() {
        let mut pace = Pace::new(Some(1.0), Some(10.0));
        let early = |pace: &mut Pace, at| pace.too_early(Duration::from_secs_f32(at));
        assert_eq!([9.0, 9.1, 9.9].map(|at| early(&mut pace, at)), [false, true, true]);
        for at in [10.0, 10.1] {
            assert!(!early(&mut pace, at));
            pace.give_back();
        }
        // What takes its place does not move those that follow.
        let times = [10.2, 10.3, 10.9, 11.0];
        assert_eq!(times.map(|at| early(&mut pace, at)), [false, true, true, false]);
    }
}
