//! What the running daemon can be asked to do, whoever asks: one kind of command, one bounded queue, one answer each.
//!
//! MQTT, D-Bus, HTTP and SIGHUP are doors to the same queue. The frame loop takes commands from it between two frames and
//! answers them; a door never changes anything by itself. A command that is refused changes nothing.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use tokio::sync::oneshot;
use tracing::{info, warn};

use crate::message::query::{CommandError, QueryMessage, decode_switch, decode_texts};
use crate::message::topic::{Asked, Topics};
use crate::publish::mqtt::{Incoming, Unkept};

use super::outlet::Outlet;

/// Commands that wait for the frame loop; further ones are refused.
pub const MOST_WAITING: usize = 64;

/// Longest text of a refusal in a message.
const MAX_TEXT: usize = 400;

/// Something to do. Ids are as they came, unchecked.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Switches detection of a camera on or off.
    SetDetect {
        /// Id of the camera.
        camera: String,
        /// Whether its frames are processed.
        on: bool,
    },
    /// Changes what is asked of a camera.
    Ask {
        /// Id of the camera.
        camera: String,
        /// What is changed.
        change: Change,
    },
    /// Takes a picture of a camera: its next frame that is processed.
    Snapshot {
        /// Id of the camera.
        camera: String,
    },
    /// Reads the configuration file again and does what it says now.
    Reload,
}

/// Another thing to ask of a camera; its texts may have to be embedded first.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// Sets or replaces a query.
    Query {
        /// Id of the query.
        id: String,
        /// The query; what it leaves out has its key's default.
        query: Box<QueryMessage>,
    },
    /// Removes a query.
    NoQuery {
        /// Id of the query.
        id: String,
    },
    /// Replaces what queries compete with; `None` for the configuration's texts, or the model's own.
    Background(Option<Vec<String>>),
}

/// What a command that was carried out gives back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// Nothing but that it was done.
    Done,
    /// A JPEG.
    Picture(Vec<u8>),
}

/// Why a command was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It asks for something impossible or for something that is not there.
    #[error("{0}")]
    Invalid(String),
    /// It is possible, but not as things are now.
    #[error("{0}")]
    Failed(String),
    /// Too many commands wait.
    #[error("{MOST_WAITING} commands wait already, which is the most; try again later")]
    Busy,
    /// The daemon ends.
    #[error("the daemon is stopping")]
    Stopping,
}

/// What becomes of a command.
pub type Outcome = Result<Reply, Refusal>;

/// Whom to answer.
#[derive(Debug)]
pub enum Answer {
    /// Whoever sent an MQTT message to this topic; hears refusals only.
    Topic(String),
    /// Somebody who waits at a door of this name.
    Caller(&'static str, oneshot::Sender<Outcome>),
    /// Nobody but the log.
    Log,
}

/// A command and whom to answer.
#[derive(Debug)]
pub struct Request {
    /// What to do.
    pub command: Command,
    /// Whom to answer.
    pub answer: Answer,
}

/// Where commands are handed in; clones hand in at the same place.
#[derive(Debug, Clone)]
pub struct Door {
    /// What the log calls it.
    name: &'static str,
    sender: Arc<SyncSender<Request>>,
}

/// The queue behind all doors.
#[derive(Debug)]
pub struct Requests {
    receiver: Receiver<Request>,
}

/// A door and the queue behind it.
#[must_use]
pub fn door() -> (Door, Requests) {
    let (sender, receiver) = sync_channel(MOST_WAITING);
    let sender = Arc::new(sender);
    let name = "program";
    (Door { name, sender }, Requests { receiver })
}

impl Command {
    /// What it does, for the log.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::SetDetect { .. } => "set detect",
            Self::Ask { change, .. } => match change {
                Change::Query { .. } => "set query",
                Change::NoQuery { .. } => "remove query",
                Change::Background(_) => "set background",
            },
            Self::Snapshot { .. } => "snapshot",
            Self::Reload => "reload",
        }
    }
}

impl Answer {
    /// Whether whoever waited does not wait any more.
    pub(super) fn is_gone(&self) -> bool {
        matches!(self, Self::Caller(_, sender) if sender.is_closed())
    }

    /// Says what became of a command: to whoever asked, and to the log.
    pub(super) fn give(self, command: &'static str, outcome: Outcome, outlet: &Outlet) {
        let from = match &self {
            Self::Topic(topic) => topic.as_str(),
            Self::Caller(door, _) => door,
            Self::Log => "signal",
        };
        match &outcome {
            Ok(_) => info!(command, from, "command carried out"),
            Err(refusal) => warn!(command, from, error = refusal.short(), "command refused"),
        }
        match (self, outcome) {
            (Self::Topic(topic), Err(refusal)) => outlet.refuse(&topic, refusal.short()),
            // Whoever has stopped waiting is not told.
            (Self::Caller(_, sender), outcome) => drop(sender.send(outcome)),
            (Self::Topic(_), Ok(_)) | (Self::Log, _) => {}
        }
    }
}

impl Refusal {
    /// Its text, which may quote what was sent, cut after 400 characters.
    #[must_use]
    pub fn short(&self) -> String {
        self.to_string().chars().take(MAX_TEXT).collect()
    }
}

impl From<Unkept> for Refusal {
    fn from(why: Unkept) -> Self {
        match why {
            Unkept::TooLong(found) => Self::Invalid(CommandError::TooLong { found }.to_string()),
            Unkept::Busy => Self::Busy,
        }
    }
}

impl Door {
    /// The same door under another name.
    #[must_use]
    pub fn named(&self, name: &'static str) -> Self {
        let sender = Arc::clone(&self.sender);
        Self { name, sender }
    }

    /// Hands a request in; never waits.
    ///
    /// # Errors
    /// The request itself with [`Refusal::Busy`] or [`Refusal::Stopping`].
    pub fn hand_in(&self, request: Request) -> Result<(), (Request, Refusal)> {
        self.sender.try_send(request).map_err(|error| match error {
            TrySendError::Full(request) => (request, Refusal::Busy),
            TrySendError::Disconnected(request) => (request, Refusal::Stopping),
        })
    }

    /// Hands a command in and waits until it is answered.
    ///
    /// # Errors
    /// [`Refusal`].
    pub async fn ask(&self, command: Command) -> Outcome {
        let (sender, answer) = oneshot::channel();
        let request = Request {
            command,
            answer: Answer::Caller(self.name, sender),
        };
        self.hand_in(request).map_err(|(_, refusal)| refusal)?;
        // The loop drops what it did not answer when it ends.
        answer.await.unwrap_or(Err(Refusal::Stopping))
    }
}

impl Requests {
    /// The next request, if one waits.
    #[must_use]
    pub fn next(&self) -> Option<Request> {
        self.receiver.try_recv().ok()
    }
}

/// The command in a message from the broker; `None` if it is none.
///
/// # Errors
/// Why it is refused before anybody looks at its camera: it is retained, too long, or no such message.
pub(super) fn command_of(message: &Incoming, topics: &Topics) -> Option<Result<Command, Refusal>> {
    let asked = topics.command(&message.topic)?;
    if message.retained {
        // It would come again after every connect, whatever was said since.
        let text = "the command is retained, expected one that is not".to_owned();
        return Some(Err(Refusal::Invalid(text)));
    }
    let (camera, body) = (asked.camera.to_owned(), &message.payload[..]);
    let id = |id: &str| id.to_owned();
    let change = match asked.what {
        Asked::Detect => {
            let on = decode_switch(body).map_err(|error| Refusal::Invalid(error.to_string()));
            return Some(on.map(|on| Command::SetDetect { camera, on }));
        }
        Asked::Background if body.is_empty() => Ok(Change::Background(None)),
        Asked::Background => decode_texts(body).map(|texts| Change::Background(Some(texts))),
        Asked::Query(query) if body.is_empty() => Ok(Change::NoQuery { id: id(query) }),
        Asked::Query(query) => QueryMessage::decode(body).map(|message| Change::Query {
            id: id(query),
            query: Box::new(message),
        }),
    };
    let command = change.map(|change| Command::Ask { camera, change });
    Some(command.map_err(|error| Refusal::Invalid(error.to_string())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request {
        Request {
            command: Command::Reload,
            answer: Answer::Log,
        }
    }

    #[test]
    fn the_queue_is_bounded_and_says_so() {
        let (door, requests) = door();
        for _ in 0..MOST_WAITING {
            door.clone().hand_in(request()).unwrap();
        }
        assert_eq!(door.hand_in(request()).unwrap_err().1, Refusal::Busy);
        assert!(requests.next().is_some());
        door.hand_in(request()).unwrap();
        drop(requests);
        assert_eq!(door.hand_in(request()).unwrap_err().1, Refusal::Stopping);
    }

    #[tokio::test]
    async fn whoever_waits_hears_when_the_loop_ends() {
        let (door, requests) = door();
        let answered = async {
            let request = requests.next().expect("asked before");
            drop(request);
        };
        let (outcome, ()) = tokio::join!(door.ask(Command::Reload), answered);
        assert_eq!(outcome, Err(Refusal::Stopping));
    }

    #[test]
    fn a_command_that_was_not_kept_is_refused_as_one_that_was() {
        let long = Refusal::from(Unkept::TooLong(70_000));
        assert_eq!(long.to_string(), "body of 70000 bytes, expected at most 65536");
        assert!(Refusal::from(Unkept::Busy).to_string().ends_with("try again later"));
    }

    #[test]
    fn messages_become_commands() {
        let topics = Topics::new("samclip").unwrap();
        let message = |topic: &str, body: &'static [u8], retained| Incoming {
            topic: topic.into(),
            payload: body.into(),
            retained,
        };
        let of = |topic: &str, body| command_of(&message(topic, body, false), &topics);
        let ask = |change| {
            let camera = "yard".to_owned();
            Some(Ok(Command::Ask { camera, change }))
        };
        let red = Change::NoQuery { id: "red".into() };
        assert_eq!(of("samclip/yard/query/red/set", b""), ask(red));
        assert_eq!(of("samclip/yard/background/set", b""), ask(Change::Background(None)));
        assert_eq!(of("samclip/yard/frame", b""), None);
        let retained = command_of(&message("samclip/yard/detect/set", b"ON", true), &topics);
        assert!(matches!(retained, Some(Err(Refusal::Invalid(_)))));
    }
}
