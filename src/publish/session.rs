//! The thread that talks to the broker: one link after the other, one task that receives, one that sends.
//!
//! Each change of the connection is logged once, not each try.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use super::link::{self, Closed, Happened, Receiver, Sender};
use super::mqtt::{Carried, Incoming, Settings, Shared, State, fits};
use super::outbox::Message;
use super::spool::writer::lock;
use crate::message::payload::Availability;
use crate::message::topic::{Qos, Topic};

/// Spooled events on their way at once.
const WINDOW: usize = 32;

/// Pause before an event that could not be read back is tried again.
const UNREADABLE: Duration = Duration::from_secs(1);

/// How a link ended.
enum End {
    /// As it should: asked to stop, or nobody holds the publisher any more.
    Done,
    /// It broke, or never came to be.
    Broken(String),
}

/// When to try again, and what of it is new.
struct Retry {
    /// First and longest pause.
    range: (Duration, Duration),
    pause: Duration,
    /// Whether the log has it that there is no broker, and that connections do not last.
    told: (bool, bool),
    /// Whether the log's last word is that there is a broker.
    connected: bool,
}

/// What the log is told of the end of a link.
#[derive(Debug, PartialEq, Eq)]
enum News {
    /// There is no connection any more, or none yet.
    Lost,
    /// There was one again, and not for long.
    Brief,
    Nothing,
}

impl Retry {
    fn new(range: (Duration, Duration)) -> Self {
        Self {
            range,
            pause: range.0,
            told: (false, false),
            connected: false,
        }
    }

    /// A link ended that was connected for `held`, if at all: the pause before the next one, and what is new.
    ///
    /// Two clients of the same id push each other off, and each connection holds as long as the other client pauses:
    /// only one that holds longer makes pauses short again. As each of their tries connects, one that does not after one
    /// that did means that the broker is away.
    fn ended(&mut self, held: Option<Duration>) -> (Duration, News) {
        if held.is_some_and(|held| held >= self.range.1 * 2) {
            *self = Self::new(self.range);
        }
        let pause = self.pause;
        self.pause = (pause * 2).min(self.range.1);
        let away = std::mem::replace(&mut self.connected, held.is_some()) && held.is_none();
        let (lost, brief) = &mut self.told;
        let news = if !std::mem::replace(lost, true) || away {
            News::Lost
        } else if held.is_some() && !std::mem::replace(brief, true) {
            News::Brief
        } else {
            News::Nothing
        };
        if news == News::Lost {
            self.connected = false;
        }
        (pause, news)
    }
}

/// Keeps a connection until asked to stop.
pub(super) async fn run(settings: &Settings, tls: Option<&Arc<rustls::ClientConfig>>, shared: &Shared) {
    let broker = format!("{}:{}", settings.host, settings.port);
    let mut retry = Retry::new(settings.retry);
    loop {
        let (sender, receiver) = link::open(settings, tls);
        let end = tokio::select! {
            end = receive(receiver, settings, shared) => end,
            () = send(sender, settings, shared) => End::Done,
            () = shared.given_up.notified() => End::Done,
        };
        let End::Broken(error) = end else { return };
        let (pause, news) = retry.ended(disconnected(shared));
        match news {
            News::Lost => warn!(broker, error, "no broker; trying again in the background"),
            News::Brief => warn!(
                broker,
                error,
                client_id = settings.client_id,
                "connections to the broker do not last; if another client has the same client_id, give this one another"
            ),
            News::Nothing => debug!(broker, error, "still no broker"),
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = told_to_end(shared) => return,
        }
    }
}

async fn told_to_end(shared: &Shared) {
    let told = || {
        let state = shared.lock();
        state.stopping || state.abandoned
    };
    while !told() {
        shared.work.notified().await;
    }
}

/// Forgets what was on its way; for how long there was a connection, if there was one.
fn disconnected(shared: &Shared) -> Option<Duration> {
    let mut state = shared.lock();
    state.handed.clear();
    state.in_flight.clear();
    state.connected = false;
    let held = state.connected_at.take().map(|at| at.elapsed());
    drop(state);
    shared.changed.notify_all();
    if let Some((spool, _)) = &shared.spool {
        lock(spool).rewind();
    }
    held
}

/// Drives a link until it ends.
async fn receive(mut receiver: Receiver, settings: &Settings, shared: &Shared) -> End {
    let mut refusal_reported = false;
    loop {
        match receiver.next().await {
            Ok(Happened::Connected { packet_limit }) => {
                info!(host = settings.host, port = settings.port, "connected to the broker");
                let mut state = shared.lock();
                state.outbox.resend_states(Message {
                    topic: settings.available.clone(),
                    payload: Availability::Online.as_str().into(),
                });
                let limit = packet_limit.unwrap_or(usize::MAX).min(settings.max_packet_bytes);
                (state.connected, state.connects, state.packet_limit) = (true, state.connects + 1, limit);
                state.connected_at = Some(Instant::now());
                state.subscribe = !settings.subscriptions.is_empty();
                drop(state);
                shared.changed.notify_all();
                shared.work.notify_one();
            }
            Ok(Happened::Left(number)) => left(number, &mut shared.lock()),
            Ok(Happened::Acknowledged(number, taken)) => {
                acknowledged(shared, number, taken);
                if !taken && !refusal_reported {
                    refusal_reported = true;
                    warn!("the broker refuses to pass a message on; logged once per connection");
                }
            }
            Ok(Happened::Arrived {
                topic,
                payload,
                retained,
            }) => shared.lock().arrived(Incoming {
                topic,
                payload,
                retained,
            }),
            Ok(Happened::Subscribed(granted)) => {
                let filters = refused(&settings.subscriptions, &granted);
                if !filters.is_empty() {
                    warn!(
                        filters = filters.join(", "),
                        "the broker refuses subscriptions: no command under them is heard; its access list must let this user read them"
                    );
                }
            }
            Ok(Happened::Parted) => return End::Done,
            Ok(Happened::Other) => {}
            Err(error) => return End::Broken(error),
        }
    }
}

/// The filters that the broker does not grant.
fn refused<'a>(filters: &'a [String], granted: &[bool]) -> Vec<&'a str> {
    let answered = filters.iter().zip(granted);
    answered
        .filter(|(_, granted)| !**granted)
        .map(|(filter, _)| filter.as_str())
        .collect()
}

/// The oldest message that was handed over went out under this number.
fn left(number: u16, state: &mut State) {
    let carried = state.handed.pop_front().unwrap_or(Carried::Other);
    state.in_flight.insert(number, carried);
}

/// The broker has a message; a spooled event is done with, and so is a withdrawal unless the broker refuses it, or another one
/// of its topic is on its way.
fn acknowledged(shared: &Shared, number: u16, taken: bool) {
    let mut state = shared.lock();
    state.refused += u64::from(!taken);
    let carried = state.in_flight.remove(&number);
    if let Some(Carried::Withdrawal(name)) = &carried
        && taken
        && !state.on_their_way().any(|c| Some(c) == carried.as_ref())
    {
        state.outbox.withdrawn(name);
    }
    drop(state);
    if let (Some(Carried::Event(event)), Some((spool, _))) = (carried, &shared.spool) {
        let stats = {
            let mut spool = lock(spool);
            spool.acknowledge(event);
            spool.stats()
        };
        shared.lock().spooled = stats;
    }
    shared.changed.notify_all();
    shared.work.notify_one();
}

/// What the sending task does next.
enum Next {
    /// Sends a message, which counts as handed over.
    Send(Message),
    /// Drops a message to this topic, over the broker's packet limit; a spooled event has a number.
    Drop(Topic, Option<u64>),
    Subscribe,
    Goodbye,
    /// Looks again when something has changed.
    Wait,
    End,
}

/// What comes before events: the end, subscriptions, states.
fn before_events(state: &mut State) -> Option<Next> {
    if state.abandoned || (state.stopping && !state.connected) {
        return Some(Next::End);
    }
    if !state.connected {
        return Some(Next::Wait);
    }
    if std::mem::take(&mut state.subscribe) {
        return Some(Next::Subscribe);
    }
    let message = state.outbox.pop_state()?;
    Some(hand_over(message, None, state))
}

/// The next event, unless enough are on their way or the daemon ends; an error if it cannot be read back just now.
fn next_event(shared: &Shared) -> std::io::Result<Option<Next>> {
    let until = shared.lock().events_until;
    let Some((spool, topic)) = &shared.spool else {
        return Ok(None);
    };
    if until.is_some_and(|until| Instant::now() >= until) {
        return Ok(None);
    }
    let (number, payload) = {
        let mut spool = lock(spool);
        if spool.on_their_way() >= WINDOW {
            return Ok(None);
        }
        let Some(next) = spool.next_unsent()? else {
            return Ok(None);
        };
        next
    };
    let topic = topic.clone();
    let message = Message { topic, payload };
    Ok(Some(hand_over(message, Some(number), &mut shared.lock())))
}

/// What comes after events: the queue, the goodbye.
fn after_events(state: &mut State, farewell: &mut Option<Topic>) -> Next {
    if let Some(message) = state.outbox.pop_queued() {
        return hand_over(message, None, state);
    }
    if !state.stopping {
        return Next::Wait;
    }
    match farewell.take() {
        Some(topic) => {
            let payload = Availability::Stopped.as_str().into();
            hand_over(Message { topic, payload }, None, state)
        }
        None if state.on_their_way().next().is_none() => Next::Goodbye,
        None => Next::Wait,
    }
}

/// Waits for something to do; not for long while an event is `unreadable`, which is logged once per connection.
async fn wait(shared: &Shared, unreadable: Option<std::io::Error>, reported: &mut bool) {
    let Some(error) = unreadable else {
        return shared.work.notified().await;
    };
    if !std::mem::replace(reported, true) {
        warn!(%error, "events that wait on disk cannot be read just now, and are tried again; logged once per connection");
    }
    let _ = tokio::time::timeout(UNREADABLE, shared.work.notified()).await;
}

/// Moves messages to the link while there is a connection; returns when asked to stop without one, or when nobody holds
/// the publisher any more.
async fn send(sender: Sender, settings: &Settings, shared: &Shared) {
    let mut farewell = Some(settings.available.clone());
    let mut unreadable_reported = false;
    loop {
        let first = before_events(&mut shared.lock());
        let (next, unreadable) = match first.map_or_else(|| next_event(shared), |first| Ok(Some(first))) {
            Ok(next) => (next, None),
            Err(error) => (None, Some(error)),
        };
        let next = next.unwrap_or_else(|| after_events(&mut shared.lock(), &mut farewell));
        let done = match next {
            Next::End => return,
            Next::Wait => {
                wait(shared, unreadable, &mut unreadable_reported).await;
                Ok(())
            }
            Next::Subscribe => sender.subscribe(&settings.subscriptions).await,
            Next::Send(message) => publish(&sender, message, shared).await,
            Next::Drop(topic, event) => {
                warn!(topic = topic.name, "message over the broker's packet limit, dropped");
                if let (Some(event), Some((spool, _))) = (event, &shared.spool) {
                    lock(spool).acknowledge(event);
                }
                Ok(())
            }
            // the receiving task sees it go out and ends the thread
            Next::Goodbye => match sender.disconnect().await {
                Ok(()) => std::future::pending().await,
                Err(closed) => Err(closed),
            },
        };
        if let Err(closed) = done {
            // the receiving task knows why, and ends this one
            debug!(%closed, "not sent");
            std::future::pending::<()>().await;
        }
    }
}

/// Gives one message to the client, waiting for a place in its short queue.
async fn publish(sender: &Sender, message: Message, shared: &Shared) -> Result<(), Closed> {
    sender.publish(&message.topic, message.payload).await?;
    shared.lock().sent += 1;
    shared.changed.notify_all();
    Ok(())
}

/// What becomes of a message that was just taken from where it waited, under the same lock, so that it never looks as if nothing
/// were left to do. One of QoS 1 is waited for until the broker acknowledges it.
fn hand_over(message: Message, event: Option<u64>, state: &mut State) -> Next {
    if !fits(&message.topic, &message.payload, state.packet_limit) {
        state.too_large += 1;
        return Next::Drop(message.topic, event);
    }
    if message.topic.qos == Qos::AtLeastOnce {
        state.handed.push_back(match event {
            Some(number) => Carried::Event(number),
            None if message.topic.retained && message.payload.is_empty() => {
                Carried::Withdrawal(message.topic.name.clone())
            }
            None => Carried::Other,
        });
    }
    Next::Send(message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::topic::Topics;

    fn shared() -> Shared {
        let available = Topics::new("samclip").unwrap().available();
        Shared::new(&Settings::new("127.0.0.1", 1883, "test", available), None)
    }

    #[test]
    fn only_a_connection_that_lasts_makes_the_next_pause_short_and_its_loss_news() {
        let seconds = Duration::from_secs;
        let mut retry = Retry::new((seconds(1), seconds(4)));
        let mut ended = |held: Option<u64>| {
            let (pause, news) = retry.ended(held.map(seconds));
            (pause.as_secs(), news)
        };
        assert_eq!(ended(None), (1, News::Lost));
        assert_eq!(ended(None), (2, News::Nothing));
        // Pushed off by a client of the same id, which pauses as long.
        assert_eq!(ended(Some(0)), (4, News::Brief));
        assert_eq!(ended(Some(4)), (4, News::Nothing));
        assert_eq!(ended(Some(8)), (1, News::Lost));
        // The log says "connected" last, and the broker is gone.
        assert_eq!(ended(Some(2)), (2, News::Brief));
        assert_eq!(ended(Some(2)), (4, News::Nothing));
        assert_eq!(ended(None), (4, News::Lost));
        assert_eq!(ended(None), (4, News::Nothing));
        // The broker went away while there was a good connection, which is one piece of news.
        assert_eq!(ended(Some(9)), (1, News::Lost));
        assert_eq!(ended(None), (2, News::Nothing));
    }

    #[test]
    fn refused_subscriptions_are_named() {
        let filters = ["a/set", "b/set", "c/set"].map(str::to_owned);
        assert_eq!(refused(&filters, &[true, false, false]), ["b/set", "c/set"]);
        assert!(refused(&filters, &[true; 3]).is_empty());
    }

    fn snapshot(payload: &[u8]) -> Message {
        let topic = Topic {
            name: "samclip/dock/person/snapshot".into(),
            qos: Qos::AtMostOnce,
            retained: true,
        };
        let payload = payload.into();
        Message { topic, payload }
    }

    /// Sends every state that waits; those of QoS 1 are numbered from 1 on each connection.
    fn send_states(state: &mut State) -> Vec<Vec<u8>> {
        let mut sent = Vec::new();
        while let Some(message) = state.outbox.pop_state() {
            sent.push(message.payload.clone());
            assert!(matches!(hand_over(message, None, state), Next::Send(_)));
        }
        while !state.handed.is_empty() {
            let number = u16::try_from(state.in_flight.len()).unwrap() + 1;
            left(number, state);
        }
        sent
    }

    /// The connection breaks and there is another one; what goes out on it.
    fn reconnect(shared: &Shared) -> Vec<Vec<u8>> {
        disconnected(shared);
        let mut state = shared.lock();
        state.outbox.resend_states(Message {
            topic: Topics::new("samclip").unwrap().available(),
            payload: b"online".into(),
        });
        send_states(&mut state)
    }

    #[test]
    fn a_withdrawal_that_was_on_its_way_when_the_connection_broke_goes_out_again() {
        let shared = shared();
        shared.lock().outbox.push(snapshot(b""));
        assert_eq!(send_states(&mut shared.lock()), [b""]);
        assert_eq!(reconnect(&shared), [&b""[..], b"online"]);
        acknowledged(&shared, 1, true);
        assert_eq!(reconnect(&shared), [b"online"]);
    }

    #[test]
    fn a_withdrawal_that_the_broker_refuses_goes_out_again_with_the_next_connection() {
        let shared = shared();
        shared.lock().outbox.push(snapshot(b""));
        send_states(&mut shared.lock());
        acknowledged(&shared, 1, false);
        assert_eq!(reconnect(&shared), [&b""[..], b"online"]);
    }

    #[test]
    fn the_last_of_two_withdrawals_of_a_topic_is_the_one_that_counts() {
        let shared = shared();
        for payload in [&b""[..], b"1", b""] {
            shared.lock().outbox.push(snapshot(payload));
            send_states(&mut shared.lock());
        }
        acknowledged(&shared, 1, true);
        assert_eq!(reconnect(&shared), [&b""[..], b"online"]);
    }
}
