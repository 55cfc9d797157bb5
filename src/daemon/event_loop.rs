//! A thread with an event loop of its own, for a door to the daemon: what waits there holds up nothing else.

use std::future::Future;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::oneshot;
use tracing::warn;

/// Longest wait for what is still under way when the daemon ends.
const GRACE: Duration = Duration::from_secs(1);

/// Threads for work that takes milliseconds, beside the loop's own.
const BLOCKING_THREADS: usize = 2;

/// The thread; dropping it ends the work.
#[derive(Debug)]
pub(super) struct EventLoop {
    name: &'static str,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl EventLoop {
    /// Starts the thread, which works until this is dropped.
    ///
    /// # Errors
    /// If the system gives no thread or no event loop.
    pub(super) fn start<F: Future<Output = ()>>(
        name: &'static str,
        work: impl FnOnce() -> F + Send + 'static,
    ) -> std::io::Result<Self> {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_all().max_blocking_threads(BLOCKING_THREADS).build()?;
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = work() => {}
                    _ = stopped => {}
                }
                // Answers that were given last leave in tasks of their own.
                tokio::time::sleep(Duration::from_millis(20)).await;
            });
            runtime.shutdown_timeout(GRACE);
        })?;
        Ok(Self {
            name,
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for EventLoop {
    fn drop(&mut self) {
        drop(self.stop.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            warn!(thread = self.name, "a thread has panicked");
        }
    }
}
