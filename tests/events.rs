//! Tracks, zones, counts, snapshots, masks and events of a running daemon, as a subscriber sees them.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

mod subscriber;
mod tiny;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

use image::{Rgb, RgbImage};
use samclip::clock::{Clock, SystemClock};
use samclip::daemon::config::Config;
use samclip::daemon::run::run;
use samclip::message::event::{EVENT_SCHEMA, EventKind, EventMessage};
use samclip::message::payload::FrameMessage;
use samclip::publish::broker::Broker;
use subscriber::collect;

/// Pictures of a red bar on yellow at these columns, 131 by 97 pixels.
fn frames(dir: &Path, columns: &[u32]) {
    std::fs::create_dir_all(dir).unwrap();
    for (i, left) in columns.iter().enumerate() {
        let picture = RgbImage::from_fn(131, 97, |x, _| {
            if (*left..*left + 50).contains(&x) {
                Rgb([230, 20, 20])
            } else {
                Rgb([230, 230, 20])
            }
        });
        picture.save(dir.join(format!("{i:03}.png"))).unwrap();
    }
}

/// Stops the daemon when it is dropped, also by a panic: whoever listens has heard enough, or waits no longer.
struct Stops<'a>(&'a AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs the daemon on a configuration that ends with `[mqtt]`; stops it when `enough` says so.
fn watch(
    dir: &Path,
    source: &str,
    rest: &str,
    mut enough: impl FnMut(&str, &[u8]) -> bool + Send,
) -> Vec<(String, Vec<u8>)> {
    tiny::write(dir);
    let broker = Broker::start(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    let address = broker.address();
    let text = format!(
        "model = {dir:?}\nstate = {:?}\n[runtime]\nengine = \"tract\"\n[[camera]]\nid = \"yard\"\nsource = \"dir://{}/{source}\"\n\
         {rest}\n[mqtt]\nhost = \"127.0.0.1\"\nport = {}\nonvif = \"samclip\"\n",
        dir.join("state"),
        dir.display(),
        address.port()
    );
    let config = Config::parse(&text, "test.toml".as_ref()).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (ready, subscribed) = channel();
        let stop = &stop;
        let messages = scope.spawn(move || {
            let _ended = Stops(stop);
            collect(address, &ready, |topic, body| {
                if enough(topic, body) {
                    stop.store(true, Ordering::Relaxed);
                }
                topic == "samclip/available" && body == b"stopped"
            })
        });
        subscribed.recv_timeout(Duration::from_secs(60)).unwrap();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        run(&config, &clock, stop).unwrap();
        messages.join().unwrap()
    })
}

fn bodies<'a>(messages: &'a [(String, Vec<u8>)], topic: &str) -> Vec<&'a [u8]> {
    messages
        .iter()
        .filter(|m| m.0 == topic)
        .map(|m| m.1.as_slice())
        .collect()
}

fn events(messages: &[(String, Vec<u8>)]) -> Vec<EventMessage> {
    let schema = jsonschema::draft202012::new(&serde_json::from_str(EVENT_SCHEMA).unwrap()).unwrap();
    let decode = |body: &[u8]| {
        assert!(schema.is_valid(&serde_json::from_slice(body).unwrap()));
        EventMessage::decode(body).unwrap()
    };
    bodies(messages, "samclip/events").into_iter().map(decode).collect()
}

#[test]
fn a_thing_that_crosses_the_picture_is_one_track_from_new_to_end() {
    let dir = tempfile::tempdir().unwrap();
    frames(&dir.path().join("frames"), &[0, 12, 24, 36, 48, 60, 72]);
    let zone = "[[camera.zone]]\nid = \"right\"\npolygon = [[0.6, 0], [1, 0], [1, 1], [0.6, 1]]\n\
                [[query]]\nid = \"red\"\ncolor = \"#00ff00\"\n[[query]]\nid = \"blue\"\n[output]\nmask = true";
    let messages = watch(dir.path(), "frames", zone, |_, _| false);
    let events = events(&messages);
    let ids: std::collections::BTreeSet<&str> = events.iter().map(|e| e.after.id.as_str()).collect();
    assert_eq!(ids.len(), 1, "{events:?}");
    assert_eq!(events.first().unwrap().kind, EventKind::New);
    let end = events.last().unwrap();
    assert_eq!(
        (end.kind, end.after.entered_zones.as_slice()),
        (EventKind::End, &["right".to_owned()][..])
    );
    assert!(end.after.end_time.unwrap() >= end.after.start_time && end.before.end_time.is_none());
    assert!(
        events.windows(2).all(|pair| pair[1].before == pair[0].after),
        "before is the previous after"
    );
    let frames: Vec<FrameMessage> = bodies(&messages, "samclip/yard/frame")
        .into_iter()
        .map(|body| FrameMessage::decode(body).unwrap())
        .collect();
    let tracked: Vec<_> = frames.iter().map(|f| f.detections[0].track_id.as_deref()).collect();
    assert_eq!(tracked[0], None);
    assert!(
        tracked[1..]
            .iter()
            .all(|id| id.is_some() && *id == Some(end.after.id.as_str())),
        "{tracked:?}"
    );
    assert_eq!(frames[0].detections[0].zones, Vec::<String>::new());
    assert_eq!(frames[6].detections[0].zones, ["right"]);
    // The same as ONVIF metadata.
    let metadata = bodies(&messages, "samclip/onvif-mj/VideoAnalytics/yard/samclip");
    assert_eq!(metadata.len(), 7);
    let metadata: serde_json::Value = serde_json::from_slice(metadata[6]).unwrap();
    let object = &metadata["Frame"][0]["Object"][0];
    let number = u32::from_str_radix(end.after.id.rsplit('-').next().unwrap(), 16).unwrap();
    assert_eq!(object["@ObjectId"], number);
    assert_eq!(metadata["Frame"][0]["@UtcTime"], frames[6].timestamp);
    // The snapshot is a JPEG of the frame in the query's colour, the mask a 1-bit PNG of its size.
    let snapshot = image::load_from_memory(bodies(&messages, "samclip/yard/red/snapshot")[0])
        .unwrap()
        .into_rgb8();
    assert_eq!(snapshot.dimensions(), (131, 97));
    let greener = |p: &&Rgb<u8>| p[1] > p[0].saturating_add(60);
    assert!(snapshot.pixels().filter(greener).count() > 100);
    let masks = bodies(&messages, "samclip/yard/red/mask");
    assert_eq!(masks.len(), 7 + 1, "an empty one comes at the end");
    let last = image::load_from_memory(masks[7]).unwrap().into_luma8();
    assert!(last.dimensions() == (131, 97) && last.pixels().all(|p| p[0] == 0));
    let mask = image::load_from_memory(masks[0]).unwrap().into_luma8();
    assert_eq!(
        mask.pixels().filter(|p| p[0] == 255).count() as u64,
        frames[0].detections[0].area
    );
    assert!(bodies(&messages, "samclip/yard/blue/mask").is_empty());
    assert_eq!(bodies(&messages, "samclip/yard/red").last().unwrap(), b"0");
}

#[test]
fn a_clean_stop_ends_all_things_and_their_counts() {
    let dir = tempfile::tempdir().unwrap();
    frames(&dir.path().join("frames"), &[40]);
    let query = "[[query]]\nid = \"red\"\n[output]\nrate = 0.01\n[events]\nstationary = 0.5";
    let messages = watch(dir.path(), "frames?fps=20&loop", query, |topic, body| {
        let active = topic == "samclip/yard/red/active";
        STARTED.fetch_or(active && body == b"1", Ordering::Relaxed) && active && body == b"0"
    });
    let kinds: Vec<_> = events(&messages).iter().map(|e| (e.kind, e.after.stationary)).collect();
    assert_eq!(
        kinds,
        [
            (EventKind::New, false),
            (EventKind::Update, true),
            (EventKind::End, true)
        ]
    );
    assert_eq!(bodies(&messages, "samclip/yard/red").last().unwrap(), b"0");
    assert!(bodies(&messages, "samclip/yard/red").contains(&&b"1"[..]));
    assert_eq!(
        bodies(&messages, "samclip/yard/frame").len(),
        1,
        "the rate bounds frame messages"
    );
    assert_eq!(
        bodies(&messages, "samclip/yard/status/detect").last().unwrap(),
        b"offline"
    );
}

/// Whether something was seen to move: the `active` count is 0 before, too.
static STARTED: AtomicBool = AtomicBool::new(false);

#[test]
fn a_camera_that_goes_away_ends_its_things() {
    let dir = tempfile::tempdir().unwrap();
    frames(&dir.path().join("frames"), &[40, 40, 40]);
    let query = "[[query]]\nid = \"red\"\nmax_age = 1000\n[[camera]]\nid = \"gate\"\n\
                 source = \"dir:///nowhere\"";
    let messages = watch(dir.path(), "frames", query, |topic, body| {
        topic == "samclip/events" && EventMessage::decode(body).unwrap().kind == EventKind::End
    });
    let kinds: Vec<_> = events(&messages).iter().map(|e| e.kind).collect();
    assert_eq!(
        kinds,
        [EventKind::New, EventKind::End],
        "the daemon ran on for its other camera"
    );
    assert_eq!(bodies(&messages, "samclip/gate/status/detect"), [b"offline"; 2]);
}

#[test]
fn areas_and_zones_of_a_query_keep_what_does_not_fit_quiet() {
    let dir = tempfile::tempdir().unwrap();
    frames(&dir.path().join("frames"), &[0, 0, 0, 0]);
    for rest in [
        "[[query]]\nid = \"red\"\nmin_area = 100\nmax_area = 900",
        "[[camera.zone]]\nid = \"right\"\npolygon = [[70, 0], [131, 0], [131, 97]]\nunits = \"pixel\"\n\
         [[query]]\nid = \"red\"\nzones = [\"right\"]",
    ] {
        let messages = watch(dir.path(), "frames", rest, |_, _| false);
        assert!(events(&messages).is_empty());
        assert_eq!(bodies(&messages, "samclip/yard/red"), [b"0"; 2]);
        assert_eq!(bodies(&messages, "samclip/yard/frame").len(), 4);
    }
}
