//! A guest driver in the test: it programs the registers of a virtio device and builds rings in guest
//! memory, byte by byte as the specification says, so that nothing of what is tested helps to test it.
//!
//! Registers are named by their offset in virtio-mmio; over PCI the same is done where the capabilities of
//! the device say, so one test serves both transports.

pub mod pci;
mod rings;

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use self::pci::{Machine, PciDevice};
use self::rings::Ring;
pub use self::rings::{INDIRECT, Manners, NEXT, WRITE};
use crate::bus::BusDevice;
use crate::memory::{Memory, SharedMemory};
use crate::state::TransportState;
use crate::transport::Transport;
use crate::transport::mmio::MmioTransport;
use crate::transport::pci::PciTransport;
use crate::virtio::VirtioDevice;

/// Where buffers of tests begin; rings lie below.
pub const BUFFERS: u64 = 0x100_0000;
pub const MEMORY: u64 = 0x400_0000;

pub const EVENT_IDX: u64 = 1 << 29;
const WAIT: Duration = Duration::from_secs(10);

/// Waits until `happened`; it has ten seconds.
pub fn eventually(what: &str, mut happened: impl FnMut() -> bool) {
    let until = std::time::Instant::now() + WAIT;
    while !happened() {
        assert!(std::time::Instant::now() < until, "not so in time: {what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// How the driver reaches the device, and hears of it.
enum Way {
    Mmio(Arc<MmioTransport>, EventFd),
    Pci(Box<PciDevice>),
}

/// Which of them, for tests that go both ways.
#[derive(Clone, Copy, Debug)]
pub enum Over {
    Mmio,
    Pci,
}

pub struct Driver {
    pub memory: Arc<Memory>,
    pub transport: Arc<dyn Transport>,
    /// What was last accepted of the device's features.
    pub features: u64,
    pub manners: Manners,
    /// Where writes of registers are noted.
    pub log: Option<RefCell<Vec<(u64, u32)>>>,
    way: Way,
    rings: Vec<Ring>,
}

/// Runs each of these functions, which take an [`Over`], as a test over virtio-mmio and one over virtio-pci; `in the lab`
/// only where somebody asks for what is ignored.
macro_rules! over_both_transports {
    ($($name:ident)*) => {
        crate::driver::over_both_transports! { ignored if any(): $($name)* }
    };
    (in the lab: $($name:ident)*) => {
        crate::driver::over_both_transports! { ignored if all(): $($name)* }
    };
    (ignored if $condition:meta: $($name:ident)*) => {
        mod mmio {
            $(#[test] #[cfg_attr($condition, ignore = "needs the lab: tests/lab/devices")]
            fn $name() { super::$name(crate::driver::Over::Mmio); })*
        }
        mod pci {
            $(#[test] #[cfg_attr($condition, ignore = "needs the lab: tests/lab/devices")]
            fn $name() { super::$name(crate::driver::Over::Pci); })*
        }
    };
}
pub(crate) use over_both_transports;

/// Guest memory of [`MEMORY`] bytes in two regions.
fn memory() -> SharedMemory {
    let ranges = [
        (GuestAddress(0), MEMORY as usize / 2),
        (GuestAddress(MEMORY / 2), MEMORY as usize / 2),
    ];
    SharedMemory::new(Memory::from_ranges(&ranges).unwrap())
}

impl Driver {
    /// The device behind virtio-mmio, reset.
    pub fn new(device: impl VirtioDevice + 'static) -> Self {
        Self::in_memory(device, memory())
    }

    /// The device over memory that was there before, as after a migration.
    pub fn in_memory(device: impl VirtioDevice + 'static, shared: SharedMemory) -> Self {
        Self::over_memory(Over::Mmio, device, shared)
    }

    /// The device behind either transport, reset; over PCI in slot 1, its interrupts unmasked.
    pub fn over(over: Over, device: impl VirtioDevice + 'static) -> Self {
        Self::over_memory(over, device, memory())
    }

    fn over_memory(over: Over, device: impl VirtioDevice + 'static, shared: SharedMemory) -> Self {
        let memory = shared.memory().into_inner();
        let device = Box::new(device);
        let (transport, way): (Arc<dyn Transport>, _) = match over {
            Over::Mmio => {
                let line = EventFd::new(EFD_NONBLOCK).unwrap();
                let transport = MmioTransport::new(device, shared, line.try_clone().unwrap()).unwrap();
                let transport = Arc::new(transport);
                (transport.clone(), Way::Mmio(transport, line))
            }
            Over::Pci => {
                let machine = Arc::new(Machine::new());
                let bells = machine.doorbells.clone();
                let home = Machine::home(1);
                let transport = PciTransport::new(device, shared, &machine.msi, bells, home).unwrap();
                let transport = Arc::new(transport);
                machine.attach(1, transport.clone());
                (transport, Way::Pci(Box::new(PciDevice::find(machine, 1))))
            }
        };
        Driver {
            memory,
            transport,
            features: 0,
            manners: Manners::default(),
            log: None,
            way,
            rings: Vec::new(),
        }
    }

    /// The registers of virtio-mmio themselves.
    pub fn mmio(&self) -> &MmioTransport {
        match &self.way {
            Way::Mmio(transport, _) => transport,
            Way::Pci(_) => panic!("the device is behind virtio-pci"),
        }
    }

    /// Where the device lies on its PCI bus.
    pub fn pci(&self) -> &PciDevice {
        match &self.way {
            Way::Pci(device) => device,
            Way::Mmio(..) => panic!("the device is behind virtio-mmio"),
        }
    }

    /// Takes the device away and puts `device` there, reset, behind the same transport over the same memory.
    pub fn plug(&mut self, device: impl VirtioDevice + 'static) {
        let over = match self.way {
            Way::Mmio(..) => Over::Mmio,
            Way::Pci(_) => Over::Pci,
        };
        let other = Self::over_memory(over, device, SharedMemory::new(self.memory.as_ref().clone()));
        self.transport = other.transport;
        self.way = other.way;
    }

    /// Goes on with `device` restored from `state`, as after a migration.
    pub fn move_to(&mut self, device: impl VirtioDevice + 'static, state: TransportState) {
        self.plug(device);
        self.transport.restore(state).unwrap();
        self.transport.resume().unwrap();
    }

    /// Resets the machine.
    pub fn power_cycle(&mut self) {
        match &self.way {
            Way::Mmio(transport, _) => Transport::reset(&**transport),
            Way::Pci(device) => {
                device.machine.root.reset();
                self.find_again();
            }
        }
    }

    /// Looks for the device on its PCI bus again: it was moved, or reset with its machine.
    pub fn find_again(&mut self) {
        let device = self.pci();
        self.way = Way::Pci(Box::new(PciDevice::find(device.machine.clone(), device.slot)));
    }

    pub fn read(&self, register: u64) -> u32 {
        match &self.way {
            Way::Mmio(transport, _) => {
                let mut data = [0; 4];
                transport.read(register, &mut data);
                u32::from_le_bytes(data)
            }
            Way::Pci(device) => device.read(register),
        }
    }

    pub fn write(&self, register: u64, value: u32) {
        if let Some(log) = &self.log {
            log.borrow_mut().push((register, value));
        }
        match &self.way {
            Way::Mmio(transport, _) => transport.write(register, &value.to_le_bytes()),
            Way::Pci(device) => device.write(register, value),
        }
    }

    pub fn queue_count(&self) -> u16 {
        self.transport.registers().queue_count()
    }

    pub fn status(&self) -> u32 {
        self.read(0x70)
    }

    pub fn offered(&self) -> u64 {
        self.write(0x14, 0);
        let low = self.read(0x10);
        self.write(0x14, 1);
        u64::from(self.read(0x10)) << 32 | u64::from(low)
    }

    /// Reset, then as far as FEATURES_OK; gives whether the device agreed.
    pub fn negotiate(&mut self, features: u64) -> bool {
        self.write(0x70, 0);
        self.rings.clear();
        self.write(0x70, 1);
        self.write(0x70, 3);
        for page in 0..2 {
            self.write(0x24, page);
            self.write(0x20, (features >> (32 * page)) as u32);
        }
        self.write(0x70, 3 | 8);
        self.features = features;
        self.status() & 8 != 0
    }

    /// Negotiates these of the device's features (VERSION_1 always), sets up each queue and starts.
    pub fn start(&mut self, features: u64) {
        self.start_with(features, |_, max| Some(max.min(256)));
    }

    /// Like [`Driver::start`], with queues of the sizes that `size` gives for index and largest size; none
    /// leaves a queue out.
    pub fn start_with(&mut self, features: u64, size: impl Fn(u16, u16) -> Option<u16>) {
        assert!(
            self.negotiate(features | 1 << 32),
            "the device refused {features:#x}"
        );
        for index in 0.. {
            self.write(0x30, index);
            let max = self.read(0x34);
            if max == 0 {
                break;
            }
            let base = Self::base(index as u16);
            self.put(base, &[0; rings::SPACING]);
            let size = size(index as u16, max as u16);
            if let Some(size) = size {
                self.write(0x38, u32::from(size));
                for (register, address) in [(0x80, base), (0x90, base + 0x4000), (0xa0, base + 0x8000)] {
                    self.write(register, address as u32);
                    self.write(register + 4, (address >> 32) as u32);
                }
                self.write(0x44, 1);
            }
            self.rings.push(Ring::new(size.unwrap_or(1)));
        }
        self.write(0x70, 3 | 8 | 4);
    }

    /// Waits until the device asks for a reset (§2.1.2).
    pub fn wait_needs_reset(&self) {
        let until = std::time::Instant::now() + WAIT;
        while self.status() & 0x40 == 0 {
            assert!(
                std::time::Instant::now() < until,
                "the device does not ask for a reset"
            );
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Reads 32 bits of the device's configuration space.
    pub fn config(&self, offset: u64) -> u32 {
        self.read(0x100 + offset)
    }

    /// Writes 32 bits of the device's configuration space.
    pub fn set_config(&self, offset: u64, value: u32) {
        self.write(0x100 + offset, value);
    }

    /// How often the device interrupted since the last time.
    pub fn interrupts(&self) -> u64 {
        match &self.way {
            Way::Mmio(_, line) => line.read().unwrap_or(0),
            Way::Pci(device) => device.machine.msi.sent_by_all(),
        }
    }

    /// Waits until the device interrupts, which it does after it has put something into the used ring; says how often.
    pub fn told(&self) -> u64 {
        let mut interrupts = 0;
        eventually("an interrupt", || {
            interrupts = self.interrupts();
            interrupts > 0
        });
        interrupts
    }

    pub fn put(&self, address: u64, data: &[u8]) {
        self.memory.write_slice(data, GuestAddress(address)).unwrap();
    }

    /// Reads the device's configuration space byte by byte.
    pub fn config_bytes(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        for (at, byte) in (offset..).zip(&mut data) {
            self.transport
                .registers()
                .read_config(at, std::slice::from_mut(byte));
        }
        data
    }

    /// Reads the device's configuration space in one access of the bus.
    pub fn read_config(&self, offset: u64, data: &mut [u8]) {
        match &self.way {
            Way::Mmio(transport, _) => transport.read(0x100 + offset, data),
            Way::Pci(device) => assert!(device.machine.memory.read(device.device + offset, data)),
        }
    }

    /// Writes the device's configuration space in one access of the bus.
    pub fn write_config(&self, offset: u64, data: &[u8]) {
        match &self.way {
            Way::Mmio(transport, _) => transport.write(0x100 + offset, data),
            Way::Pci(device) => assert!(device.machine.memory.write(device.device + offset, data)),
        }
    }

    pub fn get(&self, address: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.memory.read_slice(&mut data, GuestAddress(address)).unwrap();
        data
    }
}
