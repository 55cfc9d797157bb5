//! The thread between whoever makes events and the disk.
//!
//! [`SpoolWriter::offer`] never waits: events lie in a short queue until the thread has written them. If the disk is so
//! slow that the queue is full, the oldest event in it is dropped and counted. An event that cannot be written, because
//! the disk is full, is held in memory: it is sent in its turn, but does not survive the program.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tracing::{info, warn};

use super::{Spool, SpoolStats};

/// Events between two writes.
const QUEUE: usize = 1_024;

/// A spool that its writer and the sender share.
pub type SharedSpool = Arc<Mutex<Spool>>;

/// The spool, whoever panicked with it: every method leaves it whole.
pub fn lock(spool: &SharedSpool) -> MutexGuard<'_, Spool> {
    spool.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the thread tells of its work.
pub trait Written: Send + 'static {
    /// There is something to send; `stats` are the spool's.
    fn added(&self, stats: SpoolStats);
    /// This event is too large for the spool.
    fn unwritten(&self, body: Vec<u8>);
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Vec<u8>>,
    dropped: u64,
    /// Nothing more comes.
    closing: bool,
    finished: bool,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // every critical section leaves the state whole
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running writer; dropping it lets the thread write what waits and end.
#[derive(Debug)]
pub struct SpoolWriter {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl SpoolWriter {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the system gives none.
    pub fn start(spool: SharedSpool, told: impl Written) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let thread = std::thread::Builder::new().name("spool".into()).spawn({
            let shared = Arc::clone(&shared);
            move || {
                run(&shared, &spool, &told);
                shared.lock().finished = true;
                shared.changed.notify_all();
            }
        })?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Hands an event over; never waits for the disk.
    pub fn offer(&self, body: Vec<u8>) {
        let mut state = self.shared.lock();
        if state.queue.len() >= QUEUE {
            state.queue.pop_front();
            state.dropped += 1;
        }
        state.queue.push_back(body);
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Events dropped because the disk was slower than they came.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.shared.lock().dropped
    }

    /// Writes what waits and ends; gives up waiting after `grace`. Whether everything was written or given back.
    pub fn finish(mut self, grace: Duration) -> bool {
        self.shared.lock().closing = true;
        self.shared.changed.notify_all();
        let state = self.shared.lock();
        let waited = self
            .shared
            .changed
            .wait_timeout_while(state, grace, |state| !state.finished);
        let finished = waited.unwrap_or_else(PoisonError::into_inner).0.finished;
        finished && self.thread.take().is_some_and(|thread| thread.join().is_ok())
    }
}

impl Drop for SpoolWriter {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.changed.notify_all();
    }
}

fn run(shared: &Shared, spool: &SharedSpool, told: &impl Written) {
    let mut failing = false;
    loop {
        let batch = {
            let idle = |state: &mut State| state.queue.is_empty() && !state.closing;
            let waited = shared.changed.wait_while(shared.lock(), idle);
            std::mem::take(&mut waited.unwrap_or_else(PoisonError::into_inner).queue)
        };
        if batch.is_empty() {
            return;
        }
        let (mut failure, mut unwritten) = (None, Vec::new());
        let (file, stats) = {
            let mut spool = lock(spool);
            for body in batch {
                if let Err(error) = spool.append(&body) {
                    failure = Some(error);
                    unwritten.extend(spool.hold(body).err());
                }
            }
            (spool.unsynced(), spool.stats())
        };
        // Outside the lock: whoever sends does not wait for the disk.
        if let Err(error) = file.and_then(|file| file.as_ref().map_or(Ok(()), File::sync_data)) {
            failure.get_or_insert(error);
        }
        match failure {
            Some(error) if !failing => {
                failing = true;
                warn!(%error, "events are not kept on disk; logged again after the next one that is");
            }
            None if failing => {
                failing = false;
                info!("events are kept on disk again");
            }
            _ => {}
        }
        unwritten.into_iter().for_each(|body| told.unwritten(body));
        told.added(stats);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Sender, channel};

    const PATIENCE: Duration = Duration::from_secs(30);

    struct Told(Sender<Option<Vec<u8>>>);

    impl Written for Told {
        fn added(&self, _: SpoolStats) {
            let _ = self.0.send(None);
        }

        fn unwritten(&self, body: Vec<u8>) {
            let _ = self.0.send(Some(body));
        }
    }

    #[test]
    fn events_reach_the_spool_in_order_and_all_before_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Arc::new(Mutex::new(Spool::open(dir.path(), 1 << 20).unwrap()));
        let (sender, told) = channel();
        let writer = SpoolWriter::start(Arc::clone(&spool), Told(sender)).unwrap();
        (0..500u16).for_each(|i| writer.offer(i.to_le_bytes().into()));
        assert!(writer.finish(PATIENCE));
        let sent: Vec<_> = std::iter::from_fn(|| lock(&spool).next_unsent().unwrap())
            .map(|(_, body)| body)
            .collect();
        assert_eq!(sent, (0..500u16).map(|i| i.to_le_bytes().to_vec()).collect::<Vec<_>>());
        assert!(told.iter().all(|t| t.is_none()));
    }

    #[test]
    fn an_event_that_is_too_large_comes_back_and_the_next_ones_are_written() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Arc::new(Mutex::new(Spool::open(dir.path(), 1 << 16).unwrap()));
        let (sender, told) = channel();
        let writer = SpoolWriter::start(Arc::clone(&spool), Told(sender)).unwrap();
        let large = vec![b'x'; (1 << 20) + 1];
        writer.offer(large.clone());
        assert_eq!(told.recv_timeout(PATIENCE).unwrap(), Some(large));
        assert_eq!(told.recv_timeout(PATIENCE).unwrap(), None);
        writer.offer(b"small".to_vec());
        assert_eq!(told.recv_timeout(PATIENCE).unwrap(), None);
        let stats = lock(&spool).stats();
        assert_eq!((stats.failed, stats.waiting), (1, 1));
    }

    #[test]
    fn a_disk_that_stands_still_costs_the_oldest_events_and_nobody_waits() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Arc::new(Mutex::new(Spool::open(dir.path(), 1 << 20).unwrap()));
        let (sender, _told) = channel();
        let writer = SpoolWriter::start(Arc::clone(&spool), Told(sender)).unwrap();
        let held = lock(&spool);
        for i in 0..3_000u16 {
            writer.offer(i.to_le_bytes().into());
        }
        let dropped = writer.dropped();
        assert!(dropped >= 3_000 - 2 * QUEUE as u64, "{dropped}");
        drop(held);
        assert!(writer.finish(PATIENCE));
        assert_eq!(lock(&spool).stats().waiting as u64 + dropped, 3_000);
    }
}
