//! A running daemon with its broker and one subscriber, and the kernel's virtual camera.
//!
//! Every frame message that passes is checked: numbers rise as long as the daemon runs, whatever happens to the camera, and
//! time stamps are of now.
#![allow(unreachable_pub, clippy::unwrap_used)] // a module of test programs; a panic is how a test fails

use std::collections::HashMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use samclip::message::payload::{CameraStats, FrameMessage, StatsMessage};

use crate::mosquitto::{Mosquitto, Watcher, free_port};
use crate::tiny;

/// Longer than anything takes that passes, on one slow emulated processor.
const PATIENCE: Duration = Duration::from_secs(90);

/// Oldest frame that is still of now; a frame of the bundled model takes ten seconds on an emulated processor.
const OLDEST: Duration = Duration::from_secs(15);
const OLDEST_OF_SLOW: Duration = Duration::from_secs(60);

/// One line of the table, to the output and to the file named by SAMCLIP_MATRIX.
pub fn matrix(camera: &str, format: &str, fault: &str, figures: &str) {
    let line = format!("{camera:<9} {format:<20} {fault:<30} {figures}");
    println!("{line}");
    if let Some(path) = std::env::var_os("SAMCLIP_MATRIX") {
        let mut file = std::fs::File::options().append(true).create(true).open(path).unwrap();
        writeln!(file, "{line}").unwrap();
    }
}

/// Runs a program to its good end; what it said.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}{error}");
    said
}

/// Waits until a device node or a link to one is there.
pub fn until_there(path: &Path) {
    let started = Instant::now();
    while !path.exists() {
        assert!(started.elapsed() < PATIENCE, "{} is not there", path.display());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The node of a camera by its card name.
fn node(card: &str) -> PathBuf {
    samclip::capture::camera_node(Path::new(&format!("card:{card}"))).unwrap()
}

/// Sets a control beside the daemon.
pub fn control(card: &str, setting: &str) {
    run("v4l2-ctl", &["-d", node(card).to_str().unwrap(), "-c", setting]);
}

/// The kernel's virtual camera, loaded.
pub struct Vivid;

impl Vivid {
    pub const SINGLE_PLANAR: &'static str = "vivid";
    pub const MULTI_PLANAR: &'static str = "vivid-mp";
    const DRIVER: &'static str = "/sys/bus/platform/drivers/vivid";

    /// One webcam-like camera with one of the kernel's two capture interfaces.
    pub fn load(interface: &str) -> Self {
        let interface = if interface == Self::MULTI_PLANAR {
            "multiplanar=2"
        } else {
            "multiplanar=1"
        };
        run(
            "modprobe",
            &[
                "vivid",
                "n_devs=1",
                "node_types=0x1",
                "num_inputs=1",
                "input_types=0x0",
                interface,
            ],
        );
        until_there(Path::new("/dev/v4l/by-path/platform-vivid.0-video-index0"));
        Self
    }

    pub fn unbind(&self) {
        std::fs::write(format!("{}/unbind", Self::DRIVER), "vivid.0").unwrap();
    }

    pub fn bind(&self) {
        std::fs::write(format!("{}/bind", Self::DRIVER), "vivid.0").unwrap();
    }

    /// Another program that streams from it, once it does.
    pub fn stream_elsewhere(&self) -> Child {
        let node = node("vivid");
        let mut command = Command::new("v4l2-ctl");
        command.args(["-d", node.to_str().unwrap(), "--stream-mmap", "--stream-count=1000000"]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let started = Instant::now();
        // What streams cannot be given another format.
        let format = [
            "-d",
            node.to_str().unwrap(),
            "-v",
            "width=640,height=360,pixelformat=NV12",
        ];
        while Command::new("v4l2-ctl").args(format).output().unwrap().status.success() {
            assert!(started.elapsed() < PATIENCE);
            std::thread::sleep(Duration::from_millis(50));
        }
        child
    }
}

impl Drop for Vivid {
    fn drop(&mut self) {
        let started = Instant::now();
        while !Command::new("rmmod").arg("vivid").output().unwrap().status.success() {
            if started.elapsed() > PATIENCE {
                break; // somebody holds it; the next test says so
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// A daemon, its broker and a subscriber.
pub struct Rig {
    daemon: Option<Child>,
    _broker: Mosquitto,
    watcher: Watcher,
    dir: tempfile::TempDir,
    numbers: HashMap<String, u64>,
    started: Instant,
    ages: Vec<u64>,
    frames: u64,
    timely: bool,
    oldest: Duration,
    /// What each camera's status topic said last.
    statuses: HashMap<String, String>,
}

impl Rig {
    /// Broker and configuration, no daemon yet; the bundle answers by colour.
    pub fn prepare(cameras: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bundle = dir.path().join("bundle");
        std::fs::create_dir(&bundle).unwrap();
        tiny::write(&bundle);
        let queries = ["red", "green", "blue"]
            .map(|q| format!("[[query]]\nid = \"{q}\"\n"))
            .concat();
        let cache = format!("cache = {:?}\n", std::env::temp_dir().join("texts"));
        Self::write(dir, &bundle, &(cameras.to_owned() + &queries), &cache)
    }

    fn write(dir: tempfile::TempDir, bundle: &Path, parts: &str, runtime: &str) -> Self {
        let port = free_port();
        let broker = Mosquitto::start(port);
        let config = format!(
            "model = {bundle:?}\nstate = {:?}\n[runtime]\nengine = \"tract\"\n{runtime}{parts}\n\
             [mqtt]\nhost = \"127.0.0.1\"\nport = {port}\n[output]\nsnapshot = false\n",
            dir.path().join("state")
        );
        std::fs::write(dir.path().join("samclipd.toml"), config).unwrap();
        Self {
            daemon: None,
            _broker: broker,
            watcher: Watcher::subscribed(port),
            dir,
            numbers: HashMap::new(),
            started: Instant::now(),
            ages: Vec::new(),
            frames: 0,
            timely: true,
            oldest: OLDEST,
            statuses: HashMap::new(),
        }
    }

    pub fn start(cameras: &str) -> Self {
        let mut rig = Self::prepare(cameras);
        rig.launch();
        rig
    }

    /// With another bundle, which may be slow, and further lines under `[runtime]`.
    pub fn start_with(bundle: &Path, cameras: &str, runtime: &str) -> Self {
        let mut rig = Self::write(tempfile::tempdir().unwrap(), bundle, cameras, runtime);
        rig.oldest = OLDEST_OF_SLOW;
        rig.launch();
        rig
    }

    fn config(&self) -> PathBuf {
        self.dir.path().join("samclipd.toml")
    }

    fn launch(&mut self) {
        let log = std::fs::File::create(self.dir.path().join("log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_samclipd"));
        command
            .arg("run")
            .arg("--config")
            .arg(self.config())
            .env("RUST_LOG", "samclip=debug")
            .env("NO_COLOR", "1");
        self.daemon = Some(command.stdout(Stdio::null()).stderr(log).spawn().unwrap());
        self.started = Instant::now();
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Waits for a text in the daemon's log.
    pub fn until_log(&self, text: &str) {
        let started = Instant::now();
        while !self.log().contains(text) {
            assert!(started.elapsed() < PATIENCE, "{text} is not in\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Next message: its topic below `samclip/` and its body.
    fn next(&mut self) -> (String, String) {
        let line = self.watcher.wait(PATIENCE);
        let line = line.unwrap_or_else(|| panic!("no message; the daemon's log:\n{}", self.log()));
        let (topic, rest) = line.split_once(' ').unwrap();
        let body = rest.splitn(3, ' ').nth(2).unwrap_or_default();
        let topic = topic.strip_prefix("samclip/").unwrap();
        if let Some(camera) = topic.strip_suffix("/status/detect") {
            self.statuses.insert(camera.to_owned(), body.to_owned());
        }
        if let Some(camera) = topic.strip_suffix("/frame") {
            self.check(camera, &FrameMessage::decode(body.as_bytes()).unwrap());
        }
        (topic.to_owned(), body.to_owned())
    }

    /// Passes over messages until one is wanted.
    fn find<T>(&mut self, what: &str, mut wanted: impl FnMut(&str, &str) -> Option<T>) -> T {
        let started = Instant::now();
        loop {
            let (topic, body) = self.next();
            if let Some(found) = wanted(&topic, &body) {
                return found;
            }
            assert!(
                started.elapsed() < PATIENCE,
                "no {what}; the daemon's log:\n{}",
                self.log()
            );
        }
    }

    fn check(&mut self, camera: &str, frame: &FrameMessage) {
        if let Some(last) = self.numbers.insert(camera.to_owned(), frame.seq) {
            assert!(
                frame.seq > last,
                "{camera}: frame {} after {last}\n{}",
                frame.seq,
                self.log()
            );
        }
        let taken: jiff::Timestamp = frame.timestamp.parse().unwrap();
        let age = jiff::Timestamp::now().duration_since(taken).as_secs_f64();
        let good =
            (-0.1..self.oldest.as_secs_f64()).contains(&age) && u128::from(frame.age_ms) < self.oldest.as_millis();
        assert!(
            good || !self.timely,
            "{camera}: {age} s old by the wall clock, {frame:?}"
        );
        self.ages.push(frame.age_ms);
        self.frames += 1;
    }

    /// The next frames of a camera.
    pub fn frames(&mut self, camera: &str, count: usize) -> Vec<FrameMessage> {
        let topic = format!("{camera}/frame");
        let frame = |_| {
            self.find(&topic, |t, body| {
                (t == topic).then(|| FrameMessage::decode(body.as_bytes()).unwrap())
            })
        };
        (0..count).map(frame).collect()
    }

    /// The same, whatever time they tell.
    pub fn frames_of_any_time(&mut self, camera: &str, count: usize) {
        self.timely = false;
        self.frames(camera, count);
        self.timely = true;
    }

    /// Waits until a camera's status is this one, unless it is already.
    pub fn until_status(&mut self, camera: &str, status: &str) {
        let started = Instant::now();
        while self.statuses.get(camera).is_none_or(|s| s != status) {
            self.next();
            assert!(
                started.elapsed() < PATIENCE,
                "{camera} is not {status}; the daemon's log:\n{}",
                self.log()
            );
        }
    }

    /// Counters of a camera, as of now.
    pub fn stats(&mut self, camera: &str) -> CameraStats {
        // The message on its way may be of before.
        self.find("stats", |t, _| (t == "stats").then_some(()));
        let stats = self.find("stats", |t, body| (t == "stats").then(|| body.to_owned()));
        let mut stats: StatsMessage = serde_json::from_str(&stats).unwrap();
        stats.cameras.remove(camera).unwrap()
    }

    /// Frames so far, their rate and median age, with a remark.
    pub fn figures(&self, remark: &str) -> String {
        let mut ages = self.ages.clone();
        ages.sort_unstable();
        let median = ages.get(ages.len() / 2).copied().unwrap_or_default();
        let seconds = self.started.elapsed().as_secs_f32();
        format!("{} frames in {seconds:.0} s, {median} ms old; {remark}", self.frames)
    }

    /// `samclipd doctor`: whether the job can run, and the report.
    pub fn doctor(&self) -> (bool, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_samclipd"));
        let output = command
            .arg("doctor")
            .arg("--config")
            .arg(self.config())
            .output()
            .unwrap();
        (
            output.status.success(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
        )
    }

    fn process(&self) -> String {
        format!("/proc/{}", self.daemon.as_ref().unwrap().id())
    }

    /// Resident memory of the daemon.
    pub fn memory_kib(&self) -> u64 {
        let status = std::fs::read_to_string(self.process() + "/status").unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
    }

    pub fn open_files(&self) -> usize {
        std::fs::read_dir(self.process() + "/fd").unwrap().count()
    }

    /// Ends the daemon as systemd would; how long that took.
    pub fn stop(mut self) -> Duration {
        let mut daemon = self.daemon.take().unwrap();
        let started = Instant::now();
        run("kill", &["-TERM", &daemon.id().to_string()]);
        assert!(daemon.wait().unwrap().success(), "{}", self.log());
        started.elapsed()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let ended = daemon.try_wait().unwrap();
            daemon.kill().ok();
            daemon.wait().ok();
            if std::thread::panicking() {
                println!("{}", self.log());
            } else {
                assert!(ended.is_none(), "the daemon ended by itself: {ended:?}\n{}", self.log());
            }
        }
    }
}
