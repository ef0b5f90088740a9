//! A virtio device on the PCI bus: configuration space by both ways to it, the BAR wherever it lies, MSI-X.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use nacelle_devices::bus::Bus;
use nacelle_devices::irq::NoDoorbells;
use nacelle_devices::pci::root::{CONFIG_PORTS, CONFIG_PORTS_SIZE, ECAM_SIZE, PciRoot};
use nacelle_devices::transport::Transport;
use nacelle_devices::transport::pci::{BAR_SIZE, PciTransport};
use nacelle_fuzz::device::{HostEvent, Kind, make};
use nacelle_fuzz::guest::{memory, put, settle};
use nacelle_fuzz::msi::Vectors;

const ECAM: u64 = 0xe000_0000;
const WINDOW: u64 = 0x40_0000_0000;
const HOME: u64 = WINDOW + 0x10_0000;
const SLOT: u8 = 1;

#[derive(Arbitrary, Debug)]
enum Access<'a> {
    ReadConfig(u16, u8),
    WriteConfig(u16, &'a [u8]),
    Port(u8, &'a [u8]),
    ReadPort(u8, u8),
    /// In the BAR where it lay at power-on: a field of the common configuration, or anything.
    Common(u8, u32, u8),
    Read(u16, u8),
    Write(u16, &'a [u8]),
    /// Anywhere in the window that BARs may be moved to.
    Window(u32, &'a [u8]),
    Decoding(bool),
    Memory(u32, &'a [u8]),
    Queue(u8, u8),
    Host(HostEvent<'a>),
    Pause,
    Resume,
    Save,
}

fuzz_target!(|input: (Kind, Vec<Access>)| {
    let (kind, accesses) = input;
    let memory = memory();
    let (bus, ports) = (Arc::new(Bus::new()), Bus::new());
    let root = PciRoot::new(&bus, vec![WINDOW..WINDOW + 0x1_0000_0000]);
    bus.insert("ECAM", ECAM, ECAM_SIZE, root.ecam()).unwrap();
    ports
        .insert("PCI", CONFIG_PORTS, CONFIG_PORTS_SIZE, root.ports())
        .unwrap();
    let (device, mut host) = make(kind);
    let transport = PciTransport::new(device, memory.clone(), &Vectors, Arc::new(NoDoorbells), HOME);
    let transport = Arc::new(transport.unwrap());
    root.attach(SLOT, "device", transport.clone()).unwrap();
    let config = ECAM + (u64::from(SLOT) << 15);
    bus.write(config + 4, &[6, 0]);
    let mut data = [0; 8];
    for access in &accesses {
        match access {
            Access::ReadConfig(offset, len) => {
                bus.read(
                    config + u64::from(*offset) % 0x1000,
                    &mut data[..usize::from(len % 9)],
                );
            }
            Access::WriteConfig(offset, data) => {
                bus.write(config + u64::from(*offset) % 0x120, data);
            }
            Access::Port(port, data) => {
                ports.write(CONFIG_PORTS + u64::from(port & 7), data);
            }
            Access::ReadPort(port, len) => {
                ports.read(
                    CONFIG_PORTS + u64::from(port & 7),
                    &mut data[..usize::from(len % 9)],
                );
            }
            Access::Common(field, value, len) => {
                let len = [1, 2, 4][usize::from(len % 3)];
                bus.write(HOME + u64::from(field & 0x3f), &value.to_le_bytes()[..len]);
            }
            Access::Read(offset, len) => {
                bus.read(
                    HOME + u64::from(*offset) % BAR_SIZE,
                    &mut data[..usize::from(len % 9)],
                );
            }
            Access::Write(offset, data) => {
                bus.write(HOME + u64::from(*offset) % BAR_SIZE, data);
            }
            Access::Window(offset, data) => {
                bus.write(WINDOW + u64::from(*offset), data);
            }
            Access::Decoding(on) => {
                bus.write(config + 4, &[if *on { 6 } else { 0 }, 0]);
            }
            Access::Memory(at, data) => put(&memory, u64::from(*at), data),
            Access::Queue(queue, page) => {
                let base = u32::from(*page) << 12;
                bus.write(HOME + 0x16, &[*queue, 0]);
                for (field, address) in [(0x20, base), (0x28, base + 0x400), (0x30, base + 0x800)] {
                    bus.write(HOME + field, &address.to_le_bytes());
                }
                bus.write(HOME + 0x1a, &[*queue, 0]);
                bus.write(HOME + 0x1c, &[1, 0]);
            }
            Access::Host(event) => host.happen(event),
            Access::Pause => transport.pause().unwrap(),
            // A queue may lie nowhere.
            Access::Resume => drop(Transport::resume(&*transport)),
            Access::Save => {
                transport.pause().unwrap();
                let state = transport.save();
                transport.restore(state.clone()).unwrap();
                assert_eq!(transport.save(), state);
            }
        }
        settle();
    }
    let _ = Transport::resume(&*transport);
    root.reset();
    let mut id = [0; 4];
    bus.read(config, &mut id);
    assert_eq!(id[..2], [0xf4, 0x1a]);
    assert_eq!(transport.registers().status(), 0);
    root.detach(SLOT).unwrap();
});
