//! A video device: the kernel's capture calls as safe functions.
//!
//! Both capture interfaces are spoken, the single-planar one and the multi-planar one with a single buffer per frame.
//! Texts of drivers are taken as they come: cards cut their names in the middle of a character.
#![allow(unsafe_code)] // ioctl: every call is given a structure of its own request

use std::io;
use std::mem;
use std::os::fd::RawFd;
use std::path::Path;

use v4l::v4l_sys::{
    v4l2_capability, v4l2_fmtdesc, v4l2_format, v4l2_fract, v4l2_pix_format, v4l2_pix_format_mplane, v4l2_streamparm,
};
use v4l::v4l2::vidioc;

pub(super) use v4l::FourCC;

use super::colour::Colour;

/// Field order of whole pictures.
const FIELD_NONE: u32 = 1;

const CAP_CAPTURE: u32 = 0x0000_0001;
const CAP_CAPTURE_MPLANE: u32 = 0x0000_1000;
const CAP_STREAMING: u32 = 0x0400_0000;
const CAP_DEVICE_CAPS: u32 = 0x8000_0000;

/// The rate may be set.
const CAP_TIMEPERFRAME: u32 = 0x1000;

/// More formats than any driver has.
const MAX_FORMATS: u32 = 256;

/// The kernel's two capture interfaces; the value is the buffer type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Interface {
    /// One buffer per frame.
    SinglePlanar = 1,
    /// Several buffers per frame, of which only one is used here.
    MultiPlanar = 9,
}

/// What a device says it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) driver: String,
    pub(super) card: String,
    pub(super) bus: String,
    /// How pictures are taken from it; `None` for what is no camera, such as metadata nodes.
    pub(super) interface: Option<Interface>,
}

/// What a driver will deliver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) code: FourCC,
    pub(super) width: u32,
    pub(super) height: u32,
    /// Bytes per row; 0 for compressed formats.
    pub(super) stride: u32,
    /// Buffers per frame.
    pub(super) planes: u8,
    pub(super) colour: Colour,
}

/// Frames per second that a driver has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Rate {
    One(f32),
    /// Those from the slowest to the fastest, all or in steps.
    Between(f32, f32),
}

/// An open device; never blocks.
pub(super) struct Device(v4l::Device);

/// A structure of the kernel's interface without content.
pub(super) fn empty<T: Copy>() -> T {
    // SAFETY: used for the plain structures of the kernel's interface only, for which all bits zero is a value.
    unsafe { mem::zeroed() }
}

/// One call to the driver.
///
/// # Safety
/// `argument` must be what `request` stands for, with every pointer in it valid.
pub(super) unsafe fn call<T>(fd: RawFd, request: vidioc::_IOC_TYPE, argument: &mut T) -> io::Result<()> {
    loop {
        // SAFETY: `argument` is exclusively borrowed for the whole call; the rest is the caller's promise.
        match unsafe { v4l::v4l2::ioctl(fd, request, (&raw mut *argument).cast()) } {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

/// Text in a fixed field of a structure.
pub(super) fn text(field: &[u8]) -> String {
    let end = field.iter().position(|&b| b == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).trim().to_owned()
}

/// A four-cc code for people; the highest bit means big-endian.
pub(super) fn code_text(code: FourCC) -> String {
    let big_endian = code.repr[3] & 0x80 != 0;
    let letters = code.repr.map(|b| b & 0x7f);
    let text = String::from_utf8_lossy(&letters).trim_end().to_owned();
    if big_endian { format!("{text}-BE") } else { text }
}

impl Device {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        v4l::Device::with_path(path).map(Self)
    }

    pub(super) fn fd(&self) -> RawFd {
        self.0.handle().fd()
    }

    pub(super) fn identity(&self) -> io::Result<Identity> {
        let mut found: v4l2_capability = empty();
        // SAFETY: structure of the request.
        unsafe { call(self.fd(), vidioc::VIDIOC_QUERYCAP, &mut found) }?;
        let per_node = found.capabilities & CAP_DEVICE_CAPS != 0;
        let can = if per_node {
            found.device_caps
        } else {
            found.capabilities
        };
        let interface = match can {
            c if c & CAP_STREAMING == 0 => None,
            c if c & CAP_CAPTURE != 0 => Some(Interface::SinglePlanar),
            c if c & CAP_CAPTURE_MPLANE != 0 => Some(Interface::MultiPlanar),
            _ => None,
        };
        Ok(Identity {
            driver: text(&found.driver),
            card: text(&found.card),
            bus: text(&found.bus_info),
            interface,
        })
    }

    /// Formats in the driver's order.
    pub(super) fn formats(&self, interface: Interface) -> Vec<FourCC> {
        let describe = |index| {
            let mut found: v4l2_fmtdesc = empty();
            (found.index, found.type_) = (index, interface as u32);
            // SAFETY: structure of the request.
            let outcome = unsafe { call(self.fd(), vidioc::VIDIOC_ENUM_FMT, &mut found) };
            outcome.ok().map(|()| FourCC::from(found.pixelformat))
        };
        (0..MAX_FORMATS).map_while(describe).collect()
    }

    /// Frame sizes of a format; none where the driver does not tell.
    pub(super) fn sizes(&self, code: FourCC) -> Vec<v4l::framesize::FrameSizeEnum> {
        use v4l::video::Capture as _;
        let found = self.0.enum_framesizes(code).unwrap_or_default();
        found.into_iter().map(|f| f.size).collect()
    }

    /// Frame rates of a format and size; none where the driver does not tell.
    pub(super) fn rates(&self, code: FourCC, width: u32, height: u32) -> Vec<Rate> {
        use v4l::frameinterval::FrameIntervalEnum;
        use v4l::video::Capture as _;
        let found = self.0.enum_frameintervals(code, width, height).unwrap_or_default();
        let rate =
            |f: v4l::Fraction| Some(f.denominator as f32 / f.numerator as f32).filter(|r| r.is_finite() && *r > 0.0);
        let rates = found.into_iter().filter_map(|f| match f.interval {
            FrameIntervalEnum::Discrete(every) => rate(every).map(Rate::One),
            // The longest interval is the slowest rate.
            FrameIntervalEnum::Stepwise(range) => Some(Rate::Between(rate(range.max)?, rate(range.min)?)),
        });
        rates.collect()
    }

    /// What the driver would deliver now.
    pub(super) fn layout(&self, interface: Interface) -> io::Result<Layout> {
        let mut format: v4l2_format = empty();
        format.type_ = interface as u32;
        // SAFETY: structure of the request.
        unsafe { call(self.fd(), vidioc::VIDIOC_G_FMT, &mut format) }?;
        Ok(read_layout(interface, &format))
    }

    /// Asks for a layout; the answer is what the driver will deliver, which may be something else.
    pub(super) fn set_layout(
        &self,
        interface: Interface,
        code: FourCC,
        (width, height): (u32, u32),
    ) -> io::Result<Layout> {
        let mut format: v4l2_format = empty();
        format.type_ = interface as u32;
        match interface {
            Interface::SinglePlanar => {
                format.fmt.pix = v4l2_pix_format {
                    width,
                    height,
                    pixelformat: code.into(),
                    field: FIELD_NONE,
                    ..empty()
                };
            }
            Interface::MultiPlanar => {
                format.fmt.pix_mp = v4l2_pix_format_mplane {
                    width,
                    height,
                    pixelformat: code.into(),
                    field: FIELD_NONE,
                    num_planes: 1,
                    ..empty()
                };
            }
        }
        // SAFETY: structure of the request.
        unsafe { call(self.fd(), vidioc::VIDIOC_S_FMT, &mut format) }?;
        Ok(read_layout(interface, &format))
    }

    /// Asks for a frame rate; the driver's answer in frames per second, if it has rates at all.
    pub(super) fn set_rate(&self, interface: Interface, wanted: Option<f32>) -> io::Result<Option<f32>> {
        let mut parameters: v4l2_streamparm = empty();
        parameters.type_ = interface as u32;
        // SAFETY: structure of the request, here and below; all members of the union are plain numbers.
        unsafe { call(self.fd(), vidioc::VIDIOC_G_PARM, &mut parameters) }?;
        let settable = unsafe { parameters.parm.capture.capability } & CAP_TIMEPERFRAME != 0;
        if let Some(rate) = wanted.filter(|_| settable) {
            parameters.parm.capture.timeperframe = v4l2_fract {
                numerator: 1000,
                denominator: (rate * 1000.0).round().max(1.0) as u32,
            };
            unsafe { call(self.fd(), vidioc::VIDIOC_S_PARM, &mut parameters) }?;
        }
        let every = unsafe { parameters.parm.capture.timeperframe };
        let rate = every.denominator as f32 / every.numerator as f32;
        Ok(Some(rate).filter(|r| r.is_finite() && *r > 0.0))
    }
}

fn read_layout(interface: Interface, format: &v4l2_format) -> Layout {
    match interface {
        Interface::SinglePlanar => {
            // SAFETY: the driver filled the member of this interface; all members are plain numbers.
            let pix = unsafe { format.fmt.pix };
            Layout {
                code: FourCC::from(pix.pixelformat),
                width: pix.width,
                height: pix.height,
                stride: pix.bytesperline,
                planes: 1,
                colour: Colour {
                    space: pix.colorspace,
                    // SAFETY: as above.
                    encoding: unsafe { pix.__bindgen_anon_1.ycbcr_enc },
                    quantization: pix.quantization,
                    field: pix.field,
                },
            }
        }
        Interface::MultiPlanar => {
            // SAFETY: as above.
            let pix = unsafe { format.fmt.pix_mp };
            let planes = pix.plane_fmt;
            Layout {
                code: FourCC::from(pix.pixelformat),
                width: pix.width,
                height: pix.height,
                stride: planes[0].bytesperline,
                planes: pix.num_planes,
                colour: Colour {
                    space: pix.colorspace,
                    // SAFETY: as above.
                    encoding: unsafe { pix.__bindgen_anon_1.ycbcr_enc }.into(),
                    quantization: pix.quantization.into(),
                    field: pix.field,
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cut_in_the_middle_of_a_character_is_readable() {
        assert_eq!(text(b"Kamera \xc3\xa4\0rest"), "Kamera ä");
        assert_eq!(text(b"Kamera \xc3"), "Kamera \u{fffd}");
    }

    #[test]
    fn both_interfaces_tell_layout_and_colour() {
        let mut format: v4l2_format = empty();
        format.fmt.pix = v4l2_pix_format {
            width: 6,
            height: 4,
            pixelformat: FourCC::new(b"YUYV").into(),
            bytesperline: 16,
            colorspace: 7,
            quantization: 2,
            field: FIELD_NONE,
            ..empty()
        };
        let single = read_layout(Interface::SinglePlanar, &format);
        let colour = Colour {
            space: 7,
            encoding: 0,
            quantization: 2,
            field: FIELD_NONE,
        };
        assert_eq!((single.stride, single.planes, single.colour), (16, 1, colour));
        format.fmt.pix_mp = v4l2_pix_format_mplane {
            width: 6,
            height: 4,
            colorspace: 7,
            quantization: 2,
            field: FIELD_NONE,
            num_planes: 2,
            ..empty()
        };
        let multi = read_layout(Interface::MultiPlanar, &format);
        assert_eq!((multi.width, multi.planes, multi.colour), (6, 2, colour));
    }

    #[test]
    fn every_four_cc_code_can_be_shown() {
        let codes = [b"YUYV", b"Y10 ", b"Y16\xa0", b"\x80\xff\0\x01"].map(|c| code_text(FourCC::new(c)));
        assert_eq!(codes, ["YUYV", "Y10", "Y16-BE", "\0\u{7f}\0\u{1}"]);
    }
}
