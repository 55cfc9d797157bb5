//! The connection to the broker: MQTT 3.1.1 over TCP, on a thread of its own.
//!
//! Callers never wait for the network: [`Publisher::publish`] puts the message into an [`Outbox`] and returns. The
//! thread connects, sends, and after a loss tries again with growing pauses; it logs each change of state once, not
//! each try. After every connect all states go out, `online` last; the broker holds `offline` as last will; a clean
//! stop sends `stopped`.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rumqttc::{AsyncClient, ClientError, Event, EventLoop, LastWill, MqttOptions, Outgoing, Packet, QoS};
use tokio::sync::Notify;
use tracing::{debug, info, warn};

use super::outbox::{Message, Outbox};
use crate::message::payload::Availability;
use crate::message::topic::{Qos, Topic};

/// Messages handed to the MQTT client at once; the rest waits in the outbox, where the newest win.
const CLIENT_QUEUE: usize = 4;

/// How to reach a broker and what to tell it.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Unique among the broker's clients.
    pub client_id: String,
    /// User and password.
    pub credentials: Option<(String, String)>,
    /// Longest silence before the broker counts the client as gone; whole seconds, at least 1.
    pub keep_alive: Duration,
    /// Where `online`, `offline` and `stopped` go; see [`crate::message::topic::Topics::available`].
    pub available: Topic,
    /// Most messages waiting.
    pub queue_messages: usize,
    /// Most bytes of payload waiting.
    pub queue_bytes: usize,
    /// Largest packet in bytes, either way; a larger message is dropped and counted.
    pub max_packet_bytes: usize,
    /// First and longest pause between two tries to connect; the pause doubles.
    pub retry: (Duration, Duration),
}

impl Settings {
    /// Settings with the defaults: 15 s keep-alive, 256 messages, 32 MiB waiting, 16 MiB packets, pauses 0.5-30 s.
    #[must_use]
    pub fn new(host: &str, port: u16, client_id: &str, available: Topic) -> Self {
        Self {
            host: host.into(),
            port,
            client_id: client_id.into(),
            credentials: None,
            keep_alive: Duration::from_secs(15),
            available,
            queue_messages: 256,
            queue_bytes: 32 << 20,
            max_packet_bytes: 16 << 20,
            retry: (Duration::from_millis(500), Duration::from_secs(30)),
        }
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
    /// Messages waiting.
    pub waiting: usize,
}

/// A running connection.
#[derive(Debug)]
pub struct Publisher {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    packet_limit: usize,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Signals every change of `State` to blocking callers.
    changed: Condvar,
    /// Wakes the sending task.
    work: Notify,
}

#[derive(Debug)]
struct State {
    outbox: Outbox,
    connected: bool,
    connects: u64,
    sent: u64,
    /// Messages of QoS 1 that the broker has not acknowledged on this connection.
    unacknowledged: usize,
    too_large: u64,
    stopping: bool,
    abandoned: bool,
    finished: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // every critical section leaves the state whole
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Publisher {
    /// Starts the thread; connecting goes on in the background, and a broker that is not there is no error.
    ///
    /// # Errors
    /// [`PublishError`] for settings that can never work, or if the system gives no thread.
    pub fn start(settings: Settings) -> Result<Self, PublishError> {
        check(&settings)?;
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                outbox: Outbox::new(settings.queue_messages, settings.queue_bytes),
                connected: false,
                connects: 0,
                sent: 0,
                unacknowledged: 0,
                too_large: 0,
                stopping: false,
                abandoned: false,
                finished: false,
            }),
            changed: Condvar::new(),
            work: Notify::new(),
        });
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()?;
        let packet_limit = settings.max_packet_bytes;
        let thread = std::thread::Builder::new().name("mqtt".into()).spawn({
            let shared = Arc::clone(&shared);
            move || {
                runtime.block_on(run(&settings, &shared));
                shared.lock().finished = true;
                shared.changed.notify_all();
            }
        })?;
        Ok(Self {
            shared,
            thread: Some(thread),
            packet_limit,
        })
    }

    /// Hands a message over; never waits. A retained message replaces an unsent one of its topic.
    pub fn publish(&self, topic: Topic, payload: Vec<u8>) {
        let mut state = self.shared.lock();
        // fixed header, topic length and packet id take at most 9 bytes more
        if payload.len() + topic.name.len() + 9 > self.packet_limit {
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

    /// Counters so far.
    #[must_use]
    pub fn stats(&self) -> PublishStats {
        let state = self.shared.lock();
        PublishStats {
            connected: state.connected,
            connects: state.connects,
            sent: state.sent,
            dropped: state.outbox.dropped() + state.too_large,
            waiting: state.outbox.len(),
        }
    }

    /// Waits until the broker has accepted the connection; `false` if it has not within `timeout`.
    #[must_use]
    pub fn wait_connected(&self, timeout: Duration) -> bool {
        self.wait(timeout, |state| state.connected)
    }

    /// Waits until everything is handed to the connection; `false` if it is not within `timeout`.
    #[must_use]
    pub fn wait_sent(&self, timeout: Duration) -> bool {
        self.wait(timeout, |state| state.connected && state.outbox.is_empty())
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
    /// Returns whether the broker has acknowledged `stopped`.
    pub fn stop(mut self, grace: Duration) -> bool {
        self.shared.lock().stopping = true;
        self.shared.work.notify_one();
        let finished = self.wait(grace, |state| state.finished);
        // after the grace the thread is left to the destructor, which breaks the connection
        let thread = if finished { self.thread.take() } else { None };
        thread.is_some_and(|thread| thread.join().is_ok()) && self.shared.lock().connected
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

fn quality(qos: Qos) -> QoS {
    match qos {
        Qos::AtMostOnce => QoS::AtMostOnce,
        Qos::AtLeastOnce => QoS::AtLeastOnce,
    }
}

/// The thread: one task receives and reconnects, the other sends.
async fn run(settings: &Settings, shared: &Shared) {
    let mut options = MqttOptions::new(&settings.client_id, &settings.host, settings.port);
    options.set_keep_alive(settings.keep_alive);
    options.set_max_packet_size(settings.max_packet_bytes, settings.max_packet_bytes);
    let will = Availability::Offline.as_str();
    let (topic, qos) = (&settings.available.name, quality(settings.available.qos));
    options.set_last_will(LastWill::new(topic, will, qos, settings.available.retained));
    if let Some((user, password)) = &settings.credentials {
        options.set_credentials(user, password);
    }
    let (client, events) = AsyncClient::new(options, CLIENT_QUEUE);
    tokio::select! {
        () = receive(events, settings, shared) => {}
        () = send(client, settings, shared) => {}
    }
}

/// Drives the connection; returns after a clean disconnect.
async fn receive(mut events: EventLoop, settings: &Settings, shared: &Shared) {
    let broker = format!("{}:{}", settings.host, settings.port);
    let mut pause = settings.retry.0;
    let mut reported = false;
    loop {
        match events.poll().await {
            Ok(Event::Incoming(Packet::ConnAck(_))) => {
                info!(broker, "connected to the broker");
                (pause, reported) = (settings.retry.0, false);
                let online = Availability::Online.as_str().into();
                let mut state = shared.lock();
                state.outbox.resend_states(Message {
                    topic: settings.available.clone(),
                    payload: online,
                });
                (state.connected, state.connects, state.unacknowledged) = (true, state.connects + 1, 0);
                drop(state);
                shared.changed.notify_all();
                shared.work.notify_one();
            }
            Ok(Event::Incoming(Packet::PubAck(_))) => {
                let mut state = shared.lock();
                state.unacknowledged = state.unacknowledged.saturating_sub(1);
                drop(state);
                shared.work.notify_one();
            }
            Ok(Event::Outgoing(Outgoing::Disconnect)) => return,
            Ok(_) => {}
            Err(error) => {
                shared.lock().connected = false;
                shared.changed.notify_all();
                if reported {
                    debug!(broker, %error, "still no broker");
                } else {
                    warn!(broker, %error, "no broker; trying again in the background");
                    reported = true;
                }
                shared.work.notify_one();
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(settings.retry.1);
            }
        }
    }
}

/// Moves messages from the outbox to the connection while there is one; returns when asked to stop without one,
/// or when nobody holds the publisher any more.
async fn send(client: AsyncClient, settings: &Settings, shared: &Shared) {
    let mut farewell = Some(settings.available.clone());
    loop {
        let (message, connected, stopping, unacknowledged) = {
            let mut state = shared.lock();
            if state.abandoned {
                return;
            }
            let message = if state.connected { state.outbox.pop() } else { None };
            (message, state.connected, state.stopping, state.unacknowledged)
        };
        let sent = match message {
            Some(message) => hand_over(&client, message, shared).await,
            None if stopping && !connected => return,
            None if stopping => match farewell.take() {
                Some(topic) => {
                    let payload = Availability::Stopped.as_str().into();
                    hand_over(&client, Message { topic, payload }, shared).await
                }
                // the receiving task sees the disconnect go out and ends the thread
                None if unacknowledged == 0 => match client.disconnect().await {
                    Ok(()) => std::future::pending().await,
                    Err(error) => Err(error),
                },
                None => {
                    shared.work.notified().await;
                    Ok(())
                }
            },
            None => {
                shared.work.notified().await;
                Ok(())
            }
        };
        if let Err(error) = sent {
            return closed(&error);
        }
    }
}

/// Gives one message to the client, waiting for a place in its short queue.
async fn hand_over(client: &AsyncClient, message: Message, shared: &Shared) -> Result<(), ClientError> {
    let Topic { name, qos, retained } = message.topic;
    client.publish(name, quality(qos), retained, message.payload).await?;
    let mut state = shared.lock();
    state.sent += 1;
    state.unacknowledged += usize::from(qos == Qos::AtLeastOnce);
    drop(state);
    shared.changed.notify_all();
    Ok(())
}

/// The client refuses messages only after the receiving task has ended.
fn closed(error: &ClientError) {
    debug!(%error, "connection task has ended");
}

impl Drop for Publisher {
    /// Breaks the connection without a goodbye, so that the broker sends the last will; only [`Publisher::stop`] is a
    /// clean exit.
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.shared.lock().abandoned = true;
            self.shared.work.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

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
        publisher.publish(topic.clone(), vec![0; 991]);
        publisher.publish(topic, vec![0; 990]);
        assert_eq!((publisher.stats().dropped, publisher.stats().waiting), (1, 1));
    }
}
