//! A broker that dies while messages flow, stays away and comes back; a connection that is cut in the middle of a message; a
//! disk that is full meanwhile.
//!
//! Every event tells how the last one left its thing (`before`), so that a gap shows by itself, whatever the time.
//! `SAMCLIP_OUTAGE_S` says how many seconds the broker stays away (default 3):
//! `SAMCLIP_OUTAGE_S=600 cargo test --release --test broker_loss -- --nocapture killed` prints the figures of ten minutes.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

mod bus;
mod http_client;
mod mosquitto;
mod proxy;
mod tiny;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bus::write_model_and_frames;
use http_client::{free_address, request};
use mosquitto::{Mosquitto, PATIENCE, Watcher, free_port, spawn};
use proxy::Proxy;
use samclip::message::event::{EventKind, EventMessage};
use samclip::message::topic::{CameraId, QueryId, Topics};
use samclip::publish::mqtt::{Publisher, Settings};
use samclip::publish::spool::{MIN_BYTES, Spool};

/// No message is dropped by the broker for a subscriber that is slow.
const PATIENT: &str = "allow_anonymous true\nmax_queued_messages 0\nmax_inflight_messages 0\n";

const CAMERAS: [&str; 3] = ["dock", "gate", "yard"];

fn outage() -> Duration {
    let seconds = std::env::var("SAMCLIP_OUTAGE_S").map_or(3.0, |text| text.parse().expect("seconds"));
    Duration::from_secs_f32(seconds)
}

/// The program with three cameras; two things each, of which there is a sign of life every second.
struct Program {
    child: Child,
    address: SocketAddr,
    log: Arc<Mutex<String>>,
    _dir: tempfile::TempDir,
}

impl Program {
    fn start(port: u16) -> Self {
        let dir = tempfile::tempdir().unwrap();
        write_model_and_frames(dir.path());
        let address = free_address();
        let path = |name: &str| dir.path().join(name);
        let mut text = format!(
            "model = {:?}\nstate = {:?}\n[runtime]\nengine = \"tract\"\ncache = {:?}\n[dbus]\nenabled = false\n\
             [http]\nlisten = \"{address}\"\n[events]\nkeep_alive = 1\n[mqtt]\nhost = \"127.0.0.1\"\nport = {port}\n\
             homeassistant = \"samclip/homeassistant\"\n[[query]]\nid = \"red\"\n[[query]]\nid = \"blue\"\n",
            dir.path(),
            path("state"),
            path("cache"),
        );
        for camera in CAMERAS {
            let frames = path("frames");
            text += &format!(
                "[[camera]]\nid = {camera:?}\nsource = \"dir://{}?fps=5&loop\"\n",
                frames.display()
            );
        }
        std::fs::write(path("samclipd.toml"), text).unwrap();
        // A write beyond the limit of a file's size fails as on a full disk, and does not end the program.
        let program = env!("CARGO_BIN_EXE_samclipd");
        let script = format!(
            "trap '' XFSZ; exec '{program}' run --config '{}'",
            path("samclipd.toml").display()
        );
        let mut child = spawn(
            Command::new("sh")
                .args(["-c", &script])
                .stderr(Stdio::piped())
                .stdout(Stdio::null()),
        );
        let log = Arc::new(Mutex::new(String::new()));
        let (lines, shared) = (BufReader::new(child.stderr.take().unwrap()).lines(), Arc::clone(&log));
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                *shared.lock().unwrap() += &format!("{line}\n");
            }
        });
        Self {
            child,
            address,
            log,
            _dir: dir,
        }
    }

    /// From now on no file may grow, or all may again.
    fn set_disk_full(&self, full: bool) {
        let limit = if full {
            "--fsize=0:unlimited"
        } else {
            "--fsize=unlimited:unlimited"
        };
        let pid = self.child.id().to_string();
        let mut command = Command::new("prlimit");
        assert!(spawn(command.args(["--pid", &pid, limit])).wait().unwrap().success());
    }

    /// A value of `/metrics`, if the program answers.
    fn metric(&self, name: &str) -> Option<u64> {
        let text = request(self.address, "GET", "/metrics", &[], "")?.text();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line?.parse::<f64>().ok().map(|value| value as u64)
    }

    fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !holds(self) {
            assert!(start.elapsed() < PATIENCE, "{what}; the log:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    fn memory_kib(&self) -> u64 {
        self.metric("samclip_resident_memory_bytes")
            .map_or(0, |bytes| bytes / 1024)
    }

    /// Ends it as systemd would.
    fn stop(mut self) {
        let pid = self.child.id().to_string();
        assert!(
            spawn(Command::new("kill").args(["-TERM", &pid]))
                .wait()
                .unwrap()
                .success()
        );
        assert!(self.child.wait().unwrap().success(), "{}", self.log());
        assert!(!self.log().contains("panicked"), "{}", self.log());
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// What a watcher has heard: all lines, and events in the order in which they came.
#[derive(Default)]
struct Heard {
    lines: Vec<String>,
    events: Vec<EventMessage>,
}

impl Heard {
    fn take(&mut self, line: String) {
        if let Some(body) = line.strip_prefix("samclip/events r0 q1 ") {
            self.events.push(EventMessage::decode(body.as_bytes()).unwrap());
        }
        self.lines.push(line);
    }

    /// Takes lines until so many events have come.
    fn events(&mut self, watcher: &Watcher, count: usize) {
        let until = self.events.len() + count;
        while self.events.len() < until {
            self.take(watcher.next());
        }
    }

    /// Takes what has come already.
    fn rest(&mut self, watcher: &Watcher) {
        while let Some(line) = watcher.wait(Duration::from_secs(2)) {
            self.take(line);
        }
    }
}

/// Without repetitions; how many of those there were.
fn without_repetitions(events: Vec<EventMessage>) -> (Vec<EventMessage>, usize) {
    let (mut kept, all): (Vec<EventMessage>, _) = (Vec::new(), events.len());
    for event in events {
        if !kept.iter().rev().take(200).any(|earlier| *earlier == event) {
            kept.push(event);
        }
    }
    let repeated = all - kept.len();
    (kept, repeated)
}

/// Every event goes on where the last one of its thing ended, and every thing has a beginning.
fn assert_complete_and_in_order(events: &[EventMessage]) {
    let mut last: BTreeMap<&str, &EventMessage> = BTreeMap::new();
    for event in events {
        match last.insert(&event.after.id, event) {
            None => assert_eq!(
                event.kind,
                EventKind::New,
                "the beginning of {} is lost",
                event.after.id
            ),
            Some(before) => assert_eq!(
                event.before, before.after,
                "between {} and {} something of {} is lost or out of order",
                before.after.frame_time, event.after.frame_time, event.after.id
            ),
        }
    }
    assert_eq!(last.len(), 2 * CAMERAS.len(), "{:?}", last.keys());
    assert!(last.values().all(|event| event.kind == EventKind::End));
}

/// What the broker keeps, without what changes by itself.
fn kept(port: u16) -> Vec<String> {
    // It ends with the first message that is not kept.
    let watcher = Watcher::start_with(port, &["--retained-only"]);
    let lines: Vec<String> = std::iter::from_fn(|| watcher.wait(PATIENCE)).collect();
    let retained = lines
        .iter()
        .filter(|line| line.contains(" r1 ") && !line.contains("/snapshot "));
    let mut retained: Vec<String> = retained.filter(|line| !line.contains("/active ")).cloned().collect();
    retained.sort();
    retained
}

/// The broker is killed while events flow, `meanwhile` happens, and it is there again.
fn lives_through_an_outage(meanwhile: impl FnOnce(&Program)) {
    let port = free_port();
    let broker = Mosquitto::start_with(port, PATIENT);
    let (watcher, mut heard) = (Watcher::subscribed(port), Heard::default());
    let proxy = Proxy::start(port, &[]);
    let program = Program::start(proxy.port);
    heard.events(&watcher, 24);
    let states = kept(port);
    for camera in CAMERAS {
        let online = format!("samclip/{camera}/status/detect r1 q1 online");
        assert!(states.contains(&online), "{online} is not among {states:?}");
    }
    let (before, memory) = (heard.events.len(), program.memory_kib());

    // As `kill -9`.
    drop(broker);
    proxy.set_open(false);
    heard.rest(&watcher);
    drop(watcher);
    meanwhile(&program);
    program.until("events wait", |p| p.metric("samclip_spool_events_waiting") > Some(10));
    let spooled = ["samclip_spool_events_waiting", "samclip_spool_bytes"].map(|name| program.metric(name).unwrap());
    let memory_meanwhile = program.memory_kib();

    let _broker = Mosquitto::start_with(port, PATIENT);
    let watcher = Watcher::subscribed(port);
    let begun = heard.lines.len();
    proxy.set_open(true);
    heard.events(&watcher, 24);
    program.until("all is delivered", |p| {
        p.metric("samclip_spool_events_waiting") == Some(0)
    });
    heard.events(&watcher, 12);
    assert_eq!(kept(port), states);
    let counters =
        ["dropped", "damaged", "failed"].map(|kind| program.metric(&format!("samclip_spool_events_{kind}_total")));
    let memory_after = program.memory_kib();
    program.stop();
    heard.rest(&watcher);
    // States come before the events of the time without a broker.
    let online = heard.lines[begun..]
        .iter()
        .position(|line| line == "samclip/available r0 q1 online");
    let event = heard.lines[begun..]
        .iter()
        .position(|line| line.starts_with("samclip/events "));
    assert!(online.is_some() && online < event, "{online:?} {event:?}");

    let (events, repeated) = without_repetitions(heard.events);
    println!(
        "away {:?}: {before} events before, {} in all, {repeated} repeated, spool {} events and {} bytes, \
         dropped, damaged, failed {counters:?}; memory {memory}, {memory_meanwhile}, {memory_after} KiB",
        outage(),
        events.len(),
        spooled[0],
        spooled[1],
    );
    assert_complete_and_in_order(&events);
    assert_eq!(&counters[..2], [Some(0), Some(0)]);
    assert!(
        memory_after < memory + 32 * 1024,
        "{memory} KiB before, {memory_after} after"
    );
}

#[test]
fn a_broker_that_is_killed_while_events_flow_gets_all_of_them_in_order_and_every_state() {
    lives_through_an_outage(|_| std::thread::sleep(outage()));
}

#[test]
fn a_disk_that_is_full_while_the_broker_is_away_costs_no_event_and_no_order() {
    lives_through_an_outage(|program| {
        program.until("events are written", |p| {
            p.metric("samclip_spool_events_waiting") > Some(6)
        });
        program.set_disk_full(true);
        program.until("events cannot be written", |p| {
            p.metric("samclip_spool_events_failed_total") > Some(6)
        });
        // Memory holds 1,024 events, of which there are six a second.
        std::thread::sleep(outage().min(Duration::from_secs(60)));
        program.set_disk_full(false);
        program.until("events are written again", |p| {
            p.log().contains("events are kept on disk again")
        });
    });
}

#[test]
fn a_connection_that_is_cut_anywhere_loses_no_event_and_leaves_no_part_of_a_message() {
    // In the CONNECT packet, between packets, in events, in a large message.
    let cuts = [1, 10, 40, 60, 90, 200, 1_000, 3_000, 50_000, 700_000];
    let (broker, dir) = (
        Mosquitto::start_with(free_port(), PATIENT),
        tempfile::tempdir().unwrap(),
    );
    let watcher = Watcher::subscribed(broker.port);
    let proxy = Proxy::start(broker.port, &cuts);
    let topics = Topics::new("samclip").unwrap();
    let (camera, query) = (CameraId::new("dock").unwrap(), QueryId::new("person").unwrap());
    let mut settings = Settings::new("127.0.0.1", proxy.port, "samclipd-test", topics.available());
    settings.retry = (Duration::from_millis(20), Duration::from_millis(100));
    let spool = Spool::open(dir.path(), MIN_BYTES).unwrap();
    let publisher = Publisher::start_with(settings, Some((spool, topics.events()))).unwrap();
    publisher.publish(topics.snapshot(&camera, &query), vec![b'x'; 1_000_000]);
    (0..50).for_each(|i| publisher.event(topics.events(), format!("event {i}").into()));
    let (mut events, mut large) = (Vec::new(), 0);
    while events.last().map(String::as_str) != Some("event 49") || large == 0 {
        let line = watcher.next();
        if let Some(event) = line.strip_prefix("samclip/events r0 q1 ") {
            // One that was on its way comes again.
            if !events.iter().any(|earlier| earlier == event) {
                events.push(event.to_owned());
            }
        } else if let Some(body) = line.strip_prefix("samclip/dock/person/snapshot r0 q0 ") {
            assert!(
                body.len() == 1_000_000 && body.bytes().all(|b| b == b'x'),
                "{} bytes",
                body.len()
            );
            large += 1;
        } else {
            assert!(
                line.starts_with("samclip/available ") || line.starts_with("samclip/probe "),
                "{line}"
            );
        }
    }
    assert_eq!(events, (0..50).map(|i| format!("event {i}")).collect::<Vec<_>>());
    assert_eq!(proxy.cuts_left(), 0);
    assert!(publisher.stop(PATIENCE));
    let retained = Watcher::start_with(broker.port, &["-C", "2"]);
    let mut retained = [retained.next(), retained.next()];
    retained.sort();
    assert_eq!(retained[0], "samclip/available r1 q1 stopped");
    assert_eq!(
        retained[1].len(),
        "samclip/dock/person/snapshot r1 q0 ".len() + 1_000_000
    );
}
