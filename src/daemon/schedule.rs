//! The schedule of sizes: which input size of the model a camera's frame goes through, where `[camera.sizes]` is set.
//!
//! A look at the small size only decides whether a look at the full one is worth it. It is taken while nothing is tracked, and
//! what it gives leaves here only if no query comes near its threshold; otherwise the same frame is looked at again at the
//! full size at once, and so are all frames for `hold` after that. So every mask comes from the full size, and no track is
//! ever missed by a small look: there is none. Things that only the full size shows are found at the next `refresh`.

use std::time::Duration;

use super::config::{Camera, Config, Sizes};
use super::pipeline::Detections;

/// A camera whose sizes do not go with the model that is open.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SizeFault {
    /// A size is not open.
    #[error("camera {camera}: a size of {side} pixels is not open, only {open:?}; restart the daemon to open it")]
    NotOpen {
        /// Id of the camera.
        camera: String,
        /// The side it needs.
        side: usize,
        /// Sides that are open.
        open: Vec<usize>,
    },
    /// The small size is not smaller.
    #[error("camera {camera}: calm is {calm}, expected less than the {full} pixels of the camera's full size")]
    NotSmaller {
        /// Id of the camera.
        camera: String,
        /// Side of the small size.
        calm: usize,
        /// Side of the full one.
        full: usize,
    },
}

/// Sides that cameras name, each of which has to be open.
pub(super) fn sides(config: &Config) -> Vec<usize> {
    let of = |camera: &Camera| camera.side.into_iter().chain(camera.sizes.map(|sizes| sizes.calm));
    config.cameras.iter().flat_map(of).collect()
}

/// Compares the sizes of all cameras with those of a model that are open, its own first.
///
/// # Errors
/// [`SizeFault`] for the first camera that does not fit.
pub(super) fn check(config: &Config, open: &[usize]) -> Result<(), SizeFault> {
    for camera in &config.cameras {
        let full = camera.side.or(open.first().copied()).unwrap_or_default();
        let calm = camera.sizes.map(|sizes| sizes.calm);
        let camera = camera.id.to_string();
        if let Some(side) = calm.into_iter().chain([full]).find(|side| !open.contains(side)) {
            let open = open.to_vec();
            return Err(SizeFault::NotOpen { camera, side, open });
        }
        if let Some(calm) = calm.filter(|&calm| calm >= full) {
            return Err(SizeFault::NotSmaller { camera, calm, full });
        }
    }
    Ok(())
}

/// One camera's schedule. Times are capture times on the monotonic clock.
#[derive(Debug)]
pub(super) struct Schedule {
    full: usize,
    rules: Option<Sizes>,
    /// Last look at the full size.
    looked: Option<Duration>,
    /// Last time that something was tracked or hinted at.
    found: Option<Duration>,
}

impl Schedule {
    /// For a camera whose full size has this side; without rules every frame goes through that. The first look is a full one.
    pub(super) fn new(full: usize, rules: Option<Sizes>) -> Self {
        Self {
            full,
            rules,
            looked: None,
            found: None,
        }
    }

    /// The next look is a full one: what was known of the scene holds no more.
    pub(super) fn forget(&mut self) {
        self.looked = None;
    }

    /// Looks at a frame of time `at`; `run` takes it through the size of a side. `tracked` says whether any thing is tracked,
    /// `wanted` whether the daemon wants the full size for another reason.
    ///
    /// # Errors
    /// The first one of `run`; the next look is a full one then.
    pub(super) fn look<E>(
        &mut self,
        at: Duration,
        tracked: bool,
        wanted: bool,
        mut run: impl FnMut(usize) -> Result<Detections, E>,
    ) -> Result<Detections, E> {
        if tracked {
            self.found = Some(at);
        }
        let before = self.looked.take();
        let within = |time: Option<Duration>, span| time.is_some_and(|time| at.saturating_sub(time) < span);
        let calm = self.rules.filter(|rules| {
            let due = wanted || !within(before, rules.refresh);
            !due && !tracked && !within(self.found, rules.hold)
        });
        let Some(rules) = calm else {
            let seen = run(self.full)?;
            self.looked = Some(at);
            return Ok(seen);
        };
        let glimpse = run(rules.calm)?;
        let mut scores = glimpse.best.iter().zip(&glimpse.thresholds);
        if !scores.any(|(score, threshold)| *score >= rules.hint * threshold) {
            self.looked = before;
            return Ok(glimpse);
        }
        self.found = Some(at);
        let seen = run(self.full)?;
        self.looked = Some(at);
        Ok(glimpse.confirmed(seen))
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;
    use crate::daemon::pipeline::StageTimes;
    use crate::vision::frame::{CaptureTime, Sequence};
    use crate::vision::geometry::FrameSize;

    const FULL: usize = 320;
    const CALM: usize = 224;

    fn rules() -> Sizes {
        Sizes {
            calm: CALM,
            hint: 0.5,
            refresh: Duration::from_secs(10),
            hold: Duration::from_secs(2),
        }
    }

    /// A look at one query whose threshold is 0.6.
    fn look(side: usize, score: f32) -> Detections {
        Detections {
            size: FrameSize::new(64, 48).unwrap(),
            sequence: Sequence(0),
            captured: CaptureTime::default(),
            masks: Vec::new(),
            best: vec![0.0, score],
            thresholds: vec![0.9, 0.6],
            side,
            hinted: None,
            times: StageTimes {
                encoder: Duration::from_millis(side as u64),
                ..StageTimes::default()
            },
        }
    }

    /// One frame at tenths of a second; the sides it went through.
    fn sides(schedule: &mut Schedule, tenth: u64, tracked: bool, wanted: bool, score: f32) -> Vec<usize> {
        let at = Duration::from_millis(100 * tenth);
        let seen = schedule.look(at, tracked, wanted, |side| Ok::<_, Infallible>(look(side, score)));
        seen.unwrap().looks().collect()
    }

    /// Tenths of a second of this range whose frames went through the full size, ten frames a second.
    fn full(schedule: &mut Schedule, tenths: std::ops::Range<u64>) -> Vec<u64> {
        let full = |&tenth: &u64| sides(schedule, tenth, false, false, 0.1).contains(&FULL);
        tenths.filter(full).collect()
    }

    #[test]
    fn an_empty_scene_is_looked_at_fully_once_per_refresh() {
        let mut schedule = Schedule::new(FULL, Some(rules()));
        assert_eq!(full(&mut schedule, 0..350), [0, 100, 200, 300]);
    }

    #[test]
    fn a_hint_is_confirmed_on_the_same_frame_and_holds() {
        let mut schedule = Schedule::new(FULL, Some(rules()));
        full(&mut schedule, 0..10);
        assert_eq!(sides(&mut schedule, 10, false, false, 0.29), [CALM]);
        assert_eq!(sides(&mut schedule, 11, false, false, 0.3), [CALM, FULL]);
        assert_eq!(full(&mut schedule, 12..140), (12..31).chain([130]).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_published_after_a_hint_is_the_full_look_with_the_time_of_both() {
        let mut schedule = Schedule::new(FULL, Some(rules()));
        full(&mut schedule, 0..10);
        let seen = schedule.look(Duration::from_secs(1), false, false, |side| {
            Ok::<_, Infallible>(look(side, if side == CALM { 0.59 } else { 0.2 }))
        });
        let seen = seen.unwrap();
        assert_eq!((seen.side, seen.hinted, seen.best[1]), (FULL, Some(CALM), 0.2));
        assert_eq!(seen.times.encoder, Duration::from_millis((FULL + CALM) as u64));
    }

    #[test]
    fn while_something_is_tracked_and_for_hold_after_it_no_look_is_a_small_one() {
        let mut schedule = Schedule::new(FULL, Some(rules()));
        full(&mut schedule, 0..10);
        let tracked: Vec<_> = (10..50)
            .map(|tenth| sides(&mut schedule, tenth, true, false, 0.0))
            .collect();
        assert_eq!(tracked, vec![vec![FULL]; 40]);
        assert_eq!(full(&mut schedule, 50..100), (50..69).collect::<Vec<_>>());
    }

    #[test]
    fn one_look_is_full_whenever_the_daemon_wants_it_or_the_scene_is_another() {
        let mut schedule = Schedule::new(FULL, Some(rules()));
        full(&mut schedule, 0..10);
        assert_eq!(sides(&mut schedule, 10, false, true, 0.0), [FULL]);
        assert_eq!(sides(&mut schedule, 11, false, false, 0.0), [CALM]);
        schedule.forget();
        assert_eq!(full(&mut schedule, 12..20), [12]);
    }

    #[test]
    fn after_a_failure_at_either_size_the_next_look_is_full() {
        for failing in [CALM, FULL] {
            let mut schedule = Schedule::new(FULL, Some(rules()));
            full(&mut schedule, 0..10);
            let run = |side| if side == failing { Err(()) } else { Ok(look(side, 0.6)) };
            assert!(schedule.look(Duration::from_secs(1), false, false, run).is_err());
            assert_eq!(sides(&mut schedule, 60, false, false, 0.0), [FULL], "{failing}");
        }
    }

    #[test]
    fn without_the_table_every_look_is_full() {
        let mut schedule = Schedule::new(CALM, None);
        assert_eq!(sides(&mut schedule, 0, false, false, 0.9), [CALM]);
        assert_eq!(sides(&mut schedule, 1, false, false, 0.0), [CALM]);
    }

    #[test]
    fn sizes_that_the_model_does_not_have_open_are_refused_by_camera() {
        let config = |keys: &str| {
            let text = format!("model = \"m\"\n[[camera]]\nid = \"yard\"\nsource = \"v4l2://0\"\n{keys}");
            Config::parse(&text, "test.toml".as_ref()).unwrap()
        };
        let check = |keys: &str| check(&config(keys), &[FULL, CALM]).map_err(|fault| fault.to_string());
        assert_eq!(check(""), Ok(()));
        assert_eq!(check("side = 224\n"), Ok(()));
        assert_eq!(check("[camera.sizes]\ncalm = 224\n"), Ok(()));
        let missing = "camera yard: a size of 160 pixels is not open, only [320, 224]; restart the daemon to open it";
        assert_eq!(check("side = 160\n"), Err(missing.into()));
        assert_eq!(check("[camera.sizes]\ncalm = 160\n"), Err(missing.into()));
        let larger = "camera yard: calm is 320, expected less than the 320 pixels of the camera's full size";
        assert_eq!(check("[camera.sizes]\ncalm = 320\n"), Err(larger.into()));
    }
}
