//! Where messages of the daemon go: the publisher, if there is one, and the topics.

use std::time::Duration;

use tracing::warn;

use crate::message::payload::DetectStatus;
use crate::message::topic::{CameraId, QueryId, Topic, Topics};
use crate::publish::mqtt::{Publisher, Settings};

use super::config::Config;

/// How long the last messages may take when the daemon ends.
const GRACE: Duration = Duration::from_secs(2);

/// The publisher, if the configuration has one, with its topics.
pub(super) struct Outlet {
    mqtt: Option<(Publisher, Topics)>,
    cameras: Vec<CameraId>,
}

impl Outlet {
    pub(super) fn start(config: &Config) -> anyhow::Result<Self> {
        let mqtt = match &config.mqtt {
            None => None,
            Some(mqtt) => {
                let available = mqtt.topics.available();
                let mut settings = Settings::new(&mqtt.host, mqtt.port, &mqtt.client_id, available);
                settings.credentials = mqtt.read_credentials()?;
                Some((Publisher::start(settings)?, mqtt.topics.clone()))
            }
        };
        let cameras = config.cameras.iter().map(|c| c.id.clone()).collect();
        Ok(Self { mqtt, cameras })
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

    pub(super) fn event(&self, body: Vec<u8>) {
        self.send(Topics::events, body);
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

    pub(super) fn stats(&self, body: Vec<u8>) {
        self.send(Topics::stats, body);
    }

    pub(super) fn dropped(&self) -> u64 {
        self.mqtt.as_ref().map_or(0, |(publisher, _)| publisher.stats().dropped)
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
