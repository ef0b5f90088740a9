//! A saved device from a source that is not to be trusted: a true state with changes, or any text.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use nacelle_devices::irq::NoDoorbells;
use nacelle_devices::memory::SharedMemory;
use nacelle_devices::state::{PciRootState, SerialState, TransportState};
use nacelle_devices::transport::mmio::MmioTransport;
use nacelle_devices::transport::pci::PciTransport;
use nacelle_devices::transport::{RingPart, Transport};
use nacelle_fuzz::device::{Host, Kind, make};
use nacelle_fuzz::guest::{memory, put, settle};
use nacelle_fuzz::msi::Vectors;
use serde_json::{Value, json};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// A new value for the leaf of this number.
#[derive(Arbitrary, Debug)]
enum Change {
    Number(u64),
    Small(u8),
    Flag(bool),
    Gone,
}

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    kind: Kind,
    pci: bool,
    text: Option<&'a str>,
    changes: Vec<(u16, Change)>,
    rings: &'a [u8],
}

fn transport(kind: Kind, pci: bool, memory: &SharedMemory) -> (Box<dyn Transport>, Host) {
    let (device, host) = make(kind);
    let memory = memory.clone();
    let transport: Box<dyn Transport> = match pci {
        true => {
            let bells = Arc::new(NoDoorbells);
            Box::new(PciTransport::new(device, memory, &Vectors, bells, 0x40_0000_0000).unwrap())
        }
        false => {
            let line = EventFd::new(EFD_NONBLOCK).unwrap();
            Box::new(MmioTransport::new(device, memory, line).unwrap())
        }
    };
    (transport, host)
}

/// The state of a device that runs with all features, each queue on its own page.
fn running(kind: Kind, pci: bool, memory: &SharedMemory) -> TransportState {
    let (transport, _host) = transport(kind, pci, memory);
    let mut registers = transport.registers();
    registers.set_status(1);
    registers.set_status(3);
    for page in 0..2 {
        registers.select_device_features(page);
        registers.select_driver_features(page);
        let features = registers.device_features();
        registers.set_driver_features(features);
    }
    registers.set_status(11);
    for queue in 0..registers.queue_count() {
        let base = u32::from(queue) << 12;
        registers.select_queue(queue);
        registers.set_queue_size(16);
        registers.set_ring_address(RingPart::Descriptors, Some(base), None);
        registers.set_ring_address(RingPart::Available, Some(base + 0x400), None);
        registers.set_ring_address(RingPart::Used, Some(base + 0x800), None);
        registers.set_queue_ready(true);
    }
    registers.set_status(15);
    drop(registers);
    transport.pause().unwrap();
    transport.save()
}

fn leaves<'a>(value: &'a mut Value, found: &mut Vec<&'a mut Value>) {
    match value {
        Value::Object(fields) => fields.values_mut().for_each(|value| leaves(value, found)),
        Value::Array(items) => items.iter_mut().for_each(|value| leaves(value, found)),
        leaf => found.push(leaf),
    }
}

fn state(input: &Input, memory: &SharedMemory) -> Option<TransportState> {
    if let Some(text) = input.text {
        let _ = serde_json::from_str::<SerialState>(text);
        let _ = serde_json::from_str::<PciRootState>(text);
        return serde_json::from_str(text).ok();
    }
    let mut value = serde_json::to_value(running(input.kind, input.pci, memory)).unwrap();
    let mut found = Vec::new();
    leaves(&mut value, &mut found);
    // The last ones are few among many bytes of configuration space, and matter most.
    for (index, change) in &input.changes {
        let index = usize::from(*index) % found.len();
        *found[index] = match change {
            Change::Number(number) => json!(number),
            Change::Small(number) => json!(number),
            Change::Flag(flag) => json!(flag),
            Change::Gone => Value::Null,
        };
    }
    serde_json::from_value(value).ok()
}

fuzz_target!(|input: Input| {
    let memory = memory();
    let Some(state) = state(&input, &memory) else {
        return;
    };
    let (transport, _host) = transport(input.kind, input.pci, &memory);
    if transport.restore(state).is_err() {
        return;
    }
    put(&memory, 0, input.rings);
    // A queue may lie nowhere.
    let _ = transport.resume();
    let count = transport.registers().queue_count();
    for queue in 0..count {
        transport.registers().ring(queue);
    }
    settle();
    transport.pause().unwrap();
    let saved = transport.save();
    let text = serde_json::to_string(&saved).unwrap();
    assert_eq!(serde_json::from_str::<TransportState>(&text).unwrap(), saved);
    transport.reset();
    assert_eq!(transport.registers().status(), 0);
});
