//! One camera as the daemon knows it: what is asked of it, what it sees, and what its subscribers were told.

mod telling;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;

use crate::message::payload::DetectStatus;
use crate::message::query::QuerySource;
use crate::message::topic::{CameraId, QueryId};
use crate::track::scene::{Count, Scene, SceneRules, ThingRules};
use crate::vision::frame::Frame;
use crate::vision::geometry::FrameSize;

use super::asking::{Asking, state_of};
use super::commands::{Answer, Refusal};
use super::config::{self, Config, Output};
use super::embedder::QuerySet;
use super::gate::Attention;
use super::outlet::Outlet;
use super::pipeline::{Detections, Pipeline, PipelineError};
use super::schedule::Schedule;

/// The command whose answers wait for a frame, as [`super::commands::Command::name`] says it.
const SNAPSHOT: &str = "snapshot";

/// Most callers that wait for a picture of one camera.
const MOST_PICTURES: usize = 8;

/// Why there is no picture of a camera that is offline.
const NO_FRAMES: &str = "the camera gives no frames";

/// What a camera is asked, with its embeddings.
#[derive(Debug, Clone)]
pub(super) struct Prepared {
    pub(super) asking: Asking,
    pub(super) asked: Arc<QuerySet>,
}

/// Deleted queries that Home Assistant is told of, so that it drops their entities; with fewer, one that was away while many
/// were deleted would keep some.
const REMEMBERED: usize = 64;

/// One camera's queries, tracks and last words.
pub(super) struct Station {
    camera: config::Camera,
    asking: Asking,
    /// What the configuration file asks.
    configured: Asking,
    asked: Arc<QuerySet>,
    detects: bool,
    /// Which size of the model its frames go through.
    schedule: Schedule,
    scene: Scene,
    output: Output,
    status: Option<DetectStatus>,
    counts: BTreeMap<QueryId, Count>,
    /// The queries that were deleted last, oldest first, at most [`REMEMBERED`].
    removed: VecDeque<QueryId>,
    /// Queries whose mask topic shows something, and the size of the frame that it was of.
    masked: BTreeMap<QueryId, FrameSize>,
    /// Whether the camera gives no frames.
    away: bool,
    /// When the next frame message may go out, on the monotonic clock.
    next_frame: Duration,
    /// Who waits for a picture of the next frame.
    waiting: Vec<Answer>,
    /// Frames that were left out before the last one, since start, because nothing moved.
    still: u64,
}

fn scene_rules(config: &Config) -> SceneRules {
    SceneRules {
        tolerance: config.output.tolerance,
        keep_alive: Duration::from_secs_f32(config.events.keep_alive),
        stationary: Duration::from_secs_f32(config.events.stationary),
        ..SceneRules::default()
    }
}

/// What holds for the things of a query.
fn thing_rules(asking: &Asking, query: &str) -> ThingRules {
    let query = asking.query(query);
    query.map_or_else(ThingRules::default, config::Query::rules)
}

impl Station {
    /// `side` is that of the full size of its frames, pixels.
    pub(super) fn new(camera: &config::Camera, side: usize, config: &Config, prepared: Prepared) -> Self {
        // Ids of tracks must not repeat between cameras, boards of the same camera ids, and runs that begin at the same time by a
        // clock that is not set yet.
        let seed = RandomState::new().hash_one(&camera.id);
        Self {
            camera: camera.clone(),
            asking: prepared.asking,
            configured: Asking::configured(config),
            asked: prepared.asked,
            detects: true,
            schedule: Schedule::new(side, camera.sizes),
            scene: Scene::new(seed, camera.zones.clone(), scene_rules(config)),
            output: config.output,
            status: None,
            counts: BTreeMap::new(),
            removed: VecDeque::new(),
            masked: BTreeMap::new(),
            away: false,
            next_frame: Duration::ZERO,
            waiting: Vec::new(),
            still: 0,
        }
    }

    pub(super) fn id(&self) -> &CameraId {
        &self.camera.id
    }

    /// The camera as the configuration describes it.
    pub(super) fn camera(&self) -> &config::Camera {
        &self.camera
    }

    /// What is asked of it.
    pub(super) fn asking(&self) -> &Asking {
        &self.asking
    }

    /// What the configuration file asks of it.
    pub(super) fn configured(&self) -> &Asking {
        &self.configured
    }

    /// Takes a frame through the size of the model that its schedule chooses; `fully` asks for the full one.
    ///
    /// # Errors
    /// As [`Pipeline::run_at`].
    pub(super) fn look(
        &mut self,
        pipeline: &mut Pipeline,
        frame: &Frame,
        fully: bool,
    ) -> Result<Detections, PipelineError> {
        pipeline.ask(&self.asked);
        let (at, tracked) = (frame.captured.monotonic, self.scene.has_tracks());
        self.schedule
            .look(at, tracked, fully, |side| pipeline.run_at(frame, side))
    }

    /// Says how many frames had been left out, since start, when a frame was captured: the time before it does not count for
    /// things that were not looked for.
    pub(super) fn skip_still(&mut self, found: &Detections, still: u64) {
        if std::mem::replace(&mut self.still, still) != still {
            self.scene.skip_to(found.captured);
        }
    }

    /// When it wants a frame even if nothing moves, on the monotonic clock.
    pub(super) fn wants(&self) -> Option<Duration> {
        self.scene.wants(|query| thing_rules(&self.asking, query))
    }

    /// Whether its frames are to be processed.
    pub(super) fn detects(&self) -> bool {
        self.detects
    }

    /// Switches detection, and with it what its frames go through first; off ends all things.
    pub(super) fn detect(&mut self, on: bool, attention: &Attention, outlet: &Outlet) {
        self.detects = on;
        attention.set_paused(!on);
        if on && self.away {
            self.say(DetectStatus::Offline, outlet);
        } else if on && self.status == Some(DetectStatus::Disabled) {
            // `online` again with the next frame.
            self.status = None;
        }
        if !on {
            self.end(|_| true, outlet);
            self.clear_masks(|_| true, outlet);
            self.say(DetectStatus::Disabled, outlet);
            self.refuse_pictures("detection of this camera was switched off", outlet);
        }
        outlet.detect_state(self.id(), on);
    }

    /// Serves another configuration of the same camera; things go on as far as their queries do.
    pub(super) fn adopt(
        &mut self,
        camera: &config::Camera,
        side: usize,
        config: &Config,
        prepared: Prepared,
        outlet: &Outlet,
    ) {
        self.schedule = Schedule::new(side, camera.sizes);
        self.scene.set_rules(camera.zones.clone(), scene_rules(config));
        self.camera = camera.clone();
        let before = std::mem::replace(&mut self.output, config.output);
        self.next_frame = Duration::ZERO;
        self.configured = Asking::configured(config);
        self.ask(prepared, outlet);
        if !self.output.mask {
            self.clear_masks(|_| true, outlet);
        }
        if before.snapshot && !self.output.snapshot {
            for query in &self.asking.queries {
                outlet.forget_snapshot(self.id(), &query.id);
            }
        }
    }

    /// Asks something else from the next frame on, and withdraws what is asked no more.
    pub(super) fn ask(&mut self, prepared: Prepared, outlet: &Outlet) {
        let Prepared { asking, asked } = prepared;
        let mut over = BTreeSet::new();
        for old in &self.asking.queries {
            match asking.query(old.id.as_str()) {
                Some(new) if new.prompts == old.prompts => {}
                // What was found by other words is another thing.
                Some(_) => drop(over.insert(old.id.to_string())),
                None => {
                    over.insert(old.id.to_string());
                    self.removed.push_back(old.id.clone());
                }
            }
        }
        // Things end with the words that they were found by.
        self.end(|query| over.contains(query), outlet);
        let before = std::mem::replace(&mut self.asking, asking);
        self.asked = asked;
        self.clear_masks(|id| over.contains(id.as_str()), outlet);
        self.tell(&[], outlet);
        self.removed.retain(|id| self.asking.query(id.as_str()).is_none());
        let many = self.removed.len().saturating_sub(REMEMBERED);
        self.removed.drain(..many);
        for old in before.queries.iter().filter(|old| over.contains(old.id.as_str())) {
            if self.asking.query(old.id.as_str()).is_none() {
                self.counts.remove(&old.id);
                outlet.forget(&self.camera.id, &old.id);
            } else if self.output.snapshot {
                // It shows what was found by other words.
                outlet.forget_snapshot(&self.camera.id, &old.id);
            }
        }
        self.say_queries(outlet);
    }

    /// Says which queries are in force, what they compete with, and to Home Assistant what there is to show.
    pub(super) fn say_queries(&self, outlet: &Outlet) {
        let queries: Vec<&QueryId> = self.asking.queries.iter().map(|q| &q.id).collect();
        outlet.describe(
            self.id(),
            &queries,
            &self.removed.iter().collect::<Vec<_>>(),
            self.output.snapshot,
        );
        let state = |query| {
            let source = if self.configured.queries.contains(query) {
                QuerySource::Config
            } else {
                QuerySource::Live
            };
            (&query.id, state_of(query, source))
        };
        outlet.query_states(self.id(), &self.asking.queries.iter().map(state).collect::<Vec<_>>());
        outlet.background_state(self.id(), self.asking.background.as_deref().unwrap_or_default());
    }

    /// Says everything that subscribers may know, to a broker that was told nothing yet.
    pub(super) fn say_all(&self, outlet: &Outlet) {
        if let Some(status) = self.status {
            outlet.status(self.id(), status);
        }
        outlet.detect_state(self.id(), self.detects);
        for (query, count) in &self.counts {
            outlet.count(self.id(), query, count.all, count.active);
        }
        self.say_queries(outlet);
    }

    /// Ends all things and withdraws everything that is kept of the camera: the configuration has it no more.
    pub(super) fn close(mut self, outlet: &Outlet) {
        self.gone(outlet);
        for query in &self.asking.queries {
            outlet.forget(self.id(), &query.id);
        }
        outlet.withdraw(self.id());
    }

    /// Answers with a picture of the next frame that is processed.
    pub(super) fn want_picture(&mut self, answer: Answer, outlet: &Outlet) {
        self.waiting.retain(|waiting| !waiting.is_gone());
        self.waiting.push(answer);
        if !self.detects {
            self.refuse_pictures("detection of this camera is off; switch it on first", outlet);
        } else if self.status == Some(DetectStatus::Offline) {
            self.refuse_pictures(NO_FRAMES, outlet);
        } else if self.waiting.len() > MOST_PICTURES {
            let late = self.waiting.split_off(MOST_PICTURES);
            let early = std::mem::replace(&mut self.waiting, late);
            self.refuse_pictures("too many wait for one already; try again later", outlet);
            self.waiting = early;
        }
    }

    fn refuse_pictures(&mut self, why: &str, outlet: &Outlet) {
        for answer in self.waiting.drain(..) {
            answer.give(SNAPSHOT, Err(Refusal::Failed(format!("no picture: {why}"))), outlet);
        }
    }

    /// Says a new state; one that was said last is not repeated.
    pub(super) fn say(&mut self, status: DetectStatus, outlet: &Outlet) {
        if self.status.replace(status) != Some(status) {
            outlet.status(self.id(), status);
        }
    }

    /// The camera gives no frames any more.
    pub(super) fn gone(&mut self, outlet: &Outlet) {
        self.away = true;
        self.end(|_| true, outlet);
        self.clear_masks(|_| true, outlet);
        self.schedule.forget();
        self.say(DetectStatus::Offline, outlet);
        self.refuse_pictures(NO_FRAMES, outlet);
    }

    /// The camera gives frames while detection is off.
    pub(super) fn idle(&mut self, outlet: &Outlet) {
        self.away = false;
        self.say(DetectStatus::Disabled, outlet);
    }
}
