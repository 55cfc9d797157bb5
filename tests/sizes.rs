//! Input sizes: a camera in which nothing is found goes through the small one, and nothing that is told comes from it.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

mod bus;
mod subscriber;
mod tiny;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command as Program;
use std::sync::mpsc::channel;

use bus::{Daemon, PATIENCE, config_text, show_stripes, until, write_model_and_stripes};
use samclip::contract::Manifest;
use samclip::daemon::commands::{Change, Command, Refusal, Reply};
use samclip::daemon::view::CameraSeen;
use samclip::message::event::{EventKind, EventMessage};
use samclip::message::payload::{FRAME_SCHEMA, FrameMessage, STATS_SCHEMA, StatsMessage};
use samclip::message::query::QueryMessage;
use samclip::publish::broker::Broker;
use subscriber::collect;
use tiny::{SIDE, SMALL};

const EVENTS: &str = "max_age = 0.3\n[dbus]\nenabled = false\n[events]\nstationary = 86400\nkeep_alive = 86400\n";

/// Nothing but what is asked for makes a look a full one.
const CALM: &str = "[camera.sizes]\ncalm = 64\nrefresh = 86400\nhold = 0\n";

/// Columns of red that fill more than half of a patch at the full size and a third of one at the small size, so that only
/// the full one finds it. The rest is yellow.
const THIN: [u32; 2] = [12, 12];

const EMPTY: [u32; 2] = [0, 0];

const WIDE: [u32; 2] = [60, 60];

fn paint(dir: &Path, stripes: [u32; 2]) {
    write_model_and_stripes(dir, (131, 97), stripes);
}

/// Looks at the full and at the small size.
fn looks(daemon: &Daemon) -> [u64; 2] {
    let looks = daemon.view.look(|seen| {
        let yard = seen.cameras.get("yard");
        yard.map_or(BTreeMap::new(), |yard| yard.looks.clone())
    });
    assert!(looks.keys().all(|side| [SIDE, SMALL].contains(side)), "{looks:?}");
    [SIDE, SMALL].map(|side| looks.get(&side).copied().unwrap_or(0))
}

/// Waits for so many further looks at the size with this index; how many were at the other meanwhile.
#[track_caller]
fn others(daemon: &Daemon, index: usize, further: u64) -> u64 {
    let before = looks(daemon);
    until("frames are looked at", || {
        looks(daemon)[index] >= before[index] + further
    });
    looks(daemon)[1 - index] - before[1 - index]
}

/// Waits until small looks follow each other; so many full ones were needed until then.
#[track_caller]
fn comes_to_calm(daemon: &Daemon) -> u64 {
    others(daemon, 1, 5);
    let full = looks(daemon)[0];
    assert_eq!(others(daemon, 1, 10), 0, "nothing is found");
    full
}

fn yard() -> String {
    "yard".to_owned()
}

#[test]
fn an_empty_scene_goes_through_the_small_size_and_one_with_something_in_it_never() {
    let dir = tempfile::tempdir().unwrap();
    paint(dir.path(), EMPTY);
    let text = format!("{EVENTS}[camera.sizes]\ncalm = 64\nrefresh = 86400\nhold = 0.5\n");
    let daemon = Daemon::start(dir.path(), &config_text(dir.path(), &text));
    assert_eq!(comes_to_calm(&daemon), 1, "the first look is a full one");
    show_stripes(dir.path(), WIDE);
    until("red is seen", || daemon.count("yard", "red") == Some(1));
    assert_eq!(others(&daemon, 0, 20), 0, "it is there");
    show_stripes(dir.path(), EMPTY);
    until("red is gone", || daemon.count("yard", "red") == Some(0));
    let [full, _] = looks(&daemon);
    let more = comes_to_calm(&daemon) - full;
    // Twenty frames a second; what the machine was too slow for is missing.
    assert!(
        (2..=12).contains(&more),
        "{more} full looks in the half second after it"
    );
}

#[test]
fn an_empty_scene_is_looked_at_fully_as_often_as_configured() {
    let dir = tempfile::tempdir().unwrap();
    paint(dir.path(), EMPTY);
    let text = format!("{EVENTS}[camera.sizes]\ncalm = 64\nrefresh = 0.5\n");
    let daemon = Daemon::start(dir.path(), &config_text(dir.path(), &text));
    others(&daemon, 1, 1);
    let small = others(&daemon, 0, 6);
    let fully = f64::from(u32::try_from(small).unwrap()) / 6.0;
    // Nine at twenty frames a second, fewer on a slow machine.
    assert!(
        (1.0..=12.0).contains(&fully),
        "{small} small looks beside six full ones"
    );
}

#[test]
fn what_only_the_full_size_shows_is_one_thing_from_the_next_refresh_on() {
    let dir = tempfile::tempdir().unwrap();
    paint(dir.path(), EMPTY);
    let broker = Broker::start(([127, 0, 0, 1], 0).into()).unwrap();
    let address = broker.address();
    let text = format!(
        "{EVENTS}[camera.sizes]\ncalm = 64\nrefresh = 1\nhold = 0\n[mqtt]\nhost = \"127.0.0.1\"\nport = {}\n",
        address.port()
    );
    let (ready, subscribed) = channel();
    let messages = std::thread::scope(|scope| {
        let (mut stats, mut begun) = (0, false);
        let messages = scope.spawn(move || {
            collect(address, &ready, move |topic, _| {
                begun |= topic == "samclip/events";
                stats += u32::from(begun && topic == "samclip/stats");
                stats == 1
            })
        });
        subscribed.recv_timeout(PATIENCE).unwrap();
        let daemon = Daemon::start(dir.path(), &config_text(dir.path(), &text));
        others(&daemon, 1, 5);
        show_stripes(dir.path(), THIN);
        messages.join().unwrap()
    });
    let of = |topic: &'static str| messages.iter().filter(move |m| m.0 == topic).map(|m| &m.1);
    let events: Vec<EventMessage> = of("samclip/events")
        .map(|body| EventMessage::decode(body).unwrap())
        .collect();
    let begun = events.iter().filter(|event| event.kind == EventKind::New);
    assert_eq!(begun.count(), 1, "no small look ends it: {events:?}");
    let valid = |schema: &str, body: &[u8]| {
        let schema = jsonschema::draft202012::new(&serde_json::from_str(schema).unwrap()).unwrap();
        schema.is_valid(&serde_json::from_slice(body).unwrap())
    };
    let frames: Vec<FrameMessage> = of("samclip/yard/frame")
        .inspect(|body| assert!(valid(FRAME_SCHEMA, body)))
        .map(|body| FrameMessage::decode(body).unwrap())
        .collect();
    let side = |side: usize| Some(u32::try_from(side).unwrap());
    let found = frames.iter().position(|frame| !frame.detections.is_empty()).unwrap();
    let (before, after) = frames.split_at(found);
    assert!(before.iter().any(|frame| frame.input_side == side(SMALL)));
    for frame in after {
        assert_eq!(frame.input_side, side(SIDE), "while it is there");
        assert_eq!(frame.detections.len(), 1, "it does not flicker");
    }
    let ids = after.iter().filter_map(|frame| frame.detections[0].track_id.as_ref());
    let ids: std::collections::BTreeSet<_> = ids.collect();
    assert_eq!(ids.len(), 1, "{ids:?}");
    let body = of("samclip/stats").next_back().unwrap();
    assert!(valid(STATS_SCHEMA, body));
    let stats: StatsMessage = serde_json::from_slice(body).unwrap();
    let yard = &stats.cameras["yard"];
    let sides: Vec<u32> = yard.looks.keys().copied().collect();
    assert_eq!(sides, [SMALL, SIDE].map(|side| u32::try_from(side).unwrap()));
    assert_eq!(
        yard.looks.values().sum::<u64>(),
        yard.frames,
        "no small look was a hint"
    );
}

#[test]
fn a_hint_too_weak_for_the_small_size_alone_is_looked_into_at_once() {
    let dir = tempfile::tempdir().unwrap();
    paint(dir.path(), EMPTY);
    // The thin stripe scores about 0.08 at the small size, 0.77 at the full one.
    let text = format!("{EVENTS}[camera.sizes]\ncalm = 64\nrefresh = 86400\nhold = 0\nhint = 0.1\n");
    let daemon = Daemon::start(dir.path(), &config_text(dir.path(), &text));
    comes_to_calm(&daemon);
    show_stripes(dir.path(), THIN);
    until("red is seen", || daemon.count("yard", "red") == Some(1));
    let [full, small] = looks(&daemon);
    let frames = daemon.view.look(|seen| seen.cameras["yard"].frames);
    assert_eq!(full + small, frames + 1, "one frame was looked at twice");
}

#[test]
fn a_change_by_anybody_is_looked_at_fully_at_once() {
    let dir = tempfile::tempdir().unwrap();
    paint(dir.path(), EMPTY);
    let text = config_text(dir.path(), &format!("{EVENTS}{CALM}"));
    let daemon = Daemon::start(dir.path(), &text);
    let mut full = comes_to_calm(&daemon);
    let mut one_more = |what: &str| {
        let now = comes_to_calm(&daemon);
        assert!(now > full, "{what}: {now} full looks");
        full = now;
    };
    let query = Box::new(QueryMessage::default());
    let change = Change::Query {
        id: "blue".into(),
        query,
    };
    assert_eq!(daemon.ask(Command::Ask { camera: yard(), change }), Ok(Reply::Done));
    one_more("another query");
    let picture = daemon.ask(Command::Snapshot { camera: yard() });
    assert!(matches!(picture, Ok(Reply::Picture(_))));
    one_more("a picture");
    for on in [false, true] {
        let detect = Command::SetDetect { camera: yard(), on };
        assert_eq!(daemon.ask(detect), Ok(Reply::Done));
    }
    one_more("detection switched off and on");
    assert_eq!(daemon.ask(Command::Reload), Ok(Reply::Done));
    one_more("a reload");
}

#[test]
fn a_reload_takes_sizes_away_and_brings_them_back_and_refuses_one_that_is_not_open() {
    let dir = tempfile::tempdir().unwrap();
    paint(dir.path(), EMPTY);
    let with = |sizes: &str| config_text(dir.path(), &format!("{EVENTS}{sizes}"));
    let daemon = Daemon::start(dir.path(), &with(CALM));
    comes_to_calm(&daemon);
    daemon.write(&with(""));
    assert_eq!(daemon.ask(Command::Reload), Ok(Reply::Done));
    assert_eq!(others(&daemon, 0, 20), 0);
    daemon.write(&with(CALM));
    assert_eq!(daemon.ask(Command::Reload), Ok(Reply::Done));
    comes_to_calm(&daemon);
    daemon.write(&with("[camera.sizes]\ncalm = 32\n"));
    let Err(Refusal::Failed(error)) = daemon.ask(Command::Reload) else {
        panic!("a size of 32 pixels is not open");
    };
    assert!(error.contains("samclipd.toml"), "{error}");
    assert!(
        error.contains("camera yard: a size of 32 pixels is not open, only [96, 64]"),
        "{error}"
    );
    comes_to_calm(&daemon);
    let opened = daemon.view.look(|seen| seen.cameras["yard"].source.opened);
    assert_eq!(opened, 1, "the camera streams on");
}

#[test]
fn a_camera_may_always_go_through_another_size() {
    let dir = tempfile::tempdir().unwrap();
    paint(dir.path(), WIDE);
    let text = config_text(dir.path(), EVENTS).replace("id = \"yard\"", "id = \"yard\"\nside = 64");
    let daemon = Daemon::start(dir.path(), &text);
    until("red is seen", || daemon.count("yard", "red") == Some(1));
    let [full, small] = looks(&daemon);
    assert!(full == 0 && small > 0, "{full} {small}");
}

#[test]
fn what_moves_in_a_calm_camera_is_looked_at_at_the_small_size_first() {
    let dir = tempfile::tempdir().unwrap();
    paint(dir.path(), EMPTY);
    let still = "[camera.motion]\nrefresh = 86400\nhold = 0.3\n";
    let daemon = Daemon::start(dir.path(), &config_text(dir.path(), &format!("{EVENTS}{CALM}{still}")));
    let left_out = || {
        let still = |yard: &CameraSeen| yard.source.still;
        daemon.view.look(|seen| seen.cameras.get("yard").map_or(0, still))
    };
    until("frames are left out", || left_out() > 5);
    let before = looks(&daemon);
    // Something pale: brighter than the rest, and nothing that anybody asks for.
    let pale = dir.path().join("pale.png");
    let colour = |x: u32| if x < 30 { [250, 250, 120] } else { [230, 230, 20] };
    image::RgbImage::from_fn(131, 97, |x, _| image::Rgb(colour(x)))
        .save(&pale)
        .unwrap();
    std::fs::rename(pale, dir.path().join("frames/0.png")).unwrap();
    until("something moves", || looks(&daemon)[1] > before[1] + 2);
    assert_eq!(looks(&daemon)[0], before[0]);
    show_stripes(dir.path(), WIDE);
    until("red is seen", || daemon.count("yard", "red") == Some(1));
    let rest = left_out();
    until("it is still again", || left_out() > rest + 30);
    assert_eq!(daemon.count("yard", "red"), Some(1), "what stands still stays there");
}

/// Runs the program; its exit code and all that it says.
fn samclipd(dir: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let output = Program::new(env!("CARGO_BIN_EXE_samclipd"))
        .args(arguments)
        .env("HOME", dir)
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(said).unwrap())
}

#[test]
fn the_command_line_knows_the_sizes_of_a_bundle_and_names_those_there_are() {
    let dir = tempfile::tempdir().unwrap();
    paint(dir.path(), WIDE);
    let (model, picture) = (dir.path().to_str().unwrap(), dir.path().join("frames/0.png"));
    let out = dir.path().join("out");
    let segment = |side: &str| {
        let (picture, out) = (picture.to_str().unwrap(), out.to_str().unwrap());
        let how = ["--model", model, "--runtime", "tract", "--query", "red", "--side", side];
        samclipd(dir.path(), &[&["segment", picture, "--out", out], &how[..]].concat())
    };
    let (code, said) = segment("64");
    assert_eq!(code, Some(0), "{said}");
    let mut files = std::fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().path());
    let json = files
        .find(|path| path.extension().is_some_and(|e| e == "json"))
        .unwrap();
    let message = FrameMessage::decode(&std::fs::read(json).unwrap()).unwrap();
    assert_eq!((message.input_side, message.detections.len()), (Some(64), 1));
    let (code, said) = segment("80");
    assert_eq!(code, Some(1));
    assert!(
        said.contains("the bundle has no size of 80 pixels, it has 96, 64"),
        "{said}"
    );

    let file = dir.path().join("samclipd.toml");
    let doctor = |sizes: &str| {
        std::fs::write(&file, config_text(dir.path(), sizes)).unwrap();
        samclipd(dir.path(), &["doctor", "--config", file.to_str().unwrap()])
    };
    let (code, said) = doctor(CALM);
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("provider tract-cpu, precision fp32, 96, 64 pixels"),
        "{said}"
    );
    let (code, said) = doctor("[camera.sizes]\ncalm = 96\n");
    assert_eq!(code, Some(1));
    assert!(said.contains("calm is 96, expected less than the 96 pixels"), "{said}");
    let (code, said) = doctor("[camera.sizes]\ncalm = 80\n");
    assert_eq!(code, Some(1));
    assert!(said.contains("no size of 80 pixels, it has 96, 64"), "{said}");
}

#[test]
fn a_damaged_file_of_a_size_is_one_clear_error() {
    let dir = tempfile::tempdir().unwrap();
    paint(dir.path(), EMPTY);
    let path = dir.path().join("mask_decoder.small.onnx");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let error = Manifest::read(dir.path()).unwrap_err().to_string();
    assert!(error.contains("mask_decoder.small.onnx: SHA-256 is"), "{error}");
}
