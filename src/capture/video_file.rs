//! `file://`: a y4m clip, a motion JPEG clip (JPEGs one after another) or a single picture, told apart by content.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::Arc;

use tracing::warn;

use super::jpeg::{self, Extent};
use super::replay::{Replay, Stored};
use super::y4m::{self, Next};
use super::{CaptureError, FrameSource, Losses, SourceUri, picture, read_picture};
use crate::clock::Clock;
use crate::vision::frame::Frame;

/// A motion JPEG picture larger than this is garbage.
const LARGEST_JPEG: usize = 64 << 20;

enum Kind {
    Y4m { header: y4m::Header, start: u64 },
    Mjpeg { buffer: Vec<u8> },
    Picture,
}

struct Clip {
    path: PathBuf,
    reader: BufReader<File>,
    kind: Kind,
    looped: bool,
    losses: Losses,
    frames_this_round: u64,
}

/// Opens a file by what it holds.
pub(super) fn open(uri: &SourceUri, clock: Arc<dyn Clock>) -> Result<Box<dyn FrameSource>, CaptureError> {
    let path = uri.path.clone();
    let io = |source| CaptureError::Io {
        path: path.clone(),
        source,
    };
    let content = |message| CaptureError::Content {
        path: path.clone(),
        message,
    };
    let mut file = File::open(&path).map_err(io)?;
    let mut magic = Vec::new();
    (&mut file).take(9).read_to_end(&mut magic).map_err(io)?;
    file.seek(SeekFrom::Start(0)).map_err(io)?;
    let mut reader = BufReader::new(file);
    let motion = path
        .extension()
        .is_some_and(|e| e.eq_ignore_ascii_case("mjpeg") || e.eq_ignore_ascii_case("mjpg"));
    let mut fps = uri.fps;
    let kind = if magic == b"YUV4MPEG2" {
        let header = y4m::read_header(&mut reader).map_err(content)?;
        fps = fps.or(header.fps);
        let start = reader.stream_position().map_err(io)?;
        Kind::Y4m { header, start }
    } else if motion {
        Kind::Mjpeg { buffer: Vec::new() }
    } else {
        Kind::Picture
    };
    let clip = Clip {
        path,
        reader,
        kind,
        looped: uri.looped,
        losses: Losses::default(),
        frames_this_round: 0,
    };
    Ok(Box::new(Replay::new(clip, clock, fps)))
}

impl Clip {
    fn io(&self, source: std::io::Error) -> CaptureError {
        CaptureError::Io {
            path: self.path.clone(),
            source,
        }
    }

    fn read(&mut self) -> Result<Option<Frame>, CaptureError> {
        let content = |message| CaptureError::Content {
            path: self.path.clone(),
            message,
        };
        match &mut self.kind {
            Kind::Y4m { header, .. } => {
                let header = *header;
                let bytes = match y4m::read_frame(&mut self.reader, &header).map_err(content)? {
                    Next::Frame(bytes) => bytes,
                    Next::End => return Ok(None),
                    Next::CutShort => {
                        self.skip("last frame is cut short");
                        return Ok(None);
                    }
                    Next::Damaged(message) if self.frames_this_round == 0 => return Err(content(message)),
                    Next::Damaged(message) => {
                        self.skip(&message);
                        return Ok(None);
                    }
                };
                let mut frame = picture::rgb_frame(header.size, bytes);
                (frame.format, frame.stride) = (header.format, header.format.row_bytes(header.size.width()));
                frame.full_range = header.full_range;
                Ok(Some(frame))
            }
            Kind::Mjpeg { .. } => self.read_jpeg(),
            Kind::Picture if self.frames_this_round > 0 => Ok(None),
            Kind::Picture => read_picture(&self.path).map(Some),
        }
    }

    /// The next picture that decodes; damaged ones are counted and logged.
    fn read_jpeg(&mut self) -> Result<Option<Frame>, CaptureError> {
        loop {
            let Kind::Mjpeg { buffer } = &mut self.kind else {
                return Ok(None);
            };
            let damage = match jpeg::extent(buffer) {
                Extent::Whole(length) => {
                    let decoded = jpeg::decode(&buffer[..length]);
                    buffer.drain(..length);
                    match decoded {
                        Ok((size, pixels)) => return Ok(Some(picture::rgb_frame(size, pixels))),
                        Err(message) => message,
                    }
                }
                Extent::Garbage(length) => {
                    buffer.drain(..length);
                    format!("{length} bytes between pictures")
                }
                Extent::Partial if buffer.len() > LARGEST_JPEG => {
                    buffer.clear();
                    format!("picture larger than {LARGEST_JPEG} bytes")
                }
                Extent::Partial => {
                    let before = buffer.len();
                    let read = (&mut self.reader).take(1 << 16).read_to_end(buffer);
                    let (left, length) = (buffer.len(), buffer.len() - before);
                    read.map_err(|e| self.io(e))?;
                    match (length, left) {
                        (0, 0) => return Ok(None),
                        (0, _) => {
                            if let Kind::Mjpeg { buffer } = &mut self.kind {
                                buffer.clear();
                            }
                            "last picture is cut short".into()
                        }
                        _ => continue,
                    }
                }
            };
            self.skip(&damage);
        }
    }

    fn skip(&mut self, damage: &str) {
        self.losses.corrupt += 1;
        warn!(file = %self.path.display(), damage, "picture skipped");
    }

    fn rewind(&mut self) -> Result<(), CaptureError> {
        let start = match &mut self.kind {
            Kind::Y4m { start, .. } => *start,
            Kind::Mjpeg { buffer } => {
                buffer.clear();
                0
            }
            Kind::Picture => 0,
        };
        self.frames_this_round = 0;
        self.reader
            .seek(SeekFrom::Start(start))
            .map(drop)
            .map_err(|e| self.io(e))
    }
}

impl Stored for Clip {
    fn read_on(&mut self) -> Result<Option<Frame>, CaptureError> {
        let mut frame = self.read()?;
        if frame.is_none() && self.frames_this_round == 0 {
            let message = "no frame that can be read".into();
            return Err(CaptureError::Content {
                path: self.path.clone(),
                message,
            });
        }
        if frame.is_none() && self.looped {
            self.rewind()?;
            frame = self.read()?;
        }
        self.frames_this_round += u64::from(frame.is_some());
        Ok(frame)
    }

    fn description(&self) -> String {
        let kind = match &self.kind {
            Kind::Y4m { header, .. } => format!("y4m {} {:?}", header.size, header.format),
            Kind::Mjpeg { .. } => "motion JPEG".into(),
            Kind::Picture => "picture".into(),
        };
        format!("{} ({kind})", self.path.display())
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
    use crate::capture::picture::tests::encoded;
    use crate::clock::SimulatedClock;
    use crate::vision::frame::Sequence;

    fn opened(name: &str, bytes: &[u8], options: &str) -> (tempfile::TempDir, Box<dyn FrameSource>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let uri = format!("file://{}{options}", path.display()).parse().unwrap();
        let source = open(&uri, Arc::new(SimulatedClock::default())).unwrap();
        (dir, source)
    }

    #[test]
    fn a_y4m_clip_plays_at_its_own_rate_and_loops() {
        let clip = b"YUV4MPEG2 W2 H1 F5:1 Cmono\nFRAME\nabFRAME\ncd";
        let (_dir, mut source) = opened("clip.y4m", clip, "?loop");
        let frames: Vec<_> = (0..5).map(|_| source.next_frame().unwrap().unwrap()).collect();
        let bytes: Vec<&[u8]> = frames.iter().map(|f| f.bytes.as_slice()).collect();
        assert_eq!(bytes, [b"ab", b"cd", b"ab", b"cd", b"ab"]);
        assert_eq!(frames[4].captured.monotonic.as_millis(), 800);
        assert_eq!(frames[4].sequence, Sequence(4));
        assert!(!frames[4].full_range);
    }

    #[test]
    fn frames_of_a_y4m_clip_have_its_range() {
        let clip = b"YUV4MPEG2 W1 H1 C444 XCOLORRANGE=FULL\nFRAME\nabc";
        let (_dir, mut source) = opened("clip.y4m", clip, "");
        assert!(source.next_frame().unwrap().unwrap().full_range);
    }

    #[test]
    fn waiting_for_a_frame_that_is_not_due_ends_when_it_is_told_to() {
        let clip = b"YUV4MPEG2 W1 H1 F1:1 Cmono\nFRAME\naFRAME\nb";
        let (_dir, mut source) = opened("clip.y4m", clip, "?fps=0.01");
        let tick = Duration::from_secs(40);
        assert!(source.wait(tick).unwrap());
        source.next_frame().unwrap();
        assert_eq!([0; 3].map(|_| source.wait(tick).unwrap()), [false, false, true]);
        let frame = source.next_frame().unwrap().unwrap();
        assert_eq!((frame.bytes[0], frame.captured.monotonic.as_secs()), (b'b', 100));
        // The end is not waited for.
        assert!(source.wait(tick).unwrap() && source.next_frame().unwrap().is_none());
    }

    #[test]
    fn a_y4m_clip_that_is_cut_short_ends_or_loops_without_its_last_frame() {
        let clip = b"YUV4MPEG2 W2 H1 F5:1 Cmono\nFRAME\nabFRAME\nc";
        let (_dir, mut source) = opened("clip.y4m", clip, "");
        assert_eq!(source.next_frame().unwrap().unwrap().bytes, b"ab");
        assert!(source.wait(Duration::ZERO).unwrap() && source.next_frame().unwrap().is_none());
        assert_eq!(source.losses().corrupt, 1);
        let (_dir, mut source) = opened("clip.y4m", clip, "?loop");
        let bytes = [0; 3].map(|_| source.next_frame().unwrap().unwrap().bytes);
        assert_eq!((bytes, source.losses().corrupt), ([b"ab"; 3].map(|b| b.to_vec()), 2));
        let (_dir, mut source) = opened("clip.y4m", &clip[..34], "?loop");
        assert!(source.next_frame().unwrap_err().to_string().contains("no frame"));
    }

    #[test]
    fn a_y4m_clip_that_is_damaged_ends_or_loops_where_that_is() {
        let clip = b"YUV4MPEG2 W2 H1 F5:1 Cmono\nFRAME\nabFRAMES\ncdFRAME\nef";
        let (_dir, mut source) = opened("clip.y4m", clip, "");
        assert_eq!(source.next_frame().unwrap().unwrap().bytes, b"ab");
        assert!(source.next_frame().unwrap().is_none());
        assert_eq!(source.losses().corrupt, 1);
        let (_dir, mut source) = opened("clip.y4m", clip, "?loop");
        let bytes = [0; 3].map(|_| source.next_frame().unwrap().unwrap().bytes);
        assert_eq!((bytes, source.losses().corrupt), ([b"ab"; 3].map(|b| b.to_vec()), 2));
        let (_dir, mut source) = opened("clip.y4m", b"YUV4MPEG2 W2 H1 F5:1 Cmono\nframe\nab", "");
        assert!(source.next_frame().unwrap_err().to_string().contains("\"frame\""));
    }

    #[test]
    fn damaged_pictures_of_a_motion_jpeg_are_skipped_and_counted() {
        let picture = |level| encoded(24, 16, level, ImageFormat::Jpeg);
        let mut clip = picture(50);
        let cut = picture(90);
        clip.extend(&cut[..cut.len() - 5]);
        clip.extend(picture(120));
        clip.extend(&picture(200)[..100]);
        let (_dir, mut source) = opened("clip.mjpeg", &clip, "");
        let levels: Vec<u8> = std::iter::from_fn(|| source.next_frame().unwrap())
            .map(|f| f.bytes[3 * 24 * 12])
            .collect();
        assert_eq!(levels.len(), 2);
        assert!(levels[0].abs_diff(50) < 4 && levels[1].abs_diff(120) < 4, "{levels:?}");
        assert_eq!(source.losses().corrupt, 2);
    }

    #[test]
    fn a_picture_is_one_frame_and_a_text_file_is_an_error() {
        let (_dir, mut source) = opened("a.png", &encoded(7, 5, 50, ImageFormat::Png), "");
        assert!(source.next_frame().unwrap().is_some());
        assert!(source.next_frame().unwrap().is_none());
        let (_dir, mut source) = opened("a.png", b"hello", "");
        assert!(source.next_frame().unwrap_err().to_string().contains("a.png"));
        let (_dir, mut source) = opened("a.mjpeg", b"hello", "?loop");
        assert!(source.next_frame().unwrap_err().to_string().contains("no frame"));
    }
}
