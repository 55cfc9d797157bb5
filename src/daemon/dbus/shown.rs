//! Keeps what is exported in step with the daemon's state: objects of cameras, notices of properties, `DetectionsChanged`.

use std::borrow::Cow;
use std::collections::HashMap;

use zbus::Connection;
use zbus::fdo::Properties;
use zbus::names::InterfaceName;
use zbus::object_server::SignalEmitter;
use zbus::zvariant::Value;

use super::camera::{self, Camera};
use super::{PATH, camera_path, manager};
use crate::daemon::board::{Board, DaemonState};

/// What is exported on a connection.
pub(super) struct Shown<'a> {
    connection: &'a Connection,
    board: &'a Board,
    state: DaemonState,
}

impl<'a> Shown<'a> {
    /// Nothing but the daemon's own object yet.
    pub(super) fn new(connection: &'a Connection, board: &'a Board) -> Self {
        Self {
            connection,
            board,
            state: DaemonState::default(),
        }
    }

    /// Exports a new state and tells what differs from the last one.
    ///
    /// # Errors
    /// What the connection says; it is of no use any more then.
    pub(super) async fn follow(&mut self, state: DaemonState) -> zbus::Result<()> {
        let before = std::mem::replace(&mut self.state, state);
        let server = self.connection.object_server();
        for id in before.cameras.keys().filter(|id| !self.state.cameras.contains_key(*id)) {
            server.remove::<Camera, _>(camera_path(id)).await?;
        }
        for (id, camera) in &self.state.cameras {
            let path = camera_path(id);
            let Some(old) = before.cameras.get(id) else {
                server.at(path, Camera::new(id, self.board)).await?;
                continue;
            };
            let emitter = SignalEmitter::new(self.connection, path)?;
            tell(&emitter, camera::INTERFACE, camera::changes(old, camera)).await?;
            if old.detections != camera.detections {
                Camera::detections_changed(&emitter, camera.detections.clone().into_iter().collect()).await?;
            }
        }
        let emitter = SignalEmitter::new(self.connection, PATH)?;
        tell(&emitter, manager::INTERFACE, manager::changes(&before, &self.state)).await
    }
}

/// Tells which properties have changed, if any.
async fn tell(
    emitter: &SignalEmitter<'_>,
    interface: &'static str,
    changed: HashMap<&'static str, Value<'_>>,
) -> zbus::Result<()> {
    if changed.is_empty() {
        return Ok(());
    }
    let interface = InterfaceName::from_static_str(interface)?;
    Properties::properties_changed(emitter, interface, changed, Cow::Borrowed(&[])).await
}
