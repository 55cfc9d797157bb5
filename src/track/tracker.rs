//! Tracks: masks of one query that belong to the same thing, with one id for as long as it is seen.
//!
//! A mask continues the track it overlaps most, where the track was or where its last movement would have taken it
//! (intersection over union, one-to-one: [`super::assign`]). Hysteresis: a track counts after `min_hits` masks without a
//! gap longer than `max_age`, and ends once it was not seen for longer than that. Nothing is re-identified: a thing that
//! comes back later is a new track.

use std::time::Duration;

use super::assign::assign;
use crate::vision::frame::CaptureTime;
use crate::vision::mask::{BinaryMask, PixelBox};

/// Share of a new score in the smoothed one.
const SCORE_WEIGHT: f32 = 0.4;

/// Share of a new displacement in the smoothed speed.
const SPEED_WEIGHT: f32 = 0.5;

/// When tracks of a query begin to count and when they end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TrackRules {
    /// Masks until the track counts, at least 1.
    pub min_hits: u32,
    /// Longest time without a mask.
    pub max_age: Duration,
    /// Least overlap (IoU) of a mask with the track it continues, above 0 to 1.
    pub min_iou: f32,
}

impl Default for TrackRules {
    fn default() -> Self {
        Self {
            min_hits: 2,
            max_age: Duration::from_secs(3),
            min_iou: 0.2,
        }
    }
}

/// One mask of the present frame.
#[derive(Clone, Copy, Debug)]
pub struct Observed<'a> {
    /// Id of the query.
    pub query: &'a str,
    /// Calibrated score, 0-1.
    pub score: f32,
    /// The mask; an empty one is never tracked.
    pub mask: &'a BinaryMask,
}

/// Where a thing is: mask, box and area, computed once.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// The mask, of frame size.
    pub mask: BinaryMask,
    /// Box around it.
    pub bounds: PixelBox,
    /// Its pixels.
    pub area: usize,
}

impl Shape {
    /// The shape of a mask; `None` if it is empty.
    #[must_use]
    pub fn new(mask: &BinaryMask) -> Option<Self> {
        Some(Self {
            bounds: mask.bounding_box()?,
            area: mask.area(),
            mask: mask.clone(),
        })
    }

    /// Intersection over union with another shape, this one moved by `shift` pixels (right, down).
    #[must_use]
    pub fn iou_moved(&self, other: &Self, shift: (i64, i64)) -> f32 {
        if self.mask.size() != other.mask.size() {
            return 0.0;
        }
        let both = self
            .mask
            .intersection_moved(self.bounds, &other.mask, other.bounds, shift);
        both as f32 / (self.area + other.area - both) as f32
    }
}

/// Centre of a box in pixels.
fn centre(b: PixelBox) -> (f32, f32) {
    ((b.x1 + b.x2) as f32 / 2.0, (b.y1 + b.y2) as f32 / 2.0)
}

/// One thing over time.
#[derive(Clone, Debug)]
pub struct Track {
    /// Stable id: second of the beginning and six digits that tell tracks of that second apart.
    pub id: String,
    /// Id of the query.
    pub query: String,
    /// Where it was last seen.
    pub shape: Shape,
    /// Smoothed score, 0-1.
    pub score: f32,
    /// Best score of a single frame, 0-1.
    pub top_score: f32,
    /// Capture time of its first mask.
    pub first: CaptureTime,
    /// Capture time of its last mask.
    pub last: CaptureTime,
    /// Masks so far.
    pub hits: u32,
    /// Whether it has had `min_hits` masks.
    pub confirmed: bool,
    /// Pixels per second, right and down, smoothed.
    speed: (f32, f32),
    /// From when on the time without a mask counts, on the monotonic clock.
    missed_since: Duration,
}

impl Track {
    /// Overlap with a shape seen at `at`: where the track was, or where its speed would have taken it.
    fn overlap(&self, shape: &Shape, at: CaptureTime) -> f32 {
        let seconds = at.monotonic.saturating_sub(self.last.monotonic).as_secs_f32();
        let still = self.shape.iou_moved(shape, (0, 0));
        let shift = (
            (self.speed.0 * seconds).round() as i64,
            (self.speed.1 * seconds).round() as i64,
        );
        if shift == (0, 0) {
            still
        } else {
            still.max(self.shape.iou_moved(shape, shift))
        }
    }

    fn continue_with(&mut self, shape: Shape, score: f32, at: CaptureTime, min_hits: u32) {
        let seconds = at.monotonic.saturating_sub(self.last.monotonic).as_secs_f32();
        if seconds > 0.0 {
            let (old, new) = (centre(self.shape.bounds), centre(shape.bounds));
            let mix = |speed: f32, moved: f32| speed + SPEED_WEIGHT * (moved / seconds - speed);
            self.speed = (mix(self.speed.0, new.0 - old.0), mix(self.speed.1, new.1 - old.1));
        }
        self.shape = shape;
        self.score += SCORE_WEIGHT * (score - self.score);
        self.top_score = self.top_score.max(score);
        (self.last, self.missed_since) = (at, at.monotonic);
        self.hits = self.hits.saturating_add(1);
        self.confirmed |= self.hits >= min_hits;
    }
}

/// What one frame changed.
#[derive(Debug, Default)]
pub struct Step {
    /// For every observed mask, the index of its track in [`Tracker::tracks`]; `None` for empty masks.
    pub tracks: Vec<Option<usize>>,
    /// Tracks that ended; those that never counted are among them.
    pub ended: Vec<Track>,
}

/// Tracks of one camera.
#[derive(Debug)]
pub struct Tracker {
    tracks: Vec<Track>,
    /// Tells cameras and runs apart in ids.
    seed: u64,
    begun: u64,
    /// When it last looked, on the monotonic clock.
    looked: Duration,
}

impl Tracker {
    /// No tracks yet; `seed` makes ids differ from those of other trackers, e.g. a hash of the camera's id.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            tracks: Vec::new(),
            seed,
            begun: 0,
            looked: Duration::ZERO,
        }
    }

    /// Tracks, those that do not count yet among them.
    #[must_use]
    pub fn tracks(&self) -> &[Track] {
        &self.tracks
    }

    /// Nothing has changed since the last frame, and nobody looked until `at`: that time is no time without a mask.
    pub fn skip_to(&mut self, at: CaptureTime) {
        let skipped = at.monotonic.saturating_sub(self.looked);
        self.looked = at.monotonic;
        self.tracks.iter_mut().for_each(|track| track.missed_since += skipped);
    }

    /// Whether a track was missed on the last frame, or does not count yet: the next frame decides about it.
    #[must_use]
    pub fn is_undecided(&self) -> bool {
        let undecided = |track: &Track| !track.confirmed || track.last.monotonic != self.looked;
        self.tracks.iter().any(undecided)
    }

    /// Continues, begins and ends tracks by the masks of one frame; `rules` says what holds for a query.
    pub fn step(&mut self, at: CaptureTime, observed: &[Observed<'_>], rules: impl Fn(&str) -> TrackRules) -> Step {
        self.looked = at.monotonic;
        let shapes: Vec<Option<Shape>> = observed.iter().map(|o| Shape::new(o.mask)).collect();
        let mut step = Step {
            tracks: vec![None; observed.len()],
            ended: Vec::new(),
        };
        let mut queries: Vec<&str> = observed.iter().map(|o| o.query).collect();
        queries.sort_unstable();
        queries.dedup();
        for query in queries {
            let rows: Vec<usize> = (0..self.tracks.len())
                .filter(|&t| self.tracks[t].query == query)
                .collect();
            let columns: Vec<usize> = (0..observed.len())
                .filter(|&o| observed[o].query == query && shapes[o].is_some())
                .collect();
            let overlap = |r: usize, c: usize| {
                let shape = shapes[columns[c]].as_ref();
                shape.map_or(0.0, |shape| self.tracks[rows[r]].overlap(shape, at))
            };
            for (r, c) in assign(rows.len(), columns.len(), rules(query).min_iou, overlap) {
                step.tracks[columns[c]] = Some(rows[r]);
            }
        }
        for (index, (o, shape)) in observed.iter().zip(shapes).enumerate() {
            let Some(shape) = shape else { continue };
            let min_hits = rules(o.query).min_hits;
            match step.tracks[index] {
                Some(track) => self.tracks[track].continue_with(shape, o.score, at, min_hits),
                None => {
                    step.tracks[index] = Some(self.tracks.len());
                    let track = self.begin(o.query, shape, o.score, at, min_hits);
                    self.tracks.push(track);
                }
            }
        }
        step.ended = self.end_where(
            |track| at.monotonic.saturating_sub(track.missed_since) > rules(&track.query).max_age,
            &mut step.tracks,
        );
        step
    }

    fn begin(&mut self, query: &str, shape: Shape, score: f32, at: CaptureTime, min_hits: u32) -> Track {
        self.begun += 1;
        let seconds = at.unix_micros.div_euclid(100_000);
        // Weyl sequence: neighbours differ in every digit, and 2^24 tracks pass before one repeats.
        let mixed = self.seed.wrapping_add(self.begun.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        Track {
            id: format!(
                "{}.{}-{:06x}",
                seconds.div_euclid(10),
                seconds.rem_euclid(10),
                mixed >> 40
            ),
            query: query.to_owned(),
            shape,
            score,
            top_score: score,
            first: at,
            last: at,
            hits: 1,
            confirmed: min_hits <= 1,
            speed: (0.0, 0.0),
            missed_since: at.monotonic,
        }
    }

    /// Ends tracks, keeping `indices` into [`Self::tracks`] right.
    fn end_where(&mut self, over: impl Fn(&Track) -> bool, indices: &mut [Option<usize>]) -> Vec<Track> {
        let (mut ended, mut kept, mut places) = (Vec::new(), Vec::new(), Vec::new());
        for track in std::mem::take(&mut self.tracks) {
            if over(&track) {
                places.push(None);
                ended.push(track);
            } else {
                places.push(Some(kept.len()));
                kept.push(track);
            }
        }
        self.tracks = kept;
        for index in indices {
            *index = index.and_then(|i| places[i]);
        }
        ended
    }

    /// Ends every track of which `over` holds: the camera went away, the query was removed.
    pub fn end(&mut self, over: impl Fn(&Track) -> bool) -> Vec<Track> {
        self.end_where(over, &mut [])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vision::geometry::FrameSize;

    fn square(x: usize, y: usize, side: usize) -> BinaryMask {
        let size = FrameSize::new(101, 67).unwrap();
        let inside = |i: usize| {
            let (px, py) = (i % 101, i / 101);
            (x..x + side).contains(&px) && (y..y + side).contains(&py)
        };
        BinaryMask::from_pixels(size, (0..size.pixels()).map(inside))
    }

    fn at(milliseconds: u64) -> CaptureTime {
        CaptureTime {
            monotonic: Duration::from_millis(milliseconds),
            unix_micros: 1_795_467_840_300_000 + milliseconds as i64 * 1_000,
        }
    }

    fn see(tracker: &mut Tracker, time: u64, masks: &[&BinaryMask]) -> Step {
        let observed: Vec<_> = masks
            .iter()
            .map(|mask| Observed {
                query: "box",
                score: 0.5,
                mask,
            })
            .collect();
        tracker.step(at(time), &observed, |_| TrackRules::default())
    }

    #[test]
    fn a_thing_keeps_its_id_while_others_come_and_go() {
        let mut tracker = Tracker::new(7);
        let (a, b) = (square(10, 10, 20), square(60, 20, 20));
        see(&mut tracker, 0, &[&a]);
        let id = tracker.tracks()[0].id.clone();
        assert!(
            id.starts_with("1795467840.3-") && id.len() == "1795467840.3-".len() + 6,
            "{id}"
        );
        let step = see(&mut tracker, 100, &[&b, &square(12, 10, 20)]);
        assert_eq!(tracker.tracks()[step.tracks[1].unwrap()].id, id);
        assert_ne!(tracker.tracks()[step.tracks[0].unwrap()].id, id);
        let step = see(&mut tracker, 200, &[&square(14, 11, 20)]);
        assert_eq!(tracker.tracks()[step.tracks[0].unwrap()].id, id);
        assert_eq!(tracker.tracks().len(), 2, "the other is not over yet");
    }

    #[test]
    fn a_track_counts_after_min_hits_and_ends_after_max_age() {
        let mut tracker = Tracker::new(0);
        let a = square(10, 10, 20);
        see(&mut tracker, 0, &[&a]);
        assert!(!tracker.tracks()[0].confirmed);
        see(&mut tracker, 2_900, &[&a]);
        assert!(tracker.tracks()[0].confirmed);
        assert!(
            see(&mut tracker, 5_900, &[]).ended.is_empty(),
            "exactly max_age is not over"
        );
        let ended = see(&mut tracker, 5_901, &[]).ended;
        assert_eq!((ended.len(), ended[0].hits, tracker.tracks().len()), (1, 2, 0));
    }

    #[test]
    fn a_frame_after_a_long_pause_continues_what_it_still_shows() {
        let mut tracker = Tracker::new(0);
        let a = square(10, 10, 20);
        see(&mut tracker, 0, &[&a]);
        let step = see(&mut tracker, 60_000, &[&a]);
        assert_eq!((step.ended.len(), tracker.tracks()[0].hits), (0, 2));
    }

    #[test]
    fn a_fast_thing_is_followed_by_its_speed() {
        let mut tracker = Tracker::new(0);
        let mut ids = std::collections::BTreeSet::new();
        // From the third frame on it leaves its own width behind between two frames.
        for (time, x) in [(0, 0), (100, 6), (200, 16), (400, 36), (600, 58), (800, 80)] {
            see(&mut tracker, time, &[&square(x, 30, 16)]);
            ids.insert(tracker.tracks().last().unwrap().id.clone());
        }
        assert_eq!((ids.len(), tracker.tracks().len()), (1, 1));
    }

    #[test]
    fn things_that_pass_each_other_keep_their_ids() {
        let mut tracker = Tracker::new(0);
        let mut ids: Vec<String> = Vec::new();
        for i in 0..12usize {
            let (left, right) = (square(6 * i, 10, 18), square(66 - 6 * i, 20, 18));
            let step = see(&mut tracker, 100 * i as u64, &[&left, &right]);
            let now: Vec<String> = step
                .tracks
                .iter()
                .map(|t| tracker.tracks()[t.unwrap()].id.clone())
                .collect();
            if i == 0 {
                ids.clone_from(&now);
            }
            assert_eq!(now, ids, "frame {i}");
        }
    }

    #[test]
    fn time_in_which_nobody_looked_is_no_time_unseen() {
        let mut tracker = Tracker::new(0);
        let mask = square(10, 10, 20);
        for time in [0, 100] {
            see(&mut tracker, time, &[&mask]);
        }
        let id = tracker.tracks()[0].id.clone();
        assert!(!tracker.is_undecided());
        // Still there after a minute, not found after another: the next frames decide.
        tracker.skip_to(at(60_000));
        see(&mut tracker, 60_000, &[&mask]);
        assert_eq!((tracker.tracks().len(), &tracker.tracks()[0].id), (1, &id));
        tracker.skip_to(at(120_000));
        assert!(see(&mut tracker, 120_000, &[]).ended.is_empty());
        assert!(tracker.is_undecided());
        assert!(see(&mut tracker, 123_000, &[]).ended.is_empty());
        let ended = see(&mut tracker, 123_001, &[]).ended;
        assert_eq!((ended.len(), &ended[0].id, ended[0].last), (1, &id, at(60_000)));
        // What begins does not count yet.
        see(&mut tracker, 124_000, &[&mask]);
        assert!(tracker.is_undecided());
    }

    #[test]
    fn queries_are_tracked_apart_and_scores_are_smoothed() {
        let mut tracker = Tracker::new(0);
        let mask = square(10, 10, 20);
        for (time, score) in [(0, 0.5), (100, 1.0)] {
            let observed = ["cat", "dog"].map(|query| Observed {
                query,
                score,
                mask: &mask,
            });
            let step = tracker.step(at(time), &observed, |_| TrackRules::default());
            assert_eq!(step.tracks, [Some(0), Some(1)]);
        }
        let track = &tracker.tracks()[0];
        assert!(
            (track.score - 0.7).abs() < 1e-6 && track.top_score == 1.0,
            "{}",
            track.score
        );
        assert_eq!(tracker.end(|t| t.query == "cat").len(), 1);
        assert_eq!(tracker.tracks()[0].query, "dog");
    }

    #[test]
    fn empty_masks_and_a_new_frame_size_end_in_no_panic() {
        let mut tracker = Tracker::new(0);
        let empty = BinaryMask::empty(FrameSize::new(101, 67).unwrap());
        assert_eq!(see(&mut tracker, 0, &[&empty]).tracks, [None]);
        see(&mut tracker, 100, &[&square(0, 0, 67)]);
        let other = BinaryMask::from_pixels(FrameSize::new(3, 2).unwrap(), [true; 6]);
        see(&mut tracker, 200, &[&other]);
        assert_eq!(tracker.tracks().len(), 2);
    }

    #[test]
    fn ids_of_one_second_differ_between_tracks_and_cameras() {
        let mut ids = std::collections::BTreeSet::new();
        for seed in [1 << 40, 2 << 40] {
            let mut tracker = Tracker::new(seed);
            for i in 0..20 {
                see(&mut tracker, 0, &[&square(4 * i, 0, 3)]);
            }
            ids.extend(tracker.tracks().iter().map(|t| t.id.clone()));
        }
        assert_eq!(ids.len(), 40);
    }
}
