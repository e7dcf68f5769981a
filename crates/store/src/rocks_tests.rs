use std::time::{Duration, Instant};

use lockstep_types::{Address, MessageId, ProjectId};
use rocksdb::perf::{PerfContext, PerfMetric, PerfStatsLevel, set_perf_stats};

use super::*;

fn put(key: &[u8], value: &'static [u8]) -> WriteBatch {
    let mut batch = WriteBatch::default();
    batch.put(Table::Index, key.to_vec(), value);
    batch
}

#[test]
fn a_state_store_that_was_not_flushed_comes_back_whole_at_an_earlier_point() {
    let dir = tempfile::tempdir().unwrap();
    let store = RocksStorage::open(dir.path(), Kind::State).unwrap();
    store.write(put(b"a", b"1"), Durability::Buffered).unwrap();
    store.flush().unwrap();
    let mut both = put(b"b", b"2");
    both.put(Table::Chain, b"c".to_vec(), &b"3"[..]);
    store.write(both, Durability::Buffered).unwrap();
    assert!(store.get(Table::Chain, b"c").unwrap().is_some());
    let (_copy, after) = crashed(dir.path());
    assert_eq!(after.get(Table::Index, b"a").unwrap().unwrap(), &b"1"[..]);
    assert_eq!(after.get(Table::Index, b"b").unwrap(), after.get(Table::Chain, b"c").unwrap());
}

/// The files of a store as they are, without a closing flush: what a crash leaves.
fn crashed(path: &Path) -> (tempfile::TempDir, RocksStorage) {
    let copy = tempfile::tempdir().unwrap();
    // First what names the table files: those are there as long as nobody removes files.
    for names in [true, false] {
        for file in std::fs::read_dir(path).unwrap().map(Result::unwrap) {
            let name = file.file_name().into_string().unwrap();
            if (name == "CURRENT" || name.starts_with("MANIFEST")) == names {
                std::fs::copy(file.path(), copy.path().join(name)).unwrap();
            }
        }
    }
    let store = RocksStorage::open(copy.path(), Kind::State).unwrap();
    (copy, store)
}

const SMALL: Sizes = Sizes { write_buffer_bytes: 64 << 10, table_file_bytes: 8 << 10 };

/// Bytes that cannot be compressed, as messages hardly can.
fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
    let mut next = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 16).to_be_bytes()
    };
    (0..bytes / 8).flat_map(|_| next()).collect()
}

#[test]
fn what_is_durable_is_what_a_crash_leaves_in_both_tables() {
    let dir = tempfile::tempdir().unwrap();
    let store = RocksStorage::open_or_create(dir.path(), Kind::State, SMALL).unwrap();
    // Files are copied while they are used.
    store.db.disable_file_deletions().unwrap();
    let number = |value: Option<Bytes>| value.map(|value| u64::from_be_bytes(value[..].try_into().unwrap()));
    let durable = || number(store.get_durable(Table::Index, b"n").unwrap());
    let (mut changes, mut before) = (0, None);
    for n in 0..200_u64 {
        let mut batch = WriteBatch::default();
        batch.put(Table::Index, b"n".to_vec(), n.to_be_bytes().to_vec());
        batch.put(Table::Chain, keys::batch(Height(n)), noise(n, 4_000));
        store.write(batch, Durability::Buffered).unwrap();
        assert_eq!(number(store.get(Table::Index, b"n").unwrap()), Some(n));
        if n == 50 {
            store.flush().unwrap();
            assert_eq!(durable(), Some(50));
        }
        let now = durable();
        if now == before {
            continue;
        }
        // A write buffer was full, of the other table: what is read now is there after a crash, or more.
        (changes, before) = (changes + 1, now);
        let (_copy, after) = crashed(dir.path());
        let left = number(after.get(Table::Index, b"n").unwrap());
        assert!(left >= now, "{left:?} is there of {now:?}");
        assert!(after.get(Table::Chain, &keys::batch(Height(now.unwrap()))).unwrap().is_some());
    }
    assert!(changes > 3, "{changes} flushes");
}

#[test]
fn files_of_what_is_forgotten_go_and_the_batch_at_the_horizon_stays_wherever_it_is() {
    const BATCHES: u64 = 24;
    let mut dropped = 0;
    for horizon in 1..=BATCHES {
        let dir = tempfile::tempdir().unwrap();
        let store = RocksStorage::open_or_create(dir.path(), Kind::State, SMALL).unwrap();
        for height in 1..=BATCHES {
            let mut batch = WriteBatch::default();
            batch.put(Table::Chain, keys::batch(Height(height)), noise(height, 3_000));
            store.write(batch, Durability::Buffered).unwrap();
        }
        store.flush().unwrap();
        // Only files that were compacted once are dropped.
        let mut options = rocksdb::CompactOptions::default();
        options.set_bottommost_level_compaction(rocksdb::BottommostLevelCompaction::Force);
        let chain = store.family(Table::Chain).unwrap();
        store.db.compact_range_cf_opt(&chain, None::<&[u8]>, None::<&[u8]>, &options);
        let below = || {
            let first_kept = keys::batch(Height(horizon));
            let files = store.db.live_files().unwrap().into_iter();
            files.filter(|file| file.end_key.as_ref().is_some_and(|end| *end < first_kept)).count()
        };
        let files = below();
        store.forget_before(Height(horizon), Sequence(0), TaskNumber(0)).unwrap();
        assert_eq!(below(), 0, "horizon {horizon}");
        dropped += files;
        for height in 1..=BATCHES {
            let is_there = store.get(Table::Chain, &keys::batch(Height(height))).unwrap().is_some();
            assert_eq!(is_there, height >= horizon, "batch {height} with horizon {horizon}");
        }
    }
    assert!(dropped > 20, "{dropped} files were dropped");
}

#[test]
fn nonces_go_with_the_messages_that_used_them_and_a_highest_one_that_is_kept_for_ever_stays() {
    const MESSAGES: u64 = 200;
    const KEPT: u64 = 101;
    let (device, silent) = (Address([1; 20]), Address([2; 20]));
    let nonce = |n: u64| keys::nonce(ProjectId(7), &device, n);
    let highest = |project: u64, device: &Address| keys::highest_nonce(ProjectId(project), device);
    let record = |numbers: [u64; 2]| numbers.map(u64::to_be_bytes).concat();
    let dir = tempfile::tempdir().unwrap();
    let store = RocksStorage::open_or_create(dir.path(), Kind::State, SMALL).unwrap();
    // Files are copied while they are used.
    store.db.disable_file_deletions().unwrap();
    for n in 1..=MESSAGES {
        let mut batch = WriteBatch::default();
        batch.put(Table::Index, nonce(n), n.to_be_bytes().to_vec());
        batch.put(Table::Index, highest(7, &device), record([n, 1_000]));
        batch.put(Table::Index, highest(8, &device), record([u64::MAX, n]));
        if n < KEPT {
            batch.put(Table::Index, highest(7, &silent), record([n, n]));
        }
        store.write(batch, Durability::Buffered).unwrap();
    }
    store.flush().unwrap();
    store.forget_before(Height(9), Sequence(KEPT), TaskNumber(9)).unwrap();
    let mut options = rocksdb::CompactOptions::default();
    options.set_bottommost_level_compaction(rocksdb::BottommostLevelCompaction::Force);
    store.db.compact_range_cf_opt(&store.family(Table::Index).unwrap(), None::<&[u8]>, None::<&[u8]>, &options);
    let (_copy, after) = crashed(dir.path());
    for store in [&store, &after] {
        let get = |key: Vec<u8>| store.get(Table::Index, &key).unwrap().map(|value| value.to_vec());
        for n in 1..=MESSAGES {
            assert_eq!(get(nonce(n)).is_some(), n >= KEPT, "nonce {n}");
        }
        assert_eq!(get(highest(7, &device)), Some(record([MESSAGES, 1_000])));
        assert_eq!(get(highest(8, &device)), Some(record([u64::MAX, MESSAGES])));
        assert_eq!(get(highest(7, &silent)), None);
    }
}

fn bytes_in(path: &Path) -> u64 {
    let files = std::fs::read_dir(path).unwrap().map(Result::unwrap);
    files.filter(|f| f.file_name() != "LOG").map(|f| f.metadata().unwrap().len()).sum()
}

#[test]
fn deleted_log_entries_give_their_space_back_and_the_rest_stays() {
    let dir = tempfile::tempdir().unwrap();
    let store = RocksStorage::create(dir.path(), Kind::Log).unwrap();
    let mut largest = 0;
    for round in 0..6_u64 {
        for index in round * 1000..(round + 1) * 1000 {
            let mut batch = WriteBatch::default();
            batch.put(Table::Log, crate::keys::log::entry(index), noise(index, 20_000));
            store.write(batch, Durability::Buffered).unwrap();
        }
        let (first, last) = (crate::keys::log::entry(0), crate::keys::log::entry((round + 1) * 1000 - 101));
        let mut batch = WriteBatch::default();
        batch.delete_range(Table::Log, first.clone(), crate::keys::log::entry((round + 1) * 1000 - 100));
        store.write(batch, Durability::Synced).unwrap();
        store.reclaim(Table::Log, &first, &last).unwrap();
        largest = largest.max(bytes_in(dir.path()));
        assert!(store.get(Table::Log, &last).unwrap().is_none());
        let kept = crate::keys::log::entry((round + 1) * 1000 - 100);
        assert_eq!(store.get(Table::Log, &kept).unwrap().unwrap().len(), 20_000);
    }
    // 120 MB were written, 2 MB are left.
    assert!(largest < 40 << 20, "{largest} bytes");
}

#[test]
fn every_copy_made_under_load_holds_both_tables_at_one_point() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(RocksStorage::open(&dir.path().join("state"), Kind::State).unwrap());
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writer = {
        let (store, stop) = (store.clone(), stop.clone());
        std::thread::spawn(move || {
            for n in 0_u64.. {
                if stop.load(std::sync::atomic::Ordering::Relaxed) {
                    break;
                }
                let mut batch = WriteBatch::default();
                batch.put(Table::Index, b"n".to_vec(), n.to_be_bytes().to_vec());
                batch.put(Table::Chain, n.to_be_bytes().to_vec(), vec![7; 500]);
                store.write(batch, Durability::Buffered).unwrap();
            }
        })
    };
    let mut last = 0;
    for round in 0..20 {
        let path = dir.path().join(format!("copy-{round}"));
        store.checkpoint(&path).unwrap();
        let copy = RocksStorage::open_to_read(&path, Kind::State).unwrap();
        let Some(n) = copy.get(Table::Index, b"n").unwrap() else { continue };
        let n = u64::from_be_bytes(n[..].try_into().unwrap());
        assert!(copy.get(Table::Chain, &n.to_be_bytes()).unwrap().is_some(), "{n} is in one table only");
        assert!(copy.get(Table::Chain, &(n + 1).to_be_bytes()).unwrap().is_none(), "{n} is not the newest");
        assert!(copy.write(put(b"x", b"1"), Durability::Buffered).is_err(), "a copy is not written to");
        assert!(n >= last);
        last = n;
    }
    assert!(last > 0);
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    writer.join().unwrap();
}

#[test]
fn a_store_in_use_is_refused_with_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    assert!(RocksStorage::open(dir.path(), Kind::Log).err().unwrap().to_string().contains("must join under a new id"));
    let _first = RocksStorage::create(dir.path(), Kind::Log).unwrap();
    let error = RocksStorage::open(dir.path(), Kind::Log).err().unwrap();
    assert!(error.to_string().contains("cannot open the store"), "{error}");
}

/// Groups that are open all the time, and what a record of one takes.
const OPEN_GROUPS: u64 = 1_000;
const GROUP_BYTES: usize = 60;
/// Groups that are opened and closed while they are, and the variable that says another number.
const CLOSED_GROUPS: u64 = 100_000;
const CLOSED_GROUPS_VARIABLE: &str = "LOCKSTEP_TEST_CLOSED_GROUPS";
const GROUPS_IN_A_BATCH: u64 = 50;
/// How long files may need to be merged after the last group was closed.
const MERGED_WITHIN: Duration = Duration::from_secs(60);

/// The key of a group; neighbours in time are none in the table.
fn group_key(n: u64) -> Vec<u8> {
    keys::group(&noise(n, 40))
}

/// One message joins group `n`.
fn put_group(batch: &mut WriteBatch, n: u64) {
    batch.put(Table::Open, group_key(n), vec![7; GROUP_BYTES]);
    batch.put(Table::Open, keys::waiting(Sequence(n)), vec![7; 48]);
}

/// A scan of all open groups and their messages, as a node makes at its start: how many, how long, and how many deletions
/// were passed on the way.
fn scan_open(store: &RocksStorage) -> (usize, Duration, u64) {
    set_perf_stats(PerfStatsLevel::EnableCount);
    let mut perf = PerfContext::default();
    perf.reset();
    let started = Instant::now();
    let scan = |prefix: u8| Scan {
        table: Table::Open,
        start: vec![prefix],
        end: keys::end_of(prefix),
        direction: Direction::Up,
        items_max: usize::MAX,
        bytes_max: usize::MAX,
    };
    let found = [keys::GROUP, keys::WAITING].map(|prefix| store.scan(scan(prefix)).unwrap().len()).iter().sum();
    (found, started.elapsed(), perf.metric(PerfMetric::InternalDeleteSkippedCount))
}

#[test]
fn closed_groups_leave_no_slow_scans_behind() {
    let closed = std::env::var(CLOSED_GROUPS_VARIABLE).map_or(CLOSED_GROUPS, |text| text.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let open = || {
        RocksStorage::open_or_create(dir.path(), Kind::State, Sizes { write_buffer_bytes: 1 << 20, ..Sizes::default() })
            .unwrap()
    };
    let store = open();
    let mut batch = WriteBatch::default();
    (0..OPEN_GROUPS).for_each(|n| put_group(&mut batch, n));
    store.write(batch, Durability::Synced).unwrap();
    drop(store);
    let store = open();
    let fresh = scan_open(&store);
    // Each group is opened by one batch and closed by the next one, among other records of both.
    let first = OPEN_GROUPS;
    for start in (first..first + closed).step_by(GROUPS_IN_A_BATCH as usize) {
        let mut batch = WriteBatch::default();
        for n in start..start + GROUPS_IN_A_BATCH {
            put_group(&mut batch, n);
            if let Some(before) = n.checked_sub(GROUPS_IN_A_BATCH).filter(|before| *before >= first) {
                batch.delete(Table::Open, group_key(before));
                batch.delete(Table::Open, keys::waiting(Sequence(before)));
            }
            batch.put(
                Table::Index,
                keys::occurrence(&lockstep_types::ContentId(noise(n, 32).try_into().unwrap())),
                vec![7; 40],
            );
            batch.put(Table::Index, keys::message_place(&MessageId(noise(n, 32).try_into().unwrap())), vec![7; 8]);
        }
        batch.put(Table::Chain, keys::batch(Height(start)), noise(start, 20_000));
        store.write(batch, Durability::Buffered).unwrap();
    }
    let last = first + closed - GROUPS_IN_A_BATCH;
    let mut batch = WriteBatch::default();
    for n in last..last + GROUPS_IN_A_BATCH {
        batch.delete(Table::Open, group_key(n));
        batch.delete(Table::Open, keys::waiting(Sequence(n)));
    }
    store.write(batch, Durability::Synced).unwrap();
    let (deadline, at_once) = (Instant::now() + MERGED_WITHIN, scan_open(&store));
    // A tenth of what is read anyway.
    let passed_max = OPEN_GROUPS * 2 / 10;
    while scan_open(&store).2 > passed_max {
        assert!(Instant::now() < deadline, "fresh {fresh:?}, at once {at_once:?}, in the end {:?}", scan_open(&store));
        std::thread::sleep(Duration::from_millis(100));
    }
    drop(store);
    let store = open();
    let after = scan_open(&store);
    eprintln!("{closed} closed groups: fresh {fresh:?}, at once {at_once:?}, after a restart {after:?}");
    assert_eq!(after.0, fresh.0);
    assert!(after.2 <= passed_max, "{after:?}");
}
