use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};

use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend};
use vmm_sys_util::tempfile::TempFile;

use super::*;
use crate::driver::{BUFFERS, Driver, MEMORY, eventually};
use crate::memory::{Memory, SharedMemory};

use crate::driver::EVENT_IDX;
pub const INFLATE: u16 = 0;
const DEFLATE: u16 = 1;
const STATISTICS: u16 = 2;
/// Pages that the tests give away begin here, above what they use otherwise.
pub const PAGES: u64 = 0x180_0000;

const ALL: BalloonConfig = BalloonConfig {
    deflate_on_oom: true,
    free_page_reporting: true,
};

pub fn balloon() -> (Balloon, BalloonControl) {
    Balloon::new(ALL, Worker::spawn("io0").unwrap()).unwrap()
}

fn started(features: u64) -> (Driver, BalloonControl) {
    let (balloon, control) = balloon();
    let mut driver = Driver::new(balloon);
    driver.start(features);
    (driver, control)
}

/// How many of the pages at these addresses of the guest have memory of the host behind them.
fn resident(memory: &Memory, range: Range<u64>) -> usize {
    let pagemap = File::open("/proc/self/pagemap").unwrap();
    range
        .step_by(PAGE as usize)
        .filter(|&address| {
            let host = memory.get_host_address(GuestAddress(address)).unwrap() as u64;
            let mut entry = [0; 8];
            pagemap.read_exact_at(&mut entry, host / PAGE * 8).unwrap();
            u64::from_le_bytes(entry) >> 63 == 1
        })
        .count()
}

pub fn pfns(range: Range<u64>) -> Vec<u8> {
    range
        .step_by(PAGE as usize)
        .flat_map(|address| ((address / PAGE) as u32).to_le_bytes())
        .collect()
}

pub fn send(driver: &mut Driver, queue: u16, data: &[u8]) {
    driver.put(BUFFERS, data);
    assert_eq!(driver.request(queue, &[(BUFFERS, data.len() as u32, false)]), 0);
}

fn statistics(entries: &[(u16, u64)]) -> Vec<u8> {
    entries
        .iter()
        .flat_map(|(tag, value)| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat())
        .collect()
}

#[test]
fn pages_given_leave_the_process_and_come_back_empty() {
    let (mut driver, _control) = started(0);
    let range = PAGES..PAGES + (8 << 20);
    driver.put(range.start, &vec![7; 8 << 20]);
    assert_eq!(resident(&driver.memory, range.clone()), 2048);

    send(&mut driver, INFLATE, &pfns(range.start..range.end - PAGE));

    assert_eq!(resident(&driver.memory, range.clone()), 1);
    send(&mut driver, DEFLATE, &pfns(range.clone()));
    assert_eq!(driver.get(range.start, 4), [0; 4]);
    assert_eq!(driver.get(range.end - 4, 4), [7; 4]);
}

#[test]
fn pages_of_shared_memory_leave_the_file_too() {
    let file = TempFile::new_in("/dev/shm".as_ref()).unwrap().into_file();
    file.set_len(MEMORY).unwrap();
    let keep = file.try_clone().unwrap();
    let map = [(GuestAddress(0), MEMORY as usize, Some(FileOffset::new(file, 0)))];
    let memory = SharedMemory::new(Memory::from_ranges_with_files(map).unwrap());
    let (balloon, _control) = balloon();
    let mut driver = Driver::in_memory(balloon, memory);
    driver.start(0);
    let range = PAGES..PAGES + (8 << 20);
    driver.put(range.start, &vec![7; 8 << 20]);
    driver.put(BUFFERS, &pfns(range.clone()));
    let before = keep.metadata().unwrap().blocks() * 512;

    send(&mut driver, INFLATE, &pfns(range));

    assert_eq!(before - keep.metadata().unwrap().blocks() * 512, 8 << 20);
}

#[test]
fn pages_that_the_guest_does_not_have_are_ignored_and_the_others_taken() {
    let (mut driver, _control) = started(0);
    driver.put(PAGES, &[7; 2 * PAGE as usize]);
    let mut data = [u32::MAX, (MEMORY / PAGE) as u32, 0x8000_0000]
        .map(u32::to_le_bytes)
        .concat();
    data.extend(pfns(PAGES..PAGES + PAGE));
    data.extend([0xff; 3]);

    send(&mut driver, INFLATE, &data);

    assert_eq!(resident(&driver.memory, PAGES..PAGES + 2 * PAGE), 1);
}

#[test]
fn a_gigantic_or_unreadable_array_of_pages_is_given_back() {
    let (mut driver, _control) = started(0);
    for buffer in [
        (0, MEMORY as u32, false),
        (u64::MAX - 8, 64, false),
        (BUFFERS, 64, true),
        (BUFFERS, 0, false),
    ] {
        assert_eq!(driver.request(INFLATE, &[buffer]), 0, "{buffer:x?}");
        assert_eq!(driver.request(DEFLATE, &[buffer]), 0, "{buffer:x?}");
    }
}

#[test]
fn reported_memory_leaves_the_process_whichever_way_the_driver_counts_queues() {
    for (features, queue) in [
        (STATS_VQ | PAGE_REPORTING, 3),
        (STATS_VQ | PAGE_REPORTING, 4),
        (PAGE_REPORTING, 2),
    ] {
        let (mut driver, _control) = started(features);
        driver.put(PAGES, &[7; 16 * PAGE as usize]);
        // Parts of pages stay, and so does what is not the guest's.
        let buffers = [
            (PAGES + 1, 4 * PAGE as u32, true),
            (MEMORY - PAGE, 2 * PAGE as u32, true),
            (PAGES + 8 * PAGE, 8 * PAGE as u32, true),
        ];
        driver.put(MEMORY - PAGE, &[7; 8]);

        assert_eq!(driver.request(queue, &buffers), 0);

        assert_eq!(resident(&driver.memory, PAGES..PAGES + 16 * PAGE), 5, "{queue}");
        assert_eq!(driver.get(MEMORY - PAGE, 8), [7; 8]);
    }
}

#[test]
fn reported_memory_stays_when_the_guest_relies_on_its_pattern() {
    let (mut driver, _control) = started(PAGE_REPORTING | PAGE_POISON);
    driver.set_config(12, 0xaaaa_aaaa);
    driver.put(PAGES, &[0xaa; PAGE as usize]);
    assert_eq!(driver.request(3, &[(PAGES, PAGE as u32, true)]), 0);
    assert_eq!(driver.get(PAGES, 4), [0xaa; 4]);
    assert_eq!(driver.config(12), 0xaaaa_aaaa);
}

#[test]
fn what_is_not_offered_is_not_served() {
    let (balloon, _control) = Balloon::new(BalloonConfig::default(), Worker::spawn("io0").unwrap()).unwrap();
    let mut driver = Driver::new(balloon);
    assert_eq!(driver.offered() & 0xff_ffff, STATS_VQ);
    driver.start(STATS_VQ);
    driver.offer(3, &[(PAGES, PAGE as u32, true)]);
    driver.ring(3);
    send(&mut driver, INFLATE, &[]);
    assert_eq!(driver.used(3), None);
}

#[test]
fn the_host_asks_for_a_size_and_sees_how_far_the_guest_is() {
    let (mut driver, control) = started(0);
    driver.interrupts();

    control.set_target_bytes(64 * PAGE + 5).unwrap();

    eventually("the driver is told", || driver.interrupts() > 0);
    assert_eq!(driver.config(0), 64);
    assert_eq!(control.target_bytes(), 64 * PAGE);
    driver.set_config(4, 60);
    driver.set_config(0, 1);
    assert_eq!(control.actual_bytes(), 60 * PAGE);
    assert_eq!(
        driver.config(0),
        64,
        "the size asked for is not the driver's to set"
    );
    assert!(control.set_target_bytes(1 << 44).is_err());

    driver.start(0);
    assert_eq!(control.actual_bytes(), 0);
    assert_eq!(driver.config(0), 64);
}

#[test]
fn a_size_asked_for_while_the_device_stands_still_is_told_when_it_goes_on() {
    let (driver, control) = started(0);
    driver.transport.registers().pause().unwrap();
    driver.interrupts();
    control.set_target_bytes(PAGE).unwrap();
    driver.transport.registers().resume().unwrap();
    eventually("the driver is told", || driver.interrupts() > 0);
}

#[test]
fn statistics_arrive_at_every_interval() {
    for event_idx in [0, EVENT_IDX] {
        let (mut driver, control) = started(STATS_VQ | event_idx);
        assert_eq!(control.statistics(), BalloonStatistics::default());
        for round in 1..4 {
            let data = statistics(&[(4, round << 20), (5, MEMORY), (2, 7), (77, 1)]);
            driver.put(BUFFERS, &data);
            let head = driver.offer(STATISTICS, &[(BUFFERS, data.len() as u32, false)]);
            driver.ring(STATISTICS);
            eventually("the statistics", || {
                control.statistics().free_memory == Some(round << 20)
            });
            assert_eq!(control.statistics().total_memory, Some(MEMORY));
            assert_eq!(control.statistics().major_faults, Some(7));
            assert_eq!(control.statistics().swap_in, None);
            assert!(control.statistics().received.is_some());
            if round == 1 {
                assert_eq!(driver.used(STATISTICS), None, "nobody asked");
                control.set_interval(Duration::from_millis(1)).unwrap();
            }
            assert_eq!(driver.wait(STATISTICS), (head, 0));
        }
    }
}

#[test]
fn a_driver_with_many_statistics_buffers_gets_all_but_the_last_back() {
    let (mut driver, control) = started(STATS_VQ);
    let data = statistics(&[(4, 5)]);
    driver.put(BUFFERS, &data);
    for _ in 0..16 {
        driver.offer(STATISTICS, &[(BUFFERS, 10, false)]);
    }
    driver.ring(STATISTICS);
    for head in 0..15 {
        assert_eq!(driver.wait(STATISTICS), (head, 0));
    }
    control.set_interval(Duration::from_millis(1)).unwrap();
    assert_eq!(driver.wait(STATISTICS), (15, 0));
}

#[test]
fn a_restored_balloon_goes_on_and_asks_the_buffer_it_kept() {
    let (mut driver, control) = started(STATS_VQ | EVENT_IDX);
    control.set_target_bytes(64 * PAGE).unwrap();
    driver.set_config(4, 60);
    driver.put(BUFFERS, &statistics(&[(4, 5)]));
    let head = driver.offer(STATISTICS, &[(BUFFERS, 10, false)]);
    driver.ring(STATISTICS);
    eventually("the statistics", || control.statistics().free_memory == Some(5));
    driver.transport.registers().pause().unwrap();
    let state = driver.transport.save();

    let (other, control) = balloon();
    driver.move_to(other, state);

    eventually("the driver is told", || driver.interrupts() > 0);
    assert_eq!(
        (control.target_bytes(), control.actual_bytes()),
        (64 * PAGE, 60 * PAGE)
    );
    eventually("the statistics", || control.statistics().free_memory == Some(5));
    assert_eq!(driver.used(STATISTICS), None);
    control.set_interval(Duration::from_millis(1)).unwrap();
    assert_eq!(driver.wait(STATISTICS), (head, 0));
    driver.put(PAGES, &[7; 8]);
    send(&mut driver, INFLATE, &pfns(PAGES..PAGES + PAGE));
    assert_eq!(resident(&driver.memory, PAGES..PAGES + PAGE), 0);
}
