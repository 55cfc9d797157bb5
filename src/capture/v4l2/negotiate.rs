//! Agreeing with a driver on format, size and rate.

use std::io;
use std::path::Path;

use tracing::{debug, info, warn};

use super::super::{CaptureError, SourceUri};
use super::choice::{self, Offer, Wanted};
use super::device::{Device, FourCC, Interface, Layout, code_text};
use crate::vision::frame::PixelFormat;
use crate::vision::geometry::FrameSize;

/// Longest side of the model's input where nobody says.
const SIDE: u32 = 640;

/// The driver's refusal at opening, with a remedy where there is one.
pub(super) fn refusal(path: &Path, source: io::Error) -> CaptureError {
    let remedy = match source.raw_os_error() {
        Some(libc::EBUSY) => "another program uses the camera; end it",
        Some(libc::ENOSPC) => "the USB bus has no room left; add format=MJPG, a smaller size or another port",
        Some(libc::EACCES) => "the user is not in group video",
        _ => {
            return CaptureError::Io {
                path: path.into(),
                source,
            };
        }
    };
    CaptureError::Refused {
        path: path.into(),
        source,
        remedy,
    }
}

/// Everything the camera offers in formats that are read.
fn offers(device: &Device, codes: &[FourCC], now: (u32, u32), side: u32) -> Vec<Offer> {
    let known = codes.iter().copied().filter(|&c| choice::find(c).is_some());
    let offers = known.flat_map(|code| {
        let sizes = choice::sizes(device.sizes(code), now, side);
        let offer = move |(width, height)| Offer {
            code,
            width,
            height,
            fastest: choice::named(&device.rates(code, width, height)).last().copied(),
        };
        sizes.into_iter().map(offer)
    });
    offers.collect()
}

/// Agrees on format and size with the driver: those configured, else those that cost the least.
pub(super) fn agree(
    device: &Device,
    interface: Interface,
    uri: &SourceUri,
    path: &Path,
) -> Result<Layout, CaptureError> {
    let refused = |source| refusal(path, source);
    let offered = device.formats(interface);
    let codes = match uri.format {
        None => offered.clone(),
        Some(code) => offered.iter().copied().filter(|c| c.repr == code).collect(),
    };
    let now = device.layout(interface).map_err(refused)?;
    let side = uri.side.unwrap_or(SIDE);
    let mut offers = offers(device, &codes, (now.width, now.height), side);
    if let Some((width, height)) = uri.size {
        // What is not listed may be possible all the same; the driver decides.
        let exact: Vec<Offer> = offers
            .iter()
            .copied()
            .filter(|o| (o.width, o.height) == (width, height))
            .collect();
        let anyway = |o: Offer| Offer {
            width,
            height,
            fastest: None,
            ..o
        };
        offers = if exact.is_empty() {
            offers.into_iter().map(anyway).collect()
        } else {
            exact
        };
    }
    let wanted = Wanted { side, rate: uri.fps };
    let best = choice::cheapest(&offers, &wanted).ok_or_else(|| format_error(path, &offered, uri.format))?;
    let layout = device
        .set_layout(interface, best.code, (best.width, best.height))
        .map_err(refused)?;
    if (layout.width, layout.height) != (best.width, best.height) && uri.size.is_some() {
        let (wanted, given) = (
            format!("{}x{}", best.width, best.height),
            format!("{}x{}", layout.width, layout.height),
        );
        warn!(device = %path.display(), wanted, given, "the camera has no such size");
    }
    Ok(layout)
}

/// The size and layout of what the driver will deliver, if that can be read.
pub(super) fn readable(layout: &Layout, path: &Path) -> Result<(FrameSize, Option<PixelFormat>), CaptureError> {
    let content = |message| CaptureError::Content {
        path: path.into(),
        message,
    };
    let format = choice::find(layout.code).ok_or_else(|| format_error(path, &[layout.code], None))?;
    if layout.planes != 1 {
        return Err(content(format!(
            "driver delivers {} in {} buffers per frame, samclip reads formats with one; name another with format=",
            code_text(layout.code),
            layout.planes
        )));
    }
    let size = FrameSize::new(layout.width, layout.height).map_err(|e| content(e.to_string()))?;
    Ok((size, format.layout))
}

/// Tells what of a layout makes pictures worse than they could be.
pub(super) fn tell_flaws(layout: &Layout, format: Option<PixelFormat>, path: &Path) {
    let device = path.display();
    if let Some(problem) = layout.colour.broken_fields() {
        warn!(%device, problem, "pictures are interlaced; set the camera to a progressive mode");
    }
    let is_ycbcr = !matches!(format, None | Some(PixelFormat::Rgb24 | PixelFormat::Grey));
    if let Some(matrix) = layout.colour.other_matrix().filter(|_| is_ycbcr) {
        debug!(%device, matrix, "colours are converted by BT.601 and are slightly off");
    }
}

fn format_error(path: &Path, offered: &[FourCC], asked: Option<[u8; 4]>) -> CaptureError {
    let found = offered.iter().map(|&c| code_text(c)).collect::<Vec<_>>().join(", ");
    let expected = match asked {
        None => format!("samclip needs one of {}", choice::codes()),
        Some(code) => format!("format={} was asked for", String::from_utf8_lossy(&code)),
    };
    CaptureError::Format {
        path: path.into(),
        found: if found.is_empty() { "nothing".into() } else { found },
        expected,
    }
}

/// Asks for a rate that the driver has; its answer.
pub(super) fn ask_rate(
    device: &Device,
    interface: Interface,
    uri: &SourceUri,
    layout: &Layout,
    path: &Path,
) -> Option<f32> {
    let rate = choice::rate(&device.rates(layout.code, layout.width, layout.height), uri.fps);
    device.set_rate(interface, rate).unwrap_or_else(|error| {
        info!(device = %path.display(), %error, "the driver has no frame rates");
        None
    })
}

#[cfg(test)]
mod tests {
    use super::super::colour::Colour;
    use super::*;

    #[test]
    fn formats_that_are_not_read_are_named() {
        let offered = [FourCC::new(b"H264"), FourCC::new(b"HEVC")];
        let error = format_error(Path::new("/dev/video0"), &offered, None).to_string();
        assert_eq!(
            error,
            "/dev/video0: driver offers H264, HEVC; samclip needs one of YUYV, UYVY, NV12, RGB3, MJPG, GREY"
        );
        let error = format_error(Path::new("/dev/video0"), &offered, Some(*b"MJPG")).to_string();
        assert_eq!(
            error,
            "/dev/video0: driver offers H264, HEVC; format=MJPG was asked for"
        );
        let layout = Layout {
            code: FourCC::new(b"NV12"),
            width: 641,
            height: 359,
            stride: 704,
            planes: 2,
            colour: Colour::default(),
        };
        let error = readable(&layout, Path::new("/dev/video0")).unwrap_err().to_string();
        assert!(error.contains("NV12 in 2 buffers per frame"), "{error}");
    }
}
