//! Events that the broker has not acknowledged, in files: they survive a broker that is away, `kill -9` and a torn write.
//!
//! Files `NNNNNNNNNN.spool` hold records, each with a checksum, the oldest in the file with the lowest number. A record goes out in order
//! and is done with once the broker has acknowledged it; a file is removed when all its records are. The total size is
//! bounded: the oldest file goes first, and its records are counted as dropped. After a restart everything that is not
//! known to be acknowledged goes out (again): at least once, as MQTT's QoS 1 means it.
//!
//! While the disk takes nothing, events are held in memory, in their place of the order (`held`).
//!
//! [`writer`] keeps the disk's waiting times away from whoever makes events.

use std::collections::{BTreeSet, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use held::Held;
use record::{Found, HEADER, MARK_BYTES, MAX_BODY};

mod held;
mod record;
pub mod writer;

/// Parts that the bound is split into; the oldest is what is dropped at once.
const PARTS: u64 = 16;

/// Smallest bound in bytes.
pub const MIN_BYTES: u64 = 64 << 10;

/// Counters of a spool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SpoolStats {
    /// Records that are not acknowledged.
    pub waiting: usize,
    /// Bytes of all files.
    pub bytes: u64,
    /// Records dropped because the bound, or that of memory, was reached.
    pub dropped: u64,
    /// Stretches of damaged bytes and records that could not be read back.
    pub damaged: u64,
    /// Records that could not be written.
    pub failed: u64,
}

/// A record that waits.
#[derive(Debug, Clone, Copy)]
struct Entry {
    sequence: u64,
    file: u64,
    offset: u64,
    /// Of the whole record; 0 for one that is held in memory.
    length: usize,
}

/// The file that records are added to.
#[derive(Debug)]
struct Active {
    number: u64,
    file: File,
    bytes: u64,
}

/// A spool; see the module.
#[derive(Debug)]
pub struct Spool {
    /// Held while the spool is open; the system frees it with the program, however that ends.
    _lock: File,
    dir: PathBuf,
    most_bytes: u64,
    /// Number and size of every file, oldest first, the active one last.
    files: VecDeque<(u64, u64)>,
    active: Option<Active>,
    entries: VecDeque<Entry>,
    /// How many of `entries`, from the front, are on their way.
    sent: usize,
    acknowledged: BTreeSet<u64>,
    held: Held,
    next_sequence: u64,
    next_file: u64,
    dropped: u64,
    damaged: u64,
    failed: u64,
}

/// Whether what was to be read is gone for good: the file, its end, or the disk under it.
fn is_lost(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof)
        || error.raw_os_error() == Some(nix::errno::Errno::EIO as i32)
}

fn path_of(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:010}.spool"))
}

impl Spool {
    /// Opens a directory, which is made if it is missing, and reads what waits in it.
    ///
    /// `most_bytes` bounds the size of all files together; at least [`MIN_BYTES`].
    ///
    /// # Errors
    /// What the system says if the directory cannot be made or read, or that another program has it open; damaged files
    /// are no error but counted.
    pub fn open(dir: &Path, most_bytes: u64) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let lock = OpenOptions::new().create(true).append(true).open(dir.join("lock"))?;
        lock.try_lock().map_err(|error| match error {
            fs::TryLockError::WouldBlock => {
                io::Error::new(io::ErrorKind::WouldBlock, "another program uses this spool")
            }
            fs::TryLockError::Error(error) => error,
        })?;
        let mut spool = Self {
            _lock: lock,
            dir: dir.to_owned(),
            most_bytes: most_bytes.max(MIN_BYTES),
            files: VecDeque::new(),
            active: None,
            entries: VecDeque::new(),
            sent: 0,
            acknowledged: BTreeSet::new(),
            held: Held::default(),
            next_sequence: 1,
            next_file: 1,
            dropped: 0,
            damaged: 0,
            failed: 0,
        };
        let mut numbers = Vec::new();
        for entry in fs::read_dir(dir)? {
            let name = entry?.file_name();
            let number = name
                .to_str()
                .and_then(|n| n.strip_suffix(".spool")?.parse::<u64>().ok());
            numbers.extend(number.filter(|n| path_of(dir, *n).file_name() == Some(&name)));
        }
        numbers.sort_unstable();
        for number in numbers {
            spool.next_file = number.saturating_add(1);
            spool.read_file(number)?;
        }
        spool.remove_finished(0);
        spool.keep_bound(0);
        Ok(spool)
    }

    fn read_file(&mut self, number: u64) -> io::Result<()> {
        let bytes = fs::read(path_of(&self.dir, number))?;
        self.files.push_back((number, bytes.len() as u64));
        let (found, harmed) = record::scan(&bytes);
        self.damaged += u64::from(harmed > 0);
        for item in found {
            match item {
                Found::Record { sequence, body, length } => {
                    // Sequences only rise; anything else was copied here by somebody.
                    if self.entries.back().is_none_or(|last| last.sequence < sequence) {
                        self.next_sequence = self.next_sequence.max(sequence.saturating_add(1));
                        self.entries.push_back(Entry {
                            sequence,
                            file: number,
                            offset: (body - HEADER) as u64,
                            length: HEADER + length,
                        });
                    }
                }
                Found::Acknowledged(sequence) => {
                    self.next_sequence = self.next_sequence.max(sequence.saturating_add(1));
                    while self.entries.front().is_some_and(|e| e.sequence <= sequence) {
                        self.entries.pop_front();
                    }
                }
            }
        }
        Ok(())
    }

    /// Adds an event at the end; drops the oldest ones if the bound asks for it.
    ///
    /// The bytes are with the system afterwards, not yet on the disk: see [`Self::unsynced`].
    ///
    /// # Errors
    /// What the system says, e.g. that the disk is full: the event is then counted and not in the spool, which goes on
    /// with the next one. `InvalidInput` for a body over a quarter of the bound or 4 MiB.
    pub fn append(&mut self, body: &[u8]) -> io::Result<()> {
        let mut added = self.try_append(body);
        let full = |error: &io::Error| error.kind() != io::ErrorKind::InvalidInput;
        // What is done with takes room until a file is large enough to be worth a new one.
        if added.as_ref().is_err_and(full) && self.remove_finished(0) {
            added = self.try_append(body);
        }
        self.failed += u64::from(added.is_err());
        added
    }

    fn try_append(&mut self, body: &[u8]) -> io::Result<()> {
        if body.len() > MAX_BODY || body.len() as u64 > self.most_bytes / 4 {
            let text = format!("event of {} bytes is too large for the spool", body.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let sequence = self.next_sequence;
        let bytes = record::record(sequence, body);
        let (file, offset) = self.write(&bytes)?;
        self.next_sequence += 1;
        self.entries.push_back(Entry {
            sequence,
            file,
            offset,
            length: bytes.len(),
        });
        Ok(())
    }

    /// Holds an event that could not be added in memory, as the last one; the oldest held ones are dropped for it if the
    /// bound of memory asks for that. It does not survive the program.
    ///
    /// # Errors
    /// Gives back an event that is too large.
    pub fn hold(&mut self, body: Vec<u8>) -> Result<(), Vec<u8>> {
        if !Held::takes(&body) {
            return Err(body);
        }
        while let Some(oldest) = self.held.in_the_way(&body) {
            self.held.remove(oldest);
            if let Ok(place) = self.entries.binary_search_by_key(&oldest, |e| e.sequence) {
                self.entries.remove(place);
                self.sent -= usize::from(place < self.sent);
            }
            self.dropped += 1;
        }
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        self.held.insert(sequence, body);
        self.entries.push_back(Entry {
            sequence,
            // It goes with the file that those before it are in.
            file: self.next_file - 1,
            offset: 0,
            length: 0,
        });
        Ok(())
    }

    /// Takes the oldest event away.
    fn pop_front(&mut self) {
        if let Some(entry) = self.entries.pop_front() {
            self.held.remove(entry.sequence);
            self.sent = self.sent.saturating_sub(1);
        }
    }

    /// Writes to the active file, a new one if that is full; says where. A write that fails leaves nothing behind.
    fn write(&mut self, bytes: &[u8]) -> io::Result<(u64, u64)> {
        self.keep_bound((bytes.len() + MARK_BYTES) as u64);
        let part = self.most_bytes / PARTS;
        if let Some(full) = self.active.take_if(|a| a.bytes + bytes.len() as u64 > part) {
            // Errors are the next write's to report: a disk that cannot sync cannot take more either.
            let _ = full.file.sync_data();
        }
        if self.active.is_none() {
            self.begin_file()?;
        }
        let Some(active) = &mut self.active else {
            return Err(io::Error::other("the spool has no file"));
        };
        let (number, offset) = (active.number, active.bytes);
        if let Err(error) = active.file.write_all(bytes) {
            let undone = active
                .file
                .set_len(offset)
                .and_then(|()| active.file.seek(SeekFrom::Start(offset)));
            if undone.is_err() {
                // What was half written is skipped when the file is read; nothing more goes into it.
                self.active = None;
            }
            return Err(error);
        }
        active.bytes += bytes.len() as u64;
        if let Some(last) = self.files.back_mut() {
            last.1 = active.bytes;
        }
        Ok((number, offset))
    }

    /// Makes the next file; it opens with a mark, since those of removed files are gone.
    fn begin_file(&mut self) -> io::Result<()> {
        let path = path_of(&self.dir, self.next_file);
        let mut file = OpenOptions::new().write(true).create_new(true).open(&path)?;
        let mark = record::mark(self.done_up_to());
        if let Err(error) = file.write_all(&mark) {
            // Without its mark it would only be in the way.
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        self.files.push_back((self.next_file, MARK_BYTES as u64));
        self.active = Some(Active {
            number: self.next_file,
            file,
            bytes: MARK_BYTES as u64,
        });
        self.next_file += 1;
        Ok(())
    }

    /// Last sequence number of the acknowledged beginning.
    fn done_up_to(&self) -> u64 {
        self.entries
            .front()
            .map_or(self.next_sequence, |e| e.sequence)
            .saturating_sub(1)
    }

    /// The file that was added to, for its content to be put on the disk; `None` if there is none.
    ///
    /// # Errors
    /// What the system says.
    pub fn unsynced(&self) -> io::Result<Option<File>> {
        self.active.as_ref().map(|active| active.file.try_clone()).transpose()
    }

    /// Drops the oldest files until `more` bytes fit.
    fn keep_bound(&mut self, more: u64) {
        while self.bytes() + more > self.most_bytes
            && let Some((number, _)) = self.files.front().copied()
        {
            if self.active.as_ref().is_some_and(|a| a.number == number) {
                self.active = None;
            }
            self.remove_front();
            while self.entries.front().is_some_and(|e| e.file <= number) {
                self.pop_front();
                self.dropped += 1;
            }
        }
    }

    fn remove_front(&mut self) {
        if let Some((number, _)) = self.files.pop_front() {
            // A file that cannot be removed is read again after a restart; its records go out twice then.
            let _ = fs::remove_file(path_of(&self.dir, number));
        }
    }

    /// Removes files whose records are all acknowledged, the active one only from this size on; whether there were any.
    fn remove_finished(&mut self, active_bytes: u64) -> bool {
        let written = self.entries.iter().find(|e| e.length > 0);
        let needed = written.map_or(u64::MAX, |e| e.file);
        let before = self.files.len();
        while let Some((number, bytes)) = self.files.front().copied().filter(|(n, _)| *n < needed) {
            if self.active.as_ref().is_some_and(|a| a.number == number) {
                if bytes < active_bytes {
                    break;
                }
                self.active = None;
            }
            self.remove_front();
        }
        self.files.len() != before
    }

    /// The oldest event that is not on its way, with its number; it counts as on its way from now on. One whose bytes are gone or
    /// damaged is counted and left out.
    ///
    /// # Errors
    /// What the system says if it gives nothing to read with just now, such as too many open files: the event keeps its place.
    pub fn next_unsent(&mut self) -> io::Result<Option<(u64, Vec<u8>)>> {
        while let Some(entry) = self.entries.get(self.sent).copied() {
            if let Some(body) = self.read_back(entry)? {
                self.sent += 1;
                return Ok(Some((entry.sequence, body)));
            }
            self.damaged += 1;
            self.entries.remove(self.sent);
        }
        Ok(None)
    }

    /// The event's bytes; none if they are not on the disk any more, or others.
    fn read_back(&self, entry: Entry) -> io::Result<Option<Vec<u8>>> {
        if let Some(body) = self.held.get(entry.sequence) {
            return Ok(Some(body.to_vec()));
        }
        let read = || -> io::Result<Vec<u8>> {
            let mut file = File::open(path_of(&self.dir, entry.file))?;
            file.seek(SeekFrom::Start(entry.offset))?;
            let mut bytes = vec![0; entry.length];
            file.read_exact(&mut bytes)?;
            Ok(bytes)
        };
        match read() {
            Ok(bytes) => Ok(record::body_of(&bytes, entry.sequence).map(<[u8]>::to_vec)),
            Err(error) if is_lost(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The broker has this event. Unknown numbers are ignored.
    pub fn acknowledge(&mut self, sequence: u64) {
        self.acknowledged.insert(sequence);
        let before = self.entries.len();
        while let Some(front) = self.entries.front().copied()
            && self.acknowledged.contains(&front.sequence)
        {
            self.pop_front();
        }
        let done = self.done_up_to();
        self.acknowledged = self.acknowledged.split_off(&(done + 1));
        if self.entries.len() != before {
            self.remove_finished(self.most_bytes / PARTS / 2);
            // A mark that cannot be written, or has no room, means an event twice after a restart, not a lost one. It may
            // begin a file, which begins with another one.
            let fits = self.bytes() + 2 * MARK_BYTES as u64 <= self.most_bytes;
            if fits && (self.active.is_some() || !self.files.is_empty()) {
                let _ = self.write(&record::mark(done));
            }
        }
    }

    /// Nothing is on its way any more: the connection broke, and everything that is not acknowledged goes out again.
    pub fn rewind(&mut self) {
        self.sent = 0;
    }

    /// Events that are on their way and not acknowledged.
    #[must_use]
    pub fn on_their_way(&self) -> usize {
        self.sent
    }

    /// Bytes of all files.
    fn bytes(&self) -> u64 {
        self.files.iter().map(|(_, bytes)| bytes).sum()
    }

    /// Counters.
    #[must_use]
    pub fn stats(&self) -> SpoolStats {
        SpoolStats {
            waiting: self.entries.len(),
            bytes: self.bytes(),
            dropped: self.dropped,
            damaged: self.damaged,
            failed: self.failed,
        }
    }
}

#[cfg(test)]
mod tests;
