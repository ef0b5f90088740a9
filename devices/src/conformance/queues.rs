//! Virtqueues as a driver sets them up (virtio 1.2, §2.7, §3.1).

use super::{Subject, powered_on, running, start};
use crate::driver::{Driver, Manners, Over};

pub fn every_size_of_a_queue_works_and_other_sizes_are_not_taken<S: Subject>(over: Over) {
    let (mut subject, mut driver) = powered_on::<S>(over);
    let offered = driver.offered();
    // Whole requests fit the smallest queue in tables.
    driver.manners = Manners {
        indirect: true,
        polite: false,
    };
    for size in (0..9).map(|log2| 1 << log2) {
        driver.start_with(offered, |_, max| Some(max.min(size)));
        subject.greet(&mut driver);
        for _ in 0..3 {
            subject.work(&mut driver);
        }
    }

    assert!(driver.negotiate(offered));
    for queue in 0..driver.queue_count() {
        driver.write(0x30, u32::from(queue));
        let max = driver.read(0x34);
        for size in [0, 3, max - 1, max + 1, 2 * max, 0x8000, 0xffff] {
            driver.write(0x38, size);
            let taken = driver.transport.registers().queue_size();
            assert_eq!(u32::from(taken), max, "queue {queue}: {size}");
        }
    }
    start(&mut subject, &mut driver, offered);
    subject.work(&mut driver);
}

pub fn a_queue_that_the_driver_leaves_out_is_no_trouble<S: Subject>(over: Over) {
    let (mut subject, mut driver) = powered_on::<S>(over);
    let offered = driver.offered();
    let count = driver.queue_count();
    for missing in 0..count {
        start(&mut subject, &mut driver, offered);
        subject.provoke(&mut driver);
        driver.start_with(offered, |queue, max| (queue != missing).then_some(max));
        for queue in 0..count {
            driver.ring(queue);
        }
        driver.transport.pause().unwrap();
        driver.transport.resume().unwrap();
        assert_eq!(driver.status(), 15, "queue {missing}");
    }
    driver.start_with(offered, |_, _| None);
    assert_eq!(driver.status(), 15, "no queue at all");
    start(&mut subject, &mut driver, offered);
    subject.work(&mut driver);
}

pub fn an_available_index_that_runs_ahead_costs_a_reset_on_every_queue<S: Subject>(over: Over) {
    let (mut subject, mut driver) = running::<S>(over);
    let offered = driver.features;
    for queue in (0..driver.queue_count()).filter(|queue| !S::IDLE.contains(queue)) {
        subject.provoke(&mut driver);
        driver.interrupts();
        driver.set_avail_index(queue, 0x8000);
        driver.ring(queue);
        driver.wait_needs_reset();
        crate::driver::eventually("the driver is told", || driver.interrupts() > 0);
        goes_on_broken(&mut driver);

        start(&mut subject, &mut driver, offered);
        subject.work(&mut driver);
        assert_eq!(driver.status(), 15, "queue {queue}");
    }
}

/// A device that asked for a reset takes anything and stays as it is (§2.1.2).
fn goes_on_broken(driver: &mut Driver) {
    for queue in 0..driver.queue_count() {
        driver.ring(queue);
    }
    driver.transport.pause().unwrap();
    driver.transport.resume().unwrap();
    driver.write(0x70, 15);
    assert_eq!(driver.status(), 0x4f);
}

pub fn doorbells_without_a_queue_are_no_trouble<S: Subject>(over: Over) {
    let (mut subject, mut driver) = powered_on::<S>(over);
    let beyond = driver.queue_count();
    let ring_all = |driver: &Driver| {
        for queue in (0..beyond + 3).chain([0x3ff]) {
            driver.write(0x50, u32::from(queue));
        }
    };
    ring_all(&driver);
    let offered = driver.offered();
    driver.negotiate(offered);
    ring_all(&driver);
    start(&mut subject, &mut driver, offered);
    ring_all(&driver);
    subject.work(&mut driver);
}
