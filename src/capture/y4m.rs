//! YUV4MPEG2 (`.y4m`): 8-bit 4:2:0, 4:2:2, 4:4:4 and grey.

use std::io::{self, BufRead, Read};

use crate::vision::frame::PixelFormat;
use crate::vision::geometry::FrameSize;

/// A header line longer than this is not one.
const LONGEST_LINE: u64 = 4096;

/// What the stream's first line says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Header {
    pub(super) size: FrameSize,
    pub(super) format: PixelFormat,
    /// Y, U and V from 0 to 255.
    pub(super) full_range: bool,
    /// Frames per second, if stated.
    pub(super) fps: Option<f32>,
}

fn line(reader: &mut impl BufRead) -> io::Result<String> {
    let mut bytes = Vec::new();
    reader.take(LONGEST_LINE).read_until(b'\n', &mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).trim_end_matches('\n').to_owned())
}

/// Reads the stream header.
pub(super) fn read_header(reader: &mut impl BufRead) -> Result<Header, String> {
    let text = line(reader).map_err(|e| e.to_string())?;
    let mut words = text.split(' ');
    if words.next() != Some("YUV4MPEG2") {
        return Err("no YUV4MPEG2 header".into());
    }
    let (mut width, mut height, mut fps, mut format) = (0, 0, None, PixelFormat::I420);
    let mut full_range = false;
    for word in words.filter(|w| !w.is_empty()) {
        let (key, value) = word.split_at(word.chars().next().map_or(0, char::len_utf8));
        let number = || {
            value
                .parse::<u32>()
                .map_err(|_| format!("header says {word:?}, expected a number"))
        };
        match key {
            "W" => width = number()?,
            "H" => height = number()?,
            "F" => fps = rate(value),
            // As ffmpeg writes it; other X words are other programs' own.
            "X" => full_range |= value == "COLORRANGE=FULL",
            "C" => {
                format = match value {
                    "420" | "420jpeg" | "420mpeg2" | "420paldv" => PixelFormat::I420,
                    "422" => PixelFormat::I422,
                    "444" => PixelFormat::I444,
                    "mono" => PixelFormat::Grey,
                    _ => {
                        return Err(format!(
                            "colour space {value:?}, expected 420, 422, 444 or mono with 8 bits"
                        ));
                    }
                };
            }
            _ => {}
        }
    }
    let size = FrameSize::new(width, height).map_err(|e| e.to_string())?;
    Ok(Header {
        size,
        format,
        full_range,
        fps,
    })
}

fn rate(value: &str) -> Option<f32> {
    let (n, d) = value.split_once(':')?;
    let fps = n.parse::<f32>().ok()? / d.parse::<f32>().ok()?;
    (0.01..=1000.0).contains(&fps).then_some(fps)
}

/// What comes next in a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// The planes of a frame.
    Frame(Vec<u8>),
    /// The stream ends within a frame.
    CutShort,
    /// This lies where a frame should begin: where the next one begins is not known.
    Damaged(String),
    End,
}

/// Reads the next frame.
pub(super) fn read_frame(reader: &mut impl BufRead, header: &Header) -> Result<Next, String> {
    let text = line(reader).map_err(|e| e.to_string())?;
    if text.is_empty() {
        return Ok(Next::End);
    }
    if "FRAME".starts_with(&text) && reader.fill_buf().map_err(|e| e.to_string())?.is_empty() {
        return Ok(Next::CutShort);
    }
    if text != "FRAME" && !text.starts_with("FRAME ") {
        return Ok(Next::Damaged(format!(
            "found {:?} where a frame should begin",
            text.chars().take(20).collect::<String>()
        )));
    }
    let mut bytes = vec![0; header.format.frame_bytes(header.size.width(), header.size.height())];
    match reader.read_exact(&mut bytes) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(Next::CutShort),
        outcome => outcome.map(|()| Next::Frame(bytes)).map_err(|e| e.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_chroma_layout_is_read_at_odd_sizes() {
        for (chroma, format, bytes) in [
            ("", PixelFormat::I420, 5 * 3 + 2 * 3 * 2),
            (" C420jpeg", PixelFormat::I420, 5 * 3 + 2 * 3 * 2),
            (" C422", PixelFormat::I422, 5 * 3 + 2 * 3 * 3),
            (" C444", PixelFormat::I444, 3 * 5 * 3),
            (" Cmono", PixelFormat::Grey, 15),
        ] {
            let mut stream = format!("YUV4MPEG2 W5 H3 F30000:1001 Ip A1:1{chroma}\nFRAME\n").into_bytes();
            stream.extend(vec![7; bytes]);
            stream.extend(b"FRAME Ip\n");
            stream.extend(vec![9; bytes]);
            let mut reader = stream.as_slice();
            let header = read_header(&mut reader).unwrap();
            assert_eq!((header.format, header.size.width()), (format, 5));
            assert!((header.fps.unwrap() - 29.97).abs() < 0.01);
            let mut next = || read_frame(&mut reader, &header).unwrap();
            assert_eq!([next(), next()], [7, 9].map(|value| Next::Frame(vec![value; bytes])));
            assert_eq!(next(), Next::End);
        }
    }

    #[test]
    fn a_stream_that_ends_within_a_frame_is_cut_short_wherever_that_is() {
        let stream = b"FRAME Ip\nabcdef";
        let header = read_header(&mut &b"YUV4MPEG2 W3 H2 Cmono\n"[..]).unwrap();
        for end in 1..stream.len() {
            let next = read_frame(&mut &stream[..end], &header).unwrap();
            assert_eq!(next, Next::CutShort, "{end}");
        }
        assert_eq!(read_frame(&mut &stream[..0], &header).unwrap(), Next::End);
        let next = read_frame(&mut &b"FR\nFRAME\nabcdef"[..], &header).unwrap();
        assert!(
            matches!(&next, Next::Damaged(text) if text.contains("\"FR\"")),
            "{next:?}"
        );
    }

    #[test]
    fn a_stream_of_full_range_says_so() {
        for (words, full) in [
            ("", false),
            (" XCOLORRANGE=LIMITED", false),
            (" C420jpeg XYSCSS=420JPEG XCOLORRANGE=FULL", true),
        ] {
            let header = read_header(&mut format!("YUV4MPEG2 W5 H3{words}\n").as_bytes()).unwrap();
            assert_eq!(header.full_range, full, "{words}");
        }
    }

    #[test]
    fn what_is_not_eight_bits_or_not_y4m_is_named() {
        for (text, part) in [
            ("RIFF", "YUV4MPEG2"),
            ("YUV4MPEG2 W5 H3 C420p10\n", "420p10"),
            ("YUV4MPEG2 W0 H3\n", "0x3"),
            ("YUV4MPEG2 Wx H3\n", "Wx"),
        ] {
            let error = read_header(&mut text.as_bytes()).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }

    proptest! {
        #[test]
        fn foreign_headers_never_panic(text in "YUV4MPEG2 \\PC{0,60}") {
            let _ = read_header(&mut text.as_bytes());
        }
    }
}
