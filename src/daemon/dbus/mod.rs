//! The daemon on D-Bus: `org.samclip.Daemon1`, described in `dbus/org.samclip.Daemon1.xml`.
//!
//! `manager` is the object of the daemon, `camera` those of its cameras, `access` decides who may change anything,
//! [`client`] is the other end, which `samclipd query` uses. Everything that is read comes from the [`Board`], everything
//! that is asked goes through the [`Door`]: nothing here waits for a frame or holds one up. A bus that is not there, taken
//! or restarted stops nothing: it is told once, and tried again with growing pauses. Masks never travel over D-Bus.

mod access;
mod camera;
pub mod client;
mod manager;
mod shown;

use std::time::Duration;

use tokio::sync::watch;
use tracing::{info, warn};
use zbus::connection::Builder;

use super::board::{Board, DaemonState};
use super::commands::Door;
use super::config::{BusAddress, Dbus};
use super::event_loop::EventLoop;
use manager::Manager;
use shown::Shown;

/// Name on the bus.
pub const NAME: &str = "org.samclip.Daemon1";

/// Path of the daemon's object; cameras are below it.
pub const PATH: &str = "/org/samclip/Daemon1";

/// First and longest pause between two tries to get onto the bus; the pause doubles.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Path of a camera's object; its id has no underscore, a path no hyphen.
#[must_use]
pub fn camera_path(id: &str) -> String {
    format!("{PATH}/camera/{}", id.replace('-', "_"))
}

/// Id of the camera at a path; `None` for any other path.
#[must_use]
pub fn camera_id(path: &str) -> Option<String> {
    let id = path.strip_prefix(PATH)?.strip_prefix("/camera/")?;
    Some(id.replace('_', "-"))
}

/// How a bus is reached.
///
/// # Errors
/// An address that cannot be understood.
fn builder(bus: &BusAddress) -> zbus::Result<Builder<'static>> {
    match bus {
        BusAddress::System => Builder::system(),
        BusAddress::Session => Builder::session(),
        BusAddress::Address(address) => Builder::address(address.as_str()),
    }
}

/// The thread that is on the bus; dropping it leaves the bus.
#[derive(Debug)]
pub struct Bus {
    _thread: EventLoop,
}

impl Bus {
    /// Starts the thread; a bus that is not there is no error.
    ///
    /// # Errors
    /// If the system gives no thread or no event loop.
    pub fn start(config: &Dbus, board: &Board, door: Door) -> std::io::Result<Self> {
        let (bus, board) = (config.bus.clone(), board.clone());
        let stay = async move || stay(&bus, &board, &door).await;
        let _thread = EventLoop::start("dbus", stay)?;
        Ok(Self { _thread })
    }
}

/// Is on the bus, again after every loss, for ever.
async fn stay(bus: &BusAddress, board: &Board, door: &Door) {
    let mut pause = RETRY.0;
    let mut told = false;
    loop {
        match once(bus, board, door, || (pause, told) = (RETRY.0, false)).await {
            Ok(()) => warn!("{bus} has closed the connection; tried again until it is back"),
            Err(error) if !told => warn!(%error, "not on {bus} as {NAME}; tried again until it is possible"),
            Err(_) => {}
        }
        told = true;
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY.1);
    }
}

/// Is on the bus until the connection ends; calls `there` once it is.
async fn once(bus: &BusAddress, board: &Board, door: &Door, there: impl FnOnce()) -> zbus::Result<()> {
    let mut states = board.subscribe();
    let state = states.borrow_and_update().clone();
    let connection = builder(bus)?
        .serve_at(PATH, Manager::new(board.clone(), door.clone()))?
        .serve_at(PATH, zbus::fdo::ObjectManager)?
        .allow_name_replacements(false)
        .replace_existing_names(false)
        .build()
        .await?;
    let mut shown = Shown::new(&connection, board);
    shown.follow(state).await?;
    // Only now, so that whoever waits for the name finds everything.
    connection
        .request_name_with_flags(NAME, zbus::fdo::RequestNameFlags::DoNotQueue.into())
        .await?;
    info!("on {bus} as {NAME}");
    there();
    tokio::select! {
        () = connection.closed() => Ok(()),
        error = follow(&mut shown, &mut states) => error,
    }
}

/// Shows every change of the state.
async fn follow(shown: &mut Shown<'_>, states: &mut watch::Receiver<DaemonState>) -> zbus::Result<()> {
    while states.changed().await.is_ok() {
        let state = states.borrow_and_update().clone();
        shown.follow(state).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_camera_s_path_is_valid_and_leads_back_to_its_id() {
        for id in ["dock", "dock-2", "-", "a--b"] {
            let path = camera_path(id);
            assert!(zbus::zvariant::ObjectPath::try_from(path.as_str()).is_ok(), "{path}");
            assert_eq!(camera_id(&path).as_deref(), Some(id));
        }
        assert_eq!((camera_id(PATH), camera_id("/other")), (None, None));
    }
}
