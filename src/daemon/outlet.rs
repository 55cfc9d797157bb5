//! Where messages of the daemon go: the publisher, if there is one, with the topics of every camera.

use std::time::Duration;

use tracing::warn;

use crate::message::payload::DetectStatus;
use crate::message::topic::{CameraId, QueryId, Topics};
use crate::publish::mqtt::{Publisher, Settings};

use super::config::Config;
use super::health::Health;
use super::pipeline::Detections;

/// How long the last messages may take when the daemon ends.
const GRACE: Duration = Duration::from_secs(2);

/// The publisher, if the configuration has one, with the topics of every camera.
pub(super) struct Outlet {
    mqtt: Option<(Publisher, Topics)>,
    cameras: Vec<CameraId>,
    queries: Vec<QueryId>,
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
        let queries = config.queries.iter().map(|q| q.id.clone()).collect();
        Ok(Self { mqtt, cameras, queries })
    }

    pub(super) fn status(&self, slot: usize, status: DetectStatus) {
        if let (Some((publisher, topics)), Some(camera)) = (&self.mqtt, self.cameras.get(slot)) {
            publisher.publish(topics.detect_status(camera), status.as_str().into());
        }
    }

    pub(super) fn status_of_all(&self, status: DetectStatus) {
        (0..self.cameras.len()).for_each(|slot| self.status(slot, status));
    }

    /// Sends the frame message, and the retained count of every query whose count changed.
    pub(super) fn frame(&self, slot: usize, message: &[u8], health: &mut Health, found: &Detections) {
        let (Some((publisher, topics)), Some(camera)) = (&self.mqtt, self.cameras.get(slot)) else {
            return;
        };
        publisher.publish(topics.frame(camera), message.to_vec());
        for (index, query) in self.queries.iter().enumerate() {
            let count = found.masks.iter().filter(|m| m.query == index).count();
            if health.counts.insert((slot, index), count) != Some(count) {
                publisher.publish(topics.count(camera, query), count.to_string().into_bytes());
            }
        }
    }

    pub(super) fn stats(&self, body: Vec<u8>) {
        if let Some((publisher, topics)) = &self.mqtt {
            publisher.publish(topics.stats(), body);
        }
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
