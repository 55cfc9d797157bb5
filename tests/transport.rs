//! Events on disk while the broker is away, TLS with a private authority, passwords, commands from the broker.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

mod mosquitto;
mod proxy;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use mosquitto::{Mosquitto, PATIENCE, Watcher, free_port, publish, spawn};
use proxy::Proxy;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use samclip::message::topic::Topics;
use samclip::publish::link::{TlsTexts, Version};
use samclip::publish::mqtt::{Publisher, Settings};
use samclip::publish::probe::{ProbeError, probe};
use samclip::publish::spool::{MIN_BYTES, Spool};

fn topics() -> Topics {
    Topics::new("samclip").unwrap()
}

fn settings(port: u16) -> Settings {
    let mut settings = Settings::new("127.0.0.1", port, "samclipd-test", topics().available());
    settings.retry = (Duration::from_millis(20), Duration::from_millis(100));
    settings
}

fn spooled(port: u16, dir: &Path) -> Publisher {
    let spool = Spool::open(dir, MIN_BYTES).unwrap();
    Publisher::start_with(settings(port), Some((spool, topics().events()))).unwrap()
}

fn offer(publisher: &Publisher, events: std::ops::Range<u32>) {
    events.for_each(|i| publisher.event(topics().events(), format!("event {i}").into()));
}

fn wait_until(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The next `count` events of a watcher.
fn events(watcher: &Watcher, count: usize) -> Vec<String> {
    let next = || {
        loop {
            let line = watcher.next();
            if let Some(event) = line.strip_prefix("samclip/events r0 q1 ") {
                return event.to_owned();
            }
        }
    };
    (0..count).map(|_| next()).collect()
}

fn named(range: std::ops::Range<u32>) -> Vec<String> {
    range.map(|i| format!("event {i}")).collect()
}

#[test]
fn events_of_a_time_without_broker_arrive_in_order_once_it_is_there() {
    let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
    // Nothing is delivered before somebody listens.
    let proxy = Proxy::start(port, &[]);
    proxy.set_open(false);
    let publisher = spooled(proxy.port, dir.path());
    let waiting = |count: usize| {
        wait_until(&format!("{count} waiting"), || {
            publisher.stats().spool.unwrap().waiting == count
        });
    };
    offer(&publisher, 0..300);
    waiting(300);
    let patient = "allow_anonymous true\nmax_queued_messages 0\n";
    let broker = Mosquitto::start_with(port, patient);
    let watcher = Watcher::subscribed(port);
    proxy.set_open(true);
    assert_eq!(events(&watcher, 300), named(0..300));
    offer(&publisher, 300..310);
    assert_eq!(events(&watcher, 10), named(300..310));
    waiting(0);
    drop((watcher, broker));
    proxy.set_open(false);
    wait_until("lost", || !publisher.stats().connected);
    offer(&publisher, 310..701);
    waiting(391);
    let _broker = Mosquitto::start_with(port, patient);
    let watcher = Watcher::subscribed(port);
    proxy.set_open(true);
    assert_eq!(events(&watcher, 391), named(310..701));
    waiting(0);
    assert_eq!(publisher.stats().spool.unwrap().dropped, 0);
    assert!(publisher.stop(PATIENCE));
}

#[test]
fn events_survive_the_program_and_go_out_from_the_next_one() {
    let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
    let first = spooled(port, dir.path());
    offer(&first, 0..20);
    assert!(!first.stop(Duration::from_secs(2)), "there is no broker");
    let broker = Mosquitto::start(port);
    let watcher = Watcher::subscribed(port);
    let second = spooled(port, dir.path());
    offer(&second, 20..25);
    assert_eq!(events(&watcher, 25), named(0..25));
    assert!(second.stop(PATIENCE));
    drop(broker);
    assert_eq!(Spool::open(dir.path(), MIN_BYTES).unwrap().stats().waiting, 0);
}

#[test]
fn a_broker_that_never_comes_costs_the_oldest_events_and_no_time() {
    let dir = tempfile::tempdir().unwrap();
    let publisher = spooled(free_port(), dir.path());
    let start = Instant::now();
    for batch in 0..20 {
        offer(&publisher, 500 * batch..500 * batch + 500);
        wait_until("taken", || {
            let spool = publisher.stats().spool.unwrap();
            spool.waiting as u64 + spool.dropped == u64::from(500 * batch + 500)
        });
    }
    let spool = publisher.stats().spool.unwrap();
    assert!(spool.bytes <= MIN_BYTES && spool.dropped > 0, "{spool:?}");
    assert!(start.elapsed() < PATIENCE);
}

#[test]
fn commands_come_in_and_a_flood_of_them_is_bounded() {
    let port = free_port();
    let _broker = Mosquitto::start(port);
    for version in [Version::V3, Version::V5] {
        let mut settings = settings(port);
        settings.subscriptions = vec!["samclip/+/detect/set".into(), "homeassistant/status".into()];
        settings.version = version;
        let publisher = Publisher::start(settings).unwrap();
        assert!(publisher.wait_connected(PATIENCE));
        let send = |topic: &str, body: &str, more: &[&str]| {
            publish(port, topic, body, &[&["-q", "1"], more].concat());
        };
        // The subscription is on its way when the connection is there.
        let mut got = Vec::new();
        let start = Instant::now();
        while got.is_empty() {
            assert!(start.elapsed() < PATIENCE);
            send("homeassistant/status", "online", &[]);
            got = publisher.incoming();
        }
        assert_eq!(
            (got[0].topic.as_str(), &got[0].payload[..]),
            ("homeassistant/status", &b"online"[..])
        );
        wait_until("quiet", || publisher.incoming().is_empty());
        send("samclip/dock/detect/set", "x", &["--repeat", "200"]);
        wait_until("flooded", || publisher.stats().unread > 0);
        assert!(publisher.incoming().len() <= 64);
        assert!(publisher.stop(PATIENCE));
    }
}

/// A certificate signed by an authority, and its key, as PEM files.
fn certificate(dir: &Path, name: &str, host: &str, issuer: &Issuer<'_, KeyPair>) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    std::fs::write(
        dir.join(format!("{name}.pem")),
        params.signed_by(&key, issuer).unwrap().pem(),
    )
    .unwrap();
    std::fs::write(dir.join(format!("{name}.key")), key.serialize_pem()).unwrap();
}

#[test]
fn a_private_authority_and_a_client_certificate_are_all_that_opens_the_door() {
    let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
    let authority = |name: &str| {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        (pem, Issuer::new(params, key))
    };
    let ((ours, issuer), (theirs, _)) = (authority("ours"), authority("theirs"));
    std::fs::write(dir.path().join("ca.pem"), &ours).unwrap();
    certificate(dir.path(), "server", "127.0.0.1", &issuer);
    certificate(dir.path(), "client", "camera", &issuer);
    let at = |name: &str| dir.path().join(name).display().to_string();
    let read = |name: &str| std::fs::read(at(name)).unwrap();
    let _broker = Mosquitto::start_with(
        port,
        &format!(
            "cafile {}\ncertfile {}\nkeyfile {}\nrequire_certificate true\nallow_anonymous true\n",
            at("ca.pem"),
            at("server.pem"),
            at("server.key")
        ),
    );
    let with = |authorities: &str, client: bool, version: Version| {
        let mut settings = settings(port);
        settings.version = version;
        settings.tls = Some(TlsTexts {
            authorities: Some(authorities.into()),
            client: client.then(|| (read("client.pem"), read("client.key"))),
        });
        settings
    };
    for version in [Version::V3, Version::V5] {
        let good = Publisher::start(with(&ours, true, version)).unwrap();
        assert!(good.wait_connected(PATIENCE));
        good.publish(topics().stats(), vec![b'x'; 1_000_000]);
        assert!(good.wait_sent(PATIENCE) && good.stop(PATIENCE));
    }
    for (authorities, client, reason) in [
        (&theirs, true, "invalid peer certificate"),
        (&ours, false, "CertificateRequired"),
    ] {
        let bad = with(authorities, client, Version::V3);
        let refused = probe(&bad, PATIENCE).unwrap_err().to_string();
        assert!(refused.contains(reason), "{refused}");
        let publisher = Publisher::start(bad).unwrap();
        assert!(!publisher.wait_connected(Duration::from_secs(2)));
    }
}

#[test]
fn a_password_opens_the_door_and_a_wrong_one_does_not() {
    let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
    let file = dir.path().join("passwords");
    let mut command = Command::new("mosquitto_passwd");
    let made = spawn(
        command
            .args(["-b", "-c"])
            .arg(&file)
            .args(["camera", "s3cret"])
            .stderr(Stdio::null()),
    )
    .wait();
    assert!(made.unwrap().success());
    let _broker = Mosquitto::start_with(
        port,
        &format!("allow_anonymous false\npassword_file {}\n", file.display()),
    );
    for version in [Version::V3, Version::V5] {
        for (password, opens) in [("s3cret", true), ("secret", false)] {
            let mut settings = settings(port);
            settings.version = version;
            settings.credentials = Some(("camera".into(), password.into()));
            let answer = probe(&settings, PATIENCE);
            let refused = matches!(&answer, Err(ProbeError::Refused { .. }));
            assert_eq!(
                (answer.is_ok(), refused),
                (opens, !opens),
                "{version:?} {password}: {answer:?}"
            );
            let publisher = Publisher::start(settings).unwrap();
            let patience = if opens { PATIENCE } else { Duration::from_secs(1) };
            assert_eq!(publisher.wait_connected(patience), opens, "{version:?} {password}");
        }
    }
}

#[test]
fn a_message_over_the_broker_s_own_limit_is_dropped_and_the_connection_stays() {
    let port = free_port();
    let _broker = Mosquitto::start_with(port, "allow_anonymous true\nmax_packet_size 5000\n");
    let mut settings = settings(port);
    settings.version = Version::V5;
    let publisher = Publisher::start(settings).unwrap();
    assert!(publisher.wait_connected(PATIENCE));
    let watcher = Watcher::subscribed(port);
    publisher.publish(topics().stats(), vec![b'x'; 6_000]);
    publisher.publish(topics().stats(), vec![b'y'; 4_000]);
    watcher.until(&format!("samclip/stats r0 q0 {}", "y".repeat(4_000)));
    let stats = publisher.stats();
    assert_eq!((stats.dropped, stats.connects), (1, 1));
    assert!(publisher.stop(PATIENCE));
}
