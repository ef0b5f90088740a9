//! The register file, tried with the simplest of devices. What every device is tried for is in `conformance`.

use crate::driver::{BUFFERS, Driver, Over, over_both_transports};
use crate::state::{TransportState, VirtioState};
use crate::virtio::rng::Rng;
use crate::worker::Worker;

const VERSION_1: u64 = 1 << 32;

fn rng() -> Rng {
    Rng::new(Worker::spawn("io0").unwrap())
}

fn virtio(state: &mut TransportState) -> &mut VirtioState {
    match state {
        TransportState::Mmio(virtio) => virtio,
        TransportState::Pci(state) => &mut state.virtio,
    }
}

fn features_stand_once_they_are_agreed(over: Over) {
    let mut driver = Driver::over(over, rng());
    assert!(driver.negotiate(VERSION_1));
    driver.write(0x24, 0);
    driver.write(0x20, 1 << 29);
    assert_eq!(driver.transport.registers().driver_features(), 0);
}

fn driver_ok_without_features_ok_starts_nothing(over: Over) {
    let driver = Driver::over(over, rng());
    driver.write(0x70, 1);
    driver.write(0x70, 1 | 2 | 4);
    assert_eq!(driver.status(), 3);
}

fn a_queue_cannot_be_moved_while_it_is_in_use(over: Over) {
    let mut driver = Driver::over(over, rng());
    driver.start(0);
    driver.write(0x30, 0);
    driver.write(0x80, 0xdead_0000);
    driver.write(0x38, 16);
    assert_eq!(driver.request(0, &[(BUFFERS, 8, true)]), 8);
    assert_eq!(driver.transport.registers().queue_size(), 64);
}

fn a_queue_outside_memory_asks_for_a_reset_and_a_reset_heals(over: Over) {
    let mut driver = Driver::over(over, rng());
    assert!(driver.negotiate(VERSION_1));
    driver.write(0x30, 0);
    driver.write(0x38, 64);
    driver.write(0x84, 0x1000);
    driver.write(0x44, 1);
    driver.write(0x70, 3 | 8 | 4);
    assert_eq!(driver.status() & 0x40, 0x40);

    driver.start(0);
    assert_eq!(driver.status(), 15);
    assert_eq!(driver.request(0, &[(BUFFERS, 8, true)]), 8);
}

fn a_restored_device_interrupts_in_case_the_last_interrupts_were_lost(over: Over) {
    let mut driver = Driver::over(over, rng());
    driver.start(0);
    driver.request(0, &[(BUFFERS, 8, true)]);
    driver.transport.pause().unwrap();
    let state = driver.transport.save();
    driver.move_to(rng(), state);
    assert_eq!(driver.interrupts(), 2, "the queue's and the configuration's");

    driver.transport.pause().unwrap();
    driver.transport.resume().unwrap();
    assert_eq!(driver.interrupts(), 0);
}

fn another_devices_state_is_refused(over: Over) {
    let driver = Driver::over(over, rng());
    let mut state = driver.transport.save();
    virtio(&mut state).device_id = 2;
    let error = driver.transport.restore(state).unwrap_err();
    assert_eq!(
        error.to_string(),
        "rng: the saved state does not fit: device type 2 instead of 4"
    );
}

over_both_transports! {
    features_stand_once_they_are_agreed
    driver_ok_without_features_ok_starts_nothing
    a_queue_cannot_be_moved_while_it_is_in_use
    a_queue_outside_memory_asks_for_a_reset_and_a_reset_heals
    a_restored_device_interrupts_in_case_the_last_interrupts_were_lost
    another_devices_state_is_refused
}
