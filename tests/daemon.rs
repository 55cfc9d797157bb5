//! The daemon from a directory of pictures to messages at a broker.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

mod subscriber;
mod tiny;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::channel;
use std::time::Duration;

use image::{Rgb, RgbImage};
use samclip::clock::{Clock, SystemClock};
use samclip::daemon::config::Config;
use samclip::daemon::demo::{DemoOptions, demo};
use samclip::daemon::notify::Notifier;
use samclip::daemon::pipeline::Pipeline;
use samclip::daemon::run::{Surroundings, run, run_with};
use samclip::message::payload::{FRAME_SCHEMA, FrameMessage};
use samclip::publish::broker::Broker;
use samclip::runtime::progress::Stage;
use samclip::runtime::{Backend, RuntimeOptions};
use subscriber::collect;

#[test]
fn pictures_of_a_directory_become_schema_valid_messages_at_a_broker() {
    let dir = tempfile::tempdir().unwrap();
    tiny::write(dir.path());
    let frames = dir.path().join("frames");
    std::fs::create_dir(&frames).unwrap();
    for i in 0..5u32 {
        let red = |x: u32| (10 * i..10 * i + 50).contains(&x);
        let picture = RgbImage::from_fn(131, 97, |x, _| {
            if red(x) {
                Rgb([230, 20, 20])
            } else {
                Rgb([230, 230, 20])
            }
        });
        picture.save(frames.join(format!("{i}.png"))).unwrap();
    }
    std::fs::write(frames.join("3-damaged.png"), b"\x89PNG\r\n\x1a\n").unwrap();
    let broker = Broker::start(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    let address = broker.address();
    let text = format!(
        "model = {:?}\n[runtime]\nengine = \"tract\"\n[[camera]]\nid = \"yard\"\nsource = \"dir://{}\"\n\
         [[query]]\nid = \"red\"\n[[query]]\nid = \"blue\"\n[mqtt]\nhost = \"127.0.0.1\"\nport = {}\n",
        dir.path(),
        frames.display(),
        address.port()
    );
    let text = format!("state = {:?}\n{text}", dir.path());
    let config = Config::parse(&text, "test.toml".as_ref()).unwrap();
    let messages = std::thread::scope(|scope| {
        let (ready, subscribed) = channel();
        let stopped = |topic: &str, body: &[u8]| topic == "samclip/available" && body == b"stopped";
        let messages = scope.spawn(move || collect(address, &ready, stopped));
        subscribed.recv_timeout(Duration::from_secs(60)).unwrap();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        run(&config, &clock, &AtomicBool::new(false)).unwrap();
        messages.join().unwrap()
    });
    let of = |topic: &str| {
        messages
            .iter()
            .filter(|m| m.0 == topic)
            .map(|m| m.1.clone())
            .collect::<Vec<_>>()
    };
    let frames = of("samclip/yard/frame");
    assert_eq!(frames.len(), 5, "{messages:?}");
    let schema = jsonschema::draft202012::new(&serde_json::from_str(FRAME_SCHEMA).unwrap()).unwrap();
    for (i, body) in frames.iter().enumerate() {
        assert!(schema.is_valid(&serde_json::from_slice(body).unwrap()));
        let message = FrameMessage::decode(body).unwrap();
        assert_eq!((message.seq, message.size), (i as u64, [131, 97]));
        assert_eq!(message.detections.len(), 1, "{message:?}");
        assert_eq!(message.detections[0].query, "red");
        // One thing, with an id from the second sighting on.
        assert_eq!(message.detections[0].track_id.is_some(), i > 0);
    }
    assert_eq!(of("samclip/yard/red").last().unwrap(), b"0");
    // At the start, and again once a frame was looked at.
    assert_eq!(of("samclip/yard/blue"), [b"0"; 2]);
    let status = of("samclip/yard/status/detect");
    assert_eq!(status.last().unwrap(), b"offline");
}

#[test]
fn the_demo_prints_publishes_and_writes_pictures() {
    let dir = tempfile::tempdir().unwrap();
    tiny::write(dir.path());
    let options = RuntimeOptions {
        backend: Backend::Tract,
        ..RuntimeOptions::default()
    };
    let mut pipeline = Pipeline::open(dir.path(), &options).unwrap();
    let options = DemoOptions {
        queries: vec!["red".into(), "blue".into()],
        out: dir.path().join("out"),
        clip_frames: 3,
        looped: false,
    };
    let mut table = Vec::new();
    demo(
        &mut pipeline,
        &options,
        &SystemClock::new(),
        &AtomicBool::new(false),
        &mut table,
    )
    .unwrap();
    let table = String::from_utf8(table).unwrap();
    for part in [
        "astronaut",
        "clip-02",
        "7 frames",
        "mosquitto_sub",
        "annotated pictures are in",
    ] {
        assert!(table.contains(part), "{part} is missing in\n{table}");
    }
    assert!(
        !table.contains("not published") && !table.contains("not all"),
        "{table}"
    );
    assert_eq!(std::fs::read_dir(dir.path().join("out")).unwrap().count(), 7);
}

#[test]
fn while_an_engine_is_built_every_camera_says_so_and_then_comes_online() {
    let dir = tempfile::tempdir().unwrap();
    tiny::write(dir.path());
    let frames = dir.path().join("frames");
    std::fs::create_dir(&frames).unwrap();
    // Two pictures at a rate: `online` must last, or the next retained value takes its place before it is sent.
    for name in ["0.png", "1.png"] {
        let picture = RgbImage::from_pixel(64, 48, Rgb([230, 20, 20]));
        picture.save(frames.join(name)).unwrap();
    }
    let broker = Broker::start(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    let address = broker.address();
    let text = format!(
        "model = {:?}\n[[camera]]\nid = \"yard\"\nsource = \"dir://{frames}?fps=2\"\n\
         [[camera]]\nid = \"gate\"\nsource = \"dir://{frames}?fps=2\"\n[mqtt]\nhost = \"127.0.0.1\"\nport = {}\n",
        dir.path(),
        address.port(),
        frames = frames.display(),
    );
    let text = format!("state = {:?}\n{text}", dir.path());
    let config = Config::parse(&text, "test.toml".as_ref()).unwrap();
    let options = RuntimeOptions {
        backend: Backend::Tract,
        ..RuntimeOptions::default()
    };
    let messages = std::thread::scope(|scope| {
        let (ready, subscribed) = channel();
        let (said, building) = channel();
        let messages = scope.spawn(move || {
            collect(address, &ready, |topic, body| {
                if topic == "samclip/gate/status/detect" && body == b"building_engine" {
                    said.send(()).unwrap();
                }
                topic == "samclip/available" && body == b"stopped"
            })
        });
        subscribed.recv_timeout(Duration::from_secs(60)).unwrap();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        run_with(
            &config,
            &clock,
            &AtomicBool::new(false),
            Surroundings::new(Notifier::new(None, None)),
            |progress| {
                progress.stage(&Stage::BuildEngine(Some("/cache/engines/x".into())));
                // The build goes on until a subscriber has heard that there is one.
                building.recv_timeout(Duration::from_secs(60)).unwrap();
                Pipeline::open(dir.path(), &options)
            },
        )
        .unwrap();
        messages.join().unwrap()
    });
    for camera in ["yard", "gate"] {
        let topic = format!("samclip/{camera}/status/detect");
        let states: Vec<&[u8]> = messages
            .iter()
            .filter(|m| m.0 == topic)
            .map(|m| m.1.as_slice())
            .collect();
        // Of states that follow each other fast, the last alone may go out.
        assert_eq!(states.first(), Some(&&b"building_engine"[..]), "{camera}");
        assert_eq!(states.last(), Some(&&b"offline"[..]), "{camera}");
        let between = &states[1..states.len() - 1];
        assert!(between.iter().all(|state| state == b"online"), "{camera}: {states:?}");
    }
}

#[test]
fn a_model_that_cannot_be_opened_leaves_the_cameras_offline() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    let address = broker.address();
    let text = format!(
        "state = {0:?}\nmodel = {0:?}\n[[camera]]\nid = \"yard\"\nsource = \"dir://{1}\"\n\
         [mqtt]\nhost = \"127.0.0.1\"\nport = {2}\n",
        dir.path(),
        dir.path().display(),
        address.port(),
    );
    let config = Config::parse(&text, "test.toml".as_ref()).unwrap();
    std::thread::scope(|scope| {
        let (ready, subscribed) = channel();
        let stopped = |topic: &str, body: &[u8]| topic == "samclip/available" && body == b"stopped";
        let messages = scope.spawn(move || collect(address, &ready, stopped));
        subscribed.recv_timeout(Duration::from_secs(60)).unwrap();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let error = run(&config, &clock, &AtomicBool::new(false)).unwrap_err().to_string();
        assert!(error.contains("manifest.toml"), "{error}");
        let messages = messages.join().unwrap();
        let offline = ("samclip/yard/status/detect".to_owned(), b"offline".to_vec());
        assert!(messages.contains(&offline), "{messages:?}");
    });
}
