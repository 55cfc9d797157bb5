//! What subscribers of a camera are told of what it sees: frame messages, masks, snapshots, events and counts.

use std::time::Duration;

use tracing::warn;

use crate::clock::Moment;
use crate::daemon::commands::{Refusal, Reply};
use crate::daemon::outlet::Outlet;
use crate::daemon::pictures::{plain_jpeg, snapshot};
use crate::daemon::pipeline::{Detections, Pipeline};
use crate::daemon::report::{MaskOutput, clip, frame_message, mask_png, query_mask};
use crate::message::event::{EventKind, EventMessage, MaskOutline, TrackedThing};
use crate::message::payload::DetectStatus;
use crate::message::topic::{CameraId, QueryId};
use crate::track::scene::{Change, ChangeKind, Sighting, Thing};
use crate::track::tracker::Observed;
use crate::vision::mask::BinaryMask;

use super::{SNAPSHOT, Station, thing_rules};

impl Station {
    /// Tracks what was found on a frame and tells of it.
    pub(in crate::daemon) fn observe(&mut self, pipeline: &Pipeline, found: &Detections, now: Moment, outlet: &Outlet) {
        self.away = false;
        self.say(DetectStatus::Online, outlet);
        self.give_pictures(pipeline, found, outlet);
        let specs = pipeline.queries();
        let observed: Vec<Observed<'_>> = found
            .masks
            .iter()
            .map(|m| Observed {
                query: specs.get(m.query).map_or("", |spec| &spec.id),
                score: m.score,
                mask: &m.mask,
            })
            .collect();
        let asking = &self.asking;
        let rules = |query: &str| thing_rules(asking, query);
        let (sightings, changes) = self.scene.step(found.captured, found.size, &observed, rules);
        if outlet.is_open() {
            self.publish_frame(pipeline, found, now, &sightings, outlet);
            self.publish_snapshots(pipeline, found, &changes, outlet);
        }
        self.tell(&changes, outlet);
    }

    /// Gives the picture of a frame to everybody who waits for one.
    fn give_pictures(&mut self, pipeline: &Pipeline, found: &Detections, outlet: &Outlet) {
        if self.waiting.is_empty() {
            return;
        }
        let picture = plain_jpeg(pipeline, found).map_err(|error| Refusal::Failed(format!("no picture: {error}")));
        for answer in self.waiting.drain(..) {
            answer.give(SNAPSHOT, picture.clone().map(Reply::Picture), outlet);
        }
    }

    /// Ends the things of some queries.
    pub(super) fn end(&mut self, over: impl Fn(&str) -> bool, outlet: &Outlet) {
        let changes = self.scene.end(over);
        self.tell(&changes, outlet);
    }

    /// Sends events, and counts that changed.
    pub(super) fn tell(&mut self, changes: &[Change], outlet: &Outlet) {
        for change in changes {
            match self.event(change).encode() {
                Ok(body) => outlet.event(body),
                Err(error) => warn!(camera = %self.id(), %error, "event not published"),
            }
        }
        for query in &self.asking.queries {
            let count = self.scene.count(query.id.as_str(), &query.zones);
            if self.counts.insert(query.id.clone(), count) != Some(count) {
                outlet.count(self.id(), &query.id, count.all, count.active);
            }
        }
    }

    fn event(&self, change: &Change) -> EventMessage {
        let kind = match change.kind {
            ChangeKind::New => EventKind::New,
            ChangeKind::Update { .. } => EventKind::Update,
            ChangeKind::End => EventKind::End,
        };
        EventMessage::new(kind, self.thing(&change.before), self.thing(&change.after))
    }

    fn thing(&self, thing: &Thing) -> TrackedThing {
        let b = thing.bounds;
        let seconds = |micros: i64| micros as f64 / 1e6;
        let query = self.asking.query(&thing.query);
        TrackedThing {
            id: thing.id.clone(),
            camera: self.id().to_string(),
            label: thing.query.clone(),
            sub_label: None,
            frame_time: seconds(thing.seen.unix_micros),
            start_time: seconds(thing.start.unix_micros),
            end_time: thing.ended.then(|| seconds(thing.seen.unix_micros)),
            false_positive: false,
            score: thing.score,
            top_score: thing.top_score,
            bbox: [b.x1, b.y1, b.x2, b.y2].map(clip),
            area: thing.area as u64,
            ratio: (b.x2 - b.x1) as f32 / (b.y2 - b.y1) as f32,
            current_zones: thing.current_zones.clone(),
            entered_zones: thing.entered_zones.clone(),
            stationary: thing.stationary,
            active: !thing.stationary && !thing.ended,
            has_snapshot: self.output.snapshot,
            has_clip: false,
            x_mask: MaskOutline {
                size: [thing.size.width(), thing.size.height()].map(clip),
                prompt: query.and_then(|q| q.prompts.first().cloned()).unwrap_or_default(),
                polygon: thing.polygon.clone(),
            },
        }
    }

    /// Frame message and masks, unless the last ones are younger than the configured rate allows.
    fn publish_frame(
        &mut self,
        pipeline: &Pipeline,
        found: &Detections,
        now: Moment,
        sightings: &[Sighting],
        outlet: &Outlet,
    ) {
        if found.captured.monotonic < self.next_frame {
            return;
        }
        if let Some(rate) = self.output.rate {
            self.next_frame = found.captured.monotonic + Duration::from_secs_f32(1.0 / rate);
        }
        let masks = MaskOutput {
            polygon: self.output.polygon,
            tolerance: self.output.tolerance,
            rle: self.output.rle,
        };
        match frame_message(self.id().as_str(), pipeline, found, now, masks, sightings) {
            Ok(message) => match message.encode() {
                Ok(body) => {
                    outlet.frame(self.id(), body);
                    outlet.metadata(self.id(), &message);
                }
                Err(error) => warn!(camera = %self.id(), %error, "frame not published"),
            },
            Err(error) => warn!(camera = %self.id(), %error, "frame not published"),
        }
        if self.output.mask {
            for (index, query) in self.asking.queries.iter().enumerate() {
                let shows = found.masks.iter().any(|m| m.query == index);
                let showed = if shows {
                    self.masked.insert(query.id.clone(), found.size).is_some()
                } else {
                    self.masked.remove(&query.id).is_some()
                };
                // One empty mask after the last: subscribers see that nothing is left.
                if shows || showed {
                    publish_mask(self.id(), &query.id, &query_mask(found, index), outlet);
                }
            }
        }
    }

    /// Empty masks in place of the last ones of the queries of which `over` holds: no frame will replace them.
    pub(super) fn clear_masks(&mut self, over: impl Fn(&QueryId) -> bool, outlet: &Outlet) {
        for (query, size) in self.masked.extract_if(.., |query, _| over(query)) {
            publish_mask(&self.camera.id, &query, &BinaryMask::empty(size), outlet);
        }
    }

    /// A picture of every query that has something new, or something that was never seen as well as now.
    fn publish_snapshots(&self, pipeline: &Pipeline, found: &Detections, changes: &[Change], outlet: &Outlet) {
        if !self.output.snapshot {
            return;
        }
        for (index, query) in self.asking.queries.iter().enumerate() {
            let worth = |c: &Change| {
                let fresh = matches!(c.kind, ChangeKind::New | ChangeKind::Update { better: true });
                fresh && c.after.query == query.id.as_str() && c.after.seen == found.captured
            };
            if changes.iter().any(worth) {
                match snapshot(pipeline, found, index) {
                    Ok(body) => outlet.snapshot(self.id(), &query.id, body),
                    Err(error) => warn!(camera = %self.id(), query = %query.id, %error, "snapshot not published"),
                }
            }
        }
    }
}

fn publish_mask(camera: &CameraId, query: &QueryId, mask: &BinaryMask, outlet: &Outlet) {
    match mask_png(mask) {
        Ok(body) => outlet.mask(camera, query, body),
        Err(error) => warn!(%camera, %query, %error, "mask not published"),
    }
}
