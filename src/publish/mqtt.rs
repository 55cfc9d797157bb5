//! What the daemon knows of the broker: hand a message over, ask how it goes, stop.
//!
//! Callers never wait for network or disk: [`Publisher::publish`] puts the message into an [`Outbox`] and
//! [`Publisher::event`] hands it to the spool's writer; both return at once. A thread (`session`) connects, sends, and
//! after a loss tries again with growing pauses. After every connect all states go out, `online` last; the broker holds
//! `offline` as last will; a clean stop sends `stopped`. Events go out in order, and leave the spool once the broker
//! has acknowledged them.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::Notify;
use tracing::warn;

use super::link::{self, TlsTexts, Version};
use super::outbox::{Message, Outbox};
use super::session;
use super::spool::writer::{SharedSpool, SpoolWriter, Written};
use super::spool::{Spool, SpoolStats};
use crate::message::query::MAX_COMMAND_BYTES;
use crate::message::topic::Topic;

/// How long the thread may take to end once its connection is given up.
const PARTING: Duration = Duration::from_secs(1);

/// Messages from the broker that nobody has taken yet, and as many that are not kept; further ones are dropped and
/// counted.
const INCOMING: usize = 64;

/// How to reach a broker and what to tell it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Version of the protocol.
    pub version: Version,
    /// Certificates; `None` for a connection in the clear.
    pub tls: Option<TlsTexts>,
    /// Unique among the broker's clients.
    pub client_id: String,
    /// User and password.
    pub credentials: Option<(String, String)>,
    /// Longest silence before the broker counts the client as gone; whole seconds, at least 1.
    pub keep_alive: Duration,
    /// Where `online`, `offline` and `stopped` go; see [`crate::message::topic::Topics::available`].
    pub available: Topic,
    /// Topic filters to subscribe to after every connect.
    pub subscriptions: Vec<String>,
    /// Most messages waiting.
    pub queue_messages: usize,
    /// Most bytes of payload waiting.
    pub queue_bytes: usize,
    /// Largest packet in bytes, either way; a larger message is dropped and counted.
    pub max_packet_bytes: usize,
    /// First and longest pause between two tries to connect; the pause doubles until a connection holds for twice the
    /// longest one.
    pub retry: (Duration, Duration),
}

impl Settings {
    /// Settings with the defaults: MQTT 3.1.1 in the clear, 15 s keep-alive, nothing subscribed, 256 messages, 32 MiB
    /// waiting, 16 MiB packets, pauses 0.5-30 s.
    #[must_use]
    pub fn new(host: &str, port: u16, client_id: &str, available: Topic) -> Self {
        Self {
            host: host.into(),
            port,
            version: Version::V3,
            tls: None,
            client_id: client_id.into(),
            credentials: None,
            keep_alive: Duration::from_secs(15),
            available,
            subscriptions: Vec::new(),
            queue_messages: 256,
            queue_bytes: 32 << 20,
            max_packet_bytes: 16 << 20,
            retry: (Duration::from_millis(500), Duration::from_secs(30)),
        }
    }

    /// Refuses what can never work, certificates included, before anything is started.
    ///
    /// # Errors
    /// [`PublishError::Setting`] and [`PublishError::Tls`].
    pub fn check(&self) -> Result<(), PublishError> {
        check(self)?;
        self.tls.as_ref().map(link::tls).transpose()?;
        Ok(())
    }
}

/// Why a publisher could not be started.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// No thread or no event loop.
    #[error("mqtt thread: {0}")]
    Thread(#[from] std::io::Error),
    /// Settings that no broker accepts.
    #[error("mqtt {field} is {found}, expected {expected}")]
    Setting {
        /// Field of [`Settings`].
        field: &'static str,
        /// Its value.
        found: String,
        /// What is allowed.
        expected: &'static str,
    },
    /// Certificates or a key that cannot be used.
    #[error("mqtt tls: {0}")]
    Tls(String),
}

/// Counters of a publisher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PublishStats {
    /// Whether the broker has accepted the connection.
    pub connected: bool,
    /// Times a connection was accepted.
    pub connects: u64,
    /// Messages handed to the connection.
    pub sent: u64,
    /// Messages dropped: the queue was full, or the message over the packet limit.
    pub dropped: u64,
    /// Messages the broker took and refused to pass on (MQTT 5).
    pub refused: u64,
    /// Messages waiting, spooled events not counted.
    pub waiting: usize,
    /// Messages from the broker dropped because nobody took those before them.
    pub unread: u64,
    /// The spool, if there is one; events dropped on the way to a slow disk count as dropped.
    pub spool: Option<SpoolStats>,
}

/// A message from the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incoming {
    /// Full topic name.
    pub topic: String,
    /// Body.
    pub payload: Bytes,
    /// Whether it is old: the broker kept it from before the subscription.
    pub retained: bool,
}

/// Why a message from the broker is not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unkept {
    /// Its body has so many bytes, more than a command may have.
    TooLong(usize),
    /// Those before it were not taken yet.
    Busy,
}

/// A running connection.
#[derive(Debug)]
pub struct Publisher {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    writer: Option<SpoolWriter>,
    packet_limit: usize,
}

#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    /// Signals every change of `State` to blocking callers.
    pub(super) changed: Condvar,
    /// Wakes the sending task.
    pub(super) work: Notify,
    /// Ends the thread, whatever it waits for.
    pub(super) given_up: Notify,
    /// Events and where they go. Its lock is never asked for while the state's is held: the disk may be slow.
    pub(super) spool: Option<(SharedSpool, Topic)>,
}

/// What a message of QoS 1 was: what its acknowledgement means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Carried {
    /// A spooled event of this number.
    Event(u64),
    /// The withdrawal of this retained topic.
    Withdrawal(String),
    /// Nothing that is waited for.
    Other,
}

/// What the callers and the thread share.
#[derive(Debug)]
pub(super) struct State {
    pub(super) outbox: Outbox,
    pub(super) connected: bool,
    /// Since when, on this connection.
    pub(super) connected_at: Option<Instant>,
    pub(super) connects: u64,
    pub(super) sent: u64,
    /// Messages of QoS 1 handed to the client, in order, whose packet number is not known yet.
    pub(super) handed: VecDeque<Carried>,
    /// Messages of QoS 1 that the broker has not acknowledged on this connection, by packet number.
    pub(super) in_flight: HashMap<u16, Carried>,
    /// Whether the topics of this connection are still to be subscribed to.
    pub(super) subscribe: bool,
    /// Largest packet this connection takes.
    pub(super) packet_limit: usize,
    pub(super) too_large: u64,
    pub(super) refused: u64,
    pub(super) spooled: SpoolStats,
    incoming: VecDeque<Incoming>,
    /// Topics of messages that were not kept.
    unkept: Vec<(String, Unkept)>,
    unread: u64,
    pub(super) stopping: bool,
    /// Until when events are still sent, once stopping: the goodbye must not wait for a long spool.
    pub(super) events_until: Option<Instant>,
    pub(super) abandoned: bool,
    finished: bool,
}

impl State {
    fn new(settings: &Settings, spooled: SpoolStats) -> Self {
        Self {
            outbox: Outbox::new(settings.queue_messages, settings.queue_bytes),
            connected: false,
            connected_at: None,
            connects: 0,
            sent: 0,
            handed: VecDeque::new(),
            in_flight: HashMap::new(),
            subscribe: false,
            packet_limit: settings.max_packet_bytes,
            too_large: 0,
            refused: 0,
            spooled,
            incoming: VecDeque::new(),
            unkept: Vec::new(),
            unread: 0,
            stopping: false,
            events_until: None,
            abandoned: false,
            finished: false,
        }
    }

    /// What was handed over on this connection and is not acknowledged.
    pub(super) fn on_their_way(&self) -> impl Iterator<Item = &Carried> {
        self.handed.iter().chain(self.in_flight.values())
    }

    /// Keeps a message from the broker for whoever takes it, or else why it is not kept.
    pub(super) fn arrived(&mut self, message: Incoming) {
        let why = if message.payload.len() > MAX_COMMAND_BYTES {
            Unkept::TooLong(message.payload.len())
        } else if self.incoming.len() < INCOMING {
            self.incoming.push_back(message);
            return;
        } else {
            self.unread += 1;
            Unkept::Busy
        };
        if self.unkept.len() >= INCOMING {
            return;
        }
        if self.unkept.len() == INCOMING - 1 {
            warn!(
                topic = message.topic,
                "more commands than can be answered; further ones are dropped until these are"
            );
        }
        self.unkept.push((message.topic, why));
    }
}

impl Shared {
    pub(super) fn new(settings: &Settings, spool: Option<(Spool, Topic)>) -> Self {
        let spooled = spool.as_ref().map(|(spool, _)| spool.stats()).unwrap_or_default();
        Self {
            state: Mutex::new(State::new(settings, spooled)),
            changed: Condvar::new(),
            work: Notify::new(),
            given_up: Notify::new(),
            spool: spool.map(|(spool, topic)| (Arc::new(Mutex::new(spool)), topic)),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // every critical section leaves the state whole
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells the sending task what the spool's writer did.
struct Spooling {
    shared: Arc<Shared>,
    topic: Topic,
}

impl Written for Spooling {
    fn added(&self, stats: SpoolStats) {
        self.shared.lock().spooled = stats;
        self.shared.work.notify_one();
    }

    fn unwritten(&self, payload: Vec<u8>) {
        let topic = self.topic.clone();
        self.shared.lock().outbox.push(Message { topic, payload });
        self.shared.work.notify_one();
    }
}

/// Bytes of a packet beyond topic and payload, at most: fixed header, topic length, packet number, properties.
const PACKET_OVERHEAD: usize = 10;

/// Whether a message fits into a packet.
pub(super) fn fits(topic: &Topic, payload: &[u8], limit: usize) -> bool {
    payload.len() + topic.name.len() + PACKET_OVERHEAD <= limit
}

impl Publisher {
    /// Starts the thread; connecting goes on in the background, and a broker that is not there is no error.
    ///
    /// # Errors
    /// [`PublishError`] for settings that can never work, or if the system gives no thread.
    pub fn start(settings: Settings) -> Result<Self, PublishError> {
        Self::start_with(settings, None)
    }

    /// As [`Self::start`], with a spool for events and the topic they go to.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with(settings: Settings, spool: Option<(Spool, Topic)>) -> Result<Self, PublishError> {
        check(&settings)?;
        let tls = settings.tls.as_ref().map(link::tls).transpose()?;
        let shared = Arc::new(Shared::new(&settings, spool));
        let writer = match &shared.spool {
            None => None,
            Some((spool, topic)) => {
                let told = Spooling {
                    shared: Arc::clone(&shared),
                    topic: topic.clone(),
                };
                Some(SpoolWriter::start(Arc::clone(spool), told)?)
            }
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()?;
        let packet_limit = settings.max_packet_bytes;
        let thread = std::thread::Builder::new().name("mqtt".into()).spawn({
            let shared = Arc::clone(&shared);
            move || {
                runtime.block_on(session::run(&settings, tls.as_ref(), &shared));
                // A look-up of the broker's name may take long, and nobody waits for it.
                runtime.shutdown_background();
                shared.lock().finished = true;
                shared.changed.notify_all();
            }
        })?;
        Ok(Self {
            shared,
            thread: Some(thread),
            writer,
            packet_limit,
        })
    }

    /// Hands a message over; never waits. A retained message replaces an unsent one of its topic.
    pub fn publish(&self, topic: Topic, payload: Vec<u8>) {
        let mut state = self.shared.lock();
        if !fits(&topic, &payload, self.packet_limit) {
            state.too_large += 1;
            warn!(
                topic = topic.name,
                bytes = payload.len(),
                limit = self.packet_limit,
                "message over the packet limit"
            );
            return;
        }
        state.outbox.push(Message { topic, payload });
        drop(state);
        self.shared.work.notify_one();
    }

    /// Hands an event over; never waits. It goes through the spool if there is one, else as any message to `topic`.
    pub fn event(&self, topic: Topic, payload: Vec<u8>) {
        match &self.writer {
            Some(writer) => writer.offer(payload),
            None => self.publish(topic, payload),
        }
    }

    /// Messages from the broker since the last call, in order.
    #[must_use]
    pub fn incoming(&self) -> Vec<Incoming> {
        self.shared.lock().incoming.drain(..).collect()
    }

    /// Topics of messages from the broker since the last call that are not among [`Self::incoming`], at most 64.
    #[must_use]
    pub fn unkept(&self) -> Vec<(String, Unkept)> {
        std::mem::take(&mut self.shared.lock().unkept)
    }

    /// Retained topics that were withdrawn, and that the broker may still keep.
    #[must_use]
    pub fn withdrawals(&self) -> Vec<Topic> {
        self.shared.lock().outbox.withdrawals()
    }

    /// Retained topics that the broker keeps something of, or may still keep.
    #[must_use]
    pub fn retained(&self) -> Vec<Topic> {
        self.shared.lock().outbox.retained()
    }

    /// Counters so far.
    #[must_use]
    pub fn stats(&self) -> PublishStats {
        let spool_dropped = self.writer.as_ref().map(SpoolWriter::dropped);
        let state = self.shared.lock();
        PublishStats {
            connected: state.connected,
            connects: state.connects,
            sent: state.sent,
            dropped: state.outbox.dropped() + state.too_large,
            refused: state.refused,
            waiting: state.outbox.len(),
            unread: state.unread,
            spool: spool_dropped.map(|dropped| SpoolStats {
                dropped: state.spooled.dropped + dropped,
                ..state.spooled
            }),
        }
    }

    /// Waits until the broker has accepted the connection; `false` if it has not within `timeout`.
    #[must_use]
    pub fn wait_connected(&self, timeout: Duration) -> bool {
        self.wait(timeout, |state| state.connected)
    }

    /// Waits until everything but spooled events is sent, and acknowledged where its quality of service is 1; `false` if it is not
    /// within `timeout`.
    #[must_use]
    pub fn wait_sent(&self, timeout: Duration) -> bool {
        self.wait(timeout, |state| {
            state.connected
                && state.outbox.is_empty()
                && state.on_their_way().all(|carried| matches!(carried, Carried::Event(_)))
        })
    }

    fn wait(&self, timeout: Duration, done: impl Fn(&State) -> bool) -> bool {
        let state = self.shared.lock();
        let waited = self
            .shared
            .changed
            .wait_timeout_while(state, timeout, |state| !done(state));
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        done(&state)
    }

    /// Sends what waits and then `stopped`, and disconnects; gives up after `grace`, and at once without a connection.
    /// Returns whether the broker has acknowledged `stopped`. Events that are not sent stay in the spool, which is free
    /// for the next publisher then, unless the disk hangs.
    pub fn stop(mut self, grace: Duration) -> bool {
        let end = Instant::now() + grace;
        if let Some(writer) = self.writer.take()
            && !writer.finish(grace / 2)
        {
            warn!("the disk is too slow: the last events may not be in the spool");
        }
        let mut state = self.shared.lock();
        (state.stopping, state.events_until) = (true, Some(Instant::now() + grace / 4));
        drop(state);
        self.shared.work.notify_one();
        let in_time = self.wait(end.saturating_duration_since(Instant::now()), |state| state.finished);
        if !in_time {
            self.give_up();
        }
        let finished = in_time || self.wait(PARTING, |state| state.finished);
        let thread = if finished { self.thread.take() } else { None };
        thread.is_some_and(|thread| thread.join().is_ok()) && in_time && self.shared.lock().connected
    }

    /// Breaks the connection.
    fn give_up(&self) {
        self.shared.lock().abandoned = true;
        self.shared.work.notify_one();
        self.shared.given_up.notify_one();
    }
}

fn check(settings: &Settings) -> Result<(), PublishError> {
    let bad = |field, found: String, expected| Err(PublishError::Setting { field, found, expected });
    if settings.keep_alive < Duration::from_secs(1) || settings.keep_alive > Duration::from_secs(65_535) {
        return bad("keep_alive", format!("{:?}", settings.keep_alive), "1 to 65535 seconds");
    }
    if settings.client_id.is_empty() || settings.client_id.starts_with(' ') {
        return bad(
            "client_id",
            format!("{:?}", settings.client_id),
            "a name that does not begin with a space",
        );
    }
    if settings.host.is_empty() || settings.port == 0 {
        return bad(
            "host and port",
            format!("{:?}:{}", settings.host, settings.port),
            "a host name and a port from 1",
        );
    }
    Ok(())
}

impl Drop for Publisher {
    /// Breaks the connection without a goodbye, so that the broker sends the last will; only [`Publisher::stop`] is a
    /// clean exit.
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.give_up();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::topic::Qos;
    use crate::message::topic::Topics;

    fn settings(port: u16) -> Settings {
        let topics = Topics::new("samclip").unwrap();
        let mut settings = Settings::new("127.0.0.1", port, "test", topics.available());
        settings.retry = (Duration::from_millis(10), Duration::from_millis(40));
        settings
    }

    fn closed_port() -> u16 {
        std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port()
    }

    #[test]
    fn a_broker_that_is_not_there_blocks_nothing_and_drops_are_counted() {
        let mut settings = settings(closed_port());
        settings.queue_messages = 10;
        let publisher = Publisher::start(settings).unwrap();
        let topic = Topic {
            name: "samclip/dock/frame".into(),
            qos: Qos::AtMostOnce,
            retained: false,
        };
        let start = Instant::now();
        for _ in 0..1_000 {
            publisher.publish(topic.clone(), vec![0; 1_000]);
        }
        assert!(start.elapsed() < Duration::from_secs(1));
        assert!(!publisher.wait_connected(Duration::from_millis(60)));
        let stats = publisher.stats();
        assert_eq!(
            (stats.dropped, stats.waiting, stats.sent, stats.connected),
            (990, 10, 0, false)
        );
        let start = Instant::now();
        assert!(!publisher.stop(Duration::from_secs(5)));
        assert!(start.elapsed() < Duration::from_secs(4), "stopping waits for nobody");
    }

    #[test]
    fn a_broker_that_acknowledges_nothing_does_not_hold_the_spool_of_the_next_one() {
        let dir = tempfile::tempdir().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let settings = settings(listener.local_addr().unwrap().port());
        let open = || Spool::open(dir.path(), crate::publish::spool::MIN_BYTES);
        let events = Topics::new("samclip").unwrap().events();
        let publisher = Publisher::start_with(settings, Some((open().unwrap(), events.clone()))).unwrap();
        // It accepts the connection, and nothing comes of it any more.
        let (mut broker, _) = listener.accept().unwrap();
        std::io::Write::write_all(&mut broker, &[0x20, 2, 0, 0]).unwrap();
        assert!(publisher.wait_connected(Duration::from_secs(30)));
        // More than may be on their way: the sending task waits for a place.
        (0..200).for_each(|_| publisher.publish(events.clone(), vec![b'x']));
        assert!(!publisher.stop(Duration::from_millis(200)));
        assert!(open().is_ok());
        drop(broker);
    }

    #[test]
    fn an_event_that_cannot_be_read_back_goes_out_once_it_can_though_nothing_else_happens() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(dir.path(), crate::publish::spool::MIN_BYTES).unwrap();
        spool.append(b"event 1").unwrap();
        let (path, aside) = (dir.path().join("0000000001.spool"), dir.path().join("aside"));
        std::fs::rename(&path, &aside).unwrap();
        std::fs::create_dir(&path).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let settings = settings(listener.local_addr().unwrap().port());
        let events = Topics::new("samclip").unwrap().events();
        let publisher = Publisher::start_with(settings, Some((spool, events))).unwrap();
        let (mut broker, _) = listener.accept().unwrap();
        std::io::Write::write_all(&mut broker, &[0x20, 2, 0, 0]).unwrap();
        assert!(publisher.wait_connected(Duration::from_secs(30)));
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(publisher.stats().spool.unwrap().waiting, 1);
        std::fs::remove_dir(&path).unwrap();
        std::fs::rename(&aside, &path).unwrap();
        broker.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let (mut heard, mut buffer) = (Vec::new(), [0; 1024]);
        while !heard.windows(7).any(|bytes| bytes == b"event 1") {
            let count = std::io::Read::read(&mut broker, &mut buffer).unwrap();
            assert!(count > 0, "the connection ended");
            heard.extend_from_slice(&buffer[..count]);
        }
        assert_eq!(publisher.stats().spool.unwrap().damaged, 0);
    }

    #[test]
    fn what_the_broker_has_not_acknowledged_is_not_sent() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let publisher = Publisher::start(settings(listener.local_addr().unwrap().port())).unwrap();
        let (mut broker, _) = listener.accept().unwrap();
        let mut answer = |packet: &[u8]| std::io::Write::write_all(&mut broker, packet).unwrap();
        answer(&[0x20, 2, 0, 0]);
        assert!(publisher.wait_connected(Duration::from_secs(30)));
        let start = Instant::now();
        while publisher.stats().waiting > 0 || publisher.stats().sent == 0 {
            assert!(start.elapsed() < Duration::from_secs(30));
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(!publisher.wait_sent(Duration::from_millis(50)));
        answer(&[0x40, 2, 0, 1]);
        assert!(publisher.wait_sent(Duration::from_secs(30)));
    }

    #[test]
    fn a_message_that_is_not_kept_is_told_of_with_the_reason() {
        let publisher = Publisher::start(settings(closed_port())).unwrap();
        let arrives = |topic: &str, bytes: usize| {
            publisher.shared.lock().arrived(Incoming {
                topic: topic.into(),
                payload: vec![b'x'; bytes].into(),
                retained: false,
            });
        };
        arrives("long", MAX_COMMAND_BYTES + 1);
        (0..200).for_each(|_| arrives("short", MAX_COMMAND_BYTES));
        assert_eq!(publisher.incoming().len(), INCOMING);
        let unkept = publisher.unkept();
        assert_eq!(unkept.len(), INCOMING, "what is told is bounded too");
        let long = Unkept::TooLong(MAX_COMMAND_BYTES + 1);
        assert_eq!(
            unkept[..2],
            [("long".to_owned(), long), ("short".to_owned(), Unkept::Busy)]
        );
        assert_eq!(publisher.stats().unread, 200 - INCOMING as u64);
        // The next ones have room again.
        arrives("short", 1);
        assert_eq!((publisher.incoming().len(), publisher.unkept()), (1, vec![]));
    }

    #[test]
    fn settings_that_cannot_work_are_refused() {
        let error = |change: fn(&mut Settings)| {
            let mut settings = settings(1883);
            change(&mut settings);
            Publisher::start(settings).unwrap_err().to_string()
        };
        assert_eq!(
            error(|settings| settings.keep_alive = Duration::ZERO),
            "mqtt keep_alive is 0ns, expected 1 to 65535 seconds"
        );
        assert!(error(|settings| settings.client_id.clear()).starts_with("mqtt client_id"));
        assert!(error(|settings| settings.port = 0).starts_with("mqtt host and port"));
    }

    #[test]
    fn a_message_over_the_packet_limit_is_dropped_and_counted() {
        let mut settings = settings(closed_port());
        settings.max_packet_bytes = 1_000;
        let publisher = Publisher::start(settings).unwrap();
        let topic = Topic {
            name: "t".into(),
            qos: Qos::AtMostOnce,
            retained: false,
        };
        publisher.publish(topic.clone(), vec![0; 990]);
        publisher.publish(topic, vec![0; 989]);
        assert_eq!((publisher.stats().dropped, publisher.stats().waiting), (1, 1));
    }
}
