//! The publisher against a real broker (mosquitto) and the built-in one, watched by a real client (`mosquitto_sub`).
#![allow(clippy::unwrap_used)] // a panic is how a test fails

use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use samclip::message::topic::{CameraId, QueryId, Topics};
use samclip::publish::broker::Broker;
use samclip::publish::mqtt::{Publisher, Settings};

/// Longer than any step takes on a busy machine; a test that passes never waits for it.
const PATIENCE: Duration = Duration::from_secs(30);

/// Starts a program of the mosquitto packages; without them the test fails.
fn spawn(command: &mut Command) -> Child {
    let name = command.get_program().to_string_lossy().into_owned();
    command
        .spawn()
        .unwrap_or_else(|error| panic!("{name} ({error}): run tests/run once, it installs what tests need"))
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

/// A mosquitto of its own, without persistence.
struct Mosquitto {
    child: Child,
    port: u16,
    _config: tempfile::TempDir,
}

impl Mosquitto {
    fn start(port: u16) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("mosquitto.conf");
        std::fs::write(
            &config,
            format!("listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\n"),
        )
        .unwrap();
        // Debian keeps the daemon in /usr/sbin, which is not on every user's path
        let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
        let program = std::env::split_paths(&path)
            .map(|dir| dir.join("mosquitto"))
            .find(|path| path.exists());
        let mut command = Command::new(program.unwrap_or("mosquitto".into()));
        let mut child = spawn(
            command
                .arg("-c")
                .arg(&config)
                .stdout(Stdio::null())
                .stderr(Stdio::null()),
        );
        let start = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            assert!(
                start.elapsed() < PATIENCE && child.try_wait().unwrap().is_none(),
                "mosquitto does not listen"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        Self {
            child,
            port,
            _config: dir,
        }
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// `mosquitto_sub` on everything below `samclip/`.
struct Watcher {
    child: Child,
    lines: Receiver<String>,
}

impl Watcher {
    fn start(port: u16) -> Self {
        let mut command = Command::new("mosquitto_sub");
        command.args([
            "-h",
            "127.0.0.1",
            "-p",
            &port.to_string(),
            "-q",
            "1",
            "-t",
            "samclip/#",
            "-F",
            "%t r%r q%q %p",
        ]);
        let mut child = spawn(command.stdout(Stdio::piped()).stderr(Stdio::null()));
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            stdout
                .lines()
                .map_while(Result::ok)
                .try_for_each(|line| sender.send(line))
        });
        Self { child, lines }
    }

    fn next(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("a message")
    }

    /// Skips to a message; for what the broker may also send in between.
    fn until(&self, wanted: &str) {
        while self.next() != wanted {}
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn publisher(port: u16) -> Publisher {
    let mut settings = Settings::new(
        "127.0.0.1",
        port,
        "samclipd-test",
        Topics::new("samclip").unwrap().available(),
    );
    settings.retry = (Duration::from_millis(20), Duration::from_millis(100));
    Publisher::start(settings).unwrap()
}

/// What every broker has to give us.
fn speaks_the_contract(port: u16) {
    let topics = Topics::new("samclip").unwrap();
    let (camera, query) = (CameraId::new("dock").unwrap(), QueryId::new("person").unwrap());
    let first = publisher(port);
    assert!(first.wait_connected(PATIENCE));
    first.publish(topics.count(&camera, &query), b"2".to_vec());
    assert!(first.wait_sent(PATIENCE));

    let watcher = Watcher::start(port);
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

    let second = publisher(port);
    watcher.until("samclip/available r0 q1 online");
    second.publish(topics.frame(&camera), b"last".to_vec());
    assert!(second.stop(PATIENCE));
    assert_eq!(watcher.next(), "samclip/dock/frame r0 q0 last");
    assert_eq!(watcher.next(), "samclip/available r0 q1 stopped");

    let late = Watcher::start(port);
    let mut retained = [late.next(), late.next()];
    retained.sort();
    assert_eq!(
        retained,
        ["samclip/available r1 q1 stopped", "samclip/dock/person r1 q1 2"]
    );
}

#[test]
fn mosquitto_gets_states_frames_large_masks_will_and_goodbye() {
    speaks_the_contract(Mosquitto::start(free_port()).port);
}

#[test]
fn the_built_in_broker_does_the_same() {
    let broker = Broker::start(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    speaks_the_contract(broker.address().port());
}

#[test]
fn a_broker_that_comes_later_or_back_gets_all_states_again() {
    let port = free_port();
    let topics = Topics::new("samclip").unwrap();
    let (camera, query) = (CameraId::new("dock").unwrap(), QueryId::new("person").unwrap());
    let publisher = publisher(port);
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
