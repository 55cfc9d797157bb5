//! What anybody may know of the running daemon, in one place: written by the frame loop, read by whoever wants to.
//!
//! Only the present state is kept, no history: a reader that is slow sees fewer steps and holds nothing up.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

use crate::message::payload::DetectStatus;
use crate::message::query::QueryMessage;

/// What the daemon does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Phase {
    /// The model is being opened.
    #[default]
    Opening,
    /// An engine for the accelerator is being built, which may take minutes.
    BuildingEngine,
    /// Frames are processed, commands carried out.
    Running,
    /// The same, and a new configuration is being prepared.
    Reloading,
    /// It ends.
    Stopping,
}

impl Phase {
    /// As messages show it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::BuildingEngine => "building_engine",
            Self::Running => "running",
            Self::Reloading => "reloading",
            Self::Stopping => "stopping",
        }
    }
}

/// The daemon as others see it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DaemonState {
    /// What it does.
    pub phase: Phase,
    /// Name and hash of the model; empty until it is open.
    pub model: String,
    /// What runs it; empty until it is open.
    pub provider: String,
    /// Cameras by id.
    pub cameras: BTreeMap<String, CameraState>,
}

/// For the doors that answer whoever asks.
#[cfg(any(feature = "dbus", feature = "http"))]
impl DaemonState {
    /// A camera; the error names those that there are.
    pub(super) fn camera(&self, id: &str) -> Result<&CameraState, String> {
        let known = || self.cameras.keys().map(String::as_str);
        self.cameras.get(id).ok_or_else(|| no_camera(id, known()))
    }

    /// Refuses while no commands are carried out.
    pub(super) fn takes_commands(&self) -> Result<(), String> {
        if matches!(self.phase, Phase::Running | Phase::Reloading) {
            return Ok(());
        }
        let state = self.phase.as_str();
        Err(format!(
            "the daemon's state is {state:?}, expected \"running\"; try again later"
        ))
    }
}

/// What is wrong with the id of a camera that is not there, beside those that are `known`.
pub(super) fn no_camera<'a>(found: &str, known: impl Iterator<Item = &'a str>) -> String {
    let found: String = found.chars().take(80).collect();
    let known = known.collect::<Vec<_>>().join(", ");
    format!("no camera {found:?}, expected one of: {known}")
}

/// One camera as others see it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CameraState {
    /// Where its frames come from.
    pub source: String,
    /// Whether its frames are processed.
    pub detect: bool,
    /// What it does; `None` until it was said.
    pub status: Option<DetectStatus>,
    /// Frames per second that were processed, over the last seconds.
    pub fps: f64,
    /// Queries in force, by id.
    pub queries: Arc<BTreeMap<String, QueryMessage>>,
    /// Texts that they compete with; empty for the model's own.
    pub background: Arc<Vec<String>>,
    /// Things of every query that are there, and those of them that move.
    pub detections: BTreeMap<String, (u32, u32)>,
}

/// Where the state is shown; clones show the same.
#[derive(Debug, Clone)]
pub struct Board {
    state: Arc<watch::Sender<DaemonState>>,
}

impl Default for Board {
    fn default() -> Self {
        Self::new()
    }
}

impl Board {
    /// A daemon that is being opened, without cameras.
    #[must_use]
    pub fn new() -> Self {
        let (state, _) = watch::channel(DaemonState::default());
        let state = Arc::new(state);
        Self { state }
    }

    /// The state from now on, and a notice of every change.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<DaemonState> {
        self.state.subscribe()
    }

    /// The present state.
    #[must_use]
    pub fn now(&self) -> DaemonState {
        self.state.borrow().clone()
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut DaemonState)) {
        self.state.send_modify(change);
    }

    /// Changes what is shown of a camera; one that is not shown stays so.
    pub(super) fn camera(&self, id: &str, change: impl FnOnce(&mut CameraState)) {
        self.state.send_if_modified(|state| match state.cameras.get_mut(id) {
            Some(camera) => {
                change(camera);
                true
            }
            None => false,
        });
    }

    pub(super) fn phase(&self, phase: Phase) {
        self.change(|state| state.phase = phase);
    }
}
