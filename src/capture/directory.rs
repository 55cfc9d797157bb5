//! `dir://`: the pictures of a directory in the order of their names.

use std::path::PathBuf;
use std::sync::Arc;

use tracing::warn;

use super::replay::{Replay, Stored};
use super::{CaptureError, Losses, SourceUri, read_picture};
use crate::clock::Clock;
use crate::vision::frame::Frame;

/// Pictures of a directory, listed once when it is opened.
pub(super) struct Directory {
    path: PathBuf,
    pictures: Vec<PathBuf>,
    next: usize,
    looped: bool,
    losses: Losses,
    skipped: u64,
    read_this_round: bool,
}

impl Directory {
    pub(super) fn open(uri: &SourceUri, clock: Arc<dyn Clock>) -> Result<Replay<Self>, CaptureError> {
        let path = uri.path.clone();
        let io = |source| CaptureError::Io {
            path: path.clone(),
            source,
        };
        let mut pictures = Vec::new();
        for entry in std::fs::read_dir(&path).map_err(io)? {
            let file = entry.map_err(io)?.path();
            let known = file.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
            if matches!(known.as_deref(), Some("png" | "jpg" | "jpeg")) && file.is_file() {
                pictures.push(file);
            }
        }
        if pictures.is_empty() {
            return Err(CaptureError::NoPicture { path, skipped: 0 });
        }
        pictures.sort();
        let pictures = Self {
            path,
            pictures,
            next: 0,
            looped: uri.looped,
            losses: Losses::default(),
            skipped: 0,
            read_this_round: false,
        };
        Ok(Replay::new(pictures, clock, uri.fps))
    }
}

impl Stored for Directory {
    fn read_on(&mut self) -> Result<Option<Frame>, CaptureError> {
        loop {
            let Some(picture) = self.pictures.get(self.next) else {
                if !self.read_this_round {
                    return Err(CaptureError::NoPicture {
                        path: self.path.clone(),
                        skipped: self.skipped,
                    });
                }
                if !self.looped {
                    return Ok(None);
                }
                (self.next, self.read_this_round) = (0, false);
                continue;
            };
            self.next += 1;
            match read_picture(picture) {
                Ok(frame) => {
                    self.read_this_round = true;
                    return Ok(Some(frame));
                }
                Err(error) => {
                    self.skipped += 1;
                    self.losses.corrupt += 1;
                    warn!(%error, "picture skipped");
                }
            }
        }
    }

    fn description(&self) -> String {
        format!("{} ({} pictures)", self.path.display(), self.pictures.len())
    }

    fn losses(&mut self) -> Losses {
        std::mem::take(&mut self.losses)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use image::ImageFormat;

    use super::*;
    use crate::capture::FrameSource;
    use crate::capture::picture::tests::encoded;
    use crate::clock::SimulatedClock;
    use crate::vision::frame::Sequence;

    fn directory(
        files: &[(&str, Vec<u8>)],
        options: &str,
    ) -> (tempfile::TempDir, Result<Replay<Directory>, CaptureError>) {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            std::fs::write(dir.path().join(name), bytes).unwrap();
        }
        let uri = format!("dir://{}{options}", dir.path().display()).parse().unwrap();
        let source = Directory::open(&uri, Arc::new(SimulatedClock::default()));
        (dir, source)
    }

    #[test]
    fn pictures_come_in_the_order_of_their_names_and_a_damaged_one_is_counted() {
        let png = |level| encoded(9, 4, level, ImageFormat::Png);
        let files = [
            ("b.PNG", png(20)),
            ("a.png", png(10)),
            ("c.png", png(30)[..40].to_vec()),
            ("notes.txt", vec![]),
        ];
        let (_dir, source) = directory(&files, "?fps=10&loop");
        let mut source = source.unwrap();
        let frames: Vec<_> = (0..4).map(|_| source.next_frame().unwrap().unwrap()).collect();
        assert_eq!(
            frames.iter().map(|f| f.bytes[3 * 9]).collect::<Vec<_>>(),
            [10, 20, 10, 20]
        );
        assert_eq!(frames[3].captured.monotonic.as_millis(), 300);
        assert_eq!((source.losses().corrupt, source.losses().corrupt), (1, 0));
    }

    #[test]
    fn a_directory_without_a_readable_picture_is_an_error_even_when_looping() {
        let (_dir, source) = directory(&[("a.png", b"broken".to_vec())], "?loop");
        assert!(matches!(
            source.unwrap().next_frame(),
            Err(CaptureError::NoPicture { skipped: 1, .. })
        ));
        let (_dir, source) = directory(&[("a.txt", vec![])], "");
        assert!(matches!(source, Err(CaptureError::NoPicture { skipped: 0, .. })));
    }

    #[test]
    fn without_loop_the_last_picture_is_the_end() {
        let (_dir, source) = directory(&[("a.jpg", encoded(9, 4, 10, ImageFormat::Jpeg))], "");
        let mut source = source.unwrap();
        assert!(source.next_frame().unwrap().is_some());
        assert!(source.next_frame().unwrap().is_none());
    }

    #[test]
    fn waiting_for_a_picture_that_is_not_due_ends_when_it_is_told_to() {
        let (_dir, source) = directory(&[("a.png", encoded(9, 4, 10, ImageFormat::Png))], "?fps=0.01&loop");
        let (mut source, tick) = (source.unwrap(), Duration::from_secs(40));
        assert!(source.wait(tick).unwrap());
        source.next_frame().unwrap();
        assert_eq!([0; 3].map(|_| source.wait(tick).unwrap()), [false, false, true]);
        let frame = source.next_frame().unwrap().unwrap();
        assert_eq!((frame.sequence, frame.captured.monotonic.as_secs()), (Sequence(1), 100));
    }
}
