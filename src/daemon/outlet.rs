//! Where messages of the daemon go: the publisher, if there is one, and the topics.

use std::time::Duration;

use tracing::{info, warn};

use crate::message::homeassistant::{Device, birth_topic};
use crate::message::onvif;
use crate::message::payload::{DetectStatus, FrameMessage};
use crate::message::topic::{CameraId, QueryId, Topic, Topics};
use crate::publish::mqtt::{Incoming, PublishStats, Publisher};
use crate::publish::spool::Spool;

use super::config::Config;
use super::directories::state_dir;

/// How long the last messages may take when the daemon ends.
const GRACE: Duration = Duration::from_secs(2);

/// Opens the spool below the state directory; without one events are only in memory, which is no reason not to run.
fn open_spool(config: &Config, most_bytes: u64) -> Option<Spool> {
    let Some(dir) = state_dir(config.state.as_deref()) else {
        warn!("no state directory: neither STATE_DIRECTORY nor HOME is set; events are lost while the broker is away");
        return None;
    };
    let dir = dir.join("spool");
    match Spool::open(&dir, most_bytes) {
        Ok(spool) => {
            let waiting = spool.stats().waiting;
            if waiting > 0 {
                info!(waiting, "events of the last run wait for the broker");
            }
            Some(spool)
        }
        Err(error) => {
            warn!(dir = %dir.display(), %error, "no spool: events are lost while the broker is away");
            None
        }
    }
}

/// The publisher, if the configuration has one, with its topics.
pub(super) struct Outlet {
    mqtt: Option<(Publisher, Topics)>,
    cameras: Vec<CameraId>,
    /// Discovery prefix of Home Assistant, if it is to be told.
    home_assistant: Option<String>,
    /// Prefix of ONVIF metadata, if frames go out as such too.
    onvif: Option<String>,
    /// Client id, part of what Home Assistant knows a camera by.
    node: String,
    commands: bool,
}

impl Outlet {
    pub(super) fn start(config: &Config) -> anyhow::Result<Self> {
        let mqtt = match &config.mqtt {
            None => None,
            Some(mqtt) => {
                let spool = open_spool(config, mqtt.spool_bytes).map(|spool| (spool, mqtt.topics.events()));
                let mut settings = mqtt.settings()?;
                if mqtt.commands {
                    settings.subscriptions = mqtt.topics.commands();
                }
                settings
                    .subscriptions
                    .extend(mqtt.home_assistant.as_deref().map(birth_topic));
                Some((Publisher::start_with(settings, spool)?, mqtt.topics.clone()))
            }
        };
        let cameras = config.cameras.iter().map(|c| c.id.clone()).collect();
        let settings = config.mqtt.as_ref();
        Ok(Self {
            mqtt,
            cameras,
            home_assistant: settings.and_then(|mqtt| mqtt.home_assistant.clone()),
            onvif: settings.and_then(|mqtt| mqtt.onvif.clone()),
            node: settings.map(|mqtt| mqtt.client_id.clone()).unwrap_or_default(),
            commands: settings.is_some_and(|mqtt| mqtt.commands),
        })
    }

    /// Whether anything that is handed over can reach anybody.
    pub(super) fn is_open(&self) -> bool {
        self.mqtt.is_some()
    }

    fn send(&self, topic: impl FnOnce(&Topics) -> Topic, body: Vec<u8>) {
        if let Some((publisher, topics)) = &self.mqtt {
            publisher.publish(topic(topics), body);
        }
    }

    pub(super) fn status(&self, camera: &CameraId, status: DetectStatus) {
        self.send(|t| t.detect_status(camera), status.as_str().into());
    }

    pub(super) fn status_of_all(&self, status: DetectStatus) {
        self.cameras.iter().for_each(|camera| self.status(camera, status));
    }

    pub(super) fn frame(&self, camera: &CameraId, body: Vec<u8>) {
        self.send(|t| t.frame(camera), body);
    }

    /// The same frame as ONVIF metadata, if the configuration wants it.
    pub(super) fn metadata(&self, camera: &CameraId, message: &FrameMessage) {
        if let (Some((publisher, _)), Some(prefix)) = (&self.mqtt, &self.onvif) {
            publisher.publish(onvif::topic(prefix, camera), onvif::body(message));
        }
    }

    pub(super) fn event(&self, body: Vec<u8>) {
        if let Some((publisher, topics)) = &self.mqtt {
            publisher.event(topics.events(), body);
        }
    }

    pub(super) fn count(&self, camera: &CameraId, query: &QueryId, all: usize, active: usize) {
        self.send(|t| t.count(camera, query), all.to_string().into_bytes());
        self.send(|t| t.active(camera, query), active.to_string().into_bytes());
    }

    pub(super) fn snapshot(&self, camera: &CameraId, query: &QueryId, body: Vec<u8>) {
        self.send(|t| t.snapshot(camera, query), body);
    }

    pub(super) fn mask(&self, camera: &CameraId, query: &QueryId, body: Vec<u8>) {
        self.send(|t| t.mask(camera, query), body);
    }

    pub(super) fn detect_state(&self, camera: &CameraId, on: bool) {
        self.send(
            |t| t.detect_state(camera),
            if on { b"ON".to_vec() } else { b"OFF".to_vec() },
        );
    }

    pub(super) fn query_state(&self, camera: &CameraId, query: &QueryId, body: Vec<u8>) {
        self.send(|t| t.query_state(camera, query), body);
    }

    pub(super) fn background_state(&self, camera: &CameraId, body: Vec<u8>) {
        self.send(|t| t.background_state(camera), body);
    }

    /// Withdraws everything the broker keeps of a query.
    pub(super) fn forget(&self, camera: &CameraId, query: &QueryId) {
        for topic in [Topics::count, Topics::active, Topics::snapshot, Topics::query_state] {
            self.send(|t| topic(t, camera, query), Vec::new());
        }
    }

    /// Tells whoever sent a command why it was refused.
    pub(super) fn refuse(&self, command: &str, error: String) {
        self.send(|t| t.error_of(command), error.into_bytes());
    }

    /// Describes a camera to Home Assistant, if the configuration wants it.
    pub(super) fn describe(&self, camera: &CameraId, queries: &[&QueryId], removed: &[&QueryId], snapshots: bool) {
        if let (Some((publisher, topics)), Some(prefix)) = (&self.mqtt, &self.home_assistant) {
            let device = Device {
                prefix,
                node: &self.node,
                camera,
                queries,
                removed,
                snapshots,
                commands: self.commands,
            };
            publisher.publish(device.topic(), device.body(topics));
        }
    }

    /// Whether a message says that Home Assistant has started and asks for its descriptions again.
    pub(super) fn is_birth(&self, message: &Incoming) -> bool {
        let topic = self.home_assistant.as_deref().map(birth_topic);
        topic.is_some_and(|topic| topic == message.topic) && message.payload[..] == *b"online"
    }

    /// Messages from the broker since the last call, with the topics to understand them.
    pub(super) fn incoming(&self) -> Option<(Vec<Incoming>, &Topics)> {
        self.mqtt
            .as_ref()
            .map(|(publisher, topics)| (publisher.incoming(), topics))
    }

    pub(super) fn stats(&self, body: Vec<u8>) {
        self.send(Topics::stats, body);
    }

    pub(super) fn counters(&self) -> PublishStats {
        self.mqtt
            .as_ref()
            .map(|(publisher, _)| publisher.stats())
            .unwrap_or_default()
    }

    /// Says `offline` for every camera and ends; waits a little for a connection, which may be younger than the failure.
    pub(super) fn give_up(self) {
        self.status_of_all(DetectStatus::Offline);
        if let Some((publisher, _)) = &self.mqtt {
            // Without a broker nobody can be told; the failure itself goes to the log either way.
            let _ = publisher.wait_connected(GRACE);
        }
        self.stop();
    }

    /// Says `offline` for every camera where the program ends next; that it ended is then the broker's to say.
    pub(super) fn say_offline(&self) {
        self.status_of_all(DetectStatus::Offline);
        if let Some((publisher, _)) = &self.mqtt {
            let _ = publisher.wait_sent(GRACE);
        }
    }

    pub(super) fn stop(self) {
        if let Some((publisher, _)) = self.mqtt
            && !publisher.stop(GRACE)
        {
            warn!("the broker did not acknowledge the last messages");
        }
    }
}
