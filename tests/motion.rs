//! A camera that sees nothing move: what is left out, and all that has to be looked at all the same.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

mod bus;
mod subscriber;
mod tiny;

use std::sync::mpsc::channel;

use bus::{Daemon, PATIENCE, config_text, show_stripes, until, write_model_and_frames};
use samclip::daemon::commands::{Change, Command, Reply};
use samclip::message::event::{EventKind, EventMessage};
use samclip::message::payload::{DetectStatus, STATS_SCHEMA, StatsMessage};
use samclip::message::query::QueryMessage;
use samclip::publish::broker::Broker;
use subscriber::collect;

/// Nothing but what is asked for opens the gate.
const STILL: &str = "[dbus]\nenabled = false\n[events]\nstationary = 86400\nkeep_alive = 86400\n\
                     [camera.motion]\nrefresh = 86400\nhold = 0\n";

/// Frames of the camera that were processed, and that were left out; the latter a second old at most.
fn counts(daemon: &Daemon) -> (u64, u64) {
    daemon.view.look(|seen| {
        seen.cameras
            .get("yard")
            .map_or((0, 0), |yard| (yard.frames, yard.source.still))
    })
}

/// Waits until so many more frames were left out; how many were processed in all.
#[track_caller]
fn after_still(daemon: &Daemon, more: u64) -> u64 {
    let before = counts(daemon).1;
    until("frames are left out", || counts(daemon).1 >= before + more);
    counts(daemon).0
}

/// Waits until the frames of a while are all left out; how many were processed before it.
#[track_caller]
fn comes_to_rest(daemon: &Daemon, what: &str) -> u64 {
    after_still(daemon, 20);
    let processed = counts(daemon).0;
    assert_eq!(after_still(daemon, 20), processed, "{what}");
    processed
}

fn yard() -> String {
    "yard".to_owned()
}

#[test]
fn while_nothing_moves_only_what_is_wanted_is_processed_and_that_at_once() {
    let dir = tempfile::tempdir().unwrap();
    write_model_and_frames(dir.path());
    let daemon = Daemon::start(dir.path(), &config_text(dir.path(), STILL));
    until("red is seen", || daemon.count("yard", "red") == Some(1));
    after_still(&daemon, 20);
    let (settled, delivered) = (counts(&daemon).0, daemon.view.look(|seen| seen.delivered));
    assert_eq!(after_still(&daemon, 40), settled, "nothing moves");
    let later = daemon.view.look(|seen| seen.delivered);
    assert!(later > delivered, "the camera gives frames all the same");
    assert_eq!(daemon.board.now().cameras["yard"].status, Some(DetectStatus::Online));

    // Something else is asked: min_hits is 2, so that two frames are needed.
    let query = Box::new(QueryMessage::default());
    let change = Change::Query {
        id: "blue".into(),
        query,
    };
    assert_eq!(daemon.ask(Command::Ask { camera: yard(), change }), Ok(Reply::Done));
    until("blue is seen", || daemon.count("yard", "blue") == Some(1));
    assert!(matches!(
        daemon.ask(Command::Snapshot { camera: yard() }),
        Ok(Reply::Picture(_))
    ));
    let detect = |on| Command::SetDetect { camera: yard(), on };
    assert_eq!(daemon.ask(detect(false)), Ok(Reply::Done));
    until("all is over", || daemon.count("yard", "red") == Some(0));
    assert_eq!(daemon.ask(detect(true)), Ok(Reply::Done));
    until("red is back", || daemon.count("yard", "red") == Some(1));
    // Somebody looks at the page: one picture after the other, sooner than the next may be drawn.
    for _ in 0..3 {
        let mut pictures = daemon.view.pictures("yard").unwrap();
        until("a picture comes", || pictures.has_changed().unwrap());
        pictures.mark_unchanged();
    }
    let settled = comes_to_rest(&daemon, "nobody wants anything any more");

    // Without the table every frame is processed again, on the same stream.
    daemon.write(&config_text(dir.path(), "[dbus]\nenabled = false\n"));
    assert_eq!(daemon.ask(Command::Reload), Ok(Reply::Done));
    until("every frame is processed", || counts(&daemon).0 >= settled + 30);
    let opened = daemon.view.look(|seen| seen.cameras["yard"].source.opened);
    assert_eq!(opened, 1);
}

#[test]
fn what_moves_is_processed_and_what_has_gone_ends() {
    let dir = tempfile::tempdir().unwrap();
    write_model_and_frames(dir.path());
    let daemon = Daemon::start(dir.path(), &config_text(dir.path(), STILL));
    until("red is seen", || daemon.count("yard", "red") == Some(1));
    comes_to_rest(&daemon, "nothing moves");
    // All of it turns yellow; that is no longer red for max_age, whatever moves meanwhile.
    show_stripes(dir.path(), [0, 0]);
    until("red is gone", || daemon.count("yard", "red") == Some(0));
    show_stripes(dir.path(), [50, 90]);
    until("red is back", || daemon.count("yard", "red") == Some(1));
    comes_to_rest(&daemon, "it is still again");
}

#[test]
fn a_thing_that_rests_is_one_thing_over_all_refreshes_and_the_counters_tell_of_both() {
    let dir = tempfile::tempdir().unwrap();
    write_model_and_frames(dir.path());
    let broker = Broker::start(([127, 0, 0, 1], 0).into()).unwrap();
    // Its max_age is shorter than the time between two looks.
    let rest = format!(
        "max_age = 0.1\n[dbus]\nenabled = false\n[events]\nkeep_alive = 2\n[camera.motion]\nrefresh = 0.5\n\
         [mqtt]\nhost = \"127.0.0.1\"\nport = {}\n",
        broker.address().port()
    );
    let (ready, subscribed) = channel();
    let address = broker.address();
    let messages = std::thread::scope(|scope| {
        let mut stats = 0;
        let second = move |topic: &str, _: &[u8]| {
            stats += u32::from(topic == "samclip/stats");
            stats == 2
        };
        let messages = scope.spawn(move || collect(address, &ready, second));
        subscribed.recv_timeout(PATIENCE).unwrap();
        let _daemon = Daemon::start(dir.path(), &config_text(dir.path(), &rest));
        messages.join().unwrap()
    });
    let of = |topic: &'static str| messages.iter().filter(move |m| m.0 == topic).map(|m| &m.1);
    let events: Vec<EventMessage> = of("samclip/events")
        .map(|body| EventMessage::decode(body).unwrap())
        .collect();
    let kinds: Vec<EventKind> = events.iter().map(|event| event.kind).collect();
    assert_eq!(kinds[0], EventKind::New);
    assert!(
        kinds.len() > 3 && kinds[1..].iter().all(|kind| *kind == EventKind::Update),
        "{kinds:?}"
    );
    assert!(events.iter().all(|event| event.after.id == events[0].after.id));
    let body = of("samclip/stats").next_back().unwrap();
    let schema = jsonschema::draft202012::new(&serde_json::from_str(STATS_SCHEMA).unwrap()).unwrap();
    assert!(schema.is_valid(&serde_json::from_slice(body).unwrap()));
    let stats: StatsMessage = serde_json::from_slice(body).unwrap();
    let yard = &stats.cameras["yard"];
    assert!(yard.frames >= 20, "it is looked at about twice a second: {yard:?}");
    assert!(yard.still > 0, "{yard:?}");
    let mut statuses = of("samclip/yard/status/detect");
    assert_eq!(statuses.next().unwrap(), b"offline", "no frame yet");
    assert!(statuses.all(|status| status == b"online"));
}
