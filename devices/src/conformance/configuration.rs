//! The device's configuration space (virtio 1.2, §2.5).

use super::{Subject, powered_on, start};
use crate::driver::{Driver, Over};

/// More than any device has.
const LEN: usize = 0x100;

fn bytes(driver: &Driver) -> Vec<u8> {
    driver.config_bytes(0, LEN)
}

/// Accesses that a CPU can make: offset and width.
fn accesses() -> impl Iterator<Item = (usize, usize)> {
    [1, 2, 4, 8]
        .into_iter()
        .flat_map(|width| (0..=LEN - width).map(move |offset| (offset, width)))
}

pub fn the_configuration_space_reads_the_same_at_every_width<S: Subject>(over: Over) {
    let (_subject, driver) = powered_on::<S>(over);
    let whole = bytes(&driver);
    for (offset, width) in accesses() {
        let mut data = vec![0xee; width];
        driver.read_config(offset as u64, &mut data);
        assert_eq!(data, whole[offset..offset + width], "{width} bytes at {offset}");
    }
    // Nothing is beyond, as far as addresses go.
    for offset in [0xe00 - 1, 0xe00 - 4] {
        driver.read_config(offset, &mut [0]);
    }
    for offset in [u64::MAX, u64::MAX - 7, 1 << 63] {
        let mut data = [0xee; 8];
        driver.transport.registers().read_config(offset, &mut data);
        assert_eq!(data, [0; 8]);
    }
}

pub fn only_what_is_the_drivers_to_write_can_be_written<S: Subject>(over: Over) {
    let (mut subject, mut driver) = powered_on::<S>(over);
    let before = bytes(&driver);
    let write_all = |driver: &Driver, value: u8| {
        for (offset, width) in accesses() {
            driver.write_config(offset as u64, &vec![value; width]);
        }
        for offset in [u64::MAX, u64::MAX - 7, 1 << 63] {
            driver.transport.registers().write_config(offset, &[value; 8]);
        }
    };
    write_all(&driver, 0xff);
    assert_eq!(bytes(&driver), before, "nobody has said yet that it is a driver");

    let offered = driver.offered();
    driver.start(offered);
    let before = bytes(&driver);
    for value in [0xff, 0, 0x5a] {
        write_all(&driver, value);
        for (at, (was, is)) in before.iter().zip(bytes(&driver)).enumerate() {
            let writable = S::WRITABLE.iter().any(|range| range.contains(&(at as u64)));
            assert!(writable || *was == is, "byte {at} became {is:#x}");
        }
    }
    start(&mut subject, &mut driver, offered);
    subject.work(&mut driver);
}
