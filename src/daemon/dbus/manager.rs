//! The object of the daemon: what it does, and what it can be asked to do.

use std::collections::HashMap;
use std::time::Duration;

use zbus::message::Header;
use zbus::zvariant::{ObjectPath, OwnedObjectPath, Value};
use zbus::{Connection, fdo, interface};

use super::access::{Action, require};
use super::camera_path;
use crate::daemon::board::{Board, DaemonState};
use crate::daemon::commands::{Change, Command, Door, Refusal, Reply};
use crate::message::query::QueryMessage;

/// Name of the interface.
pub(super) const INTERFACE: &str = "org.samclip.Daemon1";

/// Longest wait for a frame to take a picture of: a slow board takes ten seconds for one, callers give up after 25.
const PICTURE: Duration = Duration::from_secs(20);

/// The daemon as it is exported.
pub(super) struct Manager {
    board: Board,
    door: Door,
}

fn cameras(state: &DaemonState) -> Vec<ObjectPath<'static>> {
    let path = |id: &String| ObjectPath::try_from(camera_path(id)).ok();
    state.cameras.keys().filter_map(path).collect()
}

/// Properties that differ.
pub(super) fn changes(before: &DaemonState, after: &DaemonState) -> HashMap<&'static str, Value<'static>> {
    let mut changes = HashMap::new();
    if before.phase != after.phase {
        changes.insert("State", after.phase.as_str().into());
    }
    if before.model != after.model {
        changes.insert("Model", after.model.clone().into());
    }
    if before.provider != after.provider {
        changes.insert("Provider", after.provider.clone().into());
    }
    if before.cameras.keys().ne(after.cameras.keys()) {
        changes.insert("Cameras", cameras(after).into());
    }
    changes
}

impl Manager {
    pub(super) fn new(board: Board, door: Door) -> Self {
        Self { board, door }
    }

    async fn ask(&self, command: Command) -> fdo::Result<Reply> {
        self.board.now().takes_commands().map_err(fdo::Error::Failed)?;
        self.door.ask(command).await.map_err(|refusal| error_of(&refusal))
    }

    async fn change(&self, command: Command, connection: &Connection, header: &Header<'_>) -> fdo::Result<()> {
        require(Action::Configure, connection, header).await?;
        self.ask(command).await.map(drop)
    }
}

fn error_of(refusal: &Refusal) -> fdo::Error {
    let text = refusal.short();
    match refusal {
        Refusal::Invalid(_) => fdo::Error::InvalidArgs(text),
        Refusal::Busy => fdo::Error::LimitsExceeded(text),
        Refusal::Failed(_) | Refusal::Stopping => fdo::Error::Failed(text),
    }
}

#[interface(name = "org.samclip.Daemon1")]
impl Manager {
    /// Reads the configuration file again and does what it says now; on any error the old configuration holds.
    async fn reload(
        &self,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> fdo::Result<()> {
        self.change(Command::Reload, connection, &header).await
    }

    /// Switches detection of a camera on or off.
    async fn set_detect(
        &self,
        camera: String,
        on: bool,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> fdo::Result<()> {
        self.change(Command::SetDetect { camera, on }, connection, &header)
            .await
    }

    /// Sets or replaces a query of a camera: JSON as in `query/ID/set` over MQTT, `{}` for a query with the defaults.
    async fn add_query(
        &self,
        camera: String,
        id: String,
        query: String,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> fdo::Result<()> {
        require(Action::Configure, connection, &header).await?;
        let query = QueryMessage::decode(query.as_bytes());
        let query = query.map_err(|error| error_of(&Refusal::Invalid(error.to_string())))?;
        let query = Box::new(query);
        let change = Change::Query { id, query };
        self.ask(Command::Ask { camera, change }).await.map(drop)
    }

    /// Removes a query of a camera.
    async fn remove_query(
        &self,
        camera: String,
        id: String,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> fdo::Result<()> {
        let change = Change::NoQuery { id };
        self.change(Command::Ask { camera, change }, connection, &header).await
    }

    /// The queries of a camera by id, each as JSON. Refused before they are known, as commands are.
    #[zbus(out_args("queries"))]
    async fn list_queries(&self, camera: String) -> fdo::Result<HashMap<String, String>> {
        let state = self.board.now();
        state.takes_commands().map_err(fdo::Error::Failed)?;
        let camera = state.camera(&camera).map_err(fdo::Error::InvalidArgs)?;
        let encoded = |(id, query): (&String, &QueryMessage)| {
            let body = query.encode().map_err(|error| fdo::Error::Failed(error.to_string()))?;
            Ok((id.clone(), String::from_utf8_lossy(&body).into_owned()))
        };
        camera.queries.iter().map(encoded).collect()
    }

    /// A picture of a camera's next frame as JPEG, with nothing drawn on it. Who may see it is decided as for changes.
    #[zbus(out_args("jpeg"))]
    async fn snapshot(
        &self,
        camera: String,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> fdo::Result<Vec<u8>> {
        require(Action::Snapshot, connection, &header).await?;
        let seconds = PICTURE.as_secs();
        match tokio::time::timeout(PICTURE, self.ask(Command::Snapshot { camera })).await {
            Ok(reply) => match reply? {
                Reply::Picture(bytes) => Ok(bytes),
                Reply::Done => Err(fdo::Error::Failed("no picture".into())),
            },
            Err(_) => Err(fdo::Error::TimedOut(format!("no picture: no frame for {seconds} s"))),
        }
    }

    /// Version of the program.
    #[zbus(property(emits_changed_signal = "const"))]
    fn version(&self) -> &str {
        env!("CARGO_PKG_VERSION")
    }

    /// Name and hash of the model; empty until it is open.
    #[zbus(property)]
    fn model(&self) -> String {
        self.board.now().model
    }

    /// What runs the model; empty until it is open.
    #[zbus(property)]
    fn provider(&self) -> String {
        self.board.now().provider
    }

    /// What the daemon does: opening, building_engine, running, reloading, stopping.
    #[zbus(property)]
    fn state(&self) -> &str {
        self.board.now().phase.as_str()
    }

    /// Objects of the cameras.
    #[zbus(property)]
    fn cameras(&self) -> Vec<OwnedObjectPath> {
        cameras(&self.board.now()).into_iter().map(Into::into).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::board::{CameraState, Phase};
    use crate::daemon::commands::door;

    #[tokio::test]
    async fn queries_are_listed_once_they_are_known() {
        let board = Board::new();
        board.change(|state| drop(state.cameras.insert("yard".into(), CameraState::default())));
        let (door, _requests) = door();
        let manager = Manager::new(board.clone(), door);
        let early = manager.list_queries("yard".into()).await.unwrap_err().to_string();
        assert!(
            early.contains("the daemon's state is \"opening\", expected \"running\""),
            "{early}"
        );
        board.phase(Phase::Running);
        assert_eq!(manager.list_queries("yard".into()).await.unwrap(), HashMap::new());
    }
}
