//! What a service manager hears from the daemon, at a socket like the one systemd opens.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

mod tiny;

use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use samclip::clock::{Clock, SystemClock};
use samclip::contract::Manifest;
use samclip::daemon::commands::{Answer, Command as Asked, Request};
use samclip::daemon::config::Config;
use samclip::daemon::notify::Notifier;
use samclip::daemon::pipeline::Pipeline;
use samclip::daemon::run::{Surroundings, run_with};
use samclip::runtime::progress::Stage;
use samclip::runtime::{self, Backend, Engine, ImageEncoder, RuntimeError, RuntimeOptions, TextEncoder};
use samclip::vision::features::Features;

const MORE_TIME: &str = "EXTEND_TIMEOUT_USEC=60000000";

/// A bundle, one picture that is shown again and again or once, a configuration, and a socket.
fn prepare(dir: &std::path::Path, query: &str) -> (String, UnixDatagram) {
    tiny::write(dir);
    let frames = dir.join("frames");
    std::fs::create_dir(&frames).unwrap();
    image::RgbImage::from_pixel(64, 48, image::Rgb([230, 20, 20]))
        .save(frames.join("0.png"))
        .unwrap();
    let text = format!(
        "state = {0:?}\nmodel = {0:?}\n[runtime]\nengine = \"tract\"\ncache = {0:?}\n[[camera]]\nid = \"yard\"\nsource = \"dir://{1}{query}\"\n",
        dir,
        frames.display(),
    );
    let socket = UnixDatagram::bind(dir.join("notify")).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    (text, socket)
}

/// The daemon as a process; it ends with the value, also where a test fails.
struct Service(Child);

impl Service {
    /// Starts it, with `watchdog` as the service manager's longest wait for a sign of life in microseconds.
    fn start(dir: &std::path::Path, config: &std::path::Path, watchdog: Option<&str>) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_samclipd"));
        command.args(["run", "--config"]).arg(config);
        command.env("NOTIFY_SOCKET", dir.join("notify"));
        command.env_remove("WATCHDOG_PID").env_remove("WATCHDOG_USEC");
        command.envs(watchdog.map(|microseconds| ("WATCHDOG_USEC", microseconds)));
        Self(command.stderr(Stdio::null()).spawn().unwrap())
    }

    fn signal(&self, name: &str) {
        let mut command = Command::new("kill");
        let sent = command.args(["-s", name, &self.0.id().to_string()]).status();
        assert!(sent.unwrap().success());
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn hear_any(socket: &UnixDatagram) -> String {
    let mut buffer = [0; 4096];
    let length = socket.recv(&mut buffer).expect("a message within a minute");
    String::from_utf8(buffer[..length].to_vec()).unwrap()
}

/// The next message that does not ask for more time: on a slow machine the start of any service may.
fn hear(socket: &UnixDatagram) -> String {
    let mut messages = std::iter::repeat_with(|| hear_any(socket));
    messages.find(|message| message != MORE_TIME).unwrap()
}

#[test]
fn a_service_says_ready_gives_signs_of_life_and_says_when_it_stops() {
    let dir = tempfile::tempdir().unwrap();
    let (text, socket) = prepare(dir.path(), "?fps=20&loop");
    let config = dir.path().join("samclipd.toml");
    std::fs::write(&config, text).unwrap();
    let mut service = Service::start(dir.path(), &config, Some("300000"));
    assert_eq!(hear(&socket), "STATUS=opening the model");
    assert_eq!(hear(&socket), "STATUS=embedding texts");
    let ready = hear(&socket);
    assert!(
        ready.starts_with("READY=1\nSTATUS=") && ready.contains(" on "),
        "{ready}"
    );
    assert_eq!([hear(&socket), hear(&socket)], ["WATCHDOG=1", "WATCHDOG=1"]);
    service.signal("TERM");
    let last = std::iter::repeat_with(|| hear(&socket)).find(|m| m != "WATCHDOG=1");
    assert_eq!(last.as_deref(), Some("STOPPING=1\nSTATUS=stopping"));
    assert!(service.0.wait().unwrap().success());
}

#[test]
fn at_a_hangup_a_service_says_that_it_reloads_and_what_came_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let (text, socket) = prepare(dir.path(), "?fps=20&loop");
    let config = dir.path().join("samclipd.toml");
    std::fs::write(&config, &text).unwrap();
    let mut service = Service::start(dir.path(), &config, None);
    assert_eq!(hear(&socket), "STATUS=opening the model");
    assert_eq!(hear(&socket), "STATUS=embedding texts");
    assert!(hear(&socket).starts_with("READY=1\n"));
    for (changed, came) in [
        (format!("{text}[[query]]\nid = \"red\"\n"), "; configuration reloaded"),
        (
            "model = 1".to_owned(),
            "; reload refused, the old configuration holds: ",
        ),
    ] {
        std::fs::write(&config, changed).unwrap();
        service.signal("HUP");
        let reloading = hear(&socket);
        let time = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
        let (time, status) = time.split_once('\n').unwrap();
        assert!(
            time.parse::<u64>().unwrap() > 0 && status.starts_with("STATUS="),
            "{reloading}"
        );
        let ready = hear(&socket);
        assert!(
            ready.starts_with("READY=1\nSTATUS=colours@") && ready.contains(came),
            "{ready}"
        );
        assert_eq!(ready.lines().count(), 2);
    }
    service.signal("TERM");
    assert_eq!(hear(&socket), "STOPPING=1\nSTATUS=stopping");
    assert!(service.0.wait().unwrap().success());
}

#[test]
fn while_an_engine_is_built_the_start_is_prolonged_and_not_yet_ready() {
    let dir = tempfile::tempdir().unwrap();
    let (text, socket) = prepare(dir.path(), "");
    let config = Config::parse(&text, "test.toml".as_ref()).unwrap();
    let options = RuntimeOptions {
        backend: Backend::Tract,
        ..RuntimeOptions::default()
    };
    let notifier = Notifier::new(Some(dir.path().join("notify").into()), None);
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let surroundings = Surroundings::new(notifier);
    run_with(&config, &clock, &AtomicBool::new(false), surroundings, |progress| {
        assert_eq!(hear(&socket), "STATUS=opening the model");
        progress.stage(&Stage::BuildEngine(Some("/cache/engines/x".into())));
        assert_eq!(hear(&socket), "STATUS=building TensorRT engines in /cache/engines/x");
        // The build goes on until more time was asked for.
        assert_eq!(hear_any(&socket), MORE_TIME);
        Pipeline::open_watched(dir.path(), &options, progress)
    })
    .unwrap();
    assert_eq!(hear(&socket), "STATUS=embedding texts");
    assert!(hear(&socket).starts_with("READY=1\n"));
    assert_eq!(hear(&socket), "STOPPING=1\nSTATUS=stopping");
}

/// An encoder of pictures and texts that fails.
struct Broken;

fn broken() -> RuntimeError {
    RuntimeError::Run {
        graph: "encoder",
        backend: "test",
        message: "broken".into(),
    }
}

impl ImageEncoder for Broken {
    fn encode(&mut self, _: &[f32], _: &mut Features) -> Result<(), RuntimeError> {
        Err(broken())
    }
}

impl TextEncoder for Broken {
    fn embed(&mut self, _: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, RuntimeError> {
        Err(broken())
    }
}

/// The daemon on a thread, with an engine that `change` changes, until it is stopped.
fn start_with(
    config: Config,
    surroundings: Surroundings,
    change: impl FnOnce(&mut Engine) + Send + 'static,
) -> (Arc<AtomicBool>, JoinHandle<()>) {
    let stop = Arc::new(AtomicBool::new(false));
    let daemon = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || {
            let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
            run_with(&config, &clock, &stop, surroundings, |progress| {
                let bundle = Manifest::read(&config.model).unwrap();
                let options = RuntimeOptions {
                    backend: Backend::Tract,
                    ..RuntimeOptions::default()
                };
                let mut engine = runtime::open(&bundle, &options).unwrap();
                change(&mut engine);
                progress.stage(&Stage::EmbedTexts);
                Pipeline::new(&bundle, engine, None)
            })
            .unwrap();
        }
    });
    (stop, daemon)
}

/// A text encoder that works once there is no sender any more.
struct Late {
    inner: Box<dyn TextEncoder>,
    gate: Receiver<()>,
}

impl TextEncoder for Late {
    fn embed(&mut self, token_ids: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, RuntimeError> {
        let _ = self.gate.recv();
        self.inner.embed(token_ids)
    }
}

#[test]
fn while_texts_are_embedded_the_start_is_prolonged_and_not_yet_ready() {
    let dir = tempfile::tempdir().unwrap();
    let (text, socket) = prepare(dir.path(), "?fps=20&loop");
    let config = Config::parse(&text, "test.toml".as_ref()).unwrap();
    let notifier = Notifier::new(Some(dir.path().join("notify").into()), None);
    let (open, gate) = channel::<()>();
    let (stop, daemon) = start_with(config, Surroundings::new(notifier), |engine| {
        let broken: Box<dyn TextEncoder> = Box::new(Broken);
        let inner = std::mem::replace(&mut engine.text, broken);
        engine.text = Box::new(Late { inner, gate });
    });
    assert_eq!(hear_any(&socket), "STATUS=opening the model");
    assert_eq!(hear_any(&socket), "STATUS=embedding texts");
    assert_eq!(hear_any(&socket), MORE_TIME);
    drop(open);
    assert!(hear(&socket).starts_with("READY=1\n"));
    stop.store(true, Ordering::Relaxed);
    daemon.join().unwrap();
}

#[test]
fn frames_that_cannot_be_processed_end_the_signs_of_life_until_none_are_wanted_any_more() {
    let dir = tempfile::tempdir().unwrap();
    let (text, socket) = prepare(dir.path(), "?fps=20&loop");
    let config = Config::parse(&text, "test.toml".as_ref()).unwrap();
    let notifier = Notifier::new(Some(dir.path().join("notify").into()), Some(Duration::from_millis(300)));
    let surroundings = Surroundings::new(notifier);
    let (door, view) = (surroundings.door(), surroundings.view.clone());
    let (stop, daemon) = start_with(config, surroundings, |engine| engine.encoder = Box::new(Broken));
    let start = Instant::now();
    while !view.look(|seen| seen.failing) {
        assert!(start.elapsed() < Duration::from_secs(60), "no frame fails");
        std::thread::sleep(Duration::from_millis(10));
    }
    // What was said before.
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let end = Instant::now() + Duration::from_secs(60);
    while socket.recv(&mut [0; 4096]).is_ok() {
        assert!(Instant::now() < end, "signs of life go on while frames fail");
    }
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let off = Asked::SetDetect {
        camera: "yard".into(),
        on: false,
    };
    door.hand_in(Request {
        command: off,
        answer: Answer::Log,
    })
    .unwrap();
    assert_eq!([hear(&socket), hear(&socket)], ["WATCHDOG=1", "WATCHDOG=1"]);
    assert!(!view.look(|seen| seen.failing));
    stop.store(true, Ordering::Relaxed);
    daemon.join().unwrap();
}
