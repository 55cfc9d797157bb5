//! The connection to the broker that a configuration asks for.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use crate::daemon::board::CameraState;
use crate::daemon::config::{Config, Mqtt};
use crate::daemon::directories::state_dir;
use crate::message::homeassistant::birth_topic;
use crate::message::topic::{CameraId, QueryId, Topic, Topics};
use crate::publish::mqtt::{Publisher, Settings};
use crate::publish::spool::Spool;

/// How long a spool may be in use by a connection that was closed.
const BUSY: Duration = Duration::from_secs(5);

/// Opens the spool below the state directory; without one events are only in memory, which is no reason not to run.
fn open_spool(config: &Config, most_bytes: u64) -> Option<Spool> {
    let Some(dir) = state_dir(config.state.as_deref()) else {
        warn!("no state directory: neither STATE_DIRECTORY nor HOME is set; events are lost while the broker is away");
        return None;
    };
    let dir = dir.join("spool");
    let until = Instant::now() + BUSY;
    let opened = loop {
        match Spool::open(&dir, most_bytes) {
            // The writer of a connection that was just closed waits for a slow disk.
            Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(50));
            }
            opened => break opened,
        }
    };
    match opened {
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

/// A running publisher, how it was started, and the topics.
pub(super) struct Broker {
    pub(super) publisher: Publisher,
    settings: Settings,
    spool_bytes: u64,
    pub(super) topics: Topics,
}

impl Broker {
    pub(super) fn start(config: &Config, settings: Settings, mqtt: &Mqtt) -> anyhow::Result<Self> {
        let spool = open_spool(config, mqtt.spool_bytes).map(|spool| (spool, mqtt.topics.events()));
        Ok(Self {
            publisher: Publisher::start_with(settings.clone(), spool)?,
            settings,
            spool_bytes: mqtt.spool_bytes,
            topics: mqtt.topics.clone(),
        })
    }

    /// Whether it does what is asked for now.
    pub(super) fn serves(&self, settings: &Settings, mqtt: &Mqtt) -> bool {
        (&self.settings, self.spool_bytes, &self.topics) == (settings, mqtt.spool_bytes, &mqtt.topics)
    }

    /// What another connection to the same broker, of configuration `mqtt`, has to withdraw; `shown` are the cameras.
    pub(super) fn owed(&self, mqtt: &Mqtt, shown: &[(CameraId, CameraState)]) -> Vec<Topic> {
        if self.topics == mqtt.topics {
            return self.publisher.withdrawals();
        }
        // Nobody speaks of them under the old prefix any more; that the old connection has ended it has said itself.
        let kept = self.publisher.retained().into_iter();
        let kept = kept.filter(|topic| *topic != self.topics.available());
        // Pictures are published once, perhaps by a connection before this one.
        kept.chain(self.pictures(shown)).collect()
    }

    /// Where the pictures of all queries are.
    fn pictures(&self, shown: &[(CameraId, CameraState)]) -> Vec<Topic> {
        let cameras = shown.iter();
        let ids = cameras.flat_map(|(camera, shown)| shown.queries.keys().map(move |query| (camera, query)));
        // What is shown was a query's id before.
        ids.filter_map(|(camera, query)| Some(self.topics.snapshot(camera, &QueryId::new(query).ok()?)))
            .collect()
    }

    /// Whether it is connected to the broker that `settings` name.
    pub(super) fn is_of(&self, settings: &Settings) -> bool {
        (&self.settings.host, self.settings.port) == (&settings.host, settings.port)
    }
}

/// How the broker of a configuration is reached: reads its credential and certificate files.
///
/// # Errors
/// A file that cannot be read, or settings that can never work.
pub(in crate::daemon) fn broker_settings(config: &Config) -> anyhow::Result<Option<Settings>> {
    let Some(mqtt) = &config.mqtt else { return Ok(None) };
    let mut settings = mqtt.settings()?;
    if mqtt.commands {
        settings.subscriptions = mqtt.topics.commands();
    }
    settings
        .subscriptions
        .extend(mqtt.home_assistant.as_deref().map(birth_topic));
    settings.check()?;
    Ok(Some(settings))
}
