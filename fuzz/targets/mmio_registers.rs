//! The registers of virtio-mmio, written in any order and at any width while rings hold anything.
#![no_main]

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use nacelle_devices::bus::BusDevice;
use nacelle_devices::transport::Transport;
use nacelle_devices::transport::mmio::{MmioTransport, SIZE};
use nacelle_fuzz::device::{HostEvent, Kind, make};
use nacelle_fuzz::guest::{memory, put, settle};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

#[derive(Arbitrary, Debug)]
enum Access<'a> {
    /// A register by its number, as most accesses are.
    Register(u8, u32),
    Status(u8),
    Read(u16, u8),
    Write(u16, &'a [u8]),
    Memory(u32, &'a [u8]),
    /// The selected queue is put at this page and enabled.
    Queue(u8, u8),
    Host(HostEvent<'a>),
    Pause,
    Resume,
    Reset,
}

fuzz_target!(|input: (Kind, Vec<Access>)| {
    let (kind, accesses) = input;
    let memory = memory();
    let (device, mut host) = make(kind);
    let line = EventFd::new(EFD_NONBLOCK).unwrap();
    let transport = MmioTransport::new(device, memory.clone(), line).unwrap();
    let write = |register: u64, value: u32| transport.write(register, &value.to_le_bytes());
    for access in &accesses {
        match access {
            Access::Register(register, value) => write(u64::from(*register) & 0xfc, *value),
            Access::Status(status) => write(0x70, u32::from(*status)),
            Access::Read(offset, len) => {
                let mut data = vec![0; usize::from(len % 9)];
                transport.read(u64::from(*offset) % SIZE, &mut data);
            }
            Access::Write(offset, data) => transport.write(u64::from(*offset) % SIZE, data),
            Access::Memory(at, data) => put(&memory, u64::from(*at), data),
            Access::Queue(queue, page) => {
                let base = u32::from(*page) << 12;
                write(0x30, u32::from(*queue));
                for (register, address) in [(0x80, base), (0x90, base + 0x400), (0xa0, base + 0x800)] {
                    write(register, address);
                }
                write(0x44, 1);
            }
            Access::Host(event) => host.happen(event),
            Access::Pause => transport.pause().unwrap(),
            // A queue may lie nowhere.
            Access::Resume => drop(transport.resume()),
            Access::Reset => Transport::reset(&transport),
        }
        settle();
    }
    let _ = transport.resume();
    Transport::reset(&transport);
    assert_eq!(transport.registers().status(), 0);
});
