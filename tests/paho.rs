//! The daemon as a subscriber in Python sees it (`tests/paho/subscriber.py`: paho-mqtt and jsonschema), over three brokers and
//! both versions of the protocol.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

mod bus;
mod ejabberd;
mod mosquitto;
mod tiny;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use bus::{Daemon, config_text, write_model_and_frames};
use ejabberd::Ejabberd;
use mosquitto::{Mosquitto, free_port, spawn};
use samclip::message::topic::{Qos, Topic, Topics};
use samclip::publish::broker::Broker;
use samclip::publish::link::Version;
use samclip::publish::mqtt::{Publisher, Settings};

/// Debian's Python, which knows Debian's packages; another one where there is none.
fn python() -> &'static str {
    let debian = "/usr/bin/python3";
    if Path::new(debian).exists() { debian } else { "python3" }
}

/// Sends a large message again and again until this is dropped.
fn large(port: u16, user: Option<(&str, &str)>) -> (Publisher, Topic) {
    let topics = Topics::new("samclip").unwrap();
    let mut settings = Settings::new("127.0.0.1", port, "large", topics.available());
    settings.available.name = "samclip-large/available".to_owned();
    settings.credentials = user.map(|(user, password)| (user.to_owned(), password.to_owned()));
    let topic = Topic {
        name: "samclip/large".to_owned(),
        qos: Qos::AtMostOnce,
        retained: false,
    };
    (Publisher::start(settings).unwrap(), topic)
}

/// Runs the daemon and the subscriber against the broker at a port.
fn all_is_there(port: u16, version: Version, user: Option<(&str, &str)>) {
    let dir = tempfile::tempdir().unwrap();
    write_model_and_frames(dir.path());
    let word = match version {
        Version::V3 => "3.1.1",
        Version::V5 => "5",
    };
    let mut mqtt = format!(
        "[mqtt]\nhost = \"127.0.0.1\"\nport = {port}\nversion = \"{word}\"\nhomeassistant = \"homeassistant\"\n"
    );
    let mut login = Vec::new();
    if let Some((user, password)) = user {
        let file = dir.path().join("credentials");
        std::fs::write(&file, format!("{user}\n{password}\n")).unwrap();
        mqtt += &format!("credentials = {file:?}\n");
        login = vec!["--user", user, "--password", password];
    }
    let rest = format!("{mqtt}[dbus]\nenabled = false\n[output]\nmask = true\nrle = true\n[events]\nkeep_alive = 1\n");
    // Keys of the whole file stand before its tables.
    let text = format!("background = [\"yellow\"]\n{}", config_text(dir.path(), &rest));
    let _daemon = Daemon::start(dir.path(), &text);
    let (publisher, topic) = large(port, user);
    let mut subscriber = spawn(
        Command::new(python())
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/paho/subscriber.py"))
            .args(["--port", &port.to_string(), "--version", word, "--schemas"])
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/src/message/schemas"))
            .args(login)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped()),
    );
    while subscriber.try_wait().unwrap().is_none() {
        publisher.publish(topic.clone(), vec![b'x'; 1_000_000]);
        std::thread::sleep(Duration::from_millis(500));
    }
    let output = subscriber.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && said.trim() == "all is there",
        "{said}\n(python3-paho-mqtt and python3-jsonschema are needed: run tests/run once, it installs them)"
    );
}

#[test]
fn over_mosquitto() {
    all_is_there(Mosquitto::start(free_port()).port, Version::V3, None);
}

#[test]
fn over_mosquitto_and_mqtt_5() {
    all_is_there(Mosquitto::start(free_port()).port, Version::V5, None);
}

#[test]
fn over_ejabberd() {
    all_is_there(Ejabberd::start(free_port()).port, Version::V3, Some(ejabberd::USER));
}

#[test]
fn over_ejabberd_and_mqtt_5() {
    all_is_there(Ejabberd::start(free_port()).port, Version::V5, Some(ejabberd::USER));
}

#[test]
fn over_the_built_in_broker() {
    let broker = Broker::start(([127, 0, 0, 1], 0).into()).unwrap();
    all_is_there(broker.address().port(), Version::V3, None);
}
