//! What one camera sees: things that began, changed and ended, where they are and whether they move.
//!
//! A thing is reported once its track counts and, if its query names zones, once it is in one of them. It is told of
//! again when something changes (zones, movement, a better score, another place), and as a sign of life after
//! [`SceneRules::keep_alive`]; a parked car is no stream of messages.

use std::collections::BTreeMap;
use std::time::Duration;

use super::tracker::{Observed, Shape, Track, TrackRules, Tracker};
use super::zone::{Zone, ZoneOnFrame};
use crate::vision::frame::CaptureTime;
use crate::vision::geometry::FrameSize;
use crate::vision::mask::PixelBox;
use crate::vision::polygon;

/// A thing whose box overlaps its place (IoU) at least this much has not moved.
const SAME_PLACE: f32 = 0.7;

/// A better score is told of if it is better by this much.
const BETTER: f32 = 0.05;

/// A thing leaves a zone when less than this part of the share that let it in is left.
const LEAVING: f32 = 0.5;

/// What holds for the things of one query.
#[derive(Clone, Debug, PartialEq)]
pub struct ThingRules {
    /// When tracks count and end.
    pub track: TrackRules,
    /// Zones of which the thing must be in one to be reported; empty: anywhere.
    pub zones: Vec<String>,
    /// Share of the mask that must be inside a zone, above 0 to 1.
    pub zone_share: f32,
    /// Time inside a zone until it counts.
    pub loitering: Duration,
}

impl Default for ThingRules {
    fn default() -> Self {
        Self {
            track: TrackRules::default(),
            zones: Vec::new(),
            zone_share: 0.5,
            loitering: Duration::ZERO,
        }
    }
}

/// What holds for all things.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SceneRules {
    /// Time in the same place until a thing counts as stationary.
    pub stationary: Duration,
    /// Shortest time between two updates for another place or a better score.
    pub update: Duration,
    /// Longest time without an update.
    pub keep_alive: Duration,
    /// Largest distance of an outline from its mask, in pixels.
    pub tolerance: f32,
}

impl Default for SceneRules {
    fn default() -> Self {
        Self {
            stationary: Duration::from_secs(10),
            update: Duration::from_secs(1),
            keep_alive: Duration::from_secs(60),
            tolerance: 1.0,
        }
    }
}

/// A thing at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Thing {
    /// Id of its track.
    pub id: String,
    /// Id of its query.
    pub query: String,
    /// When it was first seen.
    pub start: CaptureTime,
    /// When it was last seen.
    pub seen: CaptureTime,
    /// Whether it is gone.
    pub ended: bool,
    /// Smoothed score, 0-1.
    pub score: f32,
    /// Best score, 0-1.
    pub top_score: f32,
    /// Box.
    pub bounds: PixelBox,
    /// Pixels of the mask.
    pub area: usize,
    /// Frame size.
    pub size: FrameSize,
    /// Outline, in pixel corners.
    pub polygon: Vec<Vec<[i32; 2]>>,
    /// Zones it is in.
    pub current_zones: Vec<String>,
    /// Zones it was in, in the order it entered them.
    pub entered_zones: Vec<String>,
    /// Whether it stayed in one place for a while.
    pub stationary: bool,
}

/// Something to tell.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// What happened.
    pub kind: ChangeKind,
    /// The thing as it was last told of; the same as `after` for a new one.
    pub before: Thing,
    /// The thing now.
    pub after: Thing,
}

/// What happened to a thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// It is there.
    New,
    /// It moved, stopped, entered, left, or was seen better; `better` only for the last.
    Update {
        /// Whether its best score has risen.
        better: bool,
    },
    /// It is gone.
    End,
}

/// What a frame message says about one mask.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sighting {
    /// Id of the track, once it counts.
    pub track: Option<String>,
    /// Zones the thing is in.
    pub zones: Vec<String>,
}

/// How many things of a query are there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// All of them.
    pub all: usize,
    /// Those that move.
    pub active: usize,
}

/// What is known of a track beyond the track itself.
#[derive(Debug)]
struct Story {
    place: PixelBox,
    place_since: CaptureTime,
    /// Zones it is in, and since when.
    inside: BTreeMap<String, CaptureTime>,
    current: Vec<String>,
    entered: Vec<String>,
    told: Option<(Thing, CaptureTime)>,
}

/// One camera's things.
#[derive(Debug)]
pub struct Scene {
    tracker: Tracker,
    zones: Vec<Zone>,
    placed: Option<(FrameSize, Vec<ZoneOnFrame>)>,
    rules: SceneRules,
    stories: BTreeMap<String, Story>,
}

impl Scene {
    /// Nothing seen yet; `seed` as for [`Tracker::new`].
    #[must_use]
    pub fn new(seed: u64, zones: Vec<Zone>, rules: SceneRules) -> Self {
        Self {
            tracker: Tracker::new(seed),
            zones,
            placed: None,
            rules,
            stories: BTreeMap::new(),
        }
    }

    /// Uses other zones and rules from the next frame on; things go on.
    pub fn set_rules(&mut self, zones: Vec<Zone>, rules: SceneRules) {
        for story in self.stories.values_mut() {
            // Nobody leaves a zone that is not there.
            story.inside.retain(|id, _| zones.iter().any(|zone| zone.id() == id));
        }
        (self.zones, self.rules, self.placed) = (zones, rules, None);
    }

    /// Takes the masks of one frame; says what is known of each, in their order, and what there is to tell.
    pub fn step(
        &mut self,
        at: CaptureTime,
        size: FrameSize,
        observed: &[Observed<'_>],
        rules: impl Fn(&str) -> ThingRules,
    ) -> (Vec<Sighting>, Vec<Change>) {
        let step = self.tracker.step(at, observed, |query| rules(query).track);
        if self.placed.as_ref().is_none_or(|(placed, _)| *placed != size) {
            self.placed = Some((size, self.zones.iter().map(|zone| zone.on_frame(size)).collect()));
        }
        let mut changes = self.told_ends(&step.ended);
        for track in self.tracker.tracks() {
            let seen_now = track.last == at;
            let rules = rules(&track.query);
            let story = self.stories.entry(track.id.clone()).or_insert_with(|| Story {
                place: track.shape.bounds,
                place_since: at,
                inside: BTreeMap::new(),
                current: Vec::new(),
                entered: Vec::new(),
                told: None,
            });
            if seen_now {
                let placed = self.placed.iter().flat_map(|(_, zones)| zones);
                story.look(track, self.zones.iter().zip(placed), &rules);
            }
            changes.extend(story.change(track, at, &rules, &self.rules));
        }
        let sightings = step.tracks.iter().map(|index| {
            let Some(track) = index.and_then(|i| self.tracker.tracks().get(i)) else {
                return Sighting::default();
            };
            Sighting {
                track: track.confirmed.then(|| track.id.clone()),
                zones: self
                    .stories
                    .get(&track.id)
                    .map(|s| s.current.clone())
                    .unwrap_or_default(),
            }
        });
        (sightings.collect(), changes)
    }

    /// Nothing has changed since the last frame, and nobody looked until `at`: things that are not seen then were not
    /// missing meanwhile.
    pub fn skip_to(&mut self, at: CaptureTime) {
        self.tracker.skip_to(at);
    }

    /// When it wants the next frame although nothing changes, on the monotonic clock: something will be there to tell of
    /// then, or a track is undecided and it wants the very next.
    #[must_use]
    pub fn wants(&self, rules: impl Fn(&str) -> ThingRules) -> Option<Duration> {
        if self.tracker.is_undecided() {
            return Some(Duration::ZERO);
        }
        let due = self.tracker.tracks().iter().filter_map(|track| {
            let loitering = rules(&track.query).loitering;
            self.stories.get(&track.id)?.due(loitering, &self.rules)
        });
        due.min()
    }

    /// Whether anything is tracked, even if it does not count yet.
    #[must_use]
    pub fn has_tracks(&self) -> bool {
        !self.tracker.tracks().is_empty()
    }

    /// Ends all things of which `over` (given the query's id) holds: the camera went away, the query was removed.
    pub fn end(&mut self, over: impl Fn(&str) -> bool) -> Vec<Change> {
        let ended = self.tracker.end(|track| over(&track.query));
        self.told_ends(&ended)
    }

    fn told_ends(&mut self, ended: &[Track]) -> Vec<Change> {
        let mut changes = Vec::new();
        for track in ended {
            let Some(story) = self.stories.remove(&track.id) else {
                continue;
            };
            if let Some((before, _)) = &story.told {
                let mut after = story.thing(track, before.stationary, self.rules.tolerance);
                after.ended = true;
                changes.push(Change {
                    kind: ChangeKind::End,
                    before: before.clone(),
                    after,
                });
            }
        }
        changes
    }

    /// How many things of a query were told of and are still there, in one of `zones` if there are any.
    #[must_use]
    pub fn count(&self, query: &str, zones: &[String]) -> Count {
        let there = self.stories.values().filter(|story| story.is_in(zones));
        let told = there.filter_map(|story| story.told.as_ref());
        let mut count = Count::default();
        for (thing, _) in told.filter(|(thing, _)| thing.query == query) {
            count.all += 1;
            count.active += usize::from(!thing.stationary);
        }
        count
    }
}

impl Story {
    /// Takes in where the thing is on the present frame.
    fn look<'a>(
        &mut self,
        track: &Track,
        zones: impl Iterator<Item = (&'a Zone, &'a ZoneOnFrame)>,
        rules: &ThingRules,
    ) {
        let (shape, at) = (&track.shape, track.last);
        if box_iou(self.place, shape.bounds) < SAME_PLACE {
            (self.place, self.place_since) = (shape.bounds, at);
        }
        self.current.clear();
        for (zone, on_frame) in zones {
            let was_inside = self.inside.contains_key(zone.id());
            let least = if was_inside {
                rules.zone_share * LEAVING
            } else {
                rules.zone_share
            };
            if on_frame.share_of(shape) < least {
                self.inside.remove(zone.id());
                continue;
            }
            let since = *self.inside.entry(zone.id().to_owned()).or_insert(at);
            if at.monotonic.saturating_sub(since.monotonic) >= rules.loitering {
                self.current.push(zone.id().to_owned());
                if !self.entered.iter().any(|z| z == zone.id()) {
                    self.entered.push(zone.id().to_owned());
                }
            }
        }
    }

    /// Whether the thing is in one of `zones`; no zones are the whole picture.
    fn is_in(&self, zones: &[String]) -> bool {
        zones.is_empty() || self.current.iter().any(|zone| zones.contains(zone))
    }

    fn thing(&self, track: &Track, stationary: bool, tolerance: f32) -> Thing {
        Thing {
            id: track.id.clone(),
            query: track.query.clone(),
            start: track.first,
            seen: track.last,
            ended: false,
            score: track.score,
            top_score: track.top_score,
            bounds: track.shape.bounds,
            area: track.shape.area,
            size: track.shape.mask.size(),
            polygon: outline(&track.shape, tolerance),
            current_zones: self.current.clone(),
            entered_zones: self.entered.clone(),
            stationary,
        }
    }

    /// When there will be something to tell if nothing changes, on the monotonic clock.
    fn due(&self, loitering: Duration, all: &SceneRules) -> Option<Duration> {
        let loitered = self.inside.iter().filter(|(zone, _)| !self.current.contains(zone));
        let loitered = loitered.map(|(_, since)| since.monotonic + loitering);
        let told = self.told.iter().flat_map(|(thing, when)| {
            let rests = (!thing.stationary).then_some(self.place_since.monotonic + all.stationary);
            rests.into_iter().chain([when.monotonic + all.keep_alive])
        });
        loitered.chain(told).min()
    }

    /// What there is to tell of the track at `at`, if anything.
    fn change(&mut self, track: &Track, at: CaptureTime, own: &ThingRules, all: &SceneRules) -> Option<Change> {
        let stationary = at.monotonic.saturating_sub(self.place_since.monotonic) >= all.stationary;
        let there = self.is_in(&own.zones);
        let kind = match &self.told {
            None => {
                if !track.confirmed || !there {
                    return None;
                }
                ChangeKind::New
            }
            Some((before, when)) => {
                let since = at.monotonic.saturating_sub(when.monotonic);
                let better = track.top_score >= before.top_score + BETTER;
                let moved = box_iou(before.bounds, track.shape.bounds) < SAME_PLACE;
                let turned = before.stationary != stationary || before.current_zones != self.current;
                if !(turned || since >= all.keep_alive || (since >= all.update && (better || moved))) {
                    return None;
                }
                // Out of its zones it is told of, and no picture is made of it.
                ChangeKind::Update {
                    better: better && there,
                }
            }
        };
        let after = self.thing(track, stationary, all.tolerance);
        let told = self.told.replace((after.clone(), at));
        Some(Change {
            kind,
            before: told.map_or_else(|| after.clone(), |(before, _)| before),
            after,
        })
    }
}

fn outline(shape: &Shape, tolerance: f32) -> Vec<Vec<[i32; 2]>> {
    polygon::simplify(polygon::trace(&shape.mask), tolerance)
        .into_iter()
        .map(|ring| ring.points)
        .collect()
}

/// Intersection over union of two boxes.
fn box_iou(a: PixelBox, b: PixelBox) -> f32 {
    let span = |low: usize, high: usize| high.saturating_sub(low) as f32;
    let area = |b: PixelBox| span(b.x1, b.x2) * span(b.y1, b.y2);
    let both = span(a.x1.max(b.x1), a.x2.min(b.x2)) * span(a.y1.max(b.y1), a.y2.min(b.y2));
    let union = area(a) + area(b) - both;
    if union > 0.0 { both / union } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::track::zone::Units;
    use crate::vision::mask::BinaryMask;

    fn size() -> FrameSize {
        FrameSize::new(100, 50).unwrap()
    }

    fn square(x: usize) -> BinaryMask {
        let inside = |i: usize| (x..x + 20).contains(&(i % 100)) && (10..30).contains(&(i / 100));
        BinaryMask::from_pixels(size(), (0..size().pixels()).map(inside))
    }

    fn at(milliseconds: u64) -> CaptureTime {
        CaptureTime {
            monotonic: Duration::from_millis(milliseconds),
            unix_micros: 1_000_000 + milliseconds as i64 * 1_000,
        }
    }

    fn scene() -> Scene {
        let right = vec![[0.5, 0.0], [1.0, 0.0], [1.0, 1.0], [0.5, 1.0]];
        let zones = vec![Zone::new("right", right, Units::Relative).unwrap()];
        Scene::new(0, zones, SceneRules::default())
    }

    /// Shows one square; says what was told.
    fn see(scene: &mut Scene, time: u64, x: Option<usize>, score: f32, rules: &ThingRules) -> Vec<Change> {
        let mask = square(x.unwrap_or(0));
        let observed: Vec<_> = x
            .iter()
            .map(|_| Observed {
                query: "box",
                score,
                mask: &mask,
            })
            .collect();
        let (sightings, changes) = scene.step(at(time), size(), &observed, |_| rules.clone());
        assert_eq!(sightings.len(), observed.len());
        changes
    }

    fn kinds(changes: &[Change]) -> Vec<ChangeKind> {
        changes.iter().map(|c| c.kind).collect()
    }

    #[test]
    fn a_thing_goes_on_when_the_zones_change_and_is_told_to_be_in_the_new_one() {
        let (mut scene, rules) = (scene(), ThingRules::default());
        see(&mut scene, 0, Some(10), 0.8, &rules);
        let new = see(&mut scene, 100, Some(10), 0.8, &rules);
        assert!(new[0].after.current_zones.is_empty());
        let left = vec![[0.0, 0.0], [0.5, 0.0], [0.5, 1.0], [0.0, 1.0]];
        let zones = vec![Zone::new("left", left, Units::Relative).unwrap()];
        scene.set_rules(zones, SceneRules::default());
        let told = see(&mut scene, 200, Some(10), 0.8, &rules);
        assert_eq!(kinds(&told), [ChangeKind::Update { better: false }]);
        assert_eq!(
            (&told[0].after.id, told[0].after.current_zones.as_slice()),
            (&new[0].after.id, &["left".to_owned()][..])
        );
    }

    #[test]
    fn a_thing_begins_once_it_counts_and_ends_after_it_was_last_seen() {
        let (mut scene, rules) = (scene(), ThingRules::default());
        assert_eq!(see(&mut scene, 0, Some(10), 0.5, &rules), []);
        assert_eq!(scene.count("box", &[]), Count::default());
        let told = see(&mut scene, 100, Some(10), 0.5, &rules);
        assert_eq!(kinds(&told), [ChangeKind::New]);
        assert_eq!((told[0].after.start, told[0].after.seen), (at(0), at(100)));
        assert_eq!(told[0].after.polygon, [[[30, 10], [30, 30], [10, 30], [10, 10]]]);
        assert_eq!(scene.count("box", &[]), Count { all: 1, active: 1 });
        assert_eq!(see(&mut scene, 1_000, None, 0.0, &rules), []);
        let told = see(&mut scene, 3_200, None, 0.0, &rules);
        assert_eq!(kinds(&told), [ChangeKind::End]);
        assert!(told[0].after.ended && !told[0].before.ended && told[0].after.seen == at(100));
        assert_eq!(scene.count("box", &[]), Count::default());
    }

    #[test]
    fn a_parked_thing_is_told_of_once_when_it_stops_and_then_only_as_a_sign_of_life() {
        let (mut scene, rules) = (scene(), ThingRules::default());
        let mut told = Vec::new();
        for i in 0..1_300u64 {
            for change in see(&mut scene, 100 * i, Some(10), 0.5, &rules) {
                told.push((i, change.kind, change.after.stationary));
            }
        }
        let same = ChangeKind::Update { better: false };
        assert_eq!(
            told,
            [(1, ChangeKind::New, false), (100, same, true), (700, same, true)]
        );
        assert_eq!(scene.count("box", &[]), Count { all: 1, active: 0 });
    }

    #[test]
    fn movement_and_better_scores_are_told_at_most_once_a_second() {
        let (mut scene, rules) = (scene(), ThingRules::default());
        let mut told = Vec::new();
        for i in 0..30u64 {
            let changes = see(
                &mut scene,
                100 * i,
                Some(10 + i as usize),
                0.5 + 0.01 * i as f32,
                &rules,
            );
            told.extend(changes.into_iter().map(|c| (i, c.kind)));
        }
        let better = ChangeKind::Update { better: true };
        assert_eq!(told, [(1, ChangeKind::New), (11, better), (21, better)]);
    }

    #[test]
    fn a_thing_counts_in_a_zone_by_overlap_and_after_loitering() {
        let mut scene = scene();
        let rules = ThingRules {
            zones: vec!["right".into()],
            loitering: Duration::from_secs(2),
            ..ThingRules::default()
        };
        let mut told = Vec::new();
        // At x = 40 half of it is inside.
        let mut counted = Vec::new();
        for (i, x) in [30, 36, 40, 44, 50, 50, 50, 50, 42, 34].into_iter().enumerate() {
            for change in see(&mut scene, 1_000 * i as u64, Some(x), 0.5, &rules) {
                told.push((
                    i,
                    change.kind,
                    change.after.current_zones.len(),
                    change.after.entered_zones.len(),
                ));
            }
            counted.push(scene.count("box", &rules.zones).all);
        }
        assert_eq!(counted, [0, 0, 0, 0, 1, 1, 1, 1, 1, 0]);
        assert_eq!(scene.count("box", &[]).all, 1, "it is still there");
        assert_eq!(told[0], (4, ChangeKind::New, 1, 1));
        assert_eq!(*told.last().unwrap(), (9, ChangeKind::Update { better: false }, 0, 1));
    }

    #[test]
    fn a_thing_that_never_enters_its_query_s_zone_is_never_told_of() {
        let mut scene = scene();
        let rules = ThingRules {
            zones: vec!["right".into()],
            ..ThingRules::default()
        };
        for i in 0..50 {
            assert_eq!(see(&mut scene, 100 * i, Some(20), 0.9, &rules), []);
        }
        assert_eq!(scene.count("box", &[]), Count::default());
        assert_eq!(scene.end(|_| true), []);
    }

    #[test]
    fn a_still_scene_is_looked_at_again_when_there_is_something_to_tell_and_at_once_while_a_thing_is_doubtful() {
        let (mut scene, at_once) = (scene(), Some(Duration::ZERO));
        let rules = ThingRules {
            loitering: Duration::from_secs(4),
            ..ThingRules::default()
        };
        let wants = |scene: &Scene| scene.wants(|_| rules.clone());
        assert_eq!(wants(&scene), None);
        see(&mut scene, 1_000, Some(60), 0.5, &rules);
        assert_eq!(wants(&scene), at_once, "one mask is not enough to count");
        see(&mut scene, 1_100, Some(60), 0.5, &rules);
        // Loitering, then rest, then the sign of life.
        for due in [5_000, 11_000, 71_000] {
            assert_eq!(wants(&scene), Some(Duration::from_millis(due)));
            scene.skip_to(at(due));
            let changes = see(&mut scene, due, Some(60), 0.5, &rules);
            assert_eq!(kinds(&changes), [ChangeKind::Update { better: false }], "at {due}");
            assert_eq!(changes[0].after.current_zones, ["right"]);
        }
        scene.skip_to(at(80_000));
        assert_eq!(see(&mut scene, 80_000, None, 0.0, &rules), []);
        assert_eq!(wants(&scene), at_once, "it was missed once");
        let ended = see(&mut scene, 83_100, None, 0.0, &rules);
        assert_eq!(kinds(&ended), [ChangeKind::End]);
        assert_eq!(wants(&scene), None);
    }

    #[test]
    fn a_zone_that_is_taken_away_while_a_thing_loiters_in_it_is_not_waited_for() {
        let mut scene = scene();
        let rules = ThingRules {
            loitering: Duration::from_secs(4),
            ..ThingRules::default()
        };
        let wants = |scene: &Scene| scene.wants(|_| rules.clone());
        see(&mut scene, 1_000, Some(60), 0.5, &rules);
        see(&mut scene, 1_100, Some(60), 0.5, &rules);
        assert_eq!(wants(&scene), Some(Duration::from_millis(5_000)));
        scene.set_rules(Vec::new(), SceneRules::default());
        // What is left to tell is that it rests.
        let rests = Some(Duration::from_millis(11_000));
        assert_eq!(wants(&scene), rests);
        scene.skip_to(at(6_000));
        see(&mut scene, 6_000, Some(60), 0.5, &rules);
        assert_eq!(wants(&scene), rests);
    }

    #[test]
    fn ending_a_query_ends_its_things_only() {
        let (mut scene, mask) = (scene(), square(5));
        for time in [0, 100] {
            let observed = ["cat", "dog"].map(|query| Observed {
                query,
                score: 0.5,
                mask: &mask,
            });
            scene.step(at(time), size(), &observed, |_| ThingRules::default());
        }
        let told = scene.end(|query| query == "cat");
        assert_eq!((told.len(), told[0].after.query.as_str()), (1, "cat"));
        assert_eq!((scene.count("cat", &[]).all, scene.count("dog", &[]).all), (0, 1));
    }
}
