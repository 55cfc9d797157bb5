//! Order, bounds, acknowledgement, restarts and damage of the spool.

use super::*;
use proptest::prelude::*;

fn open(dir: &Path) -> Spool {
    Spool::open(dir, MIN_BYTES).unwrap()
}

fn add(spool: &mut Spool, bodies: std::ops::Range<u32>) {
    for i in bodies {
        spool.append(format!("event {i}").as_bytes()).unwrap();
    }
}

fn next(spool: &mut Spool) -> Option<(u64, Vec<u8>)> {
    spool.next_unsent().unwrap()
}

/// Everything that is unsent, as the numbers of [`add`].
fn drain(spool: &mut Spool) -> Vec<u32> {
    std::iter::from_fn(|| next(spool))
        .map(|(_, body)| String::from_utf8(body).unwrap().replace("event ", "").parse().unwrap())
        .collect()
}

fn only_file(dir: &Path) -> PathBuf {
    let paths = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    let mut paths: Vec<_> = paths.filter(|p| p.extension().is_some_and(|e| e == "spool")).collect();
    assert_eq!(paths.len(), 1, "{paths:?}");
    paths.remove(0)
}

#[test]
fn events_go_out_in_order_and_again_after_a_broken_connection_or_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = open(dir.path());
    add(&mut spool, 0..5);
    assert_eq!(drain(&mut spool), [0, 1, 2, 3, 4]);
    assert_eq!((next(&mut spool), spool.on_their_way()), (None, 5));
    spool.rewind();
    let (first, _) = next(&mut spool).unwrap();
    let (second, _) = next(&mut spool).unwrap();
    // Out of order: the first still goes out again, the second does not stop it.
    spool.acknowledge(second);
    assert_eq!(spool.stats().waiting, 5);
    spool.acknowledge(first);
    assert_eq!(spool.stats().waiting, 3);
    drop(spool);
    let mut spool = open(dir.path());
    add(&mut spool, 5..6);
    assert_eq!(drain(&mut spool), [2, 3, 4, 5]);
    assert_eq!(spool.stats().damaged, 0);
}

#[test]
fn what_is_acknowledged_leaves_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = open(dir.path());
    for round in 0..200 {
        add(&mut spool, 20 * round..20 * round + 20);
        while let Some((sequence, _)) = next(&mut spool) {
            spool.acknowledge(sequence);
        }
        assert!(spool.stats().bytes <= MIN_BYTES / PARTS + 1_000, "{:?}", spool.stats());
    }
    drop(spool);
    let mut spool = open(dir.path());
    assert_eq!((drain(&mut spool), spool.stats().waiting), (vec![], 0));
    assert_eq!(spool.stats().bytes, 0, "nothing is needed after a restart");
}

#[test]
fn the_bound_drops_the_oldest_and_counts_them() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = open(dir.path());
    add(&mut spool, 0..10_000);
    let stats = spool.stats();
    assert!(
        stats.bytes <= MIN_BYTES && stats.waiting as u64 + stats.dropped == 10_000,
        "{stats:?}"
    );
    let on_disk: u64 = fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().metadata().unwrap().len())
        .sum();
    assert_eq!(on_disk, stats.bytes);
    let left = drain(&mut spool);
    assert_eq!(left.len(), stats.waiting);
    assert!(left.windows(2).all(|pair| pair[1] == pair[0] + 1) && *left.last().unwrap() == 9_999);
    assert!(left.len() > 1_000, "a sixteenth is dropped at once, not everything");
}

#[test]
fn an_acknowledgement_costs_no_event_where_the_spool_is_full() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = open(dir.path());
    add(&mut spool, 0..2_000);
    // One more, in a file of its own, fills it to the last byte.
    let room = MIN_BYTES - spool.stats().bytes;
    spool.append(&vec![b'x'; room as usize - MARK_BYTES - HEADER]).unwrap();
    assert_eq!((spool.stats().bytes, spool.stats().dropped), (MIN_BYTES, 0));
    let (first, _) = next(&mut spool).unwrap();
    spool.acknowledge(first);
    assert_eq!((spool.stats().waiting, spool.stats().dropped), (2_000, 0));
    drop(spool);
    // There was no room for its mark: it comes once more.
    let mut spool = open(dir.path());
    assert_eq!(next(&mut spool).unwrap().1, b"event 0");
}

#[test]
fn a_smaller_bound_holds_from_the_next_start_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(dir.path(), 4 * MIN_BYTES).unwrap();
    add(&mut spool, 0..6_000);
    let before = spool.stats();
    assert_eq!((before.dropped, before.bytes > MIN_BYTES), (0, true));
    drop(spool);
    let mut spool = open(dir.path());
    let stats = spool.stats();
    assert!(stats.bytes <= MIN_BYTES && stats.dropped > 0, "{stats:?}");
    assert_eq!(drain(&mut spool).last(), Some(&5_999));
}

#[test]
fn a_torn_last_record_is_lost_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = open(dir.path());
    add(&mut spool, 0..3);
    drop(spool);
    let path = only_file(dir.path());
    let whole = fs::read(&path).unwrap();
    for cut in 1..=HEADER + "event 2".len() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(path_of(dir.path(), 1), &whole[..whole.len() - cut]).unwrap();
        let mut spool = open(dir.path());
        // What is added later does not land behind the torn bytes.
        add(&mut spool, 7..8);
        assert_eq!(drain(&mut spool), [0, 1, 7], "cut by {cut}");
        drop(spool);
        assert_eq!(drain(&mut open(dir.path())), [0, 1, 7], "cut by {cut}, read again");
    }
}

#[test]
fn any_flipped_byte_costs_at_most_one_event_and_never_the_order() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = open(dir.path());
    add(&mut spool, 0..4);
    drop(spool);
    let path = only_file(dir.path());
    let whole = fs::read(&path).unwrap();
    for at in 0..whole.len() {
        let dir = tempfile::tempdir().unwrap();
        let mut bytes = whole.clone();
        bytes[at] ^= 0x41;
        fs::write(path_of(dir.path(), 1), &bytes).unwrap();
        let mut spool = open(dir.path());
        let left = drain(&mut spool);
        let lost = usize::from(at >= MARK_BYTES);
        assert_eq!((left.len(), spool.stats().damaged), (4 - lost, 1), "byte {at}");
        assert!(left.windows(2).all(|pair| pair[0] < pair[1]));
    }
}

#[test]
fn a_record_that_rots_while_the_daemon_runs_is_skipped_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = open(dir.path());
    add(&mut spool, 0..3);
    let path = only_file(dir.path());
    let mut bytes = fs::read(&path).unwrap();
    bytes[MARK_BYTES + HEADER] ^= 1;
    fs::write(&path, &bytes).unwrap();
    assert_eq!((drain(&mut spool), spool.stats().damaged), (vec![1, 2], 1));
    fs::remove_file(&path).unwrap();
    spool.rewind();
    assert_eq!(
        (drain(&mut spool), spool.stats().waiting, spool.stats().damaged),
        (vec![], 0, 3)
    );
}

#[test]
fn an_event_that_cannot_be_read_just_now_keeps_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = open(dir.path());
    add(&mut spool, 0..3);
    assert_eq!(next(&mut spool).unwrap().1, b"event 0");
    // A folder opens and does not read: no file is missing, and no byte is wrong.
    let (path, aside) = (only_file(dir.path()), dir.path().join("aside"));
    fs::rename(&path, &aside).unwrap();
    fs::create_dir(&path).unwrap();
    for _ in 0..2 {
        let error = spool.next_unsent().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::IsADirectory);
    }
    assert_eq!(
        (spool.on_their_way(), spool.stats().waiting, spool.stats().damaged),
        (1, 3, 0)
    );
    fs::remove_dir(&path).unwrap();
    fs::rename(&aside, &path).unwrap();
    assert_eq!(drain(&mut spool), [1, 2]);
}

#[test]
fn events_that_cannot_be_written_keep_their_place_and_the_oldest_of_them_go() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = open(dir.path());
    let hold = |spool: &mut Spool, bodies: std::ops::Range<u32>| {
        bodies.for_each(|i| spool.hold(format!("event {i}").into()).unwrap());
    };
    hold(&mut spool, 0..1);
    add(&mut spool, 1..3);
    hold(&mut spool, 3..5);
    add(&mut spool, 5..6);
    assert_eq!(drain(&mut spool), [0, 1, 2, 3, 4, 5]);
    spool.rewind();
    for _ in 0..4 {
        let (sequence, _) = next(&mut spool).unwrap();
        spool.acknowledge(sequence);
    }
    assert_eq!(spool.stats().waiting, 2);
    // One on its way is among those that go.
    assert_eq!(next(&mut spool).unwrap().1, b"event 4");
    let most = u32::try_from(held::MOST).unwrap();
    hold(&mut spool, 6..6 + most);
    assert_eq!((spool.stats().dropped, spool.on_their_way()), (1, 0));
    assert_eq!(
        drain(&mut spool),
        [&[5][..], &(6..6 + most).collect::<Vec<_>>()].concat()
    );
    assert!(spool.hold(vec![b'x'; 2 << 20]).is_err());
    drop(spool);
    assert_eq!(drain(&mut open(dir.path())), [5], "memory does not survive");
}

#[test]
fn a_full_disk_gets_the_room_back_that_acknowledged_events_take() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = open(dir.path());
    add(&mut spool, 0..3);
    let fill = |spool: &mut Spool| {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        spool.active.as_mut().unwrap().file = full;
    };
    let path = only_file(dir.path());
    for _ in 0..3 {
        let (sequence, _) = next(&mut spool).unwrap();
        spool.acknowledge(sequence);
    }
    assert!(path.exists(), "it is kept for the next ones");
    fill(&mut spool);
    add(&mut spool, 3..4);
    assert!(!path.exists());
    // An event that waits is not given up for another one.
    fill(&mut spool);
    assert_eq!(spool.append(b"event 4").unwrap_err().kind(), io::ErrorKind::StorageFull);
    assert_eq!((spool.stats().waiting, spool.stats().failed), (1, 1));
    drop(spool);
    assert_eq!(drain(&mut open(dir.path())), [3]);
}

#[test]
fn two_programs_never_share_a_spool() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path());
    let error = Spool::open(dir.path(), MIN_BYTES).unwrap_err().to_string();
    assert_eq!(error, "another program uses this spool");
    drop(first);
    open(dir.path());
}

#[test]
fn foreign_files_are_left_alone_and_too_large_events_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("notes.txt"), "x").unwrap();
    fs::write(dir.path().join("1.spool"), "x").unwrap();
    let mut spool = open(dir.path());
    let error = spool.append(&vec![b'x'; MIN_BYTES as usize]).unwrap_err();
    assert_eq!(error.to_string(), "event of 65536 bytes is too large for the spool");
    assert_eq!((spool.stats().failed, spool.stats().waiting), (1, 0));
    add(&mut spool, 0..1);
    assert!(dir.path().join("notes.txt").exists() && dir.path().join("1.spool").exists());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn no_damage_makes_it_panic_or_invent_or_reorder_events(
        changes in prop::collection::vec((0usize..600, any::<u8>()), 0..12),
        inserted in (0usize..600, prop::collection::vec(any::<u8>(), 0..40)),
        cut in 0usize..600,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = open(dir.path());
        add(&mut spool, 0..15);
        drop(spool);
        let path = only_file(dir.path());
        let mut bytes = fs::read(&path).unwrap();
        let length = bytes.len();
        for (at, byte) in changes {
            bytes[at % length] = byte;
        }
        bytes.truncate(length - cut % length / 2);
        let at = inserted.0 % bytes.len();
        bytes.splice(at..at, inserted.1);
        fs::write(&path, &bytes).unwrap();
        let mut spool = open(dir.path());
        add(&mut spool, 15..17);
        let waiting = spool.stats().waiting;
        let left = drain(&mut spool);
        prop_assert_eq!(left.len(), waiting);
        prop_assert!(left.windows(2).all(|pair| pair[0] < pair[1]), "{:?}", left);
        prop_assert!(left.ends_with(&[15, 16]));
    }

    #[test]
    fn any_sequence_of_uses_keeps_order_and_loses_nothing_silently(
        uses in prop::collection::vec((0u8..5, 1u32..400), 1..40),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = open(dir.path());
        let (mut added, mut done, mut gone, mut on_their_way) = (0u32, 0u64, 0u64, VecDeque::new());
        for (what, count) in uses {
            match what {
                0 | 1 => {
                    add(&mut spool, added..added + count);
                    added += count;
                }
                2 => on_their_way.extend((0..count).filter_map(|_| next(&mut spool))),
                3 => {
                    for (sequence, _) in (0..count).filter_map(|_| on_their_way.pop_front()) {
                        let before = spool.stats();
                        spool.acknowledge(sequence);
                        let after = spool.stats();
                        prop_assert_eq!(after.dropped, before.dropped);
                        done += (before.waiting - after.waiting) as u64;
                    }
                }
                _ => {
                    let before = spool.stats();
                    gone += before.dropped;
                    drop(spool);
                    on_their_way.clear();
                    spool = open(dir.path());
                    // What had no room for its mark waits again.
                    done -= (spool.stats().waiting - before.waiting) as u64;
                }
            }
            let stats = spool.stats();
            prop_assert!(stats.bytes <= MIN_BYTES);
            prop_assert_eq!(stats.waiting as u64 + done + stats.dropped + gone, u64::from(added));
        }
        spool.rewind();
        let left = drain(&mut spool);
        prop_assert!(left.windows(2).all(|pair| pair[1] == pair[0] + 1));
        prop_assert!(left.last().is_none_or(|last| *last == added - 1));
        prop_assert_eq!(spool.stats().damaged, 0);
    }
}
