//! One camera as the daemon knows it: what is asked of it, what it sees, and what its subscribers were told.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use tracing::warn;

use crate::clock::Moment;
use crate::message::event::{EventKind, EventMessage, MaskOutline, TrackedThing};
use crate::message::payload::{DetectStatus, SCHEMA};
use crate::message::query::{QueryMessage, QuerySource};
use crate::message::topic::{CameraId, QueryId};
use crate::track::scene::{Change, ChangeKind, Count, Scene, SceneRules, Sighting, Thing, ThingRules};
use crate::track::tracker::Observed;

use super::config::{self, Config, Output, Query};
use super::outlet::Outlet;
use super::pictures::snapshot;
use super::pipeline::{Detections, Pipeline, QuerySet};
use super::report::{MaskOutput, clip, frame_message, mask_png, query_mask};
use super::run::query_specs;

/// Most queries of one camera.
const MAX_QUERIES: usize = 256;

/// A query as its state topic says it.
fn state_of(query: &Query, source: QuerySource) -> QueryMessage {
    QueryMessage {
        schema: Some(SCHEMA.into()),
        id: Some(query.id.to_string()),
        source: Some(source),
        prompts: Some(query.prompts.clone()),
        threshold: query.threshold,
        min_area: Some(query.min_area),
        max_area: query.max_area,
        color: query.color.map(|[r, g, b]| format!("#{r:02x}{g:02x}{b:02x}")),
        min_hits: Some(query.min_hits),
        max_age: Some(query.max_age),
        zones: Some(query.zones.clone()),
        zone_share: Some(query.zone_share),
        loitering: Some(query.loitering),
    }
}

/// One camera's queries, tracks and last words.
pub(super) struct Station {
    id: CameraId,
    queries: Vec<Query>,
    /// Queries of the configuration file, by id.
    configured: Vec<Query>,
    /// What queries compete with, if not the model's own texts.
    background: Option<Vec<String>>,
    configured_background: Option<Vec<String>>,
    zones: Vec<String>,
    asked: Arc<QuerySet>,
    detects: bool,
    scene: Scene,
    output: Output,
    status: Option<DetectStatus>,
    counts: BTreeMap<QueryId, Count>,
    /// Queries that were deleted.
    removed: BTreeSet<QueryId>,
    /// Queries whose mask topic shows something.
    masked: BTreeSet<QueryId>,
    /// When the next frame message may go out, on the monotonic clock.
    next_frame: Duration,
}

impl Station {
    pub(super) fn new(camera: &config::Camera, config: &Config, asked: Arc<QuerySet>) -> Self {
        let rules = SceneRules {
            tolerance: config.output.tolerance,
            keep_alive: Duration::from_secs_f32(config.events.keep_alive),
            stationary: Duration::from_secs_f32(config.events.stationary),
            ..SceneRules::default()
        };
        // Ids of tracks must not repeat between cameras.
        let mut hasher = DefaultHasher::new();
        camera.id.hash(&mut hasher);
        Self {
            id: camera.id.clone(),
            queries: config.queries.clone(),
            configured: config.queries.clone(),
            background: config.background.clone(),
            configured_background: config.background.clone(),
            zones: camera.zones.iter().map(|z| z.id().to_owned()).collect(),
            asked,
            detects: true,
            scene: Scene::new(hasher.finish(), camera.zones.clone(), rules),
            output: config.output,
            status: None,
            counts: BTreeMap::new(),
            removed: BTreeSet::new(),
            masked: BTreeSet::new(),
            next_frame: Duration::ZERO,
        }
    }

    pub(super) fn id(&self) -> &CameraId {
        &self.id
    }

    /// The queries to ask of its frames.
    pub(super) fn asked(&self) -> &Arc<QuerySet> {
        &self.asked
    }

    /// Whether its frames are to be processed.
    pub(super) fn detects(&self) -> bool {
        self.detects
    }

    /// Whether the configuration file has this query.
    pub(super) fn is_configured(&self, query: &str) -> bool {
        self.configured.iter().any(|q| q.id.as_str() == query)
    }

    /// Switches detection; off ends all things.
    pub(super) fn detect(&mut self, on: bool, outlet: &Outlet) {
        self.detects = on;
        if on && self.status == Some(DetectStatus::Disabled) {
            // `online` again with the next frame.
            self.status = None;
        }
        if !on {
            self.end(|_| true, outlet);
            self.say(DetectStatus::Disabled, outlet);
        }
        outlet.detect_state(&self.id, on);
    }

    /// Sets or replaces a query; on error the old ones stay.
    pub(super) fn set_query(&mut self, query: Query, pipeline: &mut Pipeline, outlet: &Outlet) -> Result<(), String> {
        if let Some(unknown) = query.zones.iter().find(|z| !self.zones.contains(z)) {
            let known = if self.zones.is_empty() {
                "none".into()
            } else {
                self.zones.join(", ")
            };
            return Err(format!(
                "zone {unknown:?} found, expected one of this camera's: {known}"
            ));
        }
        let mut queries = self.queries.clone();
        let id = query.id.clone();
        match queries.iter().position(|q| q.id == id) {
            Some(index) => queries[index] = query,
            None if queries.len() >= MAX_QUERIES => {
                return Err(format!(
                    "the camera has {MAX_QUERIES} queries, which is the most; delete one first"
                ));
            }
            None => queries.push(query),
        }
        self.removed.remove(&id);
        self.replace(queries, self.background.clone(), pipeline)?;
        // What was found by other words is another thing.
        self.end(|ended| ended == id.as_str(), outlet);
        Ok(())
    }

    /// Deletes a query and what subscribers know of it; on error nothing changes.
    pub(super) fn delete_query(&mut self, query: &str, pipeline: &mut Pipeline, outlet: &Outlet) -> Result<(), String> {
        let Some(index) = self.queries.iter().position(|q| q.id.as_str() == query) else {
            return Err(format!("no query {query:?} to delete"));
        };
        let mut queries = self.queries.clone();
        let id = queries.remove(index).id;
        self.replace(queries, self.background.clone(), pipeline)?;
        self.end(|ended| ended == query, outlet);
        self.counts.remove(&id);
        self.masked.remove(&id);
        outlet.forget(&self.id, &id);
        self.removed.insert(id);
        Ok(())
    }

    /// Replaces what queries compete with; `None` means the configuration's texts, or the model's own. On error nothing
    /// changes.
    pub(super) fn set_background(&mut self, texts: Option<Vec<String>>, pipeline: &mut Pipeline) -> Result<(), String> {
        let texts = texts.or_else(|| self.configured_background.clone());
        self.replace(self.queries.clone(), texts, pipeline)
    }

    fn replace(
        &mut self,
        queries: Vec<Query>,
        background: Option<Vec<String>>,
        pipeline: &mut Pipeline,
    ) -> Result<(), String> {
        let asked = pipeline.prepare_queries(&query_specs(&queries), background.as_deref());
        self.asked = asked.map_err(|e| e.to_string())?;
        (self.queries, self.background) = (queries, background);
        Ok(())
    }

    /// Says which queries are in force, what they compete with, and to Home Assistant what there is to show.
    pub(super) fn say_queries(&self, outlet: &Outlet) {
        let queries: Vec<&QueryId> = self.queries.iter().map(|q| &q.id).collect();
        outlet.describe(
            &self.id,
            &queries,
            &self.removed.iter().collect::<Vec<_>>(),
            self.output.snapshot,
        );
        for query in &self.queries {
            let source = if self.configured.contains(query) {
                QuerySource::Config
            } else {
                QuerySource::Live
            };
            match state_of(query, source).encode() {
                Ok(body) => outlet.query_state(&self.id, &query.id, body),
                Err(error) => warn!(camera = %self.id, query = %query.id, %error, "query state not published"),
            }
        }
        match serde_json::to_vec(self.background.as_deref().unwrap_or_default()) {
            Ok(body) => outlet.background_state(&self.id, body),
            Err(error) => warn!(camera = %self.id, %error, "background state not published"),
        }
    }

    /// Says a new state; one that was said last is not repeated.
    pub(super) fn say(&mut self, status: DetectStatus, outlet: &Outlet) {
        if self.status.replace(status) != Some(status) {
            outlet.status(&self.id, status);
        }
    }

    /// Tracks what was found on a frame and tells of it.
    pub(super) fn observe(&mut self, pipeline: &Pipeline, found: &Detections, now: Moment, outlet: &Outlet) {
        self.say(DetectStatus::Online, outlet);
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
        let rules = |id: &str| {
            let query = self.queries.iter().find(|q| q.id.as_str() == id);
            query.map_or_else(ThingRules::default, Query::rules)
        };
        let (sightings, changes) = self.scene.step(found.captured, found.size, &observed, rules);
        if outlet.is_open() {
            self.publish_frame(pipeline, found, now, &sightings, outlet);
            self.publish_snapshots(pipeline, found, &changes, outlet);
        }
        self.tell(&changes, outlet);
    }

    /// The camera gives no frames any more.
    pub(super) fn gone(&mut self, outlet: &Outlet) {
        self.end(|_| true, outlet);
        self.say(DetectStatus::Offline, outlet);
    }

    /// The camera gives frames while detection is off.
    pub(super) fn idle(&mut self, outlet: &Outlet) {
        self.say(DetectStatus::Disabled, outlet);
    }

    /// Ends the things of some queries.
    fn end(&mut self, over: impl Fn(&str) -> bool, outlet: &Outlet) {
        let changes = self.scene.end(over);
        self.tell(&changes, outlet);
    }

    /// Sends events, and counts that changed.
    fn tell(&mut self, changes: &[Change], outlet: &Outlet) {
        for change in changes {
            match self.event(change).encode() {
                Ok(body) => outlet.event(body),
                Err(error) => warn!(camera = %self.id, %error, "event not published"),
            }
        }
        for query in &self.queries {
            let count = self.scene.count(query.id.as_str());
            if self.counts.insert(query.id.clone(), count) != Some(count) {
                outlet.count(&self.id, &query.id, count.all, count.active);
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
        let query = self.queries.iter().find(|q| q.id.as_str() == thing.query);
        TrackedThing {
            id: thing.id.clone(),
            camera: self.id.to_string(),
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
        match frame_message(self.id.as_str(), pipeline, found, now, masks, sightings) {
            Ok(message) => match message.encode() {
                Ok(body) => {
                    outlet.frame(&self.id, body);
                    outlet.metadata(&self.id, &message);
                }
                Err(error) => warn!(camera = %self.id, %error, "frame not published"),
            },
            Err(error) => warn!(camera = %self.id, %error, "frame not published"),
        }
        if self.output.mask {
            for (index, query) in self.queries.iter().enumerate() {
                let shows = found.masks.iter().any(|m| m.query == index);
                let showed = if shows {
                    !self.masked.insert(query.id.clone())
                } else {
                    self.masked.remove(&query.id)
                };
                // One empty mask after the last: subscribers see that nothing is left.
                if shows || showed {
                    match mask_png(&query_mask(found, index)) {
                        Ok(body) => outlet.mask(&self.id, &query.id, body),
                        Err(error) => warn!(camera = %self.id, query = %query.id, %error, "mask not published"),
                    }
                }
            }
        }
    }

    /// A picture of every query that has something new, or something that was never seen as well as now.
    fn publish_snapshots(&self, pipeline: &Pipeline, found: &Detections, changes: &[Change], outlet: &Outlet) {
        if !self.output.snapshot {
            return;
        }
        for (index, query) in self.queries.iter().enumerate() {
            let worth = |c: &Change| {
                let fresh = matches!(c.kind, ChangeKind::New | ChangeKind::Update { better: true });
                fresh && c.after.query == query.id.as_str() && c.after.seen == found.captured
            };
            if changes.iter().any(worth) {
                match snapshot(pipeline, found, index) {
                    Ok(body) => outlet.snapshot(&self.id, &query.id, body),
                    Err(error) => warn!(camera = %self.id, query = %query.id, %error, "snapshot not published"),
                }
            }
        }
    }
}
