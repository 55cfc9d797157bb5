//! What the service manager is told: ready, status, signs of life, stopping (`sd_notify(3)`).
//!
//! Datagrams to the socket in `$NOTIFY_SOCKET`; without one, nothing is sent. A message that does not arrive is logged
//! and stops nothing.

use std::ffi::OsString;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tracing::warn;

/// How much longer the start may take, counted from each message that asks for it.
const EXTENSION: Duration = Duration::from_secs(60);

/// Distance of two such messages.
const EXTEND_EVERY: Duration = Duration::from_secs(10);

/// The service manager, if there is one.
#[derive(Debug)]
pub struct Notifier {
    to: Option<(UnixDatagram, SocketAddr)>,
    /// Distance of two signs of life: a third of what the service manager waits for one.
    every: Option<Duration>,
    long: AtomicBool,
    extended: Mutex<Option<Instant>>,
    alive: Mutex<Option<Instant>>,
}

impl Notifier {
    /// The service manager that started this process: `$NOTIFY_SOCKET`, `$WATCHDOG_USEC`, `$WATCHDOG_PID`.
    #[must_use]
    pub fn from_env() -> Self {
        let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
        let mine = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC").filter(|&usec| mine && usec > 0);
        Self::new(std::env::var_os("NOTIFY_SOCKET"), watchdog.map(Duration::from_micros))
    }

    /// A service manager that listens at `socket` (a path, or an abstract name after `@`) and waits at most `watchdog`
    /// for a sign of life.
    #[must_use]
    pub fn new(socket: Option<OsString>, watchdog: Option<Duration>) -> Self {
        let open = |name: &OsString| {
            let address = match name.as_bytes().strip_prefix(b"@") {
                Some(name) => SocketAddr::from_abstract_name(name)?,
                None => SocketAddr::from_pathname(name)?,
            };
            Ok::<_, std::io::Error>((UnixDatagram::unbound()?, address))
        };
        let to = socket.and_then(|name| {
            open(&name)
                .inspect_err(|error| warn!(socket = ?name, %error, "NOTIFY_SOCKET cannot be used; the service manager hears nothing"))
                .ok()
        });
        Self {
            to,
            every: watchdog.map(|most| most / 3),
            long: AtomicBool::new(false),
            extended: Mutex::new(None),
            alive: Mutex::new(None),
        }
    }

    fn send(&self, message: &str) {
        if let Some((socket, address)) = &self.to
            && let Err(error) = socket.send_to_addr(message.as_bytes(), address)
        {
            warn!(?address, message, %error, "service manager not told");
        }
    }

    /// Cameras and broker are looked after.
    pub fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={status}"));
    }

    /// The configuration is read again; [`Self::ready`] ends that, whether or not it was put in force.
    pub fn reloading(&self) {
        let reloading = match nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC) {
            // Later versions of the protocol tell an old answer from a new one by the time.
            Ok(now) => format!("RELOADING=1\nMONOTONIC_USEC={}", Duration::from(now).as_micros()),
            Err(_) => "RELOADING=1".to_owned(),
        };
        self.send(&format!("{reloading}\nSTATUS=reading the configuration again"));
    }

    /// What the daemon does, as one line.
    pub fn status(&self, status: &str) {
        self.send(&format!("STATUS={status}"));
    }

    /// The daemon ends.
    pub fn stopping(&self) {
        self.send("STOPPING=1\nSTATUS=stopping");
    }

    /// Whether engines are built or texts embedded from now on, which may take minutes; only that prolongs the start.
    pub fn set_long(&self, long: bool) {
        self.long.store(long, Ordering::Relaxed);
    }

    /// Called again and again during the start: asks for more time as long as it is at something that may take minutes.
    pub fn opening(&self, now: Instant) {
        if self.long.load(Ordering::Relaxed) && due(&self.extended, now, EXTEND_EVERY) {
            self.send(&format!("EXTEND_TIMEOUT_USEC={}", EXTENSION.as_micros()));
        }
    }

    /// Called after every turn of the inference loop that did its work; not after one that failed.
    pub fn alive(&self, now: Instant) {
        if self.every.is_some_and(|every| due(&self.alive, now, every)) {
            self.send("WATCHDOG=1");
        }
    }
}

/// Whether `every` has passed since the last time this was so.
fn due(last: &Mutex<Option<Instant>>, now: Instant, every: Duration) -> bool {
    let mut last = last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let due = last.is_none_or(|last| now.saturating_duration_since(last) >= every);
    if due {
        *last = Some(now);
    }
    due
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(socket: &UnixDatagram) -> Vec<String> {
        socket.set_nonblocking(true).unwrap();
        let mut buffer = [0; 4096];
        let next = || {
            let length = socket.recv(&mut buffer).ok()?;
            Some(String::from_utf8(buffer[..length].to_vec()).unwrap())
        };
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn more_time_is_asked_for_only_while_something_may_take_minutes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let notifier = Notifier::new(Some(path.into()), None);
        let start = Instant::now();
        notifier.opening(start);
        assert!(heard(&socket).is_empty());
        notifier.set_long(true);
        for s in [0, 9, 10, 19, 20] {
            notifier.opening(start + Duration::from_secs(s));
        }
        assert_eq!(heard(&socket), ["EXTEND_TIMEOUT_USEC=60000000"; 3]);
        notifier.set_long(false);
        notifier.opening(start + Duration::from_secs(60));
        notifier.alive(start);
        assert!(heard(&socket).is_empty(), "there is no watchdog");
    }

    #[test]
    fn signs_of_life_come_three_times_per_watchdog_period_also_to_an_abstract_socket() {
        let name = format!("samclip-notify-test-{}", std::process::id());
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let notifier = Notifier::new(Some(format!("@{name}").into()), Some(Duration::from_secs(30)));
        let start = Instant::now();
        for s in 0..30 {
            notifier.alive(start + Duration::from_secs(s));
        }
        assert_eq!(heard(&socket), ["WATCHDOG=1"; 3]);
    }
}
