//! Queries and detection changed over MQTT while the daemon runs, kept across a restart; Home Assistant's description.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

mod mosquitto;
mod tiny;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use image::{Rgb, RgbImage};
use mosquitto::PATIENCE;
use rumqttc::{Client, Event, MqttOptions, Packet, QoS};
use samclip::clock::{Clock, SystemClock};
use samclip::daemon::config::Config;
use samclip::daemon::run::run;
use samclip::message::payload::{FRAME_SCHEMA, STATS_SCHEMA};
use samclip::message::query::QUERY_SCHEMA;
use samclip::publish::broker::Broker;
use serde_json::Value;

/// Where Home Assistant is told of the camera.
const DESCRIPTION: &str = "homeassistant/device/samclipd-yard/config";

/// A client that remembers the last message of every topic.
struct Peer {
    client: Client,
    messages: std::sync::mpsc::Receiver<(String, Vec<u8>)>,
    last: BTreeMap<String, Vec<u8>>,
}

impl Peer {
    fn new(name: &str, broker: &Broker) -> Self {
        let address = broker.address();
        let mut options = MqttOptions::new(name, address.ip().to_string(), address.port());
        options.set_max_packet_size(4 << 20, 4 << 20);
        let (client, mut connection) = Client::new(options, 10);
        client.subscribe("#", QoS::AtLeastOnce).unwrap();
        let (sender, messages) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for event in connection.iter() {
                match event {
                    Ok(Event::Incoming(Packet::Publish(p))) => {
                        if sender.send((p.topic, p.payload.to_vec())).is_err() {
                            return;
                        }
                    }
                    Ok(_) => {}
                    Err(_) => return,
                }
            }
        });
        let last = BTreeMap::new();
        Self { client, messages, last }
    }

    fn send(&self, topic: &str, body: &str) {
        self.client.publish(topic, QoS::AtLeastOnce, false, body).unwrap();
    }

    /// Waits until a topic's last message is as wanted.
    fn until(&mut self, topic: &str, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let start = Instant::now();
        loop {
            if let Some(body) = self.last.get(topic).filter(|body| wanted(body)) {
                return body.clone();
            }
            let left = PATIENCE.saturating_sub(start.elapsed());
            let (name, body) = self.messages.recv_timeout(left).unwrap_or_else(|_| {
                panic!(
                    "{topic} is {:?}",
                    self.last.get(topic).map(|b| String::from_utf8_lossy(b))
                )
            });
            self.last.insert(name, body);
        }
    }

    fn until_is(&mut self, topic: &str, wanted: &str) {
        self.until(topic, |body| body == wanted.as_bytes());
    }

    fn until_starts(&mut self, topic: &str, wanted: &str) {
        self.until(topic, |body| body.starts_with(wanted.as_bytes()));
        self.last.remove(topic);
    }

    /// What Home Assistant is told of the camera.
    fn description(&mut self) -> Value {
        serde_json::from_slice(&self.until(DESCRIPTION, |_| true)).unwrap()
    }

    /// The same anew: Home Assistant restarts and hears of everything again.
    fn described_again(&mut self) -> Value {
        self.last.remove(DESCRIPTION);
        self.send("homeassistant/status", "online");
        self.description()
    }
}

fn prepare(dir: &Path) {
    tiny::write(dir);
    let frames = dir.join("frames");
    std::fs::create_dir_all(&frames).unwrap();
    let colour = |x: u32| {
        if x < 50 {
            Rgb([230, 20, 20])
        } else if x < 90 {
            Rgb([20, 20, 230])
        } else {
            Rgb([230, 230, 20])
        }
    };
    RgbImage::from_fn(131, 97, |x, _| colour(x))
        .save(frames.join("0.png"))
        .unwrap();
}

/// Runs the daemon while `test` talks to it; `[mqtt]` has further lines.
fn with_daemon(dir: &Path, broker: &Broker, lines: &str, test: impl FnOnce(&mut Peer)) {
    let text = format!(
        "model = {dir:?}\nstate = {:?}\n[runtime]\nengine = \"tract\"\n[[camera]]\nid = \"yard\"\n\
         source = \"dir://{}/frames?fps=20&loop\"\n[[camera.zone]]\nid = \"bay\"\npolygon = [[0, 0], [1, 0], [1, 1]]\n\
         [[query]]\nid = \"red\"\n[mqtt]\nhost = \"127.0.0.1\"\nport = {}\n{lines}\n",
        dir.join("state"),
        dir.display(),
        broker.address().port(),
    );
    let config = Config::parse(&text, "test.toml".as_ref()).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let daemon = scope.spawn(|| {
            let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
            run(&config, &clock, &stop).unwrap();
        });
        let mut peer = Peer::new("peer", broker);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| test(&mut peer)));
        stop.store(true, Ordering::Relaxed);
        daemon.join().unwrap();
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

fn broker() -> Broker {
    Broker::start(([127, 0, 0, 1], 0).into()).unwrap()
}

#[test]
fn queries_come_go_and_stay_without_a_restart_and_across_one() {
    let dir = tempfile::tempdir().unwrap();
    prepare(dir.path());
    let valid = |body: &[u8]| {
        let schema = jsonschema::draft202012::new(&serde_json::from_str(QUERY_SCHEMA).unwrap()).unwrap();
        schema.is_valid(&serde_json::from_slice(body).unwrap())
    };
    let first = broker();
    with_daemon(dir.path(), &first, "", |peer| {
        peer.until_is("samclip/yard/red", "1");
        let state = peer.until("samclip/yard/query/red/state", |_| true);
        assert!(valid(&state) && String::from_utf8_lossy(&state).contains(r#""source":"config""#));
        peer.send(
            "samclip/yard/query/sea/set",
            r#"{"prompts":["blue"],"min_hits":1,"zones":["bay"],"zone_share":0.01}"#,
        );
        peer.until_is("samclip/yard/sea", "1");
        let state = peer.until("samclip/yard/query/sea/state", |_| true);
        assert!(valid(&state) && String::from_utf8_lossy(&state).contains(r#""source":"live""#));
        // A query of the file is deleted too: its topics are withdrawn.
        peer.send("samclip/yard/query/red/set", "");
        peer.until_is("samclip/yard/red", "");
        peer.until_is("samclip/yard/query/red/state", "");
        peer.until_is("samclip/yard/sea", "1");
    });
    let second = broker();
    with_daemon(dir.path(), &second, "", |peer| {
        peer.until_is("samclip/yard/sea", "1");
        let red = peer.last.get("samclip/yard/red");
        assert!(red.is_none_or(Vec::is_empty), "{red:?}");
        peer.send("samclip/yard/query/red/set", "{}");
        peer.until_is("samclip/yard/red", "1");
        // What it competes with: once blue is background, nothing is left that looks like it more.
        peer.send("samclip/yard/background/set", r#"["yellow","green"]"#);
        peer.until_is("samclip/yard/background/state", r#"["yellow","green"]"#);
        peer.send("samclip/yard/background/set", "");
        peer.until_is("samclip/yard/background/state", "[]");
    });
}

#[test]
fn a_bad_command_gets_one_clear_error_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    prepare(dir.path());
    let broker = broker();
    with_daemon(dir.path(), &broker, "", |peer| {
        peer.until_is("samclip/yard/red", "1");
        let long = "x".repeat(70_000);
        for (topic, body, error) in [
            ("yard/query/red", "{", "body: EOF while parsing"),
            (
                "yard/query/red",
                r#"{"prompt":"red"}"#,
                "body: unknown field `prompt`, expected one of",
            ),
            (
                "yard/query/red",
                r#"{"threshold":2}"#,
                "threshold is 2, expected a number between 0 and 1",
            ),
            (
                "yard/query/red",
                r#"{"zones":["moon"]}"#,
                "zone \"moon\" found, expected one of this camera's: bay",
            ),
            (
                "yard/query/red",
                long.as_str(),
                "body of 70000 bytes, expected at most 65536",
            ),
            ("yard/query/Rot", "{}", "query id \"Rot\": expected 1 to 64 characters"),
            ("yard/query/nothing", "", "no query \"nothing\" to delete"),
            ("moon/query/red", "{}", "no camera \"moon\""),
            ("yard/detect", "on", "body \"on\", expected ON or OFF"),
            ("yard/background", "[]", "0 texts found, expected 1 to 256"),
        ] {
            peer.send(&format!("samclip/{topic}/set"), body);
            peer.until_starts(&format!("samclip/{topic}/error"), error);
        }
        // The next good one holds all the same.
        peer.until_is("samclip/yard/red", "1");
        let state = String::from_utf8(peer.until("samclip/yard/query/red/state", |_| true)).unwrap();
        assert!(state.contains(r#""source":"config""#), "{state}");
    });
}

#[test]
fn detection_goes_off_and_on_and_stays_off_across_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    prepare(dir.path());
    let first = broker();
    with_daemon(dir.path(), &first, "", |peer| {
        peer.until_is("samclip/yard/red", "1");
        peer.until_is("samclip/yard/detect/state", "ON");
        peer.send("samclip/yard/detect/set", "OFF");
        peer.until_is("samclip/yard/detect/state", "OFF");
        peer.until_is("samclip/yard/status/detect", "disabled");
        peer.until_is("samclip/yard/red", "0");
    });
    let second = broker();
    with_daemon(dir.path(), &second, "", |peer| {
        peer.until_is("samclip/yard/status/detect", "disabled");
        peer.send("samclip/yard/detect/set", "ON");
        peer.until_is("samclip/yard/status/detect", "online");
        peer.until_is("samclip/yard/red", "1");
    });
}

#[test]
fn a_retained_command_is_refused_since_it_would_come_again_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    prepare(dir.path());
    let broker = broker();
    let mut before = Peer::new("before", &broker);
    before
        .client
        .publish("samclip/yard/detect/set", QoS::AtLeastOnce, true, "OFF")
        .unwrap();
    // The broker keeps it before the daemon subscribes.
    before.until_is("samclip/yard/detect/set", "OFF");
    with_daemon(dir.path(), &broker, "", |peer| {
        peer.until_starts("samclip/yard/detect/error", "the command is retained");
        peer.until_is("samclip/yard/red", "1");
        peer.until_is("samclip/yard/detect/state", "ON");
    });
}

#[test]
fn with_commands_off_nothing_can_be_changed() {
    let dir = tempfile::tempdir().unwrap();
    prepare(dir.path());
    let broker = broker();
    with_daemon(dir.path(), &broker, "commands = false", |peer| {
        peer.until_is("samclip/yard/red", "1");
        peer.send("samclip/yard/detect/set", "OFF");
        peer.send("samclip/yard/query/red/set", "");
        // Ten more frames went through all stages since.
        for _ in 0..10 {
            peer.last.remove("samclip/yard/frame");
            peer.until("samclip/yard/frame", |_| true);
        }
        assert_eq!(peer.last["samclip/yard/detect/state"], b"ON");
        assert_eq!(peer.last["samclip/yard/red"], b"1");
    });
}

#[test]
fn every_entity_of_home_assistant_reads_a_topic_that_is_published() {
    let dir = tempfile::tempdir().unwrap();
    prepare(dir.path());
    let broker = broker();
    with_daemon(dir.path(), &broker, "homeassistant = \"homeassistant\"", |peer| {
        peer.until_is("samclip/yard/red", "1");
        let stats = peer.until("samclip/stats", |_| true);
        for (schema, body) in [(STATS_SCHEMA, &stats), (FRAME_SCHEMA, &peer.last["samclip/yard/frame"])] {
            let schema = jsonschema::draft202012::new(&serde_json::from_str(schema).unwrap()).unwrap();
            let body = serde_json::from_slice(body).unwrap();
            assert_eq!(
                schema.iter_errors(&body).map(|e| e.to_string()).collect::<Vec<_>>(),
                Vec::<String>::new()
            );
        }
        let body = peer.description();
        let entities = body["components"].as_object().unwrap();
        assert_eq!(entities.len(), 8, "{body}");
        for (name, entity) in entities {
            for key in ["state_topic", "image_topic"] {
                if let Some(topic) = entity[key].as_str() {
                    assert!(
                        peer.last.contains_key(topic),
                        "{name}: {topic} is not among {:?}",
                        peer.last.keys()
                    );
                }
            }
            assert!(
                entity["state_topic"].is_string() || entity["image_topic"].is_string(),
                "{name}"
            );
        }
        assert!(
            peer.last
                .contains_key(body["availability"][0]["topic"].as_str().unwrap())
        );
        // The switch's command topic is heard.
        let command = entities["samclipd-yard-detect"]["command_topic"]
            .as_str()
            .unwrap()
            .to_owned();
        peer.send(&command, "OFF");
        peer.until_is("samclip/yard/detect/state", "OFF");
        peer.described_again();
    });
}

#[test]
fn a_deleted_query_stays_deleted_for_home_assistant_when_a_new_one_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    prepare(dir.path());
    let broker = broker();
    with_daemon(dir.path(), &broker, "homeassistant = \"homeassistant\"", |peer| {
        peer.until_is("samclip/yard/red", "1");
        peer.send("samclip/yard/query/red/set", "");
        peer.until_is("samclip/yard/red", "");
        // A word that the model does not know, which only its embedding shows.
        peer.send("samclip/yard/query/red/set", r#"{"prompts":["zebra"]}"#);
        peer.until_starts(
            "samclip/yard/query/red/error",
            "query \"red\": text embeddings of 80 templates have no usable mean",
        );
        let body = peer.described_again();
        let removed = &body["components"]["samclipd-yard-red-count"];
        assert_eq!(*removed, serde_json::json!({"platform": "sensor"}), "{body}");
    });
}

#[test]
fn of_many_deleted_queries_home_assistant_hears_of_the_last_ones() {
    let dir = tempfile::tempdir().unwrap();
    prepare(dir.path());
    let broker = broker();
    with_daemon(dir.path(), &broker, "homeassistant = \"homeassistant\"", |peer| {
        peer.until_is("samclip/yard/red", "1");
        for i in 0..65 {
            let topic = format!("samclip/yard/query/q{i}");
            peer.send(&format!("{topic}/set"), r#"{"prompts":["blue"]}"#);
            peer.until(&format!("{topic}/state"), |body| !body.is_empty());
            peer.send(&format!("{topic}/set"), "");
            peer.until_is(&format!("{topic}/state"), "");
        }
        let body = peer.described_again();
        let told = |id: &str| body["components"].get(format!("samclipd-yard-{id}-count")).is_some();
        assert!(told("red") && !told("q0") && told("q1") && told("q64"), "{body}");
    });
}
