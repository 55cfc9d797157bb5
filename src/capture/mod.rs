//! Frames in: cameras, clips and pictures behind one trait.
//!
//! A source delivers [`Frame`]s in one of the layouts that [`crate::vision::pixels`] reads; compressed pictures are
//! decoded here. Sources block; the daemon gives each its own thread. What is left out: scaling and colour conversion
//! (`vision`) and what happens to frames nobody has time for (`daemon::latest`).

mod directory;
mod jpeg;
mod picture;
mod replay;
mod uri;
#[cfg(feature = "v4l2")]
mod v4l2;
mod video_file;
mod y4m;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::{Clock, Moment};
use crate::vision::frame::{CaptureTime, Frame};

pub use picture::read_picture;
pub use uri::{ControlValue, Scheme, SourceUri};
#[cfg(feature = "v4l2")]
pub use v4l2::{CameraFormat, CameraListing, CameraSize, Control, camera_node, list_cameras, look_at};

/// A stream of frames.
pub trait FrameSource: Send {
    /// Waits for the next frame, at most so long; whether [`Self::next_frame`] has something to say.
    ///
    /// # Errors
    /// As [`Self::next_frame`].
    fn wait(&mut self, at_most: Duration) -> Result<bool, CaptureError>;

    /// Waits for the next frame; `None` at the end of a source that does not loop.
    ///
    /// # Errors
    /// [`CaptureError`]; the source may be dead afterwards and should be opened anew.
    fn next_frame(&mut self) -> Result<Option<Frame>, CaptureError>;

    /// What it is, for people: path, format, size.
    fn description(&self) -> String;

    /// Frames that did not come out of it since the last call.
    fn losses(&mut self) -> Losses;
}

/// Frames that a source did not deliver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// Left out by the camera's driver, as gaps in its numbers show.
    pub lost: u64,
    /// Damaged: pictures that cannot be decoded, buffers that the driver marks.
    pub corrupt: u64,
    /// Passed over undecoded because newer ones were there already.
    pub passed: u64,
}

/// Why a source cannot be opened or read.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The URI is not understood.
    #[error("source {uri:?}: {message}")]
    Uri {
        /// The text given.
        uri: String,
        /// What was found and what is allowed.
        message: String,
    },
    /// The system refuses.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// Which file or device.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A picture or clip is damaged or of an unknown kind.
    #[error("{path}: {message}", path = path.display())]
    Content {
        /// Which file.
        path: PathBuf,
        /// What was found, and where.
        message: String,
    },
    /// A camera offers no format that this program reads, or not the one asked for.
    #[error("{path}: driver offers {found}; {expected}", path = path.display())]
    Format {
        /// Which device.
        path: PathBuf,
        /// Formats of the driver.
        found: String,
        /// Formats of this program, or the one asked for.
        expected: String,
    },
    /// A camera is silent.
    #[error(
        "{path}: no good frame for {seconds:.1} s; {}", damage.as_deref().unwrap_or("the camera hangs"),
        path = path.display()
    )]
    Timeout {
        /// Which device.
        path: PathBuf,
        /// Seconds waited.
        seconds: f32,
        /// What is wrong with the frames that came, if any did.
        damage: Option<String>,
    },
    /// A camera refuses, and there is something to be done about it.
    #[error("{path}: {source}; {remedy}", path = path.display())]
    Refused {
        /// Which device.
        path: PathBuf,
        /// What the driver says.
        source: io::Error,
        /// What helps.
        remedy: &'static str,
    },
    /// A camera does not deliver any more.
    #[error("{path}: camera is gone ({source}): unplugged, or its driver gave up", path = path.display())]
    Gone {
        /// Which device.
        path: PathBuf,
        /// What the driver says.
        source: io::Error,
    },
    /// No camera has this name.
    #[error("no camera is called {name:?}; found {found}")]
    NoCamera {
        /// The name.
        name: String,
        /// The cameras that are there.
        found: String,
    },
    /// A name fits more than one camera.
    #[error("several cameras are called {name:?}: {found}; name one by its serial number or its link below /dev/v4l")]
    SeveralCameras {
        /// The name.
        name: String,
        /// Which ones.
        found: String,
    },
    /// A directory holds no picture that can be read.
    #[error("{path}: no readable picture (.png, .jpg, .jpeg), {skipped} damaged", path = path.display())]
    NoPicture {
        /// Which directory.
        path: PathBuf,
        /// Pictures that could not be read.
        skipped: u64,
    },
    /// This build cannot open cameras.
    #[error("source {uri:?}: this build has no camera support; rebuild with feature \"v4l2\"")]
    NoCameras {
        /// The text given.
        uri: String,
    },
}

/// Opens a source.
///
/// # Errors
/// [`CaptureError`] if it does not exist or holds nothing that can be read.
pub fn open(uri: &SourceUri, clock: Arc<dyn Clock>) -> Result<Box<dyn FrameSource>, CaptureError> {
    match uri.scheme {
        Scheme::Dir => Ok(Box::new(directory::Directory::open(uri, clock)?)),
        Scheme::File => Ok(video_file::open(uri, clock)?),
        #[cfg(feature = "v4l2")]
        Scheme::V4l2 => Ok(Box::new(v4l2::Camera::open(uri, clock)?)),
        #[cfg(not(feature = "v4l2"))]
        Scheme::V4l2 => Err(CaptureError::NoCameras { uri: uri.text.clone() }),
    }
}

fn capture_time(moment: Moment) -> CaptureTime {
    CaptureTime {
        monotonic: moment.monotonic,
        unix_micros: moment.unix_micros,
    }
}
