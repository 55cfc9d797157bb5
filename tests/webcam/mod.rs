//! A USB webcam made of software: answers the requests of the kernel's uvcvideo driver over USB/IP.
//!
//! The kernel's virtual host controller (vhci-hcd) takes a socket for a plugged-in device. Behind it speaks a USB Video
//! Class 1.1 camera with bulk streaming, motion JPEG and YUYV, brightness and contrast. Its picture is three columns: red,
//! green, blue. Dropping the value unplugs the camera. Needs root and the modules vhci-hcd and uvcvideo.
#![allow(unreachable_pub, clippy::unwrap_used)] // a module of test programs; a panic is how a test fails

mod descriptors;
mod picture;

use std::collections::VecDeque;
use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use descriptors::{FORMAT_JPEG, INTERVALS, PAYLOAD, SIZES, configuration, device, string};
use picture::Pictures;

const ATTACH: &str = "/sys/devices/platform/vhci_hcd.0/attach";

/// High speed, as USB/IP counts.
const SPEED: u32 = 3;

/// Requests of USB/IP, and their replies.
const SUBMIT: u32 = 1;
const UNLINK: u32 = 2;
const RET_SUBMIT: u32 = 3;
const RET_UNLINK: u32 = 4;

/// How the camera misbehaves; may be changed while it is plugged in.
#[derive(Debug)]
pub struct Manner {
    /// Frames until it falls silent.
    pub frames_left: AtomicU32,
    /// Every so many frames one is cut in half; 0: none.
    pub cut_every: AtomicU32,
    /// Brightness and contrast as the driver set them.
    pub controls: [AtomicU16; 2],
}

/// A camera that is plugged in.
pub struct Webcam {
    pub manner: Arc<Manner>,
    socket: UnixStream,
    threads: Vec<JoinHandle<()>>,
}

impl Webcam {
    /// Plugs a camera in; `tables`: whether its JPEGs have Huffman tables.
    pub fn plug_in(serial: &str, tables: bool) -> Self {
        let (ours, kernels) = UnixStream::pair().unwrap();
        let started = Instant::now();
        // The port stays busy for a moment after a camera was unplugged.
        while let Err(error) = std::fs::write(ATTACH, format!("0 {} {} {SPEED}", kernels.as_raw_fd(), 0x10002)) {
            assert!(started.elapsed() < Duration::from_secs(20), "{ATTACH}: {error}");
            std::thread::sleep(Duration::from_millis(50));
        }
        let manner = Arc::new(Manner {
            frames_left: AtomicU32::new(u32::MAX),
            cut_every: AtomicU32::new(0),
            controls: [128, 128].map(AtomicU16::new),
        });
        let mut camera = Camera {
            serial: serial.to_owned(),
            manner: Arc::clone(&manner),
            pictures: Pictures::new(tables),
            socket: ours.try_clone().unwrap(),
            probe: [0; 34],
            waiting: VecDeque::new(),
            frames: 0,
            frame_id: 0,
            rest: None,
            due: Instant::now(),
        };
        camera.negotiate();
        let (sender, requests) = channel();
        let mut reader = ours.try_clone().unwrap();
        let threads = vec![
            std::thread::spawn(move || while Request::read(&mut reader).is_ok_and(|r| sender.send(r).is_ok()) {}),
            std::thread::spawn(move || drop(camera.run(&requests))),
        ];
        Self {
            manner,
            socket: ours,
            threads,
        }
    }
}

impl Drop for Webcam {
    fn drop(&mut self) {
        self.socket.shutdown(Shutdown::Both).ok();
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
    }
}

/// One request of the host controller.
struct Request {
    command: u32,
    number: u32,
    endpoint: u32,
    to_host: bool,
    /// Bytes wanted or sent; of an unlink, the number of the request to forget.
    length: u32,
    setup: [u8; 8],
    body: Vec<u8>,
}

impl Request {
    fn read(socket: &mut UnixStream) -> io::Result<Self> {
        let mut head = [0; 48];
        socket.read_exact(&mut head)?;
        let word = |at: usize| u32::from_be_bytes(head[4 * at..4 * at + 4].try_into().unwrap());
        let mut request = Self {
            command: word(0),
            number: word(1),
            to_host: word(3) == 1,
            endpoint: word(4),
            length: if word(0) == UNLINK { word(5) } else { word(6) },
            setup: head[40..].try_into().unwrap(),
            body: Vec::new(),
        };
        if request.command == SUBMIT && !request.to_host {
            request.body = vec![0; request.length as usize];
            socket.read_exact(&mut request.body)?;
        }
        Ok(request)
    }
}

/// The camera's side of the cable.
struct Camera {
    serial: String,
    manner: Arc<Manner>,
    pictures: Pictures,
    socket: UnixStream,
    /// Streaming parameters, as the class defines them.
    probe: [u8; 34],
    /// Numbers and lengths of reads that wait for a frame.
    waiting: VecDeque<(u32, u32)>,
    frames: u32,
    /// Flips with every frame.
    frame_id: u8,
    /// What is left to send of a frame.
    rest: Option<Vec<u8>>,
    due: Instant,
}

fn errno(code: i32) -> u32 {
    code.wrapping_neg() as u32
}

impl Camera {
    fn run(&mut self, requests: &Receiver<Request>) -> io::Result<()> {
        loop {
            match requests.recv_timeout(Duration::from_millis(5)) {
                Ok(request) => self.answer(request)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
            self.stream()?;
        }
    }

    fn reply(&mut self, command: u32, number: u32, status: u32, length: u32, body: &[u8]) -> io::Result<()> {
        let words = [command, number, 0, 0, 0, status, length, 0, 0, 0, 0, 0];
        let mut bytes: Vec<u8> = words.iter().flat_map(|w| w.to_be_bytes()).collect();
        bytes.extend(body);
        self.socket.write_all(&bytes)
    }

    fn answer(&mut self, request: Request) -> io::Result<()> {
        if request.command == UNLINK {
            let at = self.waiting.iter().position(|(number, _)| *number == request.length);
            let status = at.map_or(0, |at| {
                self.waiting.remove(at);
                self.rest = None;
                errno(libc::ECONNRESET)
            });
            return self.reply(RET_UNLINK, request.number, status, 0, &[]);
        }
        if request.endpoint != 0 {
            self.waiting.push_back((request.number, request.length));
            return Ok(());
        }
        match self.control(&request) {
            None => self.reply(RET_SUBMIT, request.number, errno(libc::EPIPE), 0, &[]),
            Some(mut body) if request.to_host => {
                body.truncate(request.length as usize);
                self.reply(RET_SUBMIT, request.number, 0, body.len() as u32, &body)
            }
            Some(_) => self.reply(RET_SUBMIT, request.number, 0, request.length, &[]),
        }
    }

    /// Answers a request on the control endpoint; `None` refuses it.
    fn control(&mut self, request: &Request) -> Option<Vec<u8>> {
        let [kind, code, value_low, value, index_low, index, ..] = request.setup;
        match (kind & 0x60, code) {
            (0, 0) => Some(vec![0, 0]),
            (0, 1) => {
                // a halt is cleared: the stream ends
                self.rest = None;
                Some(vec![])
            }
            (0, 3 | 9 | 11) => Some(vec![]),
            (0, 6) => match value {
                1 => Some(device().to_vec()),
                2 => Some(configuration()),
                3 => string(value_low, &self.serial),
                _ => None,
            },
            (0, 8) => Some(vec![1]),
            (0, 10) => Some(vec![0]),
            (0x20, _) if index_low == 1 && matches!(value, 1 | 2) => self.parameters(value, code, &request.body),
            (0x20, _) if index == 2 && matches!(value, 2 | 3) => {
                self.setting(usize::from(value) - 2, code, &request.body)
            }
            _ => None,
        }
    }

    /// Probe (1) and commit (2) of the streaming interface.
    fn parameters(&mut self, selector: u8, code: u8, body: &[u8]) -> Option<Vec<u8>> {
        match code {
            0x01 => {
                let length = body.len().min(34);
                self.probe[..length].copy_from_slice(&body[..length]);
                self.negotiate();
                if selector == 2 {
                    (self.rest, self.due) = (None, Instant::now());
                }
                Some(vec![])
            }
            0x81..=0x83 | 0x87 => Some(self.probe.to_vec()),
            0x85 => Some(vec![34, 0]),
            0x86 => Some(vec![3]),
            _ => None,
        }
    }

    /// Makes the wanted parameters ones that there are.
    fn negotiate(&mut self) {
        self.probe[2] = self.probe[2].clamp(1, 2);
        self.probe[3] = self.probe[3].clamp(1, SIZES.len() as u8);
        let wanted = u32::from_le_bytes(self.probe[4..8].try_into().unwrap());
        let interval = INTERVALS.into_iter().min_by_key(|i| i.abs_diff(wanted)).unwrap();
        let (width, height) = SIZES[usize::from(self.probe[3]) - 1];
        let mut put = |at: usize, value: u32| self.probe[at..at + 4].copy_from_slice(&value.to_le_bytes());
        put(4, interval);
        put(18, u32::from(width) * u32::from(height) * 2);
        put(22, PAYLOAD as u32);
        put(26, 48_000_000);
        self.probe[30] = 3;
    }

    /// Brightness and contrast.
    fn setting(&mut self, which: usize, code: u8, body: &[u8]) -> Option<Vec<u8>> {
        let control = &self.manner.controls[which];
        let value = |v: u16| Some(v.to_le_bytes().to_vec());
        match code {
            0x01 => {
                control.store(u16::from_le_bytes(*body.first_chunk()?), Ordering::Relaxed);
                Some(vec![])
            }
            0x81 => value(control.load(Ordering::Relaxed)),
            0x82 => value(0),
            0x83 => value(255),
            0x84 => value(1),
            0x87 => value(128),
            0x85 => value(2),
            0x86 => Some(vec![3]),
            _ => None,
        }
    }

    /// Sends as much of the frame that is due as reads wait for.
    fn stream(&mut self) -> io::Result<()> {
        if self.rest.is_none() && !self.waiting.is_empty() && Instant::now() >= self.due {
            self.begin_frame();
        }
        while let Some(rest) = &mut self.rest {
            let Some((number, room)) = self.waiting.pop_front() else {
                break;
            };
            let take = rest.len().min(PAYLOAD.min(room as usize) - 2);
            let last = take == rest.len();
            let mut packet = vec![2, 0x80 | self.frame_id | if last { 2 } else { 0 }];
            packet.extend(rest.drain(..take));
            if last {
                self.rest = None;
            }
            self.reply(RET_SUBMIT, number, 0, packet.len() as u32, &packet)?;
        }
        Ok(())
    }

    fn begin_frame(&mut self) {
        let left = &self.manner.frames_left;
        if left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |l| l.checked_sub(1))
            .is_err()
        {
            return;
        }
        let interval = u32::from_le_bytes(self.probe[4..8].try_into().unwrap());
        self.due = (self.due + Duration::from_nanos(100) * interval).max(Instant::now());
        self.frames += 1;
        self.frame_id ^= 1;
        let size = SIZES[usize::from(self.probe[3]) - 1];
        let mut bytes = self.pictures.frame(self.probe[2] == FORMAT_JPEG, size).to_vec();
        let every = self.manner.cut_every.load(Ordering::Relaxed);
        if every > 0 && self.frames.is_multiple_of(every) {
            bytes.truncate(bytes.len() / 2);
        }
        self.rest = Some(bytes);
    }
}
