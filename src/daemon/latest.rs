//! The hand-off from cameras to the one pipeline: one slot per camera, the newest frame wins, drops are counted.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// One slot per camera. Producers never wait; the consumer takes cameras in turn.
#[derive(Debug)]
pub struct Latest<T> {
    state: Mutex<State<T>>,
    filled: Condvar,
    emptied: Condvar,
}

#[derive(Debug)]
struct State<T> {
    slots: BTreeMap<usize, Slot<T>>,
    /// Number of the next slot that is added; no number comes twice.
    added: usize,
    /// Where the next look begins.
    next: usize,
    closed: bool,
}

#[derive(Debug)]
struct Slot<T> {
    item: Option<T>,
    dropped: u64,
}

/// What [`Latest::take`] found.
#[derive(Debug, PartialEq, Eq)]
pub enum Taken<T> {
    /// The newest item of a slot.
    Item(usize, T),
    /// Nothing came in time.
    Nothing,
    /// Closed and empty.
    Closed,
}

impl<T> Latest<T> {
    /// Empty slots for `count` producers, numbered from 0.
    #[must_use]
    pub fn new(count: usize) -> Self {
        let state = State {
            slots: BTreeMap::new(),
            added: 0,
            next: 0,
            closed: false,
        };
        let latest = Self {
            state: Mutex::new(state),
            filled: Condvar::new(),
            emptied: Condvar::new(),
        };
        for _ in 0..count {
            latest.add();
        }
        latest
    }

    /// A slot for one more producer.
    pub fn add(&self) -> usize {
        let mut state = self.lock();
        let number = state.added;
        state.added += 1;
        let empty = Slot { item: None, dropped: 0 };
        state.slots.insert(number, empty);
        number
    }

    /// Removes a slot with what lies in it; what its producer puts from now on is ignored.
    pub fn remove(&self, slot: usize) {
        self.lock().slots.remove(&slot);
        self.emptied.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // every critical section leaves the state whole
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts an item into a slot; an item nobody took is dropped and counted. Unknown slots are ignored.
    pub fn put(&self, slot: usize, item: T) {
        let mut state = self.lock();
        if state.closed {
            return;
        }
        let Some(slot) = state.slots.get_mut(&slot) else {
            return;
        };
        if slot.item.replace(item).is_some() {
            slot.dropped += 1;
        }
        drop(state);
        self.filled.notify_one();
    }

    /// Waits until the slot is empty and puts an item into it: for sources that can wait. Dropped once closed.
    pub fn put_when_empty(&self, slot: usize, item: T) {
        let full = |s: &mut State<T>| !s.closed && s.slots.get(&slot).is_some_and(|slot| slot.item.is_some());
        drop(self.emptied.wait_while(self.lock(), full));
        self.put(slot, item);
    }

    /// Whether something lies in a slot that nobody has taken yet.
    #[must_use]
    pub fn holds(&self, slot: usize) -> bool {
        self.lock().slots.get(&slot).is_some_and(|slot| slot.item.is_some())
    }

    /// Waits for an item, at most `timeout`; slots take turns.
    pub fn take(&self, timeout: Duration) -> Taken<T> {
        let waited = self.filled.wait_timeout_while(self.lock(), timeout, |s| {
            !s.closed && s.slots.values().all(|slot| slot.item.is_none())
        });
        let (mut guard, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let state = &mut *guard;
        let in_turn = state.slots.range(state.next..).chain(state.slots.range(..state.next));
        let full = in_turn
            .filter(|(_, slot)| slot.item.is_some())
            .map(|(number, _)| *number)
            .next();
        let taken = full.and_then(|number| Some((number, state.slots.get_mut(&number)?.item.take()?)));
        if let Some((number, item)) = taken {
            state.next = number + 1;
            self.emptied.notify_all();
            return Taken::Item(number, item);
        }
        if state.closed { Taken::Closed } else { Taken::Nothing }
    }

    /// Ends the hand-off: what lies in the slots can still be taken.
    pub fn close(&self) {
        self.lock().closed = true;
        self.filled.notify_all();
        self.emptied.notify_all();
    }

    /// Whether [`Self::close`] was called.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Items of a slot that were dropped for newer ones.
    #[must_use]
    pub fn dropped(&self, slot: usize) -> u64 {
        self.lock().slots.get(&slot).map_or(0, |slot| slot.dropped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::ZERO;

    #[test]
    fn the_newest_item_wins_and_the_others_are_counted() {
        let latest = Latest::new(1);
        (0..5).for_each(|i| latest.put(0, i));
        assert_eq!(latest.take(NOW), Taken::Item(0, 4));
        assert_eq!(latest.take(NOW), Taken::Nothing);
        assert_eq!(latest.dropped(0), 4);
    }

    #[test]
    fn a_fast_camera_does_not_starve_a_slow_one() {
        let latest = Latest::new(3);
        latest.put(2, 'c');
        latest.put(0, 'a');
        assert_eq!(latest.take(NOW), Taken::Item(0, 'a'));
        latest.put(0, 'b');
        assert_eq!(latest.take(NOW), Taken::Item(2, 'c'));
        assert_eq!(latest.take(NOW), Taken::Item(0, 'b'));
        assert_eq!((latest.dropped(0), latest.dropped(9)), (0, 0));
    }

    #[test]
    fn slots_come_and_go_while_others_are_in_use() {
        let latest = Latest::new(2);
        latest.put(0, 'a');
        latest.put(1, 'b');
        latest.remove(0);
        let third = latest.add();
        latest.put(0, 'x');
        latest.put(third, 'c');
        assert_eq!(
            (latest.take(NOW), latest.take(NOW)),
            (Taken::Item(1, 'b'), Taken::Item(third, 'c'))
        );
        assert_eq!((latest.take(NOW), latest.dropped(0)), (Taken::Nothing, 0));
    }

    #[test]
    fn a_producer_that_waits_ends_with_its_slot() {
        let latest = Latest::new(1);
        latest.put(0, 1);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| latest.put_when_empty(0, 2));
            latest.remove(0);
            waiting.join().unwrap();
        });
        assert_eq!(latest.take(NOW), Taken::Nothing);
    }

    #[test]
    fn closing_wakes_the_consumer_after_the_last_item() {
        let latest = Latest::new(1);
        latest.put(0, 1);
        latest.close();
        latest.put(0, 2);
        assert_eq!(latest.take(NOW), Taken::Item(0, 1));
        assert_eq!(latest.take(Duration::from_secs(60)), Taken::Closed);
    }

    #[test]
    fn a_source_that_can_wait_loses_nothing() {
        let latest = Latest::new(1);
        std::thread::scope(|scope| {
            scope.spawn(|| (0..50).for_each(|i| latest.put_when_empty(0, i)));
            let taken: Vec<_> = (0..50).map(|_| latest.take(Duration::from_secs(60))).collect();
            assert!(taken.iter().enumerate().all(|(i, t)| *t == Taken::Item(0, i)));
        });
        assert_eq!(latest.dropped(0), 0);
        latest.put(0, 1);
        latest.close();
        latest.put_when_empty(0, 2);
    }

    #[test]
    fn a_waiting_consumer_gets_what_another_thread_puts() {
        let latest = Latest::new(1);
        std::thread::scope(|scope| {
            let taken = scope.spawn(|| latest.take(Duration::from_secs(60)));
            latest.put(0, 7);
            assert_eq!(taken.join().unwrap(), Taken::Item(0, 7));
        });
    }
}
