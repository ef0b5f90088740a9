//! Disks that fail, and what each policy makes of it.

use std::io::ErrorKind;
use std::sync::mpsc::{Receiver, channel};

use super::*;
use crate::driver::eventually;

const WRITES: u64 = 20;

/// A disk that fails on demand, and what is told of it.
struct Bed {
    disk: Arc<Held>,
    told: Receiver<ErrorKind>,
}

impl Bed {
    fn new(on_error: ErrorPolicy) -> (Bed, Driver, BlkControl) {
        Self::over(Over::Mmio, on_error)
    }

    fn over(over: Over, on_error: ErrorPolicy) -> (Bed, Driver, BlkControl) {
        let (bed, blk, control) = Self::device(on_error);
        let mut driver = Driver::over(over, blk);
        driver.start(ALL);
        (bed, driver, control)
    }

    fn device(on_error: ErrorPolicy) -> (Bed, Blk, BlkControl) {
        let disk = Held::new();
        disk.change(|s| s.open = true);
        let (tell, told) = channel();
        let config = BlkConfig {
            on_error,
            tell_failure: Box::new(move |error| {
                let _ = tell.send(error.kind());
            }),
            ..BlkConfig::new(over(disk.clone(), Pool::new()))
        };
        let (blk, control) = Blk::new(config, vec![Worker::spawn("io0").unwrap()]).unwrap();
        (Bed { disk, told }, blk, control)
    }

    fn fails_with(&self, answer: impl Into<Option<ErrorKind>>) {
        let answer = answer.into();
        self.disk.change(|s| s.answer = answer);
    }

    /// How many writes the disk was given.
    fn writes(&self) -> usize {
        self.disk.state.lock().unwrap().durable.len()
    }

    /// What the owner is told now; there is no more of it than this.
    fn hears(&self) -> ErrorKind {
        let told = self
            .told
            .recv_timeout(std::time::Duration::from_secs(60))
            .unwrap();
        assert_eq!(self.told.try_recv().ok(), None);
        told
    }
}

/// Offers writes of a sector each, from sector `first` on; gives their heads.
fn offer_writes(driver: &mut Driver, first: u64, count: u64) -> Vec<u16> {
    let mut heads = Vec::new();
    for i in first..first + count {
        let header = HEADER + 0x2_0000 + i * 16;
        put_header(driver, header, VIRTIO_BLK_T_OUT, i);
        driver.put(STATUS + i, &[0xee]);
        let chain = [(header, 16, false), (DATA, 512, false), (STATUS + i, 1, true)];
        heads.push(driver.offer(0, &chain));
    }
    driver.ring(0);
    heads
}

fn answers(driver: &mut Driver, count: usize) -> Vec<u16> {
    let mut answered: Vec<u16> = (0..count).map(|_| driver.wait(0).0).collect();
    answered.sort_unstable();
    answered
}

fn stops(driver: &mut Driver, bed: &Bed, error: ErrorKind) {
    assert_eq!(bed.hears(), error);
    driver.transport.pause().unwrap();
    assert_eq!(driver.used(0), None);
    assert!(bed.told.try_recv().is_err());
}

#[test]
fn a_machine_that_stopped_on_a_full_disk_goes_on_when_there_is_room() {
    for policy in [ErrorPolicy::Stop, ErrorPolicy::StopWhenFull] {
        let (bed, mut driver, control) = Bed::new(policy);
        bed.fails_with(ErrorKind::StorageFull);
        let mut heads = offer_writes(&mut driver, 0, WRITES);
        stops(&mut driver, &bed, ErrorKind::StorageFull);
        // What is offered now comes after what failed.
        heads.extend(offer_writes(&mut driver, WRITES, WRITES));

        // There is still no room.
        let tried = bed.writes();
        driver.transport.resume().unwrap();
        stops(&mut driver, &bed, ErrorKind::StorageFull);
        assert!(bed.writes() > tried);

        bed.fails_with(None);
        driver.transport.resume().unwrap();
        heads.sort_unstable();
        assert_eq!(answers(&mut driver, heads.len()), heads);
        let statuses = driver.get(STATUS, 2 * WRITES as usize);
        assert_eq!(statuses, vec![0; 2 * WRITES as usize]);
        let counters = control.counters();
        assert_eq!(counters.write.operations.load(Ordering::Relaxed), 2 * WRITES);
        assert!(counters.write.errors.load(Ordering::Relaxed) >= 2);
        assert!(bed.told.try_recv().is_err());
    }
}

#[test]
fn what_is_no_reason_to_stop_is_told_to_the_driver_or_not_at_all() {
    // (policy, error, status)
    let table = [
        (ErrorPolicy::Report, ErrorKind::StorageFull, 1),
        (ErrorPolicy::StopWhenFull, ErrorKind::Other, 1),
        (ErrorPolicy::Ignore, ErrorKind::Other, 0),
        (ErrorPolicy::Ignore, ErrorKind::StorageFull, 0),
    ];
    for (policy, error, status) in table {
        let (bed, mut driver, control) = Bed::new(policy);
        bed.fails_with(error);
        let (out, read) = ([(DATA, 512, false)], [(DATA, 512, true)]);
        let case = format!("{policy:?} {error:?}");
        assert_eq!(
            request(&mut driver, 0, VIRTIO_BLK_T_OUT, 0, &out),
            (status, 1),
            "{case}"
        );
        let used = if status == 0 { 513 } else { 0 };
        assert_eq!(
            request(&mut driver, 0, VIRTIO_BLK_T_IN, 0, &read),
            (status, used),
            "{case}"
        );
        assert!(bed.told.try_recv().is_err(), "{case}");
        assert_eq!(
            control.counters().write.errors.load(Ordering::Relaxed),
            1,
            "{case}"
        );
    }
}

#[test]
fn a_write_for_which_there_is_no_whole_room_is_a_full_disk() {
    let (bed, mut driver, _) = Bed::new(ErrorPolicy::StopWhenFull);
    bed.disk.change(|s| s.short = true);
    let heads = offer_writes(&mut driver, 0, 1);
    stops(&mut driver, &bed, ErrorKind::StorageFull);
    bed.disk.change(|s| s.short = false);
    driver.transport.resume().unwrap();
    assert_eq!(answers(&mut driver, 1), heads);
}

#[test]
fn a_failed_flush_stops_the_machine_and_is_never_called_a_success_later() {
    let (bed, mut driver, _) = Bed::new(ErrorPolicy::Stop);
    bed.fails_with(ErrorKind::Other);
    assert_eq!(request(&mut driver, 0, VIRTIO_BLK_T_FLUSH, 0, &[]), (1, 1));
    assert_eq!(bed.hears(), ErrorKind::Other);
    bed.fails_with(None);
    driver.transport.pause().unwrap();
    driver.transport.resume().unwrap();
    assert_eq!(request(&mut driver, 0, VIRTIO_BLK_T_FLUSH, 0, &[]), (0, 1));
}

#[test]
fn a_guest_cannot_stop_its_machine_with_requests_that_are_wrong() {
    let (bed, mut driver, _) = Bed::new(ErrorPolicy::Stop);
    for data in [(MEMORY, 512, true), (MEMORY - 256, 512, true)] {
        assert_eq!(request(&mut driver, 0, VIRTIO_BLK_T_IN, 0, &[data]), (1, 0));
    }
    let beyond = request(&mut driver, 0, VIRTIO_BLK_T_IN, 1 << 20, &[(DATA, 512, true)]);
    assert_eq!(beyond.0, 1);
    assert!(bed.told.try_recv().is_err());
}

fn what_failed_is_tried_again_where_the_machine_went(over: Over) {
    let (bed, mut driver, _) = Bed::over(over, ErrorPolicy::Stop);
    bed.fails_with(ErrorKind::Other);
    let heads = offer_writes(&mut driver, 0, WRITES);
    stops(&mut driver, &bed, ErrorKind::Other);
    let json = serde_json::to_string(&driver.transport.save()).unwrap();
    assert!(json.contains(r#""held":[["#), "{json}");

    let (there, blk, _) = Bed::device(ErrorPolicy::Stop);
    driver.move_to(blk, serde_json::from_str(&json).unwrap());

    assert_eq!(answers(&mut driver, heads.len()), heads);
    assert_eq!(driver.get(STATUS, WRITES as usize), vec![0; WRITES as usize]);
    assert_eq!(there.writes(), heads.len());
    // Nothing is held any more, and so nothing is saved.
    driver.transport.pause().unwrap();
    let json = serde_json::to_string(&driver.transport.save()).unwrap();
    assert!(!json.contains("held"), "{json}");
}

fn a_driver_that_resets_the_device_hears_no_more_of_what_failed(over: Over) {
    let (bed, mut driver, _) = Bed::over(over, ErrorPolicy::Stop);
    bed.fails_with(ErrorKind::Other);
    offer_writes(&mut driver, 0, WRITES);
    bed.hears();
    bed.fails_with(None);
    driver.start(ALL);
    let tried = bed.writes();
    let heads = offer_writes(&mut driver, 0, 1);
    assert_eq!(answers(&mut driver, 1), heads);
    assert_eq!(bed.writes(), tried + 1);
    assert_eq!(driver.used(0), None);
}

over_both_transports! {
    what_failed_is_tried_again_where_the_machine_went
    a_driver_that_resets_the_device_hears_no_more_of_what_failed
}

#[test]
fn what_a_driver_makes_of_a_held_chain_is_read_with_the_same_suspicion() {
    let (bed, mut driver, control) = Bed::new(ErrorPolicy::Stop);
    bed.fails_with(ErrorKind::Other);
    put_header(&driver, HEADER, VIRTIO_BLK_T_OUT, 0);
    let parts = |driver: &Driver, status| {
        driver.descriptor(0, 200, HEADER, 16, NEXT, 201);
        driver.descriptor(0, 201, DATA, 512, NEXT, 202);
        driver.descriptor(0, 202, status, 1, WRITE, 0);
    };
    parts(&driver, STATUS);
    // One chain, offered as often as there is room in the ring.
    for _ in 0..256 {
        driver.make_available(0, 200);
    }
    driver.ring(0);
    stops(&mut driver, &bed, ErrorKind::Other);

    // Now it is a loop; then without a status byte; then as it was.
    driver.descriptor(0, 202, STATUS, 1, WRITE | NEXT, 200);
    driver.transport.resume().unwrap();
    for _ in 0..256 {
        assert_eq!(driver.wait(0), (200, 0));
    }
    assert!(control.counters().refused.load(Ordering::Relaxed) >= 256);

    parts(&driver, MEMORY);
    driver.make_available(0, 200);
    driver.ring(0);
    assert_eq!(driver.wait(0), (200, 0));
    parts(&driver, STATUS);
    bed.fails_with(None);
    driver.make_available(0, 200);
    driver.ring(0);
    assert_eq!(driver.wait(0), (200, 1));
    assert_eq!(driver.status() & 0x40, 0);
}

#[test]
fn a_rate_limit_holds_for_what_is_tried_again() {
    let (bed, blk, control) = Bed::device(ErrorPolicy::Stop);
    let mut driver = Driver::new(blk);
    driver.start(ALL);
    bed.fails_with(ErrorKind::Other);
    let heads = offer_writes(&mut driver, 0, WRITES);
    stops(&mut driver, &bed, ErrorKind::Other);
    bed.fails_with(None);
    let rate = Rate {
        per_second: 1,
        burst: 3,
    };
    control.set_limits(Limits {
        bytes: None,
        operations: Some(rate),
    });
    let tried = bed.writes();
    driver.transport.resume().unwrap();
    eventually("the first ones are tried", || bed.writes() > tried);
    assert!(bed.writes() < tried + WRITES as usize);
    control.set_limits(Limits::default());
    assert_eq!(answers(&mut driver, heads.len()), heads);
}

#[test]
fn a_state_that_holds_more_than_can_be_is_refused() {
    for held in [vec![vec![1], vec![2]], vec![vec![0; 257]]] {
        let (_bed, mut blk, _) = Bed::device(ErrorPolicy::Stop);
        let state = BlkState {
            writeback: true,
            held,
        };
        assert!(matches!(
            blk.restore(DeviceState::Blk(state)),
            Err(Error::State { .. })
        ));
    }
}

#[test]
fn a_head_that_is_none_of_the_queues_ends_in_a_reset() {
    let (_bed, mut driver, _) = Bed::new(ErrorPolicy::Stop);
    driver.transport.pause().unwrap();
    let mut state = driver.transport.save();
    let TransportState::Mmio(virtio) = &mut state else {
        panic!("{state:?}");
    };
    virtio.device = DeviceState::Blk(BlkState {
        writeback: true,
        held: vec![vec![0xffff]],
    });
    let (_there, blk, _) = Bed::device(ErrorPolicy::Stop);
    driver.move_to(blk, state);
    driver.wait_needs_reset();
    driver.start(ALL);
    let heads = offer_writes(&mut driver, 0, 1);
    assert_eq!(answers(&mut driver, 1), heads);
}
