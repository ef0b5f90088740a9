//! Any device, and a driver that does as it likes with its queues.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacelle_fuzz::device::Kind;
use nacelle_fuzz::guest::{Guest, Step};

fuzz_target!(|input: (Kind, u64, Vec<Step>)| {
    let (kind, features, steps) = input;
    let mut guest = Guest::new(kind, features);
    for step in &steps {
        guest.step(step);
    }
});
