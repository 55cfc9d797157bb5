//! Frames of a device through memory-mapped buffers. Nothing here waits for the driver, and dropping never fails: a
//! camera that was unplugged answers every call with an error.
#![allow(unsafe_code)] // ioctl, mmap and poll

use std::io;
use std::os::fd::RawFd;
use std::ptr::NonNull;
use std::time::Duration;

use v4l::Timestamp;
use v4l::buffer::Flags;
use v4l::v4l_sys::{v4l2_buffer, v4l2_plane, v4l2_requestbuffers};
use v4l::v4l2::vidioc;

use super::device::{Device, Interface, call, empty};

/// Buffers that the kernel's memory is shared by.
const MEMORY_MMAP: u32 = 1;

/// One buffer of the kernel, mapped for reading.
struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly what mmap returned, and nobody holds a slice of it any more.
        let _ = unsafe { v4l::v4l2::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

/// A buffer that holds a frame, until it is given back.
pub(super) struct Filled {
    pub(super) index: u32,
    pub(super) flags: Flags,
    pub(super) stamp: Timestamp,
    /// The driver's number of the frame.
    pub(super) sequence: u32,
    /// Where in the buffer the frame lies.
    start: usize,
    end: usize,
}

/// A device that delivers.
pub(super) struct Stream {
    mappings: Vec<Mapping>,
    interface: Interface,
    device: Device,
}

// SAFETY: the mappings belong to this value alone; the kernel may write to them from anywhere in any case.
unsafe impl Send for Stream {}

impl Stream {
    /// Maps `count` buffers, or as many as the driver gives, queues them all and starts.
    pub(super) fn start(device: Device, interface: Interface, count: u32) -> io::Result<Self> {
        let mut request = v4l2_requestbuffers {
            count,
            type_: interface as u32,
            memory: MEMORY_MMAP,
            ..empty()
        };
        // SAFETY: structure of the request.
        unsafe { call(device.fd(), vidioc::VIDIOC_REQBUFS, &mut request) }?;
        let mappings = (0..request.count).map(|index| map(device.fd(), interface, index));
        let stream = Self {
            mappings: mappings.collect::<io::Result<_>>()?,
            interface,
            device,
        };
        for index in 0..request.count {
            stream.give_back(index)?;
        }
        let mut kind = interface as u32;
        // SAFETY: structure of the request.
        unsafe { call(stream.device.fd(), vidioc::VIDIOC_STREAMON, &mut kind) }?;
        Ok(stream)
    }

    /// Waits until a frame or an error is there; false if neither came in time.
    pub(super) fn wait(&self, at_most: Duration) -> io::Result<bool> {
        let mut poll = libc::pollfd {
            fd: self.device.fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let milliseconds = i32::try_from(at_most.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: one structure, exclusively borrowed for the whole call.
        match unsafe { libc::poll(&raw mut poll, 1, milliseconds) } {
            -1 => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => Ok(false),
                error => Err(error),
            },
            0 => Ok(false),
            _ => Ok(true),
        }
    }

    /// Takes the oldest frame.
    ///
    /// # Errors
    /// What the driver says, which is where an unplugged camera shows; never blocks.
    pub(super) fn take(&self) -> io::Result<Filled> {
        let (mut buffer, mut plane) = describe(self.interface, 0);
        point_to(&mut buffer, &mut plane, self.interface);
        // SAFETY: structure of the request; its plane lives as long.
        unsafe { call(self.device.fd(), vidioc::VIDIOC_DQBUF, &mut buffer) }?;
        let length = self.mappings.get(buffer.index as usize).map(|m| m.length);
        let length = length.ok_or_else(|| io::Error::other(format!("driver returned buffer {}", buffer.index)))?;
        let (start, used) = match self.interface {
            Interface::SinglePlanar => (0, buffer.bytesused),
            Interface::MultiPlanar => (plane.data_offset, plane.bytesused),
        };
        let end = length.min(used as usize);
        Ok(Filled {
            index: buffer.index,
            flags: Flags::from(buffer.flags),
            stamp: Timestamp::from(buffer.timestamp),
            sequence: buffer.sequence,
            start: end.min(start as usize),
            end,
        })
    }

    /// The bytes of a frame that was taken and not given back.
    pub(super) fn bytes(&self, filled: &Filled) -> &[u8] {
        let Some(mapping) = self.mappings.get(filled.index as usize) else {
            return &[];
        };
        // SAFETY: the mapping is `length` bytes long and lives as long as `self`.
        let whole = unsafe { std::slice::from_raw_parts(mapping.start.as_ptr(), mapping.length) };
        whole.get(filled.start..filled.end).unwrap_or_default()
    }

    /// Lets the driver fill a buffer again.
    pub(super) fn give_back(&self, index: u32) -> io::Result<()> {
        let (mut buffer, mut plane) = describe(self.interface, index);
        point_to(&mut buffer, &mut plane, self.interface);
        // SAFETY: structure of the request; its plane lives as long.
        unsafe { call(self.device.fd(), vidioc::VIDIOC_QBUF, &mut buffer) }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut kind = self.interface as u32;
        // SAFETY: structure of the request. What an unplugged camera answers does not matter: closing ends it all.
        let _ = unsafe { call(self.device.fd(), vidioc::VIDIOC_STREAMOFF, &mut kind) };
    }
}

fn describe(interface: Interface, index: u32) -> (v4l2_buffer, v4l2_plane) {
    let buffer = v4l2_buffer {
        index,
        type_: interface as u32,
        memory: MEMORY_MMAP,
        ..empty()
    };
    (buffer, empty())
}

/// Multi-planar buffers are described by a list of planes, here of one.
fn point_to(buffer: &mut v4l2_buffer, plane: &mut v4l2_plane, interface: Interface) {
    if interface == Interface::MultiPlanar {
        buffer.length = 1;
        buffer.m.planes = plane;
    }
}

fn map(fd: RawFd, interface: Interface, index: u32) -> io::Result<Mapping> {
    let (mut buffer, mut plane) = describe(interface, index);
    point_to(&mut buffer, &mut plane, interface);
    // SAFETY: structure of the request; its plane lives as long. All members of the unions are plain numbers.
    unsafe { call(fd, vidioc::VIDIOC_QUERYBUF, &mut buffer) }?;
    let (length, offset) = match interface {
        // SAFETY: the driver filled the member for mapped memory.
        Interface::SinglePlanar => (buffer.length, unsafe { buffer.m.offset }),
        // SAFETY: as above.
        Interface::MultiPlanar => (plane.length, unsafe { plane.m.mem_offset }),
    };
    let length = length as usize;
    // SAFETY: a new mapping; length and offset are the driver's.
    let start = unsafe {
        v4l::v4l2::mmap(
            std::ptr::null_mut(),
            length,
            libc::PROT_READ,
            libc::MAP_SHARED,
            fd,
            libc::off_t::from(offset),
        )
    }?;
    let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mapped at address zero"))?;
    Ok(Mapping { start, length })
}
