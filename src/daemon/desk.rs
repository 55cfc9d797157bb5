//! Commands of all doors, carried out by the frame loop: at once where nothing takes long, else once the texts' thread has
//! prepared what they need. Those that need it are carried out in the order in which they came.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tracing::warn;

use super::asking::{Asking, query_of};
use super::board::{Phase, no_camera};
use super::commands::{Answer, Change, Command, MOST_WAITING, Outcome, Refusal, Reply, Request, command_of};
use super::config::check_background;
use super::live::LiveCamera;
use super::reload::{Reload, Reloaded};
use super::serve::{Service, Watched};
use super::station::Prepared;
use super::texts::{Finished, Job};

/// What takes long.
pub(super) enum Work {
    /// Another thing to ask of a camera.
    Ask { camera: String, change: Change },
    /// Another configuration.
    Reload,
}

/// Something that takes long, and whom to answer.
pub(super) struct Task {
    /// Of the command, for the log.
    name: &'static str,
    work: Work,
    answer: Answer,
}

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
            && let Some(task) = self.waiting.pop_front()
        {
            self.begin(task);
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
        let unkept = self.outlet.unkept().into_iter();
        let unkept = unkept.filter(|(topic, _)| topics.command(topic).is_some());
        asked.extend(unkept.map(|(topic, why)| (Err(why.into()), topic)));
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
        let work = match command {
            Command::SetDetect { camera, on } => {
                let outcome = self.set_detect(&camera, on);
                answer.give(name, outcome, &self.outlet);
                return;
            }
            Command::Snapshot { camera } => {
                match self.index(&camera) {
                    Ok(index) => {
                        self.cameras[index].station.want_picture(answer, &self.outlet);
                        self.cameras[index].feed.attention().want_next();
                    }
                    Err(refusal) => answer.give(name, Err(refusal), &self.outlet),
                }
                return;
            }
            Command::Ask { camera, change } => Work::Ask { camera, change },
            Command::Reload => Work::Reload,
        };
        if self.waiting.len() >= MOST_WAITING {
            answer.give(name, Err(Refusal::Busy), &self.outlet);
        } else {
            self.waiting.push_back(Task { name, work, answer });
        }
    }

    fn index(&self, camera: &str) -> Result<usize, Refusal> {
        let ids = || self.cameras.iter().map(|c| c.station.id().as_str());
        let index = ids().position(|id| id == camera);
        index.ok_or_else(|| Refusal::Invalid(no_camera(camera, ids())))
    }

    fn set_detect(&mut self, camera: &str, on: bool) -> Outcome {
        let index = self.index(camera)?;
        let Watched { station, feed } = &mut self.cameras[index];
        station.detect(on, feed.attention(), &self.outlet);
        feed.attention().want_next();
        if !on {
            self.expect_nothing(self.cameras[index].feed.slot());
        }
        self.keep(camera, |kept| kept.detect = on);
        Ok(Reply::Done)
    }

    /// Keeps a change across restarts.
    fn keep(&mut self, camera: &str, change: impl FnOnce(&mut LiveCamera)) {
        if let Err(error) = self.live.keep(camera, change) {
            warn!(camera, %error, "the change holds until the daemon ends: it cannot be kept");
        }
    }

    /// Gives a task to the texts' thread.
    fn begin(&mut self, task: Task) {
        let job = match &task.work {
            Work::Ask { camera, change } => self.asking(camera, change).map(Job::Prepare),
            Work::Reload => Ok(Job::Reload(Box::new(Reload {
                file: self.file.clone(),
                current: Arc::clone(&self.config),
                live: self.live.clone(),
                sides: self.pipeline.sides(),
            }))),
        };
        let job = match job {
            Ok(job) => job,
            Err(refusal) => {
                task.answer.give(task.name, Err(refusal), &self.outlet);
                return;
            }
        };
        if matches!(task.work, Work::Reload) {
            self.notifier.reloading();
            self.outlet.board().phase(Phase::Reloading);
        }
        self.in_work = Some(task);
        if self.worker.begin(job).is_err() {
            self.refuse_work();
        }
    }

    /// What a camera is asked after a change; refuses what is wrong without any text being looked at.
    fn asking(&self, camera: &str, change: &Change) -> Result<Asking, Refusal> {
        let station = &self.cameras[self.index(camera)?].station;
        let asking = match change {
            Change::Query { id, query } => {
                query_of(id, query).and_then(|query| station.asking().with(query, station.camera()))
            }
            Change::NoQuery { id } => station.asking().without(id),
            Change::Background(texts) => {
                let fault = texts.as_deref().map_or(Ok(()), check_background);
                fault.map_err(|fault| fault.to_string()).map(|()| Asking {
                    queries: station.asking().queries.clone(),
                    // Without texts of its own, those of the configuration hold again.
                    background: texts.clone().or_else(|| station.configured().background.clone()),
                })
            }
        };
        asking.map_err(Refusal::Invalid)
    }

    /// Puts in force what was prepared, and answers.
    fn finish(&mut self, finished: Finished) {
        let Some(Task { name, work, answer }) = self.in_work.take() else {
            return;
        };
        let outcome = match (finished, work) {
            (Finished::Prepared(Ok(prepared)), Work::Ask { camera, change }) => {
                self.put_in_force(&camera, change, prepared)
            }
            (Finished::Prepared(Err(error)), _) => Err(Refusal::Invalid(error)),
            (Finished::Reloaded(reloaded), _) => self.finish_reload(reloaded),
            (Finished::Prepared(Ok(_)), Work::Reload) => {
                Err(Refusal::Failed("no configuration was prepared".to_owned()))
            }
        };
        answer.give(name, outcome, &self.outlet);
    }

    /// The texts' thread has ended, which only a fault of the program can cause; frames go on.
    fn refuse_work(&mut self) {
        let begun = self.in_work.take();
        if begun.as_ref().is_some_and(|task| matches!(task.work, Work::Reload)) {
            self.reload_ended("reload refused");
        }
        for Task { name, answer, .. } in begun.into_iter().chain(self.waiting.drain(..)) {
            let text = "the thread that prepares texts has ended; restart the daemon".to_owned();
            answer.give(name, Err(Refusal::Failed(text)), &self.outlet);
        }
    }

    fn put_in_force(&mut self, camera: &str, change: Change, prepared: Prepared) -> Outcome {
        // The camera is still there: what takes it away waits for this to be finished.
        let index = self.index(camera)?;
        let Watched { station, feed } = &mut self.cameras[index];
        feed.attention().want_next();
        station.ask(prepared, &self.outlet);
        let (id, kept) = match change {
            Change::Query { id, query } => (id, Some(Some(*query))),
            // One of the file is remembered as removed, another one need not be.
            Change::NoQuery { id } => {
                let configured = station.configured().query(&id).is_some();
                (id, configured.then_some(None))
            }
            Change::Background(texts) => {
                self.keep(camera, |live| live.background = texts);
                return Ok(Reply::Done);
            }
        };
        self.keep(camera, |live| match kept {
            Some(query) => drop(live.queries.insert(id, query)),
            None => drop(live.queries.remove(&id)),
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
