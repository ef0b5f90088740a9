//! The driver's way over PCI: a machine with one bus, and how a guest finds a virtio device on it.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::bus::Bus;
use crate::irq::{Doorbells, MsiController, MsiMessage, MsiVector};
use crate::pci::PciFunction;
use crate::pci::root::{CONFIG_PORTS, CONFIG_PORTS_SIZE, ECAM_SIZE, PciRoot};

pub const ECAM: u64 = 0xe000_0000;
pub const WINDOW: Range<u64> = 0x40_0000_0000..0x50_0000_0000;
/// Where the BAR of the device in slot `n` lies at power-on: `n` times this into the window.
pub const BAR_SPACING: u64 = 0x10_0000;

/// A vector that knows where it is routed, as the kernel would.
pub struct TestVector {
    pub eventfd: EventFd,
    pub route: Mutex<Option<MsiMessage>>,
}

struct Handle(Arc<TestVector>);

impl MsiVector for Handle {
    fn route(&self, message: Option<MsiMessage>) -> io::Result<()> {
        *self.0.route.lock().unwrap() = message;
        Ok(())
    }
    fn eventfd(&self) -> &EventFd {
        &self.0.eventfd
    }
}

/// Gives out vectors and remembers them.
#[derive(Default)]
pub struct TestMsi(Mutex<Vec<Arc<TestVector>>>);

impl TestMsi {
    pub fn vector(&self, number: usize) -> Arc<TestVector> {
        self.0.lock().unwrap()[number].clone()
    }

    pub fn route(&self, number: usize) -> Option<MsiMessage> {
        *self.vector(number).route.lock().unwrap()
    }

    /// How many messages vector `number` has sent since the last time.
    pub fn sent(&self, number: usize) -> u64 {
        match self.route(number) {
            Some(_) => self.vector(number).eventfd.read().unwrap_or(0),
            None => 0,
        }
    }

    pub fn sent_by_all(&self) -> u64 {
        let count = self.0.lock().unwrap().len();
        (0..count).map(|number| self.sent(number)).sum()
    }
}

impl MsiController for TestMsi {
    fn allocate(&self, count: u16) -> io::Result<Vec<Box<dyn MsiVector>>> {
        let mut vectors = self.0.lock().unwrap();
        let mut given: Vec<Box<dyn MsiVector>> = Vec::new();
        for _ in 0..count {
            let vector = Arc::new(TestVector {
                eventfd: EventFd::new(EFD_NONBLOCK)?,
                route: Mutex::new(None),
            });
            vectors.push(vector.clone());
            given.push(Box::new(Handle(vector)));
        }
        Ok(given)
    }
}

/// Doorbells as the kernel has them: a write to an address that has one goes no further.
#[derive(Default)]
pub struct TestDoorbells(Mutex<BTreeMap<u64, EventFd>>);

impl TestDoorbells {
    pub fn addresses(&self) -> Vec<u64> {
        self.0.lock().unwrap().keys().copied().collect()
    }

    fn ring(&self, address: u64) -> bool {
        let bells = self.0.lock().unwrap();
        bells.get(&address).is_some_and(|kick| kick.write(1).is_ok())
    }
}

impl Doorbells for TestDoorbells {
    fn assign(&self, address: u64, kick: &EventFd) -> io::Result<()> {
        let former = self.0.lock().unwrap().insert(address, kick.try_clone()?);
        assert!(former.is_none(), "two doorbells at {address:#x}");
        Ok(())
    }

    fn release(&self, address: u64, _kick: &EventFd) -> io::Result<()> {
        let found = self.0.lock().unwrap().remove(&address);
        found.map(|_| ()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// A machine with a PCI bus and nothing else.
pub struct Machine {
    pub memory: Arc<Bus>,
    pub ports: Bus,
    pub root: Arc<PciRoot>,
    pub msi: TestMsi,
    pub doorbells: Arc<TestDoorbells>,
}

impl Machine {
    pub fn new() -> Self {
        let (memory, ports) = (Arc::new(Bus::new()), Bus::new());
        let root = PciRoot::new(&memory, vec![WINDOW]);
        memory.insert("ECAM", ECAM, ECAM_SIZE, root.ecam()).unwrap();
        ports
            .insert("PCI", CONFIG_PORTS, CONFIG_PORTS_SIZE, root.ports())
            .unwrap();
        Machine {
            memory,
            ports,
            root,
            msi: TestMsi::default(),
            doorbells: Arc::default(),
        }
    }

    pub fn home(slot: u8) -> u64 {
        WINDOW.start + u64::from(slot) * BAR_SPACING
    }

    pub fn attach(&self, slot: u8, function: Arc<dyn PciFunction>) {
        self.root.attach(slot, "device", function).unwrap();
    }

    fn config_address(slot: u8, offset: u64) -> u64 {
        ECAM + (u64::from(slot) << 15) + offset
    }

    /// Reads configuration space of a slot.
    pub fn config<const N: usize>(&self, slot: u8, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        self.memory.read(Self::config_address(slot, offset), &mut data);
        data
    }

    pub fn config_u8(&self, slot: u8, offset: u64) -> u8 {
        self.config::<1>(slot, offset)[0]
    }

    pub fn config_u16(&self, slot: u8, offset: u64) -> u16 {
        u16::from_le_bytes(self.config(slot, offset))
    }

    pub fn config_u32(&self, slot: u8, offset: u64) -> u32 {
        u32::from_le_bytes(self.config(slot, offset))
    }

    pub fn set_config(&self, slot: u8, offset: u64, data: &[u8]) {
        self.memory.write(Self::config_address(slot, offset), data);
    }

    /// Reads memory that devices answer.
    pub fn read<const N: usize>(&self, address: u64) -> [u8; N] {
        let mut data = [0; N];
        self.memory.read(address, &mut data);
        data
    }

    /// Writes memory that devices answer, as a vCPU would: doorbells are the kernel's.
    pub fn write(&self, address: u64, data: &[u8]) {
        if !self.doorbells.ring(address) {
            self.memory.write(address, data);
        }
    }

    /// The capabilities of a slot: `(identifier, offset)`.
    pub fn capabilities(&self, slot: u8) -> Vec<(u8, u64)> {
        let mut found = Vec::new();
        if self.config_u16(slot, 6) & 0x10 == 0 {
            return found;
        }
        let mut at = self.config_u8(slot, 0x34);
        while at != 0 {
            assert!(at >= 0x40 && at.is_multiple_of(4), "a capability at {at:#x}");
            assert!(found.len() < 48, "the list of capabilities does not end");
            found.push((self.config_u8(slot, u64::from(at)), u64::from(at)));
            at = self.config_u8(slot, u64::from(at) + 1);
        }
        found
    }
}

/// Where the capabilities of a virtio device say that its registers lie, as addresses.
pub struct PciDevice {
    pub machine: Arc<Machine>,
    pub slot: u8,
    pub bar: u64,
    pub common: u64,
    pub isr: u64,
    pub device: u64,
    pub notify: u64,
    pub multiplier: u64,
    pub table: u64,
    pub pending: u64,
    /// Offset of the MSI-X capability.
    pub msix: u64,
    pub vectors: u16,
}

impl PciDevice {
    /// Finds the device in `slot`, switches its memory on, and programs and unmasks every vector: vector `n`
    /// sends `n`.
    pub fn find(machine: Arc<Machine>, slot: u8) -> Self {
        assert_eq!(machine.config_u16(slot, 0), 0x1af4);
        let mut device = PciDevice {
            slot,
            bar: u64::from_le_bytes(machine.config(slot, 0x10)) & !0xf,
            common: 0,
            isr: 0,
            device: 0,
            notify: 0,
            multiplier: 0,
            table: 0,
            pending: 0,
            msix: 0,
            vectors: 0,
            machine: machine.clone(),
        };
        let bar = device.bar;
        for (id, at) in machine.capabilities(slot) {
            let address = bar + u64::from(machine.config_u32(slot, at + 8));
            match (id, machine.config_u8(slot, at + 3)) {
                (0x09, 1) => device.common = address,
                (0x09, 2) => {
                    device.notify = address;
                    device.multiplier = u64::from(machine.config_u32(slot, at + 16));
                }
                (0x09, 3) => device.isr = address,
                (0x09, 4) => device.device = address,
                (0x11, _) => {
                    device.msix = at;
                    device.vectors = (machine.config_u16(slot, at + 2) & 0x7ff) + 1;
                    device.table = bar + u64::from(machine.config_u32(slot, at + 4) & !7);
                    device.pending = bar + u64::from(machine.config_u32(slot, at + 8) & !7);
                }
                _ => {}
            }
        }
        machine.set_config(slot, 4, &6_u16.to_le_bytes());
        machine.set_config(slot, device.msix + 2, &0xc000_u16.to_le_bytes());
        for vector in 0..device.vectors {
            device.program(vector, 0xfee0_0000, u32::from(vector));
            device.mask(vector, false);
        }
        machine.set_config(slot, device.msix + 2, &0x8000_u16.to_le_bytes());
        device
    }

    /// Sets the message of a vector.
    pub fn program(&self, vector: u16, address: u64, data: u32) {
        let entry = self.table + 16 * u64::from(vector);
        self.machine.write(entry, &(address as u32).to_le_bytes());
        self.machine
            .write(entry + 4, &((address >> 32) as u32).to_le_bytes());
        self.machine.write(entry + 8, &data.to_le_bytes());
    }

    pub fn mask(&self, vector: u16, masked: bool) {
        let control = self.table + 16 * u64::from(vector) + 12;
        self.machine.write(control, &u32::from(masked).to_le_bytes());
    }

    /// Writes MSI-X message control.
    pub fn control(&self, value: u16) {
        self.machine
            .set_config(self.slot, self.msix + 2, &value.to_le_bytes());
    }

    pub fn pending_bits(&self) -> u64 {
        u64::from_le_bytes(self.machine.read(self.pending))
    }

    pub fn common_u16(&self, offset: u64) -> u16 {
        u16::from_le_bytes(self.machine.read(self.common + offset))
    }

    pub fn set_common_u16(&self, offset: u64, value: u16) {
        self.machine.write(self.common + offset, &value.to_le_bytes());
    }

    fn common_u32(&self, offset: u64) -> u32 {
        u32::from_le_bytes(self.machine.read(self.common + offset))
    }

    fn set_common_u32(&self, offset: u64, value: u32) {
        self.machine.write(self.common + offset, &value.to_le_bytes());
    }

    /// The field of the common configuration that is this register of virtio-mmio.
    fn ring_field(register: u64) -> Option<u64> {
        matches!(register & !0x34, 0x80).then_some(0x20 + (register - 0x80) / 16 * 8 + register % 16)
    }

    /// Reads what virtio-mmio has at `register`.
    pub fn read(&self, register: u64) -> u32 {
        match register {
            0x08 => u32::from(self.machine.config_u16(self.slot, 2)) - 0x1040,
            0x10 => self.common_u32(0x04),
            0x34 => u32::from(self.common_u16(0x18)),
            0x44 => u32::from(self.common_u16(0x1c)),
            0x60 => u32::from(self.machine.read::<1>(self.isr)[0]),
            0x70 => u32::from(self.machine.read::<1>(self.common + 0x14)[0]),
            0xfc => u32::from(self.machine.read::<1>(self.common + 0x15)[0]),
            0x100.. => u32::from_le_bytes(self.machine.read(self.device + register - 0x100)),
            _ => match Self::ring_field(register) {
                Some(field) => self.common_u32(field),
                None => panic!("virtio-pci has no register like {register:#x} to read"),
            },
        }
    }

    /// Writes what virtio-mmio has at `register`. A driver that says that it is one takes vector 0 for the
    /// configuration, and vector n + 1 for a queue n that it enables.
    pub fn write(&self, register: u64, value: u32) {
        match register {
            0x14 => self.set_common_u32(0x00, value),
            0x20 => self.set_common_u32(0x0c, value),
            0x24 => self.set_common_u32(0x08, value),
            0x30 => self.set_common_u16(0x16, value as u16),
            0x38 => self.set_common_u16(0x18, value as u16),
            0x44 => {
                let queue = self.common_u16(0x16);
                self.set_common_u16(0x1a, queue + 1);
                self.set_common_u16(0x1c, value as u16);
            }
            0x50 => self
                .machine
                .write(self.doorbell(value as u16), &(value as u16).to_le_bytes()),
            0x70 => {
                self.machine.write(self.common + 0x14, &[value as u8]);
                if value == 3 {
                    self.set_common_u16(0x10, 0);
                }
            }
            0x100.. => self
                .machine
                .write(self.device + register - 0x100, &value.to_le_bytes()),
            _ => match Self::ring_field(register) {
                Some(field) => self.set_common_u32(field, value),
                None => panic!("virtio-pci has no register like {register:#x} to write"),
            },
        }
    }

    /// Where queue `index` has its doorbell; our devices have them in order.
    pub fn doorbell(&self, index: u16) -> u64 {
        self.notify + u64::from(index) * self.multiplier
    }
}
