//! Records of a spool file: bytes ↔ sequence number and body, each with its own checksum.
//!
//! ```text
//! record   f5 'S' 'P' 'E'   sequence u64   length u32   CRC-32 u32   body
//! mark     f5 'S' 'P' 'A'   sequence u64   CRC-32 u32
//! ```
//!
//! Numbers are little-endian; the CRC covers everything before it and the body. A mark says that everything up to its
//! sequence number was acknowledged. 0xf5 occurs in no UTF-8 text, so a reader that lost its place finds the next
//! record by its first bytes: damage costs the record it hits and no other.

/// First bytes of a record and of a mark.
const RECORD: [u8; 4] = [0xf5, b'S', b'P', b'E'];
const MARK: [u8; 4] = [0xf5, b'S', b'P', b'A'];

/// Bytes before a record's body.
pub(super) const HEADER: usize = 20;

/// Bytes of a mark.
pub(super) const MARK_BYTES: usize = 16;

/// Longest body in bytes.
pub(super) const MAX_BODY: usize = 4 << 20;

/// What a scan found, in the order of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    /// A whole record; its body starts at `body` and has `length` bytes.
    Record { sequence: u64, body: usize, length: usize },
    /// Everything up to this was acknowledged.
    Acknowledged(u64),
}

fn checksum(head: &[u8], body: &[u8]) -> [u8; 4] {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(head);
    hasher.update(body);
    hasher.finalize().to_le_bytes()
}

/// A record with its body, which has at most [`MAX_BODY`] bytes.
pub(super) fn record(sequence: u64, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend(RECORD);
    bytes.extend(sequence.to_le_bytes());
    bytes.extend(length.to_le_bytes());
    bytes.extend(checksum(&bytes, body));
    bytes.extend(body);
    bytes
}

/// A mark that everything up to `sequence` was acknowledged.
pub(super) fn mark(sequence: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(MARK_BYTES);
    bytes.extend(MARK);
    bytes.extend(sequence.to_le_bytes());
    bytes.extend(checksum(&bytes, &[]));
    bytes
}

fn number(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..at + 8)?;
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}

/// What starts at `at`, if it is whole and unharmed, and where it ends.
fn read(bytes: &[u8], at: usize) -> Option<(Found, usize)> {
    let start: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
    let sequence = number(bytes, at + 4)?;
    match start {
        RECORD => {
            let length = u32::from_le_bytes(bytes.get(at + 12..at + 16)?.try_into().ok()?) as usize;
            let body = at + HEADER;
            let end = body.checked_add(length)?;
            let good = length <= MAX_BODY && bytes.len() >= end;
            let unharmed = good && checksum(&bytes[at..at + 16], &bytes[body..end]) == bytes[at + 16..body];
            unharmed.then_some((Found::Record { sequence, body, length }, end))
        }
        MARK => {
            let end = at + MARK_BYTES;
            let unharmed = bytes.len() >= end && checksum(&bytes[at..at + 12], &[]) == bytes[at + 12..end];
            unharmed.then_some((Found::Acknowledged(sequence), end))
        }
        _ => None,
    }
}

/// Everything whole in a file, and how many bytes of it are not.
pub(super) fn scan(bytes: &[u8]) -> (Vec<Found>, usize) {
    let (mut found, mut harmed, mut at) = (Vec::new(), 0, 0);
    while at < bytes.len() {
        match read(bytes, at) {
            Some((item, end)) => {
                found.push(item);
                at = end;
            }
            None => {
                harmed += 1;
                at += 1;
            }
        }
    }
    (found, harmed)
}

/// The body of a record that was read back as `bytes`, if it is that record and unharmed.
pub(super) fn body_of(bytes: &[u8], sequence: u64) -> Option<&[u8]> {
    match read(bytes, 0)? {
        (
            Found::Record {
                sequence: found,
                body,
                length,
            },
            _,
        ) if found == sequence => bytes.get(body..body + length),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sequences(bytes: &[u8]) -> Vec<u64> {
        let of = |found| match found {
            Found::Record { sequence, .. } => Some(sequence),
            Found::Acknowledged(_) => None,
        };
        scan(bytes).0.into_iter().filter_map(of).collect()
    }

    #[test]
    fn records_and_marks_are_read_back() {
        let bytes = [record(7, b"{}"), mark(7), record(8, b"")].concat();
        let (found, harmed) = scan(&bytes);
        assert_eq!(harmed, 0);
        assert_eq!(found[1], Found::Acknowledged(7));
        assert_eq!(sequences(&bytes), [7, 8]);
        assert_eq!(body_of(&bytes, 7), Some(&b"{}"[..]));
        assert_eq!(body_of(&bytes, 8), None);
    }

    #[test]
    fn a_file_cut_at_any_byte_of_its_last_record_keeps_all_others() {
        let (first, last) = (
            [record(1, b"one"), mark(0), record(2, b"two")].concat(),
            record(3, b"three"),
        );
        for kept in 0..last.len() {
            let bytes = [&first[..], &last[..kept]].concat();
            assert_eq!(sequences(&bytes), [1, 2], "cut to {kept} bytes");
            assert_eq!(scan(&bytes).1, kept);
        }
    }

    #[test]
    fn a_flipped_bit_costs_one_record_at_most() {
        let bytes = [record(1, b"one"), record(2, b"two"), record(3, b"three")].concat();
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut bytes = bytes.clone();
                bytes[at] ^= 1 << bit;
                let hit = [23, 46].iter().filter(|end| at >= **end).count() as u64 + 1;
                let expected: Vec<u64> = (1..=3).filter(|s| *s != hit).collect();
                assert_eq!(sequences(&bytes), expected, "bit {bit} of byte {at}");
            }
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic_or_invent_a_record(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(sequences(&bytes), Vec::<u64>::new());
            let mut framed = RECORD.to_vec();
            framed.extend(&bytes);
            prop_assert!(sequences(&framed).is_empty());
            prop_assert_eq!(body_of(&framed, 0), None);
        }
    }
}
