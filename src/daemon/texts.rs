//! Everything about a command that may take long, on a thread of its own: embedding texts, reading a new configuration.
//!
//! One job at a time; frames go on meanwhile, and the frame loop takes the result when it is there.

use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use tracing::warn;

use super::asking::Asking;
use super::config::Config;
use super::embedder::{BACKGROUND, QueryEmbedder};
use super::live::LiveState;
use super::pipeline::PipelineError;
use super::reload::{Reload, Reloaded};
use super::station::Prepared;

/// Something to do.
pub(super) enum Job {
    /// Embed what a camera is to be asked.
    Prepare(Asking),
    /// Read the configuration file again.
    Reload(Box<Reload>),
}

/// What became of it; errors are for whoever asked.
pub(super) enum Finished {
    Prepared(Result<Prepared, String>),
    Reloaded(Result<Box<Reloaded>, String>),
}

/// The thread.
#[derive(Debug)]
pub(super) struct TextWorker {
    jobs: SyncSender<Job>,
    finished: Receiver<Finished>,
    thread: JoinHandle<()>,
}

impl TextWorker {
    /// Starts the thread.
    pub(super) fn start(embedder: Arc<Mutex<QueryEmbedder>>) -> std::io::Result<Self> {
        let (jobs, todo) = sync_channel::<Job>(1);
        let (done, finished) = sync_channel(1);
        let thread = std::thread::Builder::new().name("texts".into()).spawn(move || {
            for job in todo {
                // an embedding is stored whole or not at all
                let mut embedder = embedder.lock().unwrap_or_else(PoisonError::into_inner);
                if done.send(work(job, &mut embedder)).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { jobs, finished, thread })
    }

    /// Hands a job over; to be called only when the last one is finished. Gives it back if the thread has ended.
    pub(super) fn begin(&self, job: Job) -> Result<(), Job> {
        self.jobs.try_send(job).map_err(|error| match error {
            std::sync::mpsc::TrySendError::Full(job) | std::sync::mpsc::TrySendError::Disconnected(job) => job,
        })
    }

    /// The result of the job, once it is there; an error if there will be none.
    pub(super) fn finished(&self) -> Option<Result<Finished, ()>> {
        match self.finished.try_recv() {
            Ok(finished) => Some(Ok(finished)),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(Err(())),
        }
    }

    /// Lets the thread end after the job it is at, which nobody waits for any more.
    pub(super) fn end(self) -> JoinHandle<()> {
        self.thread
    }
}

fn work(job: Job, embedder: &mut QueryEmbedder) -> Finished {
    match job {
        Job::Prepare(asking) => {
            let asked = embedder.prepare(&asking.specs(), asking.background.as_deref());
            let prepared = asked.map(|asked| Prepared { asking, asked });
            Finished::Prepared(prepared.map_err(|error| error.to_string()))
        }
        Job::Reload(reload) => {
            let reloaded = reload.carry_out(embedder).map(Box::new);
            Finished::Reloaded(reloaded.map_err(|error| error.to_string()))
        }
    }
}

/// Embeds what every camera of a configuration is asked, with the changes that were made live.
///
/// # Errors
/// [`PipelineError`] for a text of the configuration; a live change that cannot hold is told and left out.
pub(super) fn prepare_cameras(
    embedder: &mut QueryEmbedder,
    config: &Config,
    live: &LiveState,
) -> Result<Vec<Prepared>, PipelineError> {
    let mut all: Vec<Prepared> = Vec::with_capacity(config.cameras.len());
    let configured = Asking::configured(config);
    // Refuses the file's own mistakes, whatever a camera was told live.
    embedder.prepare(&configured.specs(), configured.background.as_deref())?;
    for camera in &config.cameras {
        let mut kept = live.camera(camera.id.as_str());
        let prepared = loop {
            let asking = Asking::of_camera(camera, config, &kept);
            if let Some(same) = all.iter().find(|prepared| prepared.asking == asking) {
                break same.clone();
            }
            match embedder.prepare(&asking.specs(), asking.background.as_deref()) {
                Ok(asked) => break Prepared { asking, asked },
                Err(PipelineError::Words { id, source })
                    if kept.queries.remove(&id).is_some() || (id == BACKGROUND && kept.background.take().is_some()) =>
                {
                    warn!(camera = %camera.id, what = id, error = %source, "a live change is left out");
                }
                Err(error) => return Err(error),
            }
        };
        all.push(prepared);
    }
    Ok(all)
}
