//! Where messages of the daemon go: the publisher, if there is one, with its topics, and the board.

mod broker;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tracing::{error, warn};

use crate::message::homeassistant::{Device, birth_topic};
use crate::message::onvif;
use crate::message::payload::{DetectStatus, FrameMessage};
use crate::message::query::QueryMessage;
use crate::message::topic::{CameraId, QueryId, Topic, Topics};
use crate::publish::mqtt::{Incoming, PublishStats, Settings, Unkept};

use super::asking::Asking;
use super::board::{Board, CameraState};
use super::config::{self, Config};
use super::live::LiveState;
use broker::Broker;
pub(super) use broker::broker_settings;

/// How long the last messages may take when the daemon ends.
const GRACE: Duration = Duration::from_secs(2);

/// The publisher, if the configuration has one, with its topics; and the board.
pub(super) struct Outlet {
    mqtt: Option<Broker>,
    board: Board,
    /// Discovery prefix of Home Assistant, if it is to be told.
    home_assistant: Option<String>,
    /// Prefix of ONVIF metadata, if frames go out as such too.
    onvif: Option<String>,
    /// Client id, part of what Home Assistant knows a camera by.
    node: String,
    commands: bool,
}

impl Outlet {
    /// Opens the connection that the configuration asks for, and says that no camera has shown anything yet.
    pub(super) fn start(config: &Config, board: Board, live: &LiveState) -> anyhow::Result<Self> {
        let mut outlet = Self {
            mqtt: None,
            board,
            home_assistant: None,
            onvif: None,
            node: String::new(),
            commands: false,
        };
        outlet.set_prefixes(config);
        if let (Some(settings), Some(mqtt)) = (broker_settings(config)?, &config.mqtt) {
            outlet.mqtt = Some(Broker::start(config, settings, mqtt)?);
        }
        for camera in &config.cameras {
            let kept = live.camera(camera.id.as_str());
            outlet.show(camera, kept.detect);
            // What is left out is told where the texts are prepared.
            for query in Asking::merged(camera, config, &kept, |_, _| {}).queries {
                for topic in [Topics::count, Topics::active] {
                    outlet.send(|t| topic(t, &camera.id, &query.id), b"0".to_vec());
                }
            }
        }
        outlet.await_frames();
        Ok(outlet)
    }

    /// Says that no camera has shown anything yet: what the broker keeps from before a power cut holds no more.
    pub(super) fn await_frames(&self) {
        for (camera, shown) in self.shown() {
            self.board.camera(camera.as_str(), |shown| shown.status = None);
            let status = if shown.detect {
                DetectStatus::Offline
            } else {
                DetectStatus::Disabled
            };
            self.send(|t| t.detect_status(&camera), status.as_str().into());
        }
    }

    fn set_prefixes(&mut self, config: &Config) {
        let mqtt = config.mqtt.as_ref();
        self.home_assistant = mqtt.and_then(|mqtt| mqtt.home_assistant.clone());
        self.onvif = mqtt.and_then(|mqtt| mqtt.onvif.clone());
        self.node = mqtt.map(|mqtt| mqtt.client_id.clone()).unwrap_or_default();
        self.commands = mqtt.is_some_and(|mqtt| mqtt.commands);
    }

    /// Serves another configuration, with `settings` from [`broker_settings`]; whether everything has to be said again.
    ///
    /// A connection whose settings did not change goes on. Another one is opened after the old one has said goodbye: they
    /// may have the same client id and the same spool. What the old one could not withdraw, the new one does, if it goes to
    /// the same broker.
    pub(super) fn adopt(&mut self, config: &Config, settings: Option<Settings>) -> bool {
        let described = self.devices();
        self.set_prefixes(config);
        let now = self.devices();
        let wanted = settings.zip(config.mqtt.as_ref());
        if let (Some(broker), Some((settings, mqtt))) = (&self.mqtt, &wanted)
            && broker.serves(settings, mqtt)
        {
            return false;
        }
        let owed = match (&self.mqtt, &wanted) {
            (Some(broker), Some((settings, mqtt))) if broker.is_of(settings) => {
                let mut owed = broker.owed(mqtt, &self.shown());
                owed.extend(described);
                // A device that is described anew would vanish in between, with what Home Assistant knows of it.
                owed.retain(|topic| !now.contains(topic));
                owed
            }
            _ => Vec::new(),
        };
        self.close();
        if let Some((settings, mqtt)) = wanted {
            match Broker::start(config, settings, mqtt) {
                Ok(broker) => {
                    let again = |topic| broker.publisher.publish(topic, Vec::new());
                    owed.into_iter().for_each(again);
                    self.mqtt = Some(broker);
                }
                Err(error) => error!(%error, "nothing is published any more; restart the daemon"),
            }
        }
        true
    }

    /// Where the cameras on the board are described to Home Assistant.
    fn devices(&self) -> Vec<Topic> {
        let cameras = self.shown().into_iter();
        cameras
            .filter_map(|(camera, _)| Some(self.device(&camera, &[], &[], false)?.topic()))
            .collect()
    }

    /// The cameras on the board; what is shown was a camera's id before.
    fn shown(&self) -> Vec<(CameraId, CameraState)> {
        let cameras = self.board.now().cameras.into_iter();
        cameras
            .filter_map(|(id, shown)| Some((CameraId::new(&id).ok()?, shown)))
            .collect()
    }

    /// Shows a camera on the board, with nothing known yet but this.
    pub(super) fn show(&self, camera: &config::Camera, detect: bool) {
        self.board.change(|state| {
            let shown = state.cameras.entry(camera.id.to_string()).or_default();
            shown.source.clone_from(&camera.source);
            shown.detect = detect;
        });
    }

    pub(super) fn board(&self) -> &Board {
        &self.board
    }

    /// Whether anything that is handed over can reach anybody.
    pub(super) fn is_open(&self) -> bool {
        self.mqtt.is_some()
    }

    fn send(&self, topic: impl FnOnce(&Topics) -> Topic, body: Vec<u8>) {
        if let Some(broker) = &self.mqtt {
            broker.publisher.publish(topic(&broker.topics), body);
        }
    }

    pub(super) fn status(&self, camera: &CameraId, status: DetectStatus) {
        self.board.camera(camera.as_str(), |shown| shown.status = Some(status));
        self.send(|t| t.detect_status(camera), status.as_str().into());
    }

    /// Says a state of every camera that is shown.
    pub(super) fn status_of_all(&self, status: DetectStatus) {
        for (camera, _) in self.shown() {
            self.status(&camera, status);
        }
    }

    /// Frames per second of a camera.
    pub(super) fn rate(&self, camera: &str, fps: f32) {
        self.board.camera(camera, |shown| shown.fps = f64::from(fps));
    }

    pub(super) fn frame(&self, camera: &CameraId, body: Vec<u8>) {
        self.send(|t| t.frame(camera), body);
    }

    /// The same frame as ONVIF metadata, if the configuration wants it.
    pub(super) fn metadata(&self, camera: &CameraId, message: &FrameMessage) {
        if let (Some(broker), Some(prefix)) = (&self.mqtt, &self.onvif) {
            broker
                .publisher
                .publish(onvif::topic(prefix, camera), onvif::body(message));
        }
    }

    pub(super) fn event(&self, body: Vec<u8>) {
        if let Some(broker) = &self.mqtt {
            broker.publisher.event(broker.topics.events(), body);
        }
    }

    pub(super) fn count(&self, camera: &CameraId, query: &QueryId, all: usize, active: usize) {
        let counts = [all, active].map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        self.board.camera(camera.as_str(), |shown| {
            shown.detections.insert(query.to_string(), counts.into());
        });
        self.send(|t| t.count(camera, query), all.to_string().into_bytes());
        self.send(|t| t.active(camera, query), active.to_string().into_bytes());
    }

    pub(super) fn snapshot(&self, camera: &CameraId, query: &QueryId, body: Vec<u8>) {
        self.send(|t| t.snapshot(camera, query), body);
    }

    /// Withdraws the picture that is kept of a query.
    pub(super) fn forget_snapshot(&self, camera: &CameraId, query: &QueryId) {
        self.send(|t| t.snapshot(camera, query), Vec::new());
    }

    pub(super) fn mask(&self, camera: &CameraId, query: &QueryId, body: Vec<u8>) {
        self.send(|t| t.mask(camera, query), body);
    }

    pub(super) fn detect_state(&self, camera: &CameraId, on: bool) {
        self.board.camera(camera.as_str(), |shown| shown.detect = on);
        self.send(
            |t| t.detect_state(camera),
            if on { b"ON".to_vec() } else { b"OFF".to_vec() },
        );
    }

    /// All queries of a camera as they are in force.
    pub(super) fn query_states(&self, camera: &CameraId, queries: &[(&QueryId, QueryMessage)]) {
        let shown = queries.iter().map(|(id, state)| (id.to_string(), state.clone()));
        let shown: Arc<BTreeMap<_, _>> = Arc::new(shown.collect());
        self.board.camera(camera.as_str(), |camera| camera.queries = shown);
        for (id, state) in queries {
            match state.encode() {
                Ok(body) => self.send(|t| t.query_state(camera, id), body),
                Err(error) => warn!(%camera, query = %id, %error, "query state not published"),
            }
        }
    }

    /// What the queries of a camera compete with; nothing for the model's own texts.
    pub(super) fn background_state(&self, camera: &CameraId, texts: &[String]) {
        self.board
            .camera(camera.as_str(), |shown| shown.background = Arc::new(texts.to_vec()));
        match serde_json::to_vec(texts) {
            Ok(body) => self.send(|t| t.background_state(camera), body),
            Err(error) => warn!(%camera, %error, "background state not published"),
        }
    }

    /// Withdraws everything that is kept of a query.
    pub(super) fn forget(&self, camera: &CameraId, query: &QueryId) {
        self.board.camera(camera.as_str(), |shown| {
            shown.detections.remove(query.as_str());
        });
        for topic in [Topics::count, Topics::active, Topics::snapshot, Topics::query_state] {
            self.send(|t| topic(t, camera, query), Vec::new());
        }
    }

    /// Withdraws everything that is kept of a camera itself: the configuration has it no more.
    pub(super) fn withdraw(&self, camera: &CameraId) {
        self.board.change(|state| {
            state.cameras.remove(camera.as_str());
        });
        for topic in [Topics::detect_status, Topics::detect_state, Topics::background_state] {
            self.send(|t| topic(t, camera), Vec::new());
        }
        if let (Some(broker), Some(device)) = (&self.mqtt, self.device(camera, &[], &[], false)) {
            broker.publisher.publish(device.topic(), Vec::new());
        }
    }

    /// Tells whoever sent a command why it was refused.
    pub(super) fn refuse(&self, command: &str, error: String) {
        self.send(|t| t.error_of(command), error.into_bytes());
    }

    /// A camera as Home Assistant is told of it, if the configuration wants that.
    fn device<'a>(
        &'a self,
        camera: &'a CameraId,
        queries: &'a [&'a QueryId],
        removed: &'a [&'a QueryId],
        snapshots: bool,
    ) -> Option<Device<'a>> {
        let prefix = self.home_assistant.as_deref()?;
        Some(Device {
            prefix,
            node: &self.node,
            camera,
            queries,
            removed,
            snapshots,
            commands: self.commands,
        })
    }

    /// Describes a camera to Home Assistant, if the configuration wants it.
    pub(super) fn describe(&self, camera: &CameraId, queries: &[&QueryId], removed: &[&QueryId], snapshots: bool) {
        if let (Some(broker), Some(device)) = (&self.mqtt, self.device(camera, queries, removed, snapshots)) {
            broker.publisher.publish(device.topic(), device.body(&broker.topics));
        }
    }

    /// Whether a message says that Home Assistant has started and asks for its descriptions again.
    pub(super) fn is_birth(&self, message: &Incoming) -> bool {
        let topic = self.home_assistant.as_deref().map(birth_topic);
        topic.is_some_and(|topic| topic == message.topic) && message.payload[..] == *b"online"
    }

    /// Messages from the broker since the last call, with the topics to understand them.
    pub(super) fn incoming(&self) -> Option<(Vec<Incoming>, &Topics)> {
        let broker = self.mqtt.as_ref()?;
        Some((broker.publisher.incoming(), &broker.topics))
    }

    /// Topics of messages from the broker since the last call that were not kept, and why.
    pub(super) fn unkept(&self) -> Vec<(String, Unkept)> {
        self.mqtt
            .as_ref()
            .map(|broker| broker.publisher.unkept())
            .unwrap_or_default()
    }

    pub(super) fn stats(&self, body: Vec<u8>) {
        self.send(Topics::stats, body);
    }

    pub(super) fn counters(&self) -> PublishStats {
        self.mqtt
            .as_ref()
            .map(|broker| broker.publisher.stats())
            .unwrap_or_default()
    }

    /// Says `offline` for every camera and ends; waits a little for a connection, which may be younger than the failure.
    pub(super) fn give_up(mut self) {
        self.status_of_all(DetectStatus::Offline);
        if let Some(broker) = &self.mqtt {
            // Without a broker nobody can be told; the failure itself goes to the log either way.
            let _ = broker.publisher.wait_connected(GRACE);
        }
        self.close();
    }

    /// Says `offline` for every camera where the program ends next; that it ended is then the broker's to say.
    pub(super) fn say_offline(&self) {
        self.status_of_all(DetectStatus::Offline);
        if let Some(broker) = &self.mqtt {
            let _ = broker.publisher.wait_sent(GRACE);
        }
    }

    pub(super) fn stop(mut self) {
        self.close();
    }

    /// Says goodbye to the broker, if there is one.
    fn close(&mut self) {
        if let Some(broker) = self.mqtt.take()
            && !broker.publisher.stop(GRACE)
        {
            warn!("the broker did not acknowledge the last messages");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nobody listens on the port.
    fn config(dir: &std::path::Path, mqtt: &str) -> Config {
        let dir = dir.display();
        let text = format!(
            "model = \"{dir}\"\nstate = \"{dir}\"\n[[camera]]\nid = \"yard\"\nsource = \"dir://{dir}\"\n\
             [[query]]\nid = \"person\"\n[mqtt]\nhost = \"127.0.0.1\"\n{mqtt}\n"
        );
        Config::parse(&text, "test.toml".as_ref()).unwrap()
    }

    #[test]
    fn what_could_not_be_withdrawn_is_withdrawn_by_the_next_connection_to_the_same_broker() {
        let dir = tempfile::tempdir().unwrap();
        let told = "port = 1\nhomeassistant = \"ha\"";
        let dock = format!("{told}\nclient_id = \"dock\"");
        let moved = format!("{dock}\nprefix = \"dock\"");
        let [first, renamed, moved, elsewhere] = [told, &dock, &moved, "port = 2"].map(|mqtt| config(dir.path(), mqtt));
        let mut outlet = Outlet::start(&first, Board::new(), &LiveState::read(None)).unwrap();
        let owed = |outlet: &Outlet| {
            let topics = outlet.mqtt.as_ref().unwrap().publisher.withdrawals();
            topics.into_iter().map(|topic| topic.name).collect::<Vec<_>>()
        };
        let (camera, query) = (CameraId::new("yard").unwrap(), QueryId::new("person").unwrap());
        outlet.describe(&camera, &[&query], &[], false);
        outlet.forget(&camera, &query);
        let forgotten = owed(&outlet);
        assert!(forgotten.contains(&"samclip/yard/person".to_owned()), "{forgotten:?}");
        assert!(outlet.adopt(&renamed, broker_settings(&renamed).unwrap()));
        // What Home Assistant was told under the old name, too.
        let mut expected = vec!["ha/device/samclipd-yard/config".to_owned()];
        expected.extend(forgotten);
        assert_eq!(owed(&outlet), expected);
        let device = "ha/device/dock-yard/config".to_owned();
        outlet.query_states(&camera, &[(&query, QueryMessage::default())]);
        outlet.describe(&camera, &[&query], &[], true);
        outlet.count(&camera, &query, 1, 1);
        assert!(outlet.adopt(&moved, broker_settings(&moved).unwrap()));
        let topics = owed(&outlet);
        for left in ["", "/active", "/snapshot"].map(|end| format!("samclip/yard/person{end}")) {
            assert!(topics.contains(&left), "{left} is not among {topics:?}");
        }
        assert!(!topics.contains(&device), "{topics:?}");
        assert!(outlet.adopt(&elsewhere, broker_settings(&elsewhere).unwrap()));
        assert!(owed(&outlet).is_empty());
    }
}
