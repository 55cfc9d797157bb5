//! The publisher against real brokers (mosquitto, ejabberd) and the built-in one, watched by a real client (`mosquitto_sub`).
#![allow(clippy::unwrap_used)] // a panic is how a test fails

mod ejabberd;
mod mosquitto;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use ejabberd::Ejabberd;
use mosquitto::{Mosquitto, PATIENCE, Watcher, free_port};
use samclip::message::topic::{CameraId, QueryId, Topics};
use samclip::publish::broker::Broker;
use samclip::publish::link::Version;
use samclip::publish::mqtt::{Publisher, Settings};

/// A user and a password.
type User = Option<(&'static str, &'static str)>;

fn publisher(port: u16, version: Version, user: User) -> Publisher {
    let mut settings = Settings::new(
        "127.0.0.1",
        port,
        "samclipd-test",
        Topics::new("samclip").unwrap().available(),
    );
    settings.version = version;
    settings.credentials = user.map(|(user, password)| (user.to_owned(), password.to_owned()));
    settings.retry = (Duration::from_millis(20), Duration::from_millis(100));
    Publisher::start(settings).unwrap()
}

/// What every broker has to give us.
fn speaks_the_contract(port: u16, version: Version, user: User) {
    let topics = Topics::new("samclip").unwrap();
    let (camera, query) = (CameraId::new("dock").unwrap(), QueryId::new("person").unwrap());
    let login = user.map_or(Vec::new(), |(user, password)| vec!["-u", user, "-P", password]);
    let first = publisher(port, version, user);
    assert!(first.wait_connected(PATIENCE));
    first.publish(topics.count(&camera, &query), b"2".to_vec());
    assert!(first.wait_sent(PATIENCE));

    let watcher = Watcher::start_with(port, &login);
    let mut retained = [watcher.next(), watcher.next()];
    retained.sort();
    assert_eq!(
        retained,
        ["samclip/available r1 q1 online", "samclip/dock/person r1 q1 2"]
    );

    first.publish(topics.frame(&camera), b"{}".to_vec());
    assert_eq!(watcher.next(), "samclip/dock/frame r0 q0 {}");
    first.publish(topics.mask(&camera, &query), vec![b'x'; 1_000_000]);
    let large = watcher.next();
    assert!(
        large.starts_with("samclip/dock/person/mask r0 q0 xxx"),
        "{}",
        &large[..60]
    );
    assert_eq!(large.len(), "samclip/dock/person/mask r0 q0 ".len() + 1_000_000);

    drop(first);
    assert_eq!(watcher.next(), "samclip/available r0 q1 offline", "the last will");

    let second = publisher(port, version, user);
    watcher.until("samclip/available r0 q1 online");
    second.publish(topics.frame(&camera), b"last".to_vec());
    assert!(second.stop(PATIENCE));
    assert_eq!(watcher.next(), "samclip/dock/frame r0 q0 last");
    assert_eq!(watcher.next(), "samclip/available r0 q1 stopped");

    let late = Watcher::start_with(port, &login);
    let mut retained = [late.next(), late.next()];
    retained.sort();
    assert_eq!(
        retained,
        ["samclip/available r1 q1 stopped", "samclip/dock/person r1 q1 2"]
    );
}

#[test]
fn mosquitto_gets_states_frames_large_masks_will_and_goodbye() {
    speaks_the_contract(Mosquitto::start(free_port()).port, Version::V3, None);
}

#[test]
fn mosquitto_gets_the_same_over_mqtt_5() {
    speaks_the_contract(Mosquitto::start(free_port()).port, Version::V5, None);
}

#[test]
fn ejabberd_gets_the_same() {
    speaks_the_contract(Ejabberd::start(free_port()).port, Version::V3, Some(ejabberd::USER));
}

#[test]
fn ejabberd_gets_the_same_over_mqtt_5() {
    speaks_the_contract(Ejabberd::start(free_port()).port, Version::V5, Some(ejabberd::USER));
}

#[test]
fn the_built_in_broker_does_the_same() {
    let broker = Broker::start(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    speaks_the_contract(broker.address().port(), Version::V3, None);
}

#[test]
fn a_broker_that_comes_later_or_back_gets_all_states_again() {
    let port = free_port();
    let topics = Topics::new("samclip").unwrap();
    let (camera, query) = (CameraId::new("dock").unwrap(), QueryId::new("person").unwrap());
    let publisher = publisher(port, Version::V3, None);
    publisher.publish(topics.count(&camera, &query), b"7".to_vec());
    assert!(!publisher.stats().connected);
    for connects in 1..=2 {
        let broker = Mosquitto::start(port);
        assert!(publisher.wait_connected(PATIENCE), "{:?}", publisher.stats());
        assert!(publisher.wait_sent(PATIENCE));
        assert_eq!(publisher.stats().connects, connects);
        let watcher = Watcher::start(port);
        let mut retained = [watcher.next(), watcher.next()];
        retained.sort();
        assert_eq!(
            retained,
            ["samclip/available r1 q1 online", "samclip/dock/person r1 q1 7"]
        );
        drop(broker);
        let start = Instant::now();
        while publisher.stats().connected {
            assert!(start.elapsed() < PATIENCE);
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
