//! Reset, stop and the end of a device (virtio 1.2, §2.4, §3.3).

use super::{Subject, running, settle, start};
use crate::driver::{Driver, Over};
use crate::virtio::VirtioDevice;

/// Lets the device come some way, another one each time.
fn come_some_way(round: u32) {
    for _ in 0..round * round * 20 {
        std::hint::spin_loop();
    }
}

fn ring_all(driver: &mut Driver) {
    for queue in 0..driver.queue_count() {
        driver.write(0x50, u32::from(queue));
    }
}

pub fn a_reset_in_the_middle_of_its_work_leaves_a_device_like_new<S: Subject>(over: Over) {
    let (mut subject, mut driver) = running::<S>(over);
    let offered = driver.features;
    for round in 0..20 {
        subject.load(&mut driver);
        come_some_way(round);
        driver.write(0x70, 0);
        assert_eq!(driver.status(), 0);
        let used = driver.used_rings();
        for queue in 0..driver.queue_count() {
            driver.write(0x30, u32::from(queue));
            assert_eq!(driver.read(0x44), 0, "queue {queue} is enabled");
        }
        ring_all(&mut driver);
        settle(&subject);
        assert!(driver.used_rings() == used, "the rings are the driver's again");

        start(&mut subject, &mut driver, offered);
        subject.work(&mut driver);
    }
}

pub fn stopping_while_busy_loses_nothing<S: Subject>(over: Over) {
    let (mut subject, mut driver) = running::<S>(over);
    for round in 0..20 {
        subject.load(&mut driver);
        for _ in 0..3 {
            come_some_way(round);
            driver.transport.pause().unwrap();
            driver.transport.pause().unwrap();
            driver.transport.resume().unwrap();
            driver.transport.resume().unwrap();
        }
        subject.finish(&mut driver);
    }
    subject.work(&mut driver);
    assert_eq!(driver.status(), 15);
}

pub fn a_paused_device_leaves_memory_alone<S: Subject>(over: Over) {
    let (mut subject, mut driver) = running::<S>(over);
    subject.work(&mut driver);
    driver.transport.pause().unwrap();
    let used = driver.used_rings();
    subject.load(&mut driver);
    ring_all(&mut driver);
    settle(&subject);
    assert!(driver.used_rings() == used);

    driver.transport.resume().unwrap();
    subject.finish(&mut driver);
    subject.work(&mut driver);
}

pub fn stopping_what_stands_still_gives_no_queues<S: Subject>(_over: Over) {
    let mut device = S::new().device();
    for _ in 0..2 {
        assert!(device.stop().unwrap().is_empty());
        device.reset();
    }
}

pub fn a_device_that_goes_leaves_its_worker_and_its_guests_memory_alone<S: Subject>(over: Over) {
    let (mut subject, mut driver) = running::<S>(over);
    subject.work(&mut driver);
    let doorbells: Vec<_> = (0..driver.queue_count())
        .map(|queue| {
            driver
                .transport
                .registers()
                .kick(queue)
                .unwrap()
                .try_clone()
                .unwrap()
        })
        .collect();

    let successor = subject.device();
    driver.plug(successor);

    let used = driver.used_rings();
    subject.load(&mut driver);
    for doorbell in doorbells {
        doorbell.write(1).unwrap();
    }
    settle(&subject);
    assert!(driver.used_rings() == used);
}
