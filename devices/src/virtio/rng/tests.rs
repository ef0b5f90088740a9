use super::*;
use crate::driver::{BUFFERS, Driver, eventually};

fn started() -> Driver {
    let mut driver = Driver::new(Rng::new(Worker::spawn("io0").unwrap()));
    driver.start(0);
    driver
}

#[test]
fn a_buffer_is_filled_and_the_driver_told() {
    let mut driver = started();

    assert_eq!(driver.request(0, &[(BUFFERS, 32, true)]), 32);

    assert_ne!(driver.get(BUFFERS, 32), [0; 32]);
    assert_eq!(driver.told(), 1);
}

#[test]
fn a_descriptor_that_cannot_be_written_is_returned_empty() {
    assert_eq!(started().request(0, &[(BUFFERS, 32, false)]), 0);
}

#[test]
fn a_gigantic_request_is_answered_in_part() {
    assert_eq!(
        started().request(0, &[(BUFFERS, 2 << 20, true)]) as usize,
        MAX_BYTES
    );
}

#[test]
fn a_buffer_outside_memory_is_returned_empty() {
    assert_eq!(started().request(0, &[(u64::MAX - 8, 32, true)]), 0);
}

#[test]
fn a_driver_that_wants_no_interrupt_gets_none() {
    let mut driver = started();
    for wanted in [false, true] {
        driver.want_interrupts(0, wanted);
        driver.request(0, &[(BUFFERS, 32, true)]);
    }
    let mut interrupts = 0;
    eventually("an interrupt", || {
        interrupts += driver.interrupts();
        interrupts > 0
    });
    assert_eq!(interrupts, 1);
}
