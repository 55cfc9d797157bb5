//! The other end: talks to a running daemon.

use std::collections::{BTreeMap, HashMap};

use zbus::fdo::DBusProxy;
use zbus::zvariant::OwnedObjectPath;

use super::{NAME, builder, camera_id};
use crate::daemon::config::BusAddress;
use crate::message::query::{CommandError, QueryMessage};

#[zbus::proxy(
    interface = "org.samclip.Daemon1",
    default_service = "org.samclip.Daemon1",
    default_path = "/org/samclip/Daemon1",
    gen_blocking = false
)]
trait Manager {
    fn set_detect(&self, camera: &str, on: bool) -> zbus::Result<()>;
    fn add_query(&self, camera: &str, id: &str, query: &str) -> zbus::Result<()>;
    fn remove_query(&self, camera: &str, id: &str) -> zbus::Result<()>;
    fn list_queries(&self, camera: &str) -> zbus::Result<HashMap<String, String>>;
    #[zbus(property(emits_changed_signal = "false"))]
    fn cameras(&self) -> zbus::Result<Vec<OwnedObjectPath>>;
    #[zbus(property(emits_changed_signal = "false"))]
    fn state(&self) -> zbus::Result<String>;
}

/// Why the daemon did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no such bus, or it does not let this user in.
    #[error("{bus} cannot be reached: {reason}; --bus names another")]
    NoBus {
        /// Which.
        bus: BusAddress,
        /// What the system says.
        reason: String,
    },
    /// Nobody has the daemon's name.
    #[error(
        "no samclipd is on {bus} as {NAME}; start it (systemctl start samclipd), and see whether [dbus] in its \
         configuration turns D-Bus off or names another bus"
    )]
    NoDaemon {
        /// Which.
        bus: BusAddress,
    },
    /// The daemon or the bus has refused.
    #[error("{0}")]
    Refused(String),
    /// The daemon's answer is not understood: it is of another version.
    #[error("query {id:?} of the daemon: {source}")]
    Answer {
        /// Which query.
        id: String,
        /// What is wrong with it.
        source: CommandError,
    },
}

/// A connection to a running daemon.
pub struct Client {
    bus: BusAddress,
    manager: ManagerProxy<'static>,
}

impl Client {
    /// Connects to a bus that a daemon is on; starts none.
    ///
    /// # Errors
    /// [`ClientError::NoBus`] and [`ClientError::NoDaemon`].
    pub async fn connect(bus: BusAddress) -> Result<Self, ClientError> {
        let connected = async {
            let connection = builder(&bus)?.build().await?;
            let there = DBusProxy::new(&connection)
                .await?
                .name_has_owner(NAME.try_into()?)
                .await?;
            zbus::Result::Ok((ManagerProxy::new(&connection).await?, there))
        };
        match connected.await {
            Ok((manager, true)) => Ok(Self { bus, manager }),
            Ok((_, false)) => Err(ClientError::NoDaemon { bus }),
            Err(error) => Err(ClientError::NoBus {
                bus,
                reason: error.to_string(),
            }),
        }
    }

    fn error(&self, error: zbus::Error) -> ClientError {
        match &error {
            // It has left the bus since.
            zbus::Error::MethodError(name, _, _) if name.as_str().ends_with(".ServiceUnknown") => {
                ClientError::NoDaemon { bus: self.bus.clone() }
            }
            zbus::Error::MethodError(_, Some(text), _) => ClientError::Refused(text.clone()),
            _ => ClientError::Refused(error.to_string()),
        }
    }

    /// Ids of the cameras, in order.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn cameras(&self) -> Result<Vec<String>, ClientError> {
        let paths = self.manager.cameras().await.map_err(|e| self.error(e))?;
        Ok(paths.iter().filter_map(|path| camera_id(path)).collect())
    }

    /// What the daemon does: `opening`, `building_engine`, `running`, `reloading` or `stopping`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn state(&self) -> Result<String, ClientError> {
        self.manager.state().await.map_err(|e| self.error(e))
    }

    /// Queries of a camera, by id.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn queries(&self, camera: &str) -> Result<BTreeMap<String, QueryMessage>, ClientError> {
        let queries = self.manager.list_queries(camera).await.map_err(|e| self.error(e))?;
        let decoded = queries.into_iter().map(|(id, text)| {
            let query = QueryMessage::decode(text.as_bytes());
            let query = query.map_err(|source| ClientError::Answer { id: id.clone(), source })?;
            Ok((id, query))
        });
        decoded.collect()
    }

    /// Sets or replaces a query.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn set_query(&self, camera: &str, id: &str, query: &QueryMessage) -> Result<(), ClientError> {
        let body = query
            .encode()
            .map_err(|error| ClientError::Refused(error.to_string()))?;
        let body = String::from_utf8_lossy(&body);
        let done = self.manager.add_query(camera, id, &body).await;
        done.map_err(|e| self.error(e))
    }

    /// Removes a query.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn remove_query(&self, camera: &str, id: &str) -> Result<(), ClientError> {
        let done = self.manager.remove_query(camera, id).await;
        done.map_err(|e| self.error(e))
    }

    /// Switches detection on or off.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn set_detect(&self, camera: &str, on: bool) -> Result<(), ClientError> {
        let done = self.manager.set_detect(camera, on).await;
        done.map_err(|e| self.error(e))
    }
}
