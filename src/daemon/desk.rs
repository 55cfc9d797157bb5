//! Commands of all doors, carried out by the frame loop: at once where nothing takes long, else once the texts' thread has
//! prepared what they need. Those that need it are carried out in the order in which they came.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tracing::warn;

use super::asking::query_of;
use super::board::Phase;
use super::commands::{Answer, Command, MOST_WAITING, Outcome, Refusal, Reply, Request, command_of};
use super::config::check_background;
use super::live::LiveCamera;
use super::reload::{Reload, Reloaded};
use super::serve::Service;
use super::station::Prepared;
use super::texts::{Finished, Job};

impl Service<'_> {
    /// Takes in what was asked, carries out what can be, and starts the next job.
    pub(super) fn serve_commands(&mut self, hangup: &AtomicBool) {
        self.read_messages();
        if hangup.swap(false, Ordering::Relaxed) {
            self.take_in(Request {
                command: Command::Reload,
                answer: Answer::Log,
            });
        }
        while let Some(request) = self.requests.next() {
            self.take_in(request);
        }
        match self.worker.finished() {
            None => {}
            Some(Ok(finished)) => self.finish(finished),
            Some(Err(())) => self.refuse_work(),
        }
        while self.in_work.is_none()
            && let Some(request) = self.waiting.pop_front()
        {
            self.begin(request);
        }
    }

    /// Commands from the broker.
    fn read_messages(&mut self) {
        let Some((messages, topics)) = self.outlet.incoming() else {
            return;
        };
        let mut asked = Vec::new();
        for message in &messages {
            if self.outlet.is_birth(message) {
                self.cameras.iter().for_each(|c| c.station.say_queries(&self.outlet));
            }
            asked.extend(command_of(message, topics).map(|command| (command, message.topic.clone())));
        }
        for (command, topic) in asked {
            let answer = Answer::Topic(topic);
            match command {
                Ok(command) => self.take_in(Request { command, answer }),
                Err(refusal) => answer.give("message", Err(refusal), &self.outlet),
            }
        }
    }

    /// Carries a request out if that takes no time, else lets it wait for its turn.
    fn take_in(&mut self, request: Request) {
        let Request { command, answer } = request;
        let name = command.name();
        let outcome = match command {
            Command::SetDetect { camera, on } => self.set_detect(&camera, on),
            Command::Snapshot { camera } => match self.index(&camera) {
                Ok(index) => {
                    self.cameras[index].station.want_picture(answer, &self.outlet);
                    return;
                }
                Err(refusal) => Err(refusal),
            },
            _ if self.waiting.len() >= MOST_WAITING => Err(Refusal::Busy),
            command => {
                self.waiting.push_back(Request { command, answer });
                return;
            }
        };
        answer.give(name, outcome, &self.outlet);
    }

    fn index(&self, camera: &str) -> Result<usize, Refusal> {
        let ids = || self.cameras.iter().map(|c| c.station.id().as_str());
        ids().position(|id| id == camera).ok_or_else(|| {
            let camera: String = camera.chars().take(80).collect();
            let known = ids().collect::<Vec<_>>().join(", ");
            Refusal::Invalid(format!("no camera {camera:?}, expected one of: {known}"))
        })
    }

    fn set_detect(&mut self, camera: &str, on: bool) -> Outcome {
        let index = self.index(camera)?;
        self.cameras[index].station.detect(on, &self.outlet);
        self.keep(camera, |kept| kept.detect = on);
        Ok(Reply::Done)
    }

    /// Keeps a change across restarts.
    fn keep(&mut self, camera: &str, change: impl FnOnce(&mut LiveCamera)) {
        let mut kept = self.live.camera(camera);
        change(&mut kept);
        if let Err(error) = self.live.keep(camera, kept) {
            warn!(camera, %error, "the change holds until the daemon ends: it cannot be kept");
        }
    }

    /// Gives a request's work to the texts' thread.
    fn begin(&mut self, request: Request) {
        let job = match self.job(&request.command) {
            Ok(job) => job,
            Err(refusal) => {
                request.answer.give(request.command.name(), Err(refusal), &self.outlet);
                return;
            }
        };
        if request.command == Command::Reload {
            self.notifier.reloading();
            self.outlet.board().phase(Phase::Reloading);
        }
        self.in_work = Some(request);
        if self.worker.begin(job).is_err() {
            self.refuse_work();
        }
    }

    /// What has to be prepared for a command; refuses what is wrong without any text being looked at.
    fn job(&self, command: &Command) -> Result<Job, Refusal> {
        if *command == Command::Reload {
            return Ok(Job::Reload(Box::new(Reload {
                file: self.file.clone(),
                current: Arc::clone(&self.config),
                live: self.live.clone(),
            })));
        }
        let station = &self.cameras[self.index(camera_of(command))?].station;
        let asking = match command {
            Command::SetQuery { id, query, .. } => {
                query_of(id, query).and_then(|query| station.asking().with(query, station.camera()))
            }
            Command::RemoveQuery { id, .. } => station.asking().without(id),
            Command::SetBackground { texts, .. } => {
                let fault = texts.as_deref().map(check_background);
                fault.unwrap_or(Ok(())).map_err(|fault| fault.to_string()).map(|()| {
                    let mut asking = station.asking().clone();
                    // Without texts of its own, those of the configuration hold again.
                    asking.background = texts.clone().or_else(|| station.configured().background.clone());
                    asking
                })
            }
            Command::SetDetect { .. } | Command::Snapshot { .. } | Command::Reload => Ok(station.asking().clone()),
        };
        asking.map(Job::Prepare).map_err(Refusal::Invalid)
    }

    /// Puts in force what was prepared, and answers.
    fn finish(&mut self, finished: Finished) {
        let Some(Request { command, answer }) = self.in_work.take() else {
            return;
        };
        let name = command.name();
        let outcome = match finished {
            Finished::Prepared(Ok(prepared)) => self.put_in_force(command, prepared),
            Finished::Prepared(Err(error)) => Err(Refusal::Invalid(error)),
            Finished::Reloaded(reloaded) => self.finish_reload(reloaded),
        };
        answer.give(name, outcome, &self.outlet);
    }

    /// The texts' thread has ended, which only a fault of the program can cause; frames go on.
    fn refuse_work(&mut self) {
        let requests: Vec<Request> = self.in_work.take().into_iter().chain(self.waiting.drain(..)).collect();
        for Request { command, answer } in requests {
            if command == Command::Reload {
                self.reload_ended("reload refused");
            }
            let text = "the thread that prepares texts has ended; restart the daemon".to_owned();
            answer.give(command.name(), Err(Refusal::Failed(text)), &self.outlet);
        }
    }

    fn put_in_force(&mut self, command: Command, prepared: Prepared) -> Outcome {
        // The camera is still there: what takes it away waits for this to be finished.
        let camera = camera_of(&command).to_owned();
        let index = self.index(&camera)?;
        let station = &mut self.cameras[index].station;
        station.ask(prepared, &self.outlet);
        let configured = match &command {
            Command::RemoveQuery { id, .. } => station.configured().query(id).is_some(),
            _ => false,
        };
        self.keep(&camera, |kept| match command {
            Command::SetQuery { id, query, .. } => drop(kept.queries.insert(id, Some(*query))),
            Command::RemoveQuery { id, .. } if configured => drop(kept.queries.insert(id, None)),
            Command::RemoveQuery { id, .. } => drop(kept.queries.remove(&id)),
            Command::SetBackground { texts, .. } => kept.background = texts,
            Command::SetDetect { .. } | Command::Snapshot { .. } | Command::Reload => {}
        });
        Ok(Reply::Done)
    }

    fn finish_reload(&mut self, reloaded: Result<Box<Reloaded>, String>) -> Outcome {
        match reloaded {
            Ok(reloaded) => {
                self.adopt(*reloaded);
                self.reload_ended("configuration reloaded");
                Ok(Reply::Done)
            }
            Err(error) => {
                self.reload_ended(&format!("reload refused, the old configuration holds: {error}"));
                Err(Refusal::Failed(error))
            }
        }
    }

    fn reload_ended(&self, what: &str) {
        self.outlet.board().phase(Phase::Running);
        // A line of its own in the service manager's protocol must stay one.
        let line = format!("{}; {what}", self.summary()).replace(['\n', '\r'], " ");
        self.notifier.ready(&line);
    }
}

/// Id of the camera that a command is about; empty for none.
fn camera_of(command: &Command) -> &str {
    match command {
        Command::SetDetect { camera, .. }
        | Command::SetBackground { camera, .. }
        | Command::SetQuery { camera, .. }
        | Command::RemoveQuery { camera, .. }
        | Command::Snapshot { camera } => camera,
        Command::Reload => "",
    }
}
