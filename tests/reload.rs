//! A new configuration for the running daemon, and new texts for it, while its cameras go on.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

mod bus;
mod subscriber;
mod tiny;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bus::{Daemon, PATIENCE, config_text, until, write_model_and_frames};
use samclip::clock::{Clock, SystemClock};
use samclip::daemon::commands::{Answer, Change, Command, Refusal, Reply, Request};
use samclip::daemon::config::Config;
use samclip::daemon::notify::Notifier;
use samclip::daemon::pipeline::Pipeline;
use samclip::daemon::run::{Surroundings, run_with};
use samclip::message::event::{EventKind, EventMessage};
use samclip::message::payload::{DetectStatus, FrameMessage};
use samclip::message::query::QueryMessage;
use samclip::message::topic::{CameraId, QueryId, Topics};
use samclip::publish::broker::Broker;
use samclip::publish::mqtt::{Publisher, Settings};
use samclip::runtime::progress::Stage;
use samclip::runtime::{self, Backend, RuntimeError, RuntimeOptions, TextEncoder};
use subscriber::collect;

const NO_BUS: &str = "[dbus]\nenabled = false\n";

fn mqtt(broker: &Broker) -> String {
    format!(
        "{NO_BUS}[mqtt]\nhost = \"127.0.0.1\"\nport = {}\n",
        broker.address().port()
    )
}

fn broker() -> Broker {
    Broker::start(([127, 0, 0, 1], 0).into()).unwrap()
}

fn snapshot() -> Command {
    Command::Snapshot { camera: "yard".into() }
}

fn asks(id: &str, prompt: &str) -> Command {
    let query = QueryMessage {
        prompts: Some(vec![prompt.into()]),
        min_hits: Some(1),
        ..QueryMessage::default()
    };
    let (id, query) = (id.into(), Box::new(query));
    Command::Ask {
        camera: "yard".into(),
        change: Change::Query { id, query },
    }
}

fn detects(camera: &str, on: bool) -> Command {
    let camera = camera.into();
    Command::SetDetect { camera, on }
}

fn removes(id: &str) -> Command {
    let change = Change::NoQuery { id: id.into() };
    let camera = "yard".into();
    Command::Ask { camera, change }
}

/// What comes of something, which a daemon that stands still would never give.
async fn in_time<T>(asked: impl Future<Output = T>) -> T {
    let answered = tokio::time::timeout(PATIENCE, asked).await;
    answered.expect("an answer while the text encoder works")
}

/// A text encoder that waits to be let through, once it is told to.
struct Slow {
    inner: Box<dyn TextEncoder>,
    slow: Arc<AtomicBool>,
    gate: Arc<Mutex<Receiver<()>>>,
}

impl TextEncoder for Slow {
    fn embed(&mut self, token_ids: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, RuntimeError> {
        if self.slow.load(Ordering::Relaxed) {
            self.gate.lock().unwrap().recv().unwrap();
        }
        self.inner.embed(token_ids)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_go_on_while_a_slow_text_encoder_works_and_commands_keep_their_order() {
    let dir = tempfile::tempdir().unwrap();
    write_model_and_frames(dir.path());
    let text = config_text(dir.path(), NO_BUS);
    let config = Config::parse(&text, "test.toml".as_ref()).unwrap();
    let surroundings = Surroundings::new(Notifier::new(None, None));
    let (door, board) = (surroundings.door(), surroundings.board.clone());
    let (slow, stop) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (open, gate) = channel();
    let (encoder_slow, daemon_stop, model) = (Arc::clone(&slow), Arc::clone(&stop), dir.path().to_owned());
    let daemon = std::thread::spawn(move || {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        run_with(&config, &clock, &daemon_stop, surroundings, |_| {
            let options = RuntimeOptions {
                backend: Backend::Tract,
                ..RuntimeOptions::default()
            };
            let bundle = samclip::contract::Manifest::read(&model).unwrap();
            let mut engine = runtime::open(&bundle, &options).unwrap();
            engine.text = Box::new(Slow {
                inner: engine.text,
                slow: encoder_slow,
                gate: Arc::new(Mutex::new(gate)),
            });
            Pipeline::new(&bundle, engine, None)
        })
        .unwrap();
    });
    let count = |query: &str| {
        board
            .now()
            .cameras
            .get("yard")
            .and_then(|c| c.detections.get(query).copied())
    };
    until("red is seen", || count("red").is_some_and(|c| c.0 == 1));
    slow.store(true, Ordering::Relaxed);
    let blue = tokio::spawn({
        let door = door.clone();
        async move { door.ask(asks("sea", "blue")).await }
    });
    // Each is of a frame that was taken after it was asked for.
    for _ in 0..5 {
        let picture = in_time(door.ask(snapshot())).await;
        assert!(matches!(picture, Ok(Reply::Picture(_))), "{picture:?}");
    }
    assert!(!blue.is_finished() && count("sea").is_none());
    // What takes no time does not wait either; what needs texts waits for its turn.
    let detect = |on| Command::SetDetect {
        camera: "yard".into(),
        on,
    };
    assert_eq!(in_time(door.ask(detect(false))).await, Ok(Reply::Done));
    assert_eq!(in_time(door.ask(detect(true))).await, Ok(Reply::Done));
    let (sender, removed) = tokio::sync::oneshot::channel();
    let remove = removes("sea");
    let answer = Answer::Caller("test", sender);
    door.hand_in(Request {
        command: remove,
        answer,
    })
    .unwrap();
    assert!(matches!(in_time(door.ask(snapshot())).await, Ok(Reply::Picture(_))));
    open.send(()).unwrap();
    assert_eq!(in_time(blue).await.unwrap(), Ok(Reply::Done));
    assert_eq!(in_time(removed).await.unwrap(), Ok(Reply::Done));
    assert!(!board.now().cameras["yard"].queries.contains_key("sea"));

    // The encoder takes the thread with it: whoever waits is told, and frames go on.
    drop(open);
    let refused = in_time(door.ask(asks("meadow", "green"))).await.unwrap_err();
    assert!(
        refused.to_string().contains("the thread that prepares texts has ended"),
        "{refused}"
    );
    assert!(matches!(in_time(door.ask(snapshot())).await, Ok(Reply::Picture(_))));
    stop.store(true, Ordering::Relaxed);
    daemon.join().unwrap();
}

type Messages = Vec<(String, Vec<u8>)>;

/// Collects all messages of a broker while `test` runs, and until `samclip/available` says `stopped`.
fn collected(broker: &Broker, test: impl FnOnce()) -> Messages {
    std::thread::scope(|scope| {
        let (ready, subscribed) = channel();
        let address = broker.address();
        let stopped = |topic: &str, body: &[u8]| topic == "samclip/available" && body == b"stopped";
        let messages = scope.spawn(move || collect(address, &ready, stopped));
        subscribed.recv_timeout(Duration::from_secs(60)).unwrap();
        test();
        messages.join().unwrap()
    })
}

fn of<'a>(messages: &'a Messages, topic: &str) -> Vec<&'a str> {
    let bodies = messages.iter().filter(|m| m.0 == topic);
    bodies.map(|m| std::str::from_utf8(&m.1).unwrap()).collect()
}

/// The text of a camera that shows the pictures of a folder.
fn camera(id: &str, pictures: &Path, options: &str) -> String {
    let pictures = pictures.display();
    format!("[[camera]]\nid = \"{id}\"\nsource = \"dir://{pictures}{options}\"\n")
}

fn reload(daemon: &Daemon, text: &str) -> Result<Reply, Refusal> {
    daemon.write(text);
    daemon.ask(Command::Reload)
}

#[test]
fn queries_zones_and_cameras_change_while_the_other_cameras_stream_on() {
    let dir = tempfile::tempdir().unwrap();
    write_model_and_frames(dir.path());
    let broker = broker();
    let text = |rest: &str| config_text(dir.path(), &format!("{rest}\n{}", mqtt(&broker)));
    let zone = "[[camera.zone]]\nid = \"bay\"\npolygon = [[0, 0], [1, 0], [1, 1], [0, 1]]\n";
    let sea = "[[query]]\nid = \"sea\"\nprompts = [\"blue\"]\nmin_hits = 1\nzones = [\"bay\"]\n";
    let gate = format!("{}{zone}", camera("gate", &dir.path().join("frames"), "?fps=20&loop"));
    let messages = collected(&broker, || {
        let daemon = Daemon::start(dir.path(), &text(""));
        until("red is seen", || daemon.count("yard", "red") == Some(1));
        // The zone is of the camera above, the query that wants it is in both.
        let more = text(&format!("{sea}{gate}")).replace(
            "[[query]]\nid = \"red\"",
            &format!("{zone}[[query]]\nid = \"red\"\nthreshold = 0.4"),
        );
        assert_eq!(reload(&daemon, &more), Ok(Reply::Done));
        until("the new query and the new camera", || {
            daemon.count("yard", "sea") == Some(1) && daemon.count("gate", "sea") == Some(1)
        });
        let red = daemon.board.now().cameras["yard"].queries["red"].clone();
        assert_eq!(red.threshold, Some(0.4));

        for (bad, expected) in [
            ("no TOML", "samclipd.toml:1: "),
            (
                &more.replace("min_hits = 1", "min_hits = 0"),
                "min_hits is 0, expected 1 to 1000",
            ),
            (&more.replace("dir://", "dirr://"), "expected v4l2:///dev/video0"),
            (
                &more.replace("[mqtt]", "[mqtt]\ncredentials = \"/nonexistent\""),
                "/nonexistent: ",
            ),
            (
                &more.replace("[mqtt]", "[mqtt.tls]\nca = \"/dev/null\"\n[mqtt]"),
                "mqtt tls: ",
            ),
            (
                &more.replace("[\"blue\"]", "[\"zebra\"]"),
                "query \"sea\": text embeddings of 80 templates",
            ),
            (
                &more.replace("model =", "model = \"other\" #"),
                "model differs from what the daemon was started with",
            ),
        ] {
            let refused = reload(&daemon, bad).unwrap_err();
            assert!(
                matches!(&refused, Refusal::Failed(text) if text.contains(expected)),
                "{expected}: {refused}"
            );
        }
        std::fs::remove_file(&daemon.file).unwrap();
        let refused = daemon.ask(Command::Reload).unwrap_err().to_string();
        assert!(refused.contains("No such file"), "{refused}");
        assert_eq!(daemon.count("gate", "sea"), Some(1));

        let less = text(sea).replace("[[query]]\nid = \"red\"\n", zone);
        assert_eq!(reload(&daemon, &less), Ok(Reply::Done));
        until("gate and red are gone", || {
            let state = daemon.board.now();
            !state.cameras.contains_key("gate") && !state.cameras["yard"].queries.contains_key("red")
        });
        until("the sea is still seen", || daemon.count("yard", "sea") == Some(1));
        // A frame of the last configuration.
        assert!(matches!(daemon.ask(snapshot()), Ok(Reply::Picture(_))));
    });
    let frames = messages.iter().filter(|m| m.0 == "samclip/yard/frame");
    let numbers: Vec<u64> = frames.map(|m| FrameMessage::decode(&m.1).unwrap().seq).collect();
    assert!(numbers.len() > 3 && numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
    assert_eq!(
        of(&messages, "samclip/yard/status/detect"),
        ["offline", "online", "offline"]
    );
    assert_eq!(of(&messages, "samclip/available"), ["online", "stopped"]);
    for topic in [
        "gate/status/detect",
        "gate/sea",
        "gate/query/sea/state",
        "gate/detect/state",
        "yard/red",
        "yard/query/red/state",
    ] {
        let bodies = of(&messages, &format!("samclip/{topic}"));
        assert!(bodies.len() > 1 && bodies.last() == Some(&""), "{topic}: {bodies:?}");
    }
}

#[test]
fn another_broker_hears_everything_and_the_old_one_a_goodbye() {
    let dir = tempfile::tempdir().unwrap();
    write_model_and_frames(dir.path());
    let (first, second) = (broker(), broker());
    let text = |broker: &Broker| config_text(dir.path(), &mqtt(broker));
    let later = collected(&second, || {
        let daemon = std::cell::OnceCell::new();
        let earlier = collected(&first, || {
            let daemon = daemon.get_or_init(|| Daemon::start(dir.path(), &text(&first)));
            until("red is seen", || daemon.count("yard", "red") == Some(1));
            assert_eq!(reload(daemon, &text(&second)), Ok(Reply::Done));
        });
        assert_eq!(of(&earlier, "samclip/available"), ["online", "stopped"]);
        assert_eq!(of(&earlier, "samclip/yard/red").last(), Some(&"1"));
    });
    assert_eq!(of(&later, "samclip/available"), ["online", "stopped"]);
    assert_eq!(of(&later, "samclip/yard/status/detect"), ["online", "offline"]);
    assert_eq!(of(&later, "samclip/yard/detect/state"), ["ON"]);
    assert_eq!(of(&later, "samclip/yard/red").first(), Some(&"1"));
    assert!(!of(&later, "samclip/yard/query/red/state").is_empty());
}

#[test]
fn what_was_changed_live_goes_before_the_new_file_as_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    write_model_and_frames(dir.path());
    // Live changes hold where there is a door for them, even if nobody is behind it.
    let door = "[dbus]\nbus = \"unix:path=/nonexistent\"\n";
    let queries = |daemon: &Daemon| {
        let state = daemon.board.now();
        state.cameras["yard"].queries.keys().cloned().collect::<Vec<_>>()
    };
    let text = |rest: &str| config_text(dir.path(), &format!("{rest}{door}"));
    let more = text("threshold = 0.3\n[[query]]\nid = \"green\"\n");
    {
        let daemon = Daemon::start(dir.path(), &text(""));
        until("red is seen", || daemon.count("yard", "red") == Some(1));
        assert_eq!(daemon.ask(asks("sea", "blue")), Ok(Reply::Done));
        let remove = removes("red");
        assert_eq!(daemon.ask(remove), Ok(Reply::Done));
        assert_eq!(reload(&daemon, &more), Ok(Reply::Done));
        assert_eq!(queries(&daemon), ["green", "sea"]);
    }
    let daemon = Daemon::start(dir.path(), &more);
    until("the sea is seen", || daemon.count("yard", "sea") == Some(1));
    assert_eq!(queries(&daemon), ["green", "sea"]);
    // Without any door nobody could take the changes back.
    drop(daemon);
    let daemon = Daemon::start(dir.path(), &more.replace(door, NO_BUS));
    until("red is seen", || daemon.count("yard", "red") == Some(1));
    assert_eq!(queries(&daemon), ["green", "red"]);
}

#[test]
fn a_reload_that_closes_the_only_door_switches_on_what_was_switched_off_through_it() {
    let dir = tempfile::tempdir().unwrap();
    write_model_and_frames(dir.path());
    let broker = broker();
    let open = config_text(dir.path(), &mqtt(&broker));
    let daemon = Daemon::start(dir.path(), &open);
    until("red is seen", || daemon.count("yard", "red") == Some(1));
    assert_eq!(daemon.ask(detects("yard", false)), Ok(Reply::Done));
    assert_eq!(daemon.count("yard", "red"), Some(0));
    let closed = open.replace("[mqtt]\n", "[mqtt]\ncommands = false\n");
    assert_eq!(reload(&daemon, &closed), Ok(Reply::Done));
    assert!(daemon.board.now().cameras["yard"].detect);
    until("red is seen again", || daemon.count("yard", "red") == Some(1));
}

#[test]
fn things_end_by_the_words_they_were_found_by_and_an_empty_mask_is_the_last() {
    let dir = tempfile::tempdir().unwrap();
    write_model_and_frames(dir.path());
    let broker = broker();
    let text = config_text(dir.path(), &format!("[output]\nmask = true\n{}", mqtt(&broker)));
    let messages = collected(&broker, || {
        let daemon = Daemon::start(dir.path(), &text);
        until("red is seen", || daemon.count("yard", "red") == Some(1));
        assert_eq!(daemon.ask(asks("red", "blue")), Ok(Reply::Done));
        until("blue is seen", || daemon.count("yard", "red") == Some(1));
        assert_eq!(daemon.ask(removes("red")), Ok(Reply::Done));
    });
    let events = messages.iter().filter(|m| m.0 == "samclip/events");
    let events: Vec<EventMessage> = events.map(|m| EventMessage::decode(&m.1).unwrap()).collect();
    let ends = events.iter().filter(|event| event.kind == EventKind::End);
    let words: Vec<[&str; 2]> = ends
        .map(|end| [&end.before, &end.after].map(|thing| thing.x_mask.prompt.as_str()))
        .collect();
    assert_eq!(words, [["red"; 2], ["blue"; 2]]);
    let masks = messages.iter().filter(|m| m.0 == "samclip/yard/red/mask");
    let shows = |body: &[u8]| {
        let mask = image::load_from_memory(body).unwrap().into_luma8();
        assert_eq!(mask.dimensions(), (131, 97));
        mask.pixels().any(|pixel| pixel.0[0] > 0)
    };
    let shows: Vec<bool> = masks.map(|m| shows(&m.1)).collect();
    assert!(shows[0] && !shows[shows.len() - 1], "{shows:?}");
}

#[test]
fn a_clip_stays_where_it_is_while_detection_is_off() {
    let dir = tempfile::tempdir().unwrap();
    write_model_and_frames(dir.path());
    let pictures = dir.path().join("clip");
    std::fs::create_dir(&pictures).unwrap();
    let picture = image::RgbImage::from_pixel(16, 16, image::Rgb([20, 20, 230]));
    for i in 0..1_000 {
        picture.save(pictures.join(format!("{i:03}.png"))).unwrap();
    }
    let clip = format!("{}{NO_BUS}", camera("clip", &pictures, ""));
    let daemon = Daemon::start(dir.path(), &config_text(dir.path(), &clip));
    let status = || daemon.board.now().cameras.get("clip")?.status;
    until("the clip plays", || status() == Some(DetectStatus::Online));
    assert_eq!(daemon.ask(detects("clip", false)), Ok(Reply::Done));
    // Longer than its pictures take that nobody looks at.
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(status(), Some(DetectStatus::Disabled));
    assert_eq!(daemon.ask(detects("clip", true)), Ok(Reply::Done));
    until("the clip plays on", || status() == Some(DetectStatus::Online));
}

#[test]
fn another_clip_does_not_make_a_camera_offline_whose_detection_is_off() {
    let dir = tempfile::tempdir().unwrap();
    write_model_and_frames(dir.path());
    let frames = dir.path().join("frames");
    let broker = broker();
    let text = |options: &str| {
        let clip = camera("clip", &frames, options);
        config_text(dir.path(), &format!("{clip}{}", mqtt(&broker)))
    };
    let daemon = Daemon::start(dir.path(), &text("?loop"));
    let status = || daemon.board.now().cameras.get("clip")?.status;
    until("the clip plays", || status() == Some(DetectStatus::Online));
    assert_eq!(daemon.ask(detects("clip", false)), Ok(Reply::Done));
    assert_eq!(reload(&daemon, &text("")), Ok(Reply::Done));
    assert_eq!(status(), Some(DetectStatus::Disabled));
}

#[test]
fn a_source_that_hangs_gives_way_to_another_one() {
    let dir = tempfile::tempdir().unwrap();
    write_model_and_frames(dir.path());
    // Opening it waits for a writer.
    let pipe = dir.path().join("pipe.y4m");
    assert!(
        std::process::Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    let hangs = format!(
        "[[camera]]\nid = \"clip\"\nsource = \"file://{}\"\n{NO_BUS}",
        pipe.display()
    );
    let shows = format!("{}{NO_BUS}", camera("clip", &dir.path().join("frames"), "?loop"));
    let daemon = Daemon::start(dir.path(), &config_text(dir.path(), &hangs));
    until("red is seen", || daemon.count("yard", "red") == Some(1));
    assert_eq!(reload(&daemon, &config_text(dir.path(), &shows)), Ok(Reply::Done));
    let status = || daemon.board.now().cameras.get("clip")?.status;
    until("the other source plays", || status() == Some(DetectStatus::Online));
}

#[test]
fn what_a_broker_keeps_from_before_does_not_hold_while_the_model_opens() {
    let dir = tempfile::tempdir().unwrap();
    write_model_and_frames(dir.path());
    let broker = broker();
    let topics = Topics::new("samclip").unwrap();
    let (yard, red) = (CameraId::new("yard").unwrap(), QueryId::new("red").unwrap());
    let (count, status) = (topics.count(&yard, &red), topics.detect_status(&yard));
    // A run that a power cut ended.
    let before = Settings::new("127.0.0.1", broker.address().port(), "before", topics.available());
    let before = Publisher::start(before).unwrap();
    before.publish(count.clone(), b"1".to_vec());
    before.publish(status.clone(), b"online".to_vec());
    assert!(before.wait_connected(PATIENCE) && before.wait_sent(PATIENCE));
    drop(before);
    let (ready, _listens) = channel();
    let until_kept = |counted: &[u8], said: &[u8]| {
        let (mut last_count, mut last_status) = (Vec::new(), Vec::new());
        collect(broker.address(), &ready, |topic, payload| {
            if topic == count.name {
                last_count = payload.to_vec();
            } else if topic == status.name {
                last_status = payload.to_vec();
            }
            (&*last_count, &*last_status) == (counted, said)
        });
    };
    let config = Config::parse(&config_text(dir.path(), &mqtt(&broker)), "test.toml".as_ref()).unwrap();
    let (clock, stop): (Arc<dyn Clock>, _) = (Arc::new(SystemClock::new()), AtomicBool::new(false));
    let surroundings = Surroundings::new(Notifier::new(None, None));
    let ended = run_with(&config, &clock, &stop, surroundings, |progress| {
        until_kept(b"0", b"offline");
        progress.stage(&Stage::BuildEngine(None));
        until_kept(b"0", b"building_engine");
        progress.stage(&Stage::EmbedTexts);
        until_kept(b"0", b"offline");
        Err(RuntimeError::Cancelled {
            path: dir.path().into(),
        }
        .into())
    });
    assert!(ended.is_err());
}

#[test]
fn detection_that_is_switched_on_again_does_not_bring_a_camera_back() {
    let dir = tempfile::tempdir().unwrap();
    write_model_and_frames(dir.path());
    let clip = format!("{}{NO_BUS}", camera("clip", &dir.path().join("frames"), ""));
    let daemon = Daemon::start(dir.path(), &config_text(dir.path(), &clip));
    let status = || daemon.board.now().cameras.get("clip")?.status;
    until("the clip has ended", || status() == Some(DetectStatus::Offline));
    for (on, expected) in [(false, DetectStatus::Disabled), (true, DetectStatus::Offline)] {
        assert_eq!(daemon.ask(detects("clip", on)), Ok(Reply::Done));
        assert_eq!(status(), Some(expected));
    }
}

#[test]
fn another_source_is_opened_and_what_was_seen_in_the_old_one_ends() {
    let dir = tempfile::tempdir().unwrap();
    write_model_and_frames(dir.path());
    let blue = dir.path().join("blue");
    std::fs::create_dir(&blue).unwrap();
    image::RgbImage::from_pixel(64, 48, image::Rgb([20, 20, 230]))
        .save(blue.join("0.png"))
        .unwrap();
    let text = config_text(dir.path(), &format!("[[query]]\nid = \"blue\"\n{NO_BUS}"));
    let daemon = Daemon::start(dir.path(), &text);
    until("red is seen", || daemon.count("yard", "red") == Some(1));
    daemon.write(&text.replace("/frames?", "/blue?"));
    daemon.hangup.store(true, Ordering::Relaxed);
    until("blue alone is seen", || {
        daemon.board.now().cameras["yard"].source.contains("/blue?")
            && daemon.count("yard", "red") == Some(0)
            && daemon.count("yard", "blue") == Some(1)
    });
}
