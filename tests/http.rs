//! The daemon over HTTP: page, state, commands, who may do what, pictures, metrics, health, and clients that misbehave.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

mod bus;
mod http_client;
mod tiny;

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bus::{Daemon, config_text, until, write_model_and_frames};
use http_client::{Answer, ask, free_address, get, post, request};
use samclip::clock::{Clock, SystemClock};
use samclip::contract::Manifest;
use samclip::daemon::config::Config;
use samclip::daemon::notify::Notifier;
use samclip::daemon::pipeline::Pipeline;
use samclip::daemon::run::{Surroundings, run_with};
use samclip::runtime::{self, Backend, ImageEncoder, RuntimeError, RuntimeOptions};
use samclip::vision::features::Features;
use serde_json::{Value, json};

const TOKEN: &str = "correct-horse-battery-staple";
const RED: &str = "/api/cameras/yard/queries/red";
const SEA: &str = "/api/cameras/yard/queries/sea";
const PICTURE: &str = "/api/cameras/yard/picture";

fn settings(address: SocketAddr, more: &str) -> String {
    format!("[dbus]\nenabled = false\n[http]\nlisten = \"{address}\"\n{more}")
}

/// A daemon with a page, whose camera gives frames.
struct Scene {
    address: SocketAddr,
    daemon: Daemon,
    dir: tempfile::TempDir,
}

impl Scene {
    fn new(more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        write_model_and_frames(dir.path());
        std::fs::write(dir.path().join("token"), TOKEN).unwrap();
        let more = more.replace("DIR", &dir.path().display().to_string());
        let address = free_address();
        let daemon = Daemon::start(dir.path(), &config_text(dir.path(), &settings(address, &more)));
        until("a thing is there", || daemon.count("yard", "red") == Some(1));
        Self { address, daemon, dir }
    }

    fn state(&self) -> Value {
        get(self.address, "/api/state").json()
    }

    fn red(&self) -> Value {
        self.state()["cameras"]["yard"]["queries"]["red"].clone()
    }
}

#[test]
fn the_page_and_its_parts_come_from_the_program_and_from_nowhere_else() {
    let scene = Scene::new("");
    for (path, kind, part) in [
        ("/", "text/html; charset=utf-8", "<meta name=\"viewport\""),
        ("/page.css", "text/css; charset=utf-8", "prefers-color-scheme: dark"),
        ("/page.js", "text/javascript; charset=utf-8", "textContent"),
        ("/icon.svg", "image/svg+xml", "<svg"),
    ] {
        let answer = get(scene.address, path);
        assert_eq!(
            (answer.status, answer.header("content-type")),
            (200, Some(kind)),
            "{path}"
        );
        let text = answer.text();
        assert!(text.contains(part), "{path}");
        let outside = text.replace("http://www.w3.org/2000/svg", "");
        assert!(!outside.contains("http://") && !outside.contains("https://"), "{path}");
        for never in [
            "innerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            " onclick=",
            "<style",
        ] {
            assert!(!text.contains(never), "{never} in {path}");
        }
        let policy = answer.header("content-security-policy").unwrap();
        assert!(policy.starts_with("default-src 'none'; script-src 'self';") && !policy.contains("unsafe"));
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
    }
    assert_eq!(get(scene.address, "/page/page.html").status, 404);
    assert_eq!(ask(scene.address, "DELETE", "/api/state", &[], "").status, 415);
    assert_eq!(post(scene.address, "/api/state", "{}").status, 405);
}

#[test]
fn the_state_says_what_is_seen_and_commands_change_it() {
    let scene = Scene::new("");
    let state = scene.state();
    assert_eq!(
        (&state["state"], &state["provider"]),
        (&json!("running"), &json!("tract-cpu"))
    );
    assert!(state["memory_bytes"].as_u64().unwrap() > 1 << 20);
    let yard = &state["cameras"]["yard"];
    assert_eq!((&yard["status"], &yard["detect"]), (&json!("online"), &json!(true)));
    assert_eq!(yard["frame"]["size"], json!([131, 97]));
    assert!(yard["frame"]["stage_ms"]["encoder"].as_f64().is_some(), "{yard}");
    let red = &yard["queries"]["red"];
    assert!(red["score"].as_f64().unwrap() > 0.9, "{red}");
    assert_eq!((&red["there"], &red["query"]["source"]), (&json!(1), &json!("config")));
    assert_eq!(red["color"], json!("#e6194b"));

    let body = r##"{"prompts": ["blue"], "min_hits": 1, "color": "#102030"}"##;
    assert_eq!(post(scene.address, SEA, body).expect(200), json!({"done": true}));
    until("blue is seen", || {
        scene.state()["cameras"]["yard"]["queries"]["sea"]["there"] == json!(1)
    });
    let sea = scene.state()["cameras"]["yard"]["queries"]["sea"].clone();
    assert_eq!(
        (&sea["color"], &sea["query"]["source"]),
        (&json!("#102030"), &json!("live"))
    );

    // What the state says can be sent back with another threshold.
    let mut red = scene.red()["query"].clone();
    red["threshold"] = json!(0.999);
    post(scene.address, RED, &red.to_string()).expect(200);
    assert_eq!(scene.red()["threshold"], json!(0.999));

    post(scene.address, &format!("{SEA}/remove"), "{}").expect(200);
    assert_eq!(scene.state()["cameras"]["yard"]["queries"]["sea"], Value::Null);

    post(scene.address, "/api/cameras/yard/detect", r#"{"on": false}"#).expect(200);
    assert_eq!(scene.state()["cameras"]["yard"]["detect"], json!(false));
    let refused = get(scene.address, PICTURE).expect(409);
    assert_eq!(
        refused["error"],
        "no picture: detection of this camera is off; switch it on first"
    );
    assert_eq!(get(scene.address, "/healthz").expect(200)["status"], "disabled");
    post(scene.address, "/api/cameras/yard/detect", r#"{"on": true}"#).expect(200);

    post(scene.address, "/api/cameras/yard/background", r#"["green"]"#).expect(200);
    assert_eq!(scene.state()["cameras"]["yard"]["background"], json!(["green"]));
    post(scene.address, "/api/cameras/yard/background", "null").expect(200);
    assert_eq!(scene.state()["cameras"]["yard"]["background"], json!([]));

    let file = std::fs::read_to_string(&scene.daemon.file).unwrap();
    scene.daemon.write(&format!("{file}\n[[query]]\nid = \"yellow\"\n"));
    post(scene.address, "/api/reload", "{}").expect(200);
    assert!(scene.state()["cameras"]["yard"]["queries"]["yellow"].is_object());
    scene.daemon.write("model = 7");
    let refused = post(scene.address, "/api/reload", "{}").expect(409);
    assert!(
        refused["error"].as_str().unwrap().contains("samclipd.toml:1"),
        "{refused}"
    );
}

#[test]
fn a_bad_request_gets_one_clear_error_and_changes_nothing() {
    let scene = Scene::new("");
    let before = scene.state()["cameras"]["yard"]["queries"]["red"]["query"].clone();
    let detect = "/api/cameras/yard/detect";
    let removed = "/api/cameras/yard/queries/nothing/remove";
    for (path, body, status, error) in [
        (RED, "{", 400, "body: EOF while parsing"),
        (
            RED,
            r#"{"prompt": "red"}"#,
            400,
            "body: unknown field `prompt`, expected one of",
        ),
        (
            RED,
            r#"{"threshold": 2}"#,
            400,
            "threshold is 2, expected a number between 0 and 1",
        ),
        (
            RED,
            r#"{"zones": ["moon"]}"#,
            400,
            "zone \"moon\" found, expected one of this camera's: none",
        ),
        (
            RED,
            r#"{"prompts": ["zebra"]}"#,
            400,
            "query \"red\": text embeddings of 80 templates have no usable mean",
        ),
        (
            "/api/cameras/yard/queries/Rot",
            "{}",
            400,
            "query id \"Rot\": expected 1 to 64 characters",
        ),
        (
            "/api/cameras/yard/queries/%2e%2e",
            "{}",
            400,
            "query id \"..\": expected 1 to 64 characters",
        ),
        (removed, "{}", 400, "no query \"nothing\" to delete"),
        (removed, r#"{"all": true}"#, 400, "body: unknown field `all`"),
        (
            "/api/cameras/moon/queries/red",
            "{}",
            404,
            "no camera \"moon\", expected one of: yard",
        ),
        (
            detect,
            r#"{"on": 1}"#,
            400,
            "body: invalid type: integer `1`, expected a boolean",
        ),
        (detect, "", 400, "body: EOF while parsing"),
        (
            "/api/cameras/yard/background",
            "[]",
            400,
            "0 texts found, expected 1 to 256",
        ),
        ("/api/cameras/yard", "{}", 404, "nothing is here; / is the page"),
    ] {
        let answer = post(scene.address, path, body).expect(status);
        let found = answer["error"].as_str().unwrap();
        assert!(found.starts_with(error), "{path} {body}: {found}");
    }
    let long = format!("{{\"prompts\": [\"{}\"]}}", "x".repeat(70_000));
    let answer = post(scene.address, RED, &long).expect(413);
    assert_eq!(
        answer["error"],
        "the body is longer than 65536 bytes, which is the most"
    );
    assert_eq!(get(scene.address, "/api/cameras/moon/picture").status, 404);
    assert_eq!(scene.red()["query"], before);
    assert_eq!(scene.state()["cameras"]["yard"]["detect"], json!(true));
}

#[test]
fn other_names_other_pages_and_forms_are_refused() {
    let scene = Scene::new("");
    let address = scene.address;
    let own = format!("http://{address}");
    let json = ("Content-Type", "application/json");
    assert_eq!(ask(address, "POST", RED, &[json, ("Origin", &own)], "{}").status, 200);
    for (status, headers) in [
        (403, &[json, ("Origin", "http://evil.example")][..]),
        (403, &[json, ("Origin", "null")]),
        (403, &[json, ("Sec-Fetch-Site", "cross-site")]),
        (
            415,
            &[("Content-Type", "application/x-www-form-urlencoded"), ("Origin", &own)],
        ),
        (415, &[("Content-Type", "text/plain")]),
        (421, &[json, ("Host", "evil.example")]),
        (
            421,
            &[json, ("Host", "evil.example"), ("Origin", "http://evil.example")],
        ),
    ] {
        let answer = ask(address, "POST", RED, headers, r#"{"threshold": 0.123}"#);
        assert_eq!(answer.status, status, "{headers:?}: {}", answer.text());
    }
    assert_eq!(scene.red()["query"]["threshold"], Value::Null);
    for path in ["/", "/api/state", "/metrics", "/healthz", PICTURE] {
        assert_eq!(
            ask(address, "GET", path, &[("Host", "evil.example")], "").status,
            421,
            "{path}"
        );
    }
    assert_eq!(
        ask(address, "GET", PICTURE, &[("Sec-Fetch-Site", "cross-site")], "").status,
        403
    );
}

#[test]
fn with_a_token_file_everything_but_health_needs_the_token() {
    let scene = Scene::new("token_file = \"DIR/token\"\n");
    let address = scene.address;
    for path in [
        "/",
        "/?token=wrong",
        "/page.js",
        "/api/state",
        "/metrics",
        PICTURE,
        "/elsewhere",
    ] {
        let answer = get(address, path);
        assert_eq!(answer.status, 401, "{path}");
        assert!(!answer.text().contains("yard") && !answer.text().contains(TOKEN));
    }
    assert_eq!(
        post(address, "/api/cameras/yard/detect", r#"{"on": false}"#).status,
        401
    );
    let health = get(address, "/healthz").expect(200);
    assert_eq!(health, json!({"healthy": true, "status": "running"}));
    let bearer = format!("Bearer {TOKEN}");
    for path in ["/", "/api/state", "/metrics", PICTURE] {
        assert_eq!(
            ask(address, "GET", path, &[("Authorization", &bearer)], "").status,
            200,
            "{path}"
        );
    }
    let page = get(address, &format!("/?token={TOKEN}"));
    assert_eq!(page.status, 200);
    let cookie = page.header("set-cookie").unwrap();
    assert!(cookie.ends_with("HttpOnly; SameSite=Strict"), "{cookie}");
    let cookie = cookie.split(';').next().unwrap();
    assert_eq!(ask(address, "GET", "/api/state", &[("Cookie", cookie)], "").status, 200);
    let foreign = [
        ("Cookie", cookie),
        ("Content-Type", "application/json"),
        ("Origin", "http://evil.example"),
    ];
    assert_eq!(ask(address, "POST", RED, &foreign, "{}").status, 403);
}

#[test]
fn a_picture_is_a_jpeg_with_the_masks_of_what_is_asked() {
    let scene = Scene::new("");
    let picture = || {
        let answer = get(scene.address, PICTURE);
        assert_eq!(
            (answer.status, answer.header("content-type")),
            (200, Some("image/jpeg"))
        );
        image::load_from_memory(&answer.body).unwrap().into_rgb8()
    };
    let first = picture();
    assert_eq!(first.dimensions(), (131, 97));
    // Of what is blue; drawing white over it makes it greener, drawing red does not.
    let green = |picture: &image::RgbImage| picture.get_pixel(70, 60).0[1];
    assert!(green(&first) < 60, "{}", green(&first));
    let sea = r##"{"prompts": ["blue"], "min_hits": 1, "color": "#ffffff"}"##;
    post(scene.address, SEA, sea).expect(200);
    until("blue is overlaid with white", || green(&picture()) > 90);
    post(scene.address, &format!("{SEA}/remove"), "{}").expect(200);
    until("nothing white is drawn any more", || green(&picture()) < 60);
}

#[test]
fn clients_that_are_slow_silent_or_many_do_not_disturb_frames() {
    let scene = Scene::new("");
    let frames = || scene.daemon.view.look(|seen| seen.cameras["yard"].frames);
    let twenty_more = || {
        let (start, from) = (Instant::now(), frames());
        until("twenty more frames", || frames() >= from + 20);
        start.elapsed()
    };
    let undisturbed = twenty_more();
    // Twice as many as are served at once; their requests never end, or they never read.
    let mut connections: Vec<TcpStream> = Vec::new();
    for index in 0..128 {
        let mut stream = TcpStream::connect(scene.address).unwrap();
        let host = scene.address;
        let text = match index {
            0..4 => format!("GET /page.js HTTP/1.1\r\nHost: {host}\r\n\r\n").repeat(5_000),
            _ if index % 2 == 0 => "GET /api/st".to_owned(),
            _ => format!(
                "POST {RED} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{{"
            ),
        };
        stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
        let _ = stream.write_all(text.as_bytes());
        connections.push(stream);
    }
    let disturbed = twenty_more();
    assert!(
        disturbed < 5 * undisturbed + Duration::from_secs(2),
        "twenty frames take {disturbed:?}, {undisturbed:?} without the clients"
    );
    // Each of them is given up in the end, and whoever came later is served.
    until("the page is there again", || {
        request(scene.address, "GET", "/api/state", &[], "").is_some_and(|answer| answer.status == 200)
    });
    drop(connections);
}

#[test]
fn connections_that_say_nothing_or_too_much_are_closed() {
    let scene = Scene::new("");
    let read_all = |mut stream: TcpStream| {
        stream.set_read_timeout(Some(bus::PATIENCE)).unwrap();
        let mut bytes = Vec::new();
        // Closed with or without a reset.
        if let Err(error) = stream.read_to_end(&mut bytes) {
            let open = matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
            assert!(!open, "the connection is still open: {error}");
        }
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let silent = TcpStream::connect(scene.address).unwrap();
    let mut loud = TcpStream::connect(scene.address).unwrap();
    let _ =
        loud.write_all(format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(40_000)).as_bytes());
    let mut half = TcpStream::connect(scene.address).unwrap();
    let head = format!("POST {RED} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n");
    half.write_all(format!("{head}Content-Length: 9\r\n\r\n{{").as_bytes())
        .unwrap();
    let answer = read_all(loud);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    assert!(read_all(half).starts_with("HTTP/1.1 408"));
    assert_eq!(read_all(silent), "");
}

/// Every sample by name and labels; refuses whatever is not in Prometheus' text format.
fn samples(answer: &Answer) -> std::collections::BTreeMap<String, f64> {
    assert_eq!(
        answer.header("content-type"),
        Some("text/plain; version=0.0.4; charset=utf-8")
    );
    let name = r"[a-zA-Z_:][a-zA-Z0-9_:]*";
    let label = r#"[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\["\\n])*""#;
    let sample = format!(r"^({name})(\{{(?:{label}(?:,{label})*)?\}})? (\S+)$");
    let sample = regex::Regex::new(&sample).unwrap();
    let comment = regex::Regex::new(&format!("^# (HELP|TYPE) ({name}) (.+)$")).unwrap();
    let mut types = std::collections::BTreeMap::new();
    let mut samples = std::collections::BTreeMap::new();
    for line in answer.text().lines() {
        if let Some(parts) = comment.captures(line) {
            if &parts[1] == "TYPE" {
                assert!(["counter", "gauge", "histogram"].contains(&&parts[3]), "{line}");
                assert!(
                    types.insert(parts[2].to_owned(), parts[3].to_owned()).is_none(),
                    "twice: {line}"
                );
            }
            continue;
        }
        let parts = sample.captures(line).unwrap_or_else(|| panic!("no sample: {line:?}"));
        let family = types.get(&parts[1]).or_else(|| {
            let of_histogram = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|end| parts[1].strip_suffix(end));
            types.get(of_histogram?)
        });
        assert!(family.is_some() && parts[1].starts_with("samclip_"), "no type: {line}");
        let value: f64 = parts[3].parse().unwrap_or_else(|_| panic!("no number: {line}"));
        // Their order means nothing.
        let labels = parts
            .get(2)
            .map_or("", |labels| labels.as_str().trim_matches(['{', '}']));
        let mut labels: Vec<&str> = labels.split(',').collect();
        labels.sort_unstable();
        let labels = labels.join(",");
        let labels = if labels.is_empty() {
            labels
        } else {
            format!("{{{labels}}}")
        };
        assert!(
            samples.insert(format!("{}{labels}", &parts[1]), value).is_none(),
            "twice: {line}"
        );
    }
    samples
}

#[test]
fn metrics_are_in_prometheus_format_and_count() {
    let scene = Scene::new("");
    until("sources were counted", || {
        scene.daemon.view.look(|seen| seen.cameras["yard"].source.opened == 1)
    });
    let first = samples(&get(scene.address, "/metrics"));
    let frames = "samclip_frames_total{camera=\"yard\"}";
    let masks = "samclip_detections_total{camera=\"yard\",query=\"red\"}";
    until("counters move", || {
        let now = samples(&get(scene.address, "/metrics"));
        now[frames] > first[frames] && now[masks] > first[masks]
    });
    let now = samples(&get(scene.address, "/metrics"));
    for stage in ["preprocess", "encoder", "query", "decoder", "refine", "report"] {
        let count = now[&format!("samclip_stage_duration_seconds_count{{stage=\"{stage}\"}}")];
        let last = now[&format!("samclip_stage_duration_seconds_bucket{{le=\"+Inf\",stage=\"{stage}\"}}")];
        assert!(
            count >= first[frames] && (count - last).abs() < 0.5,
            "{stage}: {count} {last}"
        );
    }
    assert!(now["samclip_frame_age_seconds_sum{camera=\"yard\"}"] > 0.0);
    assert!(now["samclip_resident_memory_bytes"] > 1e6);
    for (name, value) in [
        ("samclip_source_opens_total{camera=\"yard\"}", 1.0),
        ("samclip_frames_lost_total{camera=\"yard\"}", 0.0),
        ("samclip_frames_failed_total{camera=\"yard\"}", 0.0),
        ("samclip_camera_online{camera=\"yard\"}", 1.0),
        ("samclip_things{camera=\"yard\",query=\"red\"}", 1.0),
    ] {
        let found = now.get(name).unwrap_or_else(|| panic!("{name} is not in {now:#?}"));
        assert!((found - value).abs() < 1e-9, "{name} is {found}");
    }
    let build = now.keys().find(|name| name.starts_with("samclip_build_info{")).unwrap();
    assert!(
        build.contains("provider=\"tract-cpu\"") && build.contains("model=\"colours@"),
        "{build}"
    );
    // A damaged picture is one.
    std::fs::write(scene.dir.path().join("frames/1.png"), b"\x89PNG\r\n\x1a\n").unwrap();
    let moved = format!(
        "{}\n",
        std::fs::read_to_string(&scene.daemon.file)
            .unwrap()
            .replace("fps=20", "fps=21")
    );
    scene.daemon.write(&moved);
    post(scene.address, "/api/reload", "{}").expect(200);
    until("a lost frame is counted", || {
        samples(&get(scene.address, "/metrics"))["samclip_frames_corrupt_total{camera=\"yard\"}"] > 0.0
    });
}

/// An encoder that fails once it is told to.
struct Failing {
    inner: Box<dyn ImageEncoder>,
    fails: Arc<AtomicBool>,
}

impl ImageEncoder for Failing {
    fn encode(&mut self, image: &[f32], features: &mut Features) -> Result<(), RuntimeError> {
        if self.fails.load(Ordering::Relaxed) {
            return Err(RuntimeError::Cancelled { path: "encoder".into() });
        }
        self.inner.encode(image, features)
    }
}

/// Whether it is healthy and says this of itself.
fn says(address: SocketAddr, status: &str) -> bool {
    request(address, "GET", "/healthz", &[], "").is_some_and(|answer| answer.json()["status"] == status)
}

#[test]
fn health_turns_bad_when_frames_cannot_be_processed_and_good_again() {
    let dir = tempfile::tempdir().unwrap();
    write_model_and_frames(dir.path());
    let address = free_address();
    let text = config_text(dir.path(), &settings(address, ""));
    let config = Config::parse(&text, Path::new("test.toml")).unwrap();
    let (fails, stop) = (Arc::new(AtomicBool::new(false)), AtomicBool::new(false));
    let surroundings = Surroundings::new(Notifier::new(None, None));
    std::thread::scope(|scope| {
        let daemon = scope.spawn(|| {
            let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
            run_with(&config, &clock, &stop, surroundings, |_| {
                // Not ready yet, and well all the same.
                until("it says that it opens the model", || says(address, "opening"));
                let refused = post(address, RED, "{}").expect(503);
                assert_eq!(
                    refused["error"],
                    "the daemon's state is \"opening\", expected \"running\"; try again later"
                );
                let bundle = Manifest::read(dir.path()).unwrap();
                let options = RuntimeOptions {
                    backend: Backend::Tract,
                    ..RuntimeOptions::default()
                };
                let mut engine = runtime::open(&bundle, &options).unwrap();
                engine.encoder = Box::new(Failing {
                    inner: engine.encoder,
                    fails: Arc::clone(&fails),
                });
                Pipeline::new(&bundle, engine, None)
            })
            .unwrap();
        });
        let outcome = std::panic::catch_unwind(|| {
            let status = |wanted| until("health changes", || get(address, "/healthz").status == wanted);
            until("frames are processed", || says(address, "running"));
            fails.store(true, Ordering::Relaxed);
            status(503);
            let reason = get(address, "/healthz").expect(503);
            assert_eq!(
                reason,
                json!({"healthy": false, "reason": "frames cannot be processed; the log says why"})
            );
            assert_eq!(get(address, "/api/state").expect(200)["failing"], json!(true));
            fails.store(false, Ordering::Relaxed);
            status(200);
        });
        stop.store(true, Ordering::Relaxed);
        daemon.join().unwrap();
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}
