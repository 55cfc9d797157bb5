//! An ejabberd broker: another implementation of MQTT 3.1.1 and 5 than mosquitto's, in Erlang.
#![allow(unreachable_pub, clippy::unwrap_used)] // a module of several test programs; a panic is how a test fails

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use super::mosquitto::{spawn, wait_for};

/// Users of the broker are those of a host; any password will do.
pub const USER: (&str, &str) = ("samclip@localhost", "any");

/// Started without its control program, which wants a user of its own and talks to a daemon of Erlang's.
pub struct Ejabberd {
    child: Child,
    pub port: u16,
    _dir: tempfile::TempDir,
}

/// The folder that holds ejabberd and its libraries, below the machine's own name.
fn libraries() -> PathBuf {
    let folders = std::fs::read_dir("/usr/lib").unwrap().flatten();
    let has_it = |folder: &PathBuf| {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries
            .into_iter()
            .any(|entry| entry.file_name().to_string_lossy().starts_with("ejabberd-"))
    };
    let found = folders.map(|folder| folder.path()).find(has_it);
    found.expect("this test needs ejabberd: run tests/run once, it installs what tests need")
}

impl Ejabberd {
    pub fn start(port: u16) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("ejabberd.yml");
        let text = format!(
            "hosts: [localhost]\nloglevel: warning\nauth_method: anonymous\nallow_multiple_connections: true\n\
             anonymous_protocol: login_anon\nlisten:\n  - port: {port}\n    ip: 127.0.0.1\n    module: mod_mqtt\n\
             modules:\n  mod_mqtt: {{}}\n"
        );
        std::fs::write(&config, text).unwrap();
        let mut child = spawn(
            Command::new("erl")
                .args(["-noinput", "-mnesia", "dir"])
                .arg(format!("{:?}", dir.path().join("database")))
                .args(["-s", "ejabberd"])
                .env("EJABBERD_CONFIG_PATH", &config)
                .env("EJABBERD_LOG_PATH", dir.path().join("ejabberd.log"))
                .env("ERL_LIBS", libraries())
                .env("ERL_CRASH_DUMP_BYTES", "0")
                .env("HOME", dir.path())
                .stdout(Stdio::null())
                .stderr(Stdio::null()),
        );
        wait_for(port, &mut child, "ejabberd");
        Self { child, port, _dir: dir }
    }
}

impl Drop for Ejabberd {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
