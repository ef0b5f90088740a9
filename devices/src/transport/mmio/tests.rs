use crate::driver::Driver;
use crate::virtio::rng::Rng;
use crate::worker::Worker;

use super::*;

#[test]
fn a_driver_finds_a_virtio_device_version_2() {
    let driver = Driver::new(Rng::new(Worker::spawn("io0").unwrap()));
    assert_eq!(driver.read(0).to_le_bytes(), *b"virt");
    assert_eq!(driver.read(4), 2);
    assert_eq!(driver.read(8), 4);
    assert_eq!(driver.offered() >> 32 & 1, 1);
}

#[test]
fn registers_answer_nothing_to_odd_accesses_and_odd_places() {
    let driver = Driver::new(Rng::new(Worker::spawn("io0").unwrap()));
    let transport = driver.mmio();
    for offset in (0..SIZE).step_by(3) {
        for len in [1, 2, 3, 8] {
            let mut data = vec![0xaa; len];
            transport.read(offset, &mut data);
            transport.write(offset, &data);
        }
    }
    driver.write(0x30, 77);
    assert_eq!(driver.read(0x34), 0, "there is no queue 77");
    driver.write(0x50, 77);
}

#[test]
fn the_interrupt_status_says_why_and_is_acknowledged() {
    let driver = Driver::new(Rng::new(Worker::spawn("io0").unwrap()));
    driver.transport.registers().config_changed().unwrap();
    assert_eq!(driver.interrupts(), 1);
    assert_eq!(driver.read(0x60), 2);
    driver.write(0x64, 2);
    assert_eq!(driver.read(0x60), 0);
}
