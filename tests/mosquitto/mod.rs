//! A mosquitto broker and its client `mosquitto_sub`.
#![allow(unreachable_pub, clippy::unwrap_used)] // a module of several test programs; a panic is how a test fails
#![allow(dead_code, reason = "every test binary uses another part")]

use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// Longer than any step takes on a busy machine; a test that passes never waits for it.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Starts a program of the mosquitto packages; without them the test fails.
pub fn spawn(command: &mut Command) -> Child {
    let name = command.get_program().to_string_lossy().into_owned();
    command
        .spawn()
        .unwrap_or_else(|error| panic!("{name} ({error}): run tests/run once, it installs what tests need"))
}

pub fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

/// How long a broker may take to start: one in Erlang takes half a minute where others keep the processor busy.
const START: Duration = Duration::from_secs(120);

/// Waits until a broker listens.
pub fn wait_for(port: u16, broker: &mut Child, name: &str) {
    let start = Instant::now();
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        assert!(
            start.elapsed() < START && broker.try_wait().unwrap().is_none(),
            "{name} does not listen"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A mosquitto of its own, without persistence.
pub struct Mosquitto {
    child: Child,
    pub port: u16,
    _config: tempfile::TempDir,
}

impl Mosquitto {
    pub fn start(port: u16) -> Self {
        Self::start_with(port, "allow_anonymous true\n")
    }

    /// With further lines of its configuration.
    pub fn start_with(port: u16, lines: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("mosquitto.conf");
        std::fs::write(
            &config,
            format!("listener {port} 127.0.0.1\npersistence false\n{lines}"),
        )
        .unwrap();
        // Debian keeps the daemon in /usr/sbin, which is not on every user's path
        let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
        let program = std::env::split_paths(&path)
            .map(|dir| dir.join("mosquitto"))
            .find(|path| path.exists());
        let mut command = Command::new(program.unwrap_or("mosquitto".into()));
        let mut child = spawn(
            command
                .arg("-c")
                .arg(&config)
                .stdout(Stdio::null())
                .stderr(Stdio::null()),
        );
        wait_for(port, &mut child, "mosquitto");
        Self {
            child,
            port,
            _config: dir,
        }
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Publishes with `mosquitto_pub`, with further arguments of it, and waits until that is done.
pub fn publish(port: u16, topic: &str, body: &str, more: &[&str]) {
    let mut command = Command::new("mosquitto_pub");
    command
        .args(["-h", "127.0.0.1", "-p", &port.to_string(), "-t", topic, "-m", body])
        .args(more);
    assert!(spawn(&mut command).wait().unwrap().success());
}

/// `mosquitto_sub` on everything below `samclip/`.
pub struct Watcher {
    child: Child,
    lines: Receiver<String>,
}

impl Watcher {
    pub fn start(port: u16) -> Self {
        Self::start_with(port, &[])
    }

    /// With further arguments of `mosquitto_sub`.
    pub fn start_with(port: u16, arguments: &[&str]) -> Self {
        let mut command = Command::new("mosquitto_sub");
        command.args([
            "-h",
            "127.0.0.1",
            "-p",
            &port.to_string(),
            "-q",
            "1",
            "-t",
            "samclip/#",
            "-F",
            "%t r%r q%q %p",
        ]);
        command.args(arguments);
        let mut child = spawn(command.stdout(Stdio::piped()).stderr(Stdio::null()));
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            // Pictures are no text; what of them looks like lines is passed on like the rest.
            let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
            stdout
                .split(b'\n')
                .map_while(Result::ok)
                .try_for_each(|line| sender.send(text(line)))
        });
        Self { child, lines }
    }

    /// Starts one and returns once the broker passes messages on to it.
    pub fn subscribed(port: u16) -> Self {
        let watcher = Self::start(port);
        let start = Instant::now();
        loop {
            publish(port, "samclip/probe", "x", &[]);
            match watcher.lines.recv_timeout(Duration::from_millis(100)) {
                Ok(line) if line.starts_with("samclip/probe") => return watcher,
                _ => assert!(start.elapsed() < PATIENCE, "the broker passes nothing on"),
            }
        }
    }

    pub fn next(&self) -> String {
        self.wait(PATIENCE).expect("a message")
    }

    /// The next message, if it comes in time.
    pub fn wait(&self, at_most: Duration) -> Option<String> {
        self.lines.recv_timeout(at_most).ok()
    }

    /// Skips to a message; for what the broker may also send in between.
    pub fn until(&self, wanted: &str) {
        while self.next() != wanted {}
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
