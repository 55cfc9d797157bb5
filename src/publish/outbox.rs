//! What waits to be sent. Pure state: no socket, no clock.
//!
//! Retained topics are states: only the last value counts, none is ever dropped, and all go out again after every
//! connect, because the broker may have lost them. An empty value withdraws a state: it is a state itself until the
//! broker has acknowledged it. Everything else waits in a bounded queue that drops its oldest message; a frame nobody
//! could receive in time is worth less than the next one.

use std::collections::{BTreeMap, VecDeque};

use crate::message::topic::{Qos, Topic};

/// One message on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Where to.
    pub topic: Topic,
    /// Body.
    pub payload: Vec<u8>,
}

/// Messages waiting for the connection.
#[derive(Debug)]
pub struct Outbox {
    queue: VecDeque<Message>,
    queued_bytes: usize,
    most_messages: usize,
    most_bytes: usize,
    dropped: u64,
    /// Last value of every retained topic.
    states: BTreeMap<String, Message>,
    /// Retained topics whose last value still has to go out, in order.
    changed: VecDeque<String>,
}

impl Outbox {
    /// An empty outbox for at most `most_messages` messages and `most_bytes` bytes of payload, retained topics not
    /// counted: there are as many of them as cameras and queries.
    #[must_use]
    pub fn new(most_messages: usize, most_bytes: usize) -> Self {
        Self {
            queue: VecDeque::new(),
            queued_bytes: 0,
            most_messages,
            most_bytes,
            dropped: 0,
            states: BTreeMap::new(),
            changed: VecDeque::new(),
        }
    }

    /// Takes a message; drops the oldest queued ones if the bounds ask for it, or the message itself if it alone is
    /// over them. A withdrawal is acknowledged whatever its topic's quality of service: nothing else says that it
    /// arrived.
    pub fn push(&mut self, mut message: Message) {
        if message.topic.retained {
            if message.payload.is_empty() {
                message.topic.qos = Qos::AtLeastOnce;
            }
            let name = message.topic.name.clone();
            if !self.changed.contains(&name) {
                self.changed.push_back(name.clone());
            }
            self.states.insert(name, message);
            return;
        }
        self.queued_bytes += message.payload.len();
        self.queue.push_back(message);
        while self.queue.len() > self.most_messages || self.queued_bytes > self.most_bytes {
            let Some(oldest) = self.queue.pop_front() else { break };
            self.queued_bytes -= oldest.payload.len();
            self.dropped += 1;
        }
    }

    /// The next message to send: changed states first, then the queue in order.
    pub fn pop(&mut self) -> Option<Message> {
        self.pop_state().or_else(|| self.pop_queued())
    }

    /// The next changed state.
    pub fn pop_state(&mut self) -> Option<Message> {
        let name = self.changed.pop_front()?;
        self.states.get(&name).cloned()
    }

    /// The broker has forgotten a state, and so do we; one that has a value again stays.
    pub fn withdrawn(&mut self, name: &str) {
        if !self.changed.iter().any(|changed| changed == name)
            && self.states.get(name).is_some_and(|state| state.payload.is_empty())
        {
            self.states.remove(name);
        }
    }

    /// Topics whose withdrawal the broker has not acknowledged.
    #[must_use]
    pub fn withdrawals(&self) -> Vec<Topic> {
        let withdrawn = self.states.values().filter(|state| state.payload.is_empty());
        withdrawn.map(|state| state.topic.clone()).collect()
    }

    /// All retained topics that have a value or are still to be withdrawn.
    #[must_use]
    pub fn retained(&self) -> Vec<Topic> {
        self.states.values().map(|state| state.topic.clone()).collect()
    }

    /// The next message that is no state.
    pub fn pop_queued(&mut self) -> Option<Message> {
        let message = self.queue.pop_front()?;
        self.queued_bytes -= message.payload.len();
        Some(message)
    }

    /// Marks every state as unsent, `last` as the last of them: what a new connection starts with.
    pub fn resend_states(&mut self, last: Message) {
        let last_name = last.topic.name.clone();
        self.changed = self.states.keys().filter(|name| **name != last_name).cloned().collect();
        self.changed.push_back(last_name.clone());
        self.states.insert(last_name, last);
    }

    /// Messages waiting.
    #[must_use]
    pub fn len(&self) -> usize {
        self.queue.len() + self.changed.len()
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Messages dropped so far.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(name: &str, retained: bool, payload: &[u8]) -> Message {
        Message {
            topic: Topic {
                name: name.into(),
                qos: Qos::AtMostOnce,
                retained,
            },
            payload: payload.into(),
        }
    }

    fn payloads(outbox: &mut Outbox) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| outbox.pop())
            .map(|message| message.payload)
            .collect()
    }

    #[test]
    fn a_full_queue_drops_its_oldest_message_and_counts_it() {
        let mut outbox = Outbox::new(3, 100);
        (0..5u8).for_each(|i| outbox.push(message("frame", false, &[i])));
        assert_eq!((outbox.len(), outbox.dropped()), (3, 2));
        assert_eq!(payloads(&mut outbox), [[2], [3], [4]]);
    }

    #[test]
    fn bytes_are_bounded_too_and_a_message_over_the_bound_is_dropped() {
        let mut outbox = Outbox::new(10, 8);
        outbox.push(message("mask", false, &[1; 5]));
        outbox.push(message("mask", false, &[2; 5]));
        assert_eq!((outbox.len(), outbox.dropped()), (1, 1));
        outbox.push(message("mask", false, &[3; 9]));
        assert_eq!((outbox.len(), outbox.dropped()), (0, 3));
    }

    #[test]
    fn a_state_keeps_its_last_value_only_and_goes_first() {
        let mut outbox = Outbox::new(2, 100);
        outbox.push(message("frame", false, b"f"));
        outbox.push(message("count", true, b"1"));
        outbox.push(message("count", true, b"2"));
        assert_eq!(payloads(&mut outbox), [b"2", b"f"]);
        assert_eq!(outbox.dropped(), 0);
    }

    #[test]
    fn a_state_that_is_withdrawn_goes_out_empty_until_the_broker_has_acknowledged_it() {
        let mut outbox = Outbox::new(2, 100);
        outbox.push(message("count", true, b"1"));
        outbox.push(message("count", true, b""));
        let sent = outbox.pop().unwrap();
        assert_eq!((sent.payload.len(), sent.topic.qos), (0, Qos::AtLeastOnce));
        // The connection broke meanwhile.
        outbox.resend_states(message("available", true, b"online"));
        assert_eq!(payloads(&mut outbox), [&b""[..], b"online"]);
        let owed: Vec<String> = outbox.withdrawals().into_iter().map(|topic| topic.name).collect();
        assert_eq!(owed, ["count"]);
        assert_eq!(outbox.retained().len(), 2);
        outbox.withdrawn("count");
        assert!(outbox.withdrawals().is_empty());
        outbox.resend_states(message("available", true, b"online"));
        assert_eq!(payloads(&mut outbox), [b"online"]);
    }

    #[test]
    fn a_state_that_has_a_value_again_outlives_the_acknowledgement_of_its_withdrawal() {
        let mut outbox = Outbox::new(2, 100);
        outbox.push(message("count", true, b""));
        payloads(&mut outbox);
        outbox.push(message("count", true, b"2"));
        outbox.withdrawn("count");
        assert_eq!(payloads(&mut outbox), [b"2"]);
        // Withdrawn anew, and not sent yet.
        outbox.push(message("count", true, b""));
        outbox.withdrawn("count");
        assert_eq!(payloads(&mut outbox), [b""]);
    }

    #[test]
    fn a_new_connection_gets_all_states_and_availability_last() {
        let mut outbox = Outbox::new(2, 100);
        for name in ["z/count", "a/count"] {
            outbox.push(message(name, true, name.as_bytes()));
        }
        payloads(&mut outbox);
        outbox.resend_states(message("available", true, b"online"));
        let sent = payloads(&mut outbox);
        assert_eq!(sent, [b"a/count".to_vec(), b"z/count".to_vec(), b"online".to_vec()]);
        outbox.resend_states(message("available", true, b"online"));
        assert_eq!(outbox.len(), 3);
    }

    proptest! {
        #[test]
        fn the_bounds_hold_for_any_messages(sizes in prop::collection::vec(0usize..40, 0..60), most in 0usize..9) {
            let mut outbox = Outbox::new(most, 64);
            let total = sizes.len() as u64;
            for size in sizes {
                outbox.push(message("frame", false, &vec![0; size]));
                prop_assert!(outbox.len() <= most && outbox.queued_bytes <= 64);
            }
            let dropped = outbox.dropped();
            prop_assert_eq!(payloads(&mut outbox).len() as u64 + dropped, total);
            prop_assert_eq!(outbox.queued_bytes, 0);
        }
    }
}
