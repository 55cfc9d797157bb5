//! The program itself through `kill -9`, a full disk and a log that takes nothing: no spooled event is lost, and the daemon keeps
//! running.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

mod mosquitto;
mod tiny;

use std::io::Read as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use image::{Rgb, RgbImage};
use mosquitto::{Mosquitto, PATIENCE, Watcher, free_port, spawn};
use samclip::message::event::{EventKind, EventMessage};
use samclip::publish::spool::{MIN_BYTES, Spool};

/// A red thing that never moves, and a sign of life of it every second.
fn write(dir: &Path, port: u16) -> String {
    tiny::write(dir);
    let frames = dir.join("frames");
    std::fs::create_dir_all(&frames).unwrap();
    let red = |x: u32| (40..90).contains(&x);
    let picture = RgbImage::from_fn(131, 97, |x, _| {
        if red(x) {
            Rgb([230, 20, 20])
        } else {
            Rgb([230, 230, 20])
        }
    });
    picture.save(frames.join("0.png")).unwrap();
    let path = dir.join("samclipd.toml");
    let text = format!(
        "model = {dir:?}\nstate = {:?}\n[runtime]\nengine = \"tract\"\ncache = {:?}\n[[camera]]\nid = \"yard\"\n\
         source = \"dir://{}?fps=20&loop\"\n[[query]]\nid = \"red\"\n[events]\nstationary = 0.3\nkeep_alive = 1\n\
         [mqtt]\nhost = \"127.0.0.1\"\nport = {port}\n",
        dir.join("state"),
        dir.join("cache"),
        frames.display(),
    );
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

fn next_event(watcher: &Watcher) -> EventMessage {
    loop {
        if let Some(body) = watcher.next().strip_prefix("samclip/events r0 q1 ") {
            return EventMessage::decode(body.as_bytes()).unwrap();
        }
    }
}

#[test]
fn events_of_a_killed_daemon_arrive_before_those_of_the_next_one() {
    let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
    let config = write(dir.path(), port);
    let daemon = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_samclipd"));
        spawn(command.args(["run", "--config", &config]).stderr(Stdio::null()))
    };
    let mut first = daemon();
    let spool = dir.path().join("state/spool");
    let written = || -> u64 {
        let files = std::fs::read_dir(&spool)
            .map(|files| files.flatten().collect())
            .unwrap_or(Vec::new());
        files.iter().filter_map(|f| f.metadata().ok()).map(|m| m.len()).sum()
    };
    let start = Instant::now();
    // New, stationary, sign of life: more than 600 bytes each.
    while written() < 3 * 600 {
        assert!(start.elapsed() < PATIENCE, "{} bytes", written());
        std::thread::sleep(Duration::from_millis(20));
    }
    first.kill().unwrap();
    first.wait().unwrap();
    let waiting = Spool::open(&spool, MIN_BYTES).unwrap().stats().waiting;
    assert!(waiting >= 2, "{waiting}");

    let _broker = Mosquitto::start(port);
    let watcher = Watcher::subscribed(port);
    let mut second = daemon();
    let events: Vec<EventMessage> = (0..=waiting).map(|_| next_event(&watcher)).collect();
    second.kill().unwrap();
    second.wait().unwrap();
    let (killed, next) = (&events[0].after.id, &events[waiting].after.id);
    assert_eq!(events[0].kind, EventKind::New);
    assert!(events[..waiting].iter().all(|e| e.after.id == *killed), "{events:?}");
    assert!(
        events[..waiting]
            .windows(2)
            .all(|pair| pair[0].after.frame_time < pair[1].after.frame_time)
    );
    assert!(events[waiting].kind == EventKind::New && next != killed);
}

/// Starts a daemon by the path of its configuration, sees that its events come and that it goes on, and kills it.
fn sends_events_and_goes_on(start: impl FnOnce(&str) -> Child) -> Child {
    let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
    let config = write(dir.path(), port);
    let _broker = Mosquitto::start(port);
    let watcher = Watcher::subscribed(port);
    let mut daemon = start(&config);
    let events: Vec<EventMessage> = (0..4).map(|_| next_event(&watcher)).collect();
    assert_eq!(events[0].kind, EventKind::New);
    assert!(daemon.try_wait().unwrap().is_none(), "it keeps running");
    daemon.kill().unwrap();
    daemon
}

#[test]
fn a_full_disk_is_logged_once_and_events_go_out_all_the_same() {
    // No file may grow: every write fails as on a full disk.
    let program = env!("CARGO_BIN_EXE_samclipd");
    let mut daemon = sends_events_and_goes_on(|config| {
        let script = format!("trap '' XFSZ; ulimit -f 0; exec '{program}' run --config '{config}'");
        spawn(Command::new("sh").args(["-c", &script]).stderr(Stdio::piped()))
    });
    let mut log = String::new();
    daemon.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    daemon.wait().unwrap();
    assert_eq!(log.matches("events are not kept on disk").count(), 1, "{log}");
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
fn a_log_that_cannot_be_written_stops_nothing() {
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let mut daemon = sends_events_and_goes_on(|config| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_samclipd"));
        // Every thread has something to say.
        command.args(["run", "--config", config]).env("RUST_LOG", "trace");
        spawn(command.stderr(full))
    });
    daemon.wait().unwrap();
}
