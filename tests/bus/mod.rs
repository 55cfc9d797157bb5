//! A message bus of a test's own, with the policy that is shipped for the system bus; and the daemon on it.
#![allow(unreachable_pub)] // a module of several test programs, each uses a part
#![allow(dead_code, reason = "every test binary uses another part")]

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use image::{Rgb, RgbImage};
use samclip::clock::{Clock, SystemClock};
use samclip::daemon::board::Board;
use samclip::daemon::commands::{Command as Asked, Door, Outcome};
use samclip::daemon::config::Config;
use samclip::daemon::notify::Notifier;
use samclip::daemon::run::{Surroundings, run_in};
use samclip::daemon::view::View;

use super::tiny;

/// How long anything may take before a test fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until something holds.
#[track_caller]
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "{what} does not come true");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A dbus-daemon; it ends with the value.
pub struct PrivateBus {
    socket: PathBuf,
    config: PathBuf,
    child: Child,
}

impl PrivateBus {
    /// Starts one whose socket is in `dir`, which everybody may enter.
    pub fn start(dir: &Path) -> Self {
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).unwrap();
        let (socket, config) = (dir.join("bus"), dir.join("bus.conf"));
        let policy = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/org.samclip.Daemon1.conf");
        let user = Command::new("id").arg("-u").output().unwrap().stdout;
        let text = format!(
            "<busconfig><type>custom</type><listen>unix:path={}</listen><auth>EXTERNAL</auth>\
             <policy context=\"default\"><allow user=\"*\"/><deny own=\"*\"/><deny send_type=\"method_call\"/>\
             <allow send_type=\"signal\"/><allow send_requested_reply=\"true\" send_type=\"method_return\"/>\
             <allow send_requested_reply=\"true\" send_type=\"error\"/><allow receive_type=\"method_call\"/>\
             <allow receive_type=\"method_return\"/><allow receive_type=\"error\"/><allow receive_type=\"signal\"/>\
             <allow send_destination=\"org.freedesktop.DBus\"/></policy>\
             <policy user=\"{}\"><allow own=\"*\"/><allow send_destination=\"*\"/></policy>\
             <include>{}</include></busconfig>",
            socket.display(),
            String::from_utf8_lossy(&user).trim(),
            policy.display(),
        );
        std::fs::write(&config, text).unwrap();
        let child = spawn(&config);
        Self { socket, config, child }
    }

    pub fn address(&self) -> String {
        format!("unix:path={}", self.socket.display())
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again after [`Self::kill`], at the same address.
    pub fn restart(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
        self.child = spawn(&self.config);
    }
}

fn spawn(config: &Path) -> Child {
    let mut child = Command::new("dbus-daemon")
        .args(["--nofork", "--nopidfile", "--print-address", "--config-file"])
        .arg(config)
        .stdout(Stdio::piped())
        .spawn()
        .expect("this test needs dbus-daemon (Debian: dbus)");
    // The address is printed once it listens.
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert!(line.starts_with("unix:"), "{line:?}");
    child
}

impl Drop for PrivateBus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A bundle, and a folder with one small picture as [`write_model_and_stripes`] paints it.
pub fn write_model_and_frames(dir: &Path) {
    write_model_and_stripes(dir, (131, 97), [50, 90]);
}

/// A bundle, and a folder with one picture: red on the left, blue in the middle, yellow on the right of two columns.
pub fn write_model_and_stripes(dir: &Path, (width, height): (u32, u32), [blue, yellow]: [u32; 2]) {
    tiny::write(dir);
    let frames = dir.join("frames");
    std::fs::create_dir_all(&frames).unwrap();
    let colour = |x: u32| match x {
        x if x < blue => Rgb([230, 20, 20]),
        x if x < yellow => Rgb([20, 20, 230]),
        _ => Rgb([230, 230, 20]),
    };
    RgbImage::from_fn(width, height, |x, _| colour(x))
        .save(frames.join("0.png"))
        .unwrap();
}

/// What a camera shows from now on whose directory is read again and again, as [`write_model_and_stripes`] paints it.
pub fn show_stripes(dir: &Path, stripes: [u32; 2]) {
    let other = tempfile::tempdir_in(dir).unwrap();
    write_model_and_stripes(other.path(), (131, 97), stripes);
    std::fs::rename(other.path().join("frames/0.png"), dir.join("frames/0.png")).unwrap();
}

/// The text of a configuration with camera `yard` and query `red`; `rest` is TOML.
pub fn config_text(dir: &Path, rest: &str) -> String {
    format!(
        "model = {dir:?}\nstate = {:?}\n[runtime]\nengine = \"tract\"\ncache = {:?}\n[[camera]]\nid = \"yard\"\n\
         source = \"dir://{}/frames?fps=20&loop\"\n[[query]]\nid = \"red\"\n{rest}\n",
        dir.join("state"),
        dir.join("cache"),
        dir.display(),
    )
}

/// The daemon on a thread of this process; it is stopped with the value.
pub struct Daemon {
    pub board: Board,
    pub view: View,
    pub door: Door,
    pub hangup: Arc<AtomicBool>,
    pub file: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Daemon {
    /// The answer to a command; it comes although nothing is found or moves.
    #[track_caller]
    pub fn ask(&self, command: Asked) -> Outcome {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        let asked = async { tokio::time::timeout(PATIENCE, self.door.ask(command)).await };
        runtime.block_on(asked).expect("an answer in time")
    }

    /// Starts it with a configuration that is written to a file in `dir`.
    pub fn start(dir: &Path, text: &str) -> Self {
        let file = dir.join("samclipd.toml");
        std::fs::write(&file, text).unwrap();
        let config = Config::read(&file).unwrap();
        let mut surroundings = Surroundings::new(Notifier::new(None, None));
        surroundings.file = Some(file.clone());
        let (board, view, door) = (
            surroundings.board.clone(),
            surroundings.view.clone(),
            surroundings.door(),
        );
        let (hangup, stop) = (Arc::clone(&surroundings.hangup), Arc::new(AtomicBool::new(false)));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
            run_in(&config, &clock, &stopped, surroundings).unwrap();
        });
        Self {
            board,
            view,
            door,
            hangup,
            file,
            stop,
            thread: Some(thread),
        }
    }

    /// Writes another configuration into its file; it does not read it by itself.
    pub fn write(&self, text: &str) {
        std::fs::write(&self.file, text).unwrap();
    }

    /// How many things of a query are there, if anybody was told.
    pub fn count(&self, camera: &str, query: &str) -> Option<u32> {
        Some(self.board.now().cameras.get(camera)?.detections.get(query)?.0)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let start = Instant::now();
        while self.thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
            if start.elapsed() > PATIENCE {
                assert!(std::thread::panicking(), "the daemon does not end");
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(
            std::thread::panicking() || ended.is_none_or(|ended| ended.is_ok()),
            "the daemon has failed"
        );
    }
}
