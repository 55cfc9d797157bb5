//! The object of one camera: what it does and what it sees.

use std::collections::HashMap;

use zbus::object_server::SignalEmitter;
use zbus::zvariant::Value;
use zbus::{fdo, interface};

use crate::daemon::board::{Board, CameraState};

/// Name of the interface.
pub(super) const INTERFACE: &str = "org.samclip.Daemon1.Camera";

/// Things of every query that are there, and those of them that move.
pub(super) type Counts = HashMap<String, (u32, u32)>;

/// A camera as it is exported.
pub(super) struct Camera {
    id: String,
    board: Board,
}

impl Camera {
    pub(super) fn new(id: &str, board: &Board) -> Self {
        Self {
            id: id.to_owned(),
            board: board.clone(),
        }
    }

    fn look<T>(&self, at: impl FnOnce(&CameraState) -> T) -> fdo::Result<T> {
        let state = self.board.now();
        let camera = state.cameras.get(&self.id);
        // Between two states of the daemon it may be exported a moment longer.
        camera
            .map(at)
            .ok_or_else(|| fdo::Error::UnknownObject(format!("no camera {:?} any more", self.id)))
    }
}

fn status(camera: &CameraState) -> &'static str {
    camera.status.map_or("", |status| status.as_str())
}

fn queries(camera: &CameraState) -> Vec<String> {
    camera.queries.keys().cloned().collect()
}

fn counts(camera: &CameraState) -> Counts {
    camera.detections.clone().into_iter().collect()
}

/// Properties that differ.
pub(super) fn changes(before: &CameraState, after: &CameraState) -> HashMap<&'static str, Value<'static>> {
    let mut changes = HashMap::new();
    if before.source != after.source {
        changes.insert("Source", after.source.clone().into());
    }
    if before.detect != after.detect {
        changes.insert("Detect", after.detect.into());
    }
    if before.status != after.status {
        changes.insert("Status", status(after).into());
    }
    if before.fps.to_bits() != after.fps.to_bits() {
        changes.insert("Fps", after.fps.into());
    }
    if before.queries != after.queries {
        changes.insert("Queries", queries(after).into());
    }
    if before.background != after.background {
        changes.insert("Background", after.background.to_vec().into());
    }
    if before.detections != after.detections {
        changes.insert("Counts", counts(after).into());
    }
    changes
}

#[interface(name = "org.samclip.Daemon1.Camera")]
impl Camera {
    /// Id in the configuration and in topics.
    #[zbus(property(emits_changed_signal = "const"))]
    fn id(&self) -> &str {
        &self.id
    }

    /// Where its frames come from.
    #[zbus(property)]
    fn source(&self) -> fdo::Result<String> {
        self.look(|camera| camera.source.clone())
    }

    /// Whether its frames are processed.
    #[zbus(property)]
    fn detect(&self) -> fdo::Result<bool> {
        self.look(|camera| camera.detect)
    }

    /// What it does: online, offline, disabled, building_engine; empty until that is known.
    #[zbus(property)]
    fn status(&self) -> fdo::Result<String> {
        self.look(|camera| status(camera).to_owned())
    }

    /// Frames per second that were processed, over the last ten seconds.
    #[zbus(property)]
    fn fps(&self) -> fdo::Result<f64> {
        self.look(|camera| camera.fps)
    }

    /// Ids of the queries in force.
    #[zbus(property)]
    fn queries(&self) -> fdo::Result<Vec<String>> {
        self.look(queries)
    }

    /// Texts that queries compete with; empty for the model's own.
    #[zbus(property)]
    fn background(&self) -> fdo::Result<Vec<String>> {
        self.look(|camera| camera.background.to_vec())
    }

    /// By query, how many things are there, and how many of them move.
    #[zbus(property)]
    fn counts(&self) -> fdo::Result<Counts> {
        self.look(counts)
    }

    /// By query, how many things are there now, and how many of them move; all queries, not only those that changed.
    #[zbus(signal)]
    pub(super) async fn detections_changed(emitter: &SignalEmitter<'_>, counts: Counts) -> zbus::Result<()>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_properties_that_differ_are_told() {
        let before = CameraState::default();
        assert!(changes(&before, &before).is_empty());
        let mut after = before.clone();
        after.detect = true;
        after.detections.insert("red".into(), (2, 1));
        let changes = changes(&before, &after);
        let mut names: Vec<_> = changes.keys().copied().collect();
        names.sort_unstable();
        assert_eq!(names, ["Counts", "Detect"]);
        assert_eq!(changes["Counts"].value_signature().to_string(), "a{s(uu)}");
    }
}
