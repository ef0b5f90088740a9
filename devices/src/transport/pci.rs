//! virtio-pci, modern (virtio 1.2, §4.1): one function, one BAR, MSI-X.
//!
//! ```text
//!   BAR 0   0x0000 common configuration      0x3000 notify: doorbell of queue n at 4 n
//!           0x1000 ISR status                0x4000 MSI-X table
//!           0x2000 device configuration      0x5000 MSI-X pending bits
//! ```
//!
//! The interrupt line is not offered (interrupt pin 0). A driver without MSI-X polls; the ISR status serves
//! it.

mod interrupt;

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use self::interrupt::MsixInterrupt;
use super::{NO_VECTOR, RegisterFile, RingPart, Transport};
use crate::irq::{Doorbells, MsiController, Vector};
use crate::memory::SharedMemory;
use crate::pci::PciFunction;
use crate::pci::bar::{Bar, BarRange};
use crate::pci::config::{ConfigSpace, Identity};
use crate::pci::msix::Msix;
use crate::state::{TransportState, VirtioPciState};
use crate::virtio::VirtioDevice;
use crate::{Error, Result};

/// Size of the one BAR.
pub const BAR_SIZE: u64 = 0x8000;

const BAR: u8 = 0;
const PAGE: u64 = 0x1000;
const COMMON: u64 = 0;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const MSIX_TABLE: u64 = 0x4000;
const MSIX_PENDING: u64 = 0x5000;

/// Bytes of the common configuration, with the fields of virtio 1.2 that need features we do not offer.
const COMMON_SIZE: u32 = 60;
/// `notify_off_multiplier`: one doorbell per queue, each at its own address.
const DOORBELL_SPACING: u32 = 4;

const VENDOR: u16 = 0x1af4;
const FIRST_DEVICE: u16 = 0x1040;
const REVISION: u8 = 1;

/// Vendor-specific capability, and what kinds of them virtio has (§4.1.4).
const CAPABILITY: u8 = 0x09;
const CAP_COMMON: u8 = 1;
const CAP_NOTIFY: u8 = 2;
const CAP_ISR: u8 = 3;
const CAP_DEVICE: u8 = 4;
const CAP_PCI_CONFIG: u8 = 5;

/// Class codes, as QEMU's devices of the same type have them: drivers go by the device, people by the class.
fn class(device_type: u32) -> [u8; 3] {
    match device_type {
        1 => [0x02, 0x00, 0x00],      // net: Ethernet controller
        2 | 8 => [0x01, 0x00, 0x00],  // blk, scsi: SCSI storage
        3 | 19 => [0x07, 0x80, 0x00], // console, vsock: other communication controller
        26 => [0x01, 0x80, 0x00],     // fs: other storage
        _ => [0x00, 0xff, 0x00],      // rng, balloon, mem: unclassified
    }
}

/// Configuration space and what in it has effects.
struct Function {
    space: ConfigSpace,
    bar: Bar,
    /// Offset of MSI-X message control.
    msix_control: u16,
    /// Offset of the capability that reaches the BAR through configuration space (§4.1.4.9).
    window: u16,
}

/// What the window capability asks for at present.
struct WindowAccess {
    offset: u64,
    len: usize,
}

impl Function {
    /// `struct virtio_pci_cap` from its third byte on.
    fn body(kind: u8, bar: u8, offset: u64, len: u32) -> Vec<u8> {
        let mut body = vec![0, kind, bar, 0, 0, 0];
        body.extend((offset as u32).to_le_bytes());
        body.extend(len.to_le_bytes());
        body
    }

    fn new(identity: Identity, home: u64, msix: &Msix, queues: u16) -> Result<Self> {
        let mut space = ConfigSpace::new(identity);
        let bar = Bar::add(&mut space, BAR, BAR_SIZE, home)?;
        let mut add = |mut body: Vec<u8>, more: &[u8], writable: &[u8]| {
            body.extend(more);
            // `cap_len` counts the identifier and the link too.
            let len = body.len() as u8 + 2;
            if let Some(first) = body.first_mut() {
                *first = len;
            }
            space.add_capability(CAPABILITY, &body, writable)
        };
        let doorbells = u32::from(queues.max(1)) * DOORBELL_SPACING;
        add(Self::body(CAP_COMMON, BAR, COMMON, COMMON_SIZE), &[], &[])?;
        add(Self::body(CAP_ISR, BAR, ISR, 1), &[], &[])?;
        add(Self::body(CAP_DEVICE, BAR, DEVICE, PAGE as u32), &[], &[])?;
        let multiplier = DOORBELL_SPACING.to_le_bytes();
        add(Self::body(CAP_NOTIFY, BAR, NOTIFY, doorbells), &multiplier, &[])?;
        // The driver chooses BAR, offset and length, then moves data through the four bytes behind them.
        let writable = [
            0, 0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        ];
        let window = add(Self::body(CAP_PCI_CONFIG, 0, 0, 0), &[0; 4], &writable)?;
        let msix_control = msix.add_capability(&mut space, BAR, MSIX_TABLE as u32, MSIX_PENDING as u32)?;
        Ok(Function {
            space,
            bar,
            msix_control,
            window: u16::from(window),
        })
    }

    /// Where the window's data lie.
    fn window_data(&self) -> u16 {
        self.window + 16
    }

    /// What an access to `len` bytes at `offset` asks of the BAR, if it touches the window's data and the
    /// driver chose something that is there (§4.1.4.9.1).
    fn window_access(&self, offset: u16, len: usize) -> Option<WindowAccess> {
        let (start, data) = (usize::from(offset), usize::from(self.window_data()));
        if start + len <= data || data + 4 <= start {
            return None;
        }
        let window = usize::from(self.window);
        let [bar] = self.space.get(window + 4);
        let offset = u64::from(self.space.u32(window + 8));
        let len = u64::from(self.space.u32(window + 12));
        let possible =
            bar == BAR && matches!(len, 1 | 2 | 4) && offset.is_multiple_of(len) && offset < BAR_SIZE;
        possible.then_some(WindowAccess {
            offset,
            len: len as usize,
        })
    }
}

/// A virtio device on the PCI bus.
pub struct PciTransport {
    function: Mutex<Function>,
    registers: Mutex<RegisterFile>,
    interrupt: Arc<MsixInterrupt>,
    doorbells: Arc<dyn Doorbells>,
}

impl PciTransport {
    /// Puts `device` behind registers in a BAR of [`BAR_SIZE`] bytes that lies at `bar` until the guest moves
    /// it. It has a vector for each queue and one for its configuration, of `msi`; `doorbells` are assigned
    /// while the BAR is on the bus.
    ///
    /// # Errors
    /// When the host has no more vectors or eventfds, a queue size is no power of two, or `bar` is no
    /// multiple of [`BAR_SIZE`].
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: SharedMemory,
        msi: &dyn MsiController,
        doorbells: Arc<dyn Doorbells>,
        bar: u64,
    ) -> Result<Self> {
        let device_type = device.device_id();
        let id = FIRST_DEVICE | device_type as u16 & 0x3f;
        let identity = Identity {
            vendor: VENDOR,
            device: id,
            revision: REVISION,
            class: class(device_type),
            subsystem_vendor: VENDOR,
            subsystem: id,
        };
        let queues = device.queue_sizes().len() as u16;
        let msix = Msix::new(msi, queues.saturating_add(1))?;
        let function = Function::new(identity, bar, &msix, queues)?;
        let needs_reset = Arc::new(AtomicBool::new(false));
        let interrupt = Arc::new(MsixInterrupt::new(msix, queues, needs_reset.clone()));
        let registers = RegisterFile::new(device, memory, interrupt.clone(), needs_reset)?;
        Ok(PciTransport {
            function: Mutex::new(function),
            registers: Mutex::new(registers),
            interrupt,
            doorbells,
        })
    }

    fn function(&self) -> MutexGuard<'_, Function> {
        self.function.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The registers, locked. A holder that panicked left them as the last whole access did.
    pub fn registers(&self) -> MutexGuard<'_, RegisterFile> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All that a restored transport must know. Only right while paused.
    pub fn save(&self) -> VirtioPciState {
        let mut virtio = self.registers().save();
        virtio.interrupt_status = u32::from(self.interrupt.isr());
        for (index, queue) in (0..).zip(&mut virtio.queues) {
            queue.vector = self.interrupt.vector(Vector::Queue(index));
        }
        VirtioPciState {
            virtio,
            config_vector: self.interrupt.vector(Vector::Config),
            config: self.function().space.save(),
            msix: self.interrupt.msix.save(),
        }
    }

    /// Takes up a saved state and stays paused. The bus then puts the BAR where it was
    /// ([`crate::pci::root::PciRoot::attach`] or `restore`).
    ///
    /// # Errors
    /// When the state is of another device or another layout of it.
    pub fn restore(&self, state: VirtioPciState) -> Result<()> {
        let device = self.registers().name();
        let mut function = self.function();
        function.space.restore(device, &state.config)?;
        let control = function.space.u16(usize::from(function.msix_control));
        self.interrupt.msix.restore(device, &state.msix, control)?;
        drop(function);
        self.interrupt.set_isr(state.virtio.interrupt_status as u8);
        self.interrupt.set_vector(Vector::Config, state.config_vector);
        for (index, queue) in (0..).zip(&state.virtio.queues) {
            self.interrupt.set_vector(Vector::Queue(index), queue.vector);
        }
        self.registers().restore(state.virtio)
    }

    /// Common configuration (§4.1.4.3): each field at its natural width, the 64-bit ones in halves.
    fn read_common(&self, offset: u64, data: &mut [u8]) {
        let registers = self.registers();
        let half = |part, shift: u32| (registers.ring_address(part) >> shift) as u32;
        let value = match (offset, data.len()) {
            (0x00, 4) => registers.device_features_page(),
            (0x04, 4) => registers.device_features(),
            (0x08, 4) => registers.driver_features_page(),
            (0x0c, 4) => registers.driver_features(),
            (0x10, 2) => u32::from(self.interrupt.vector(Vector::Config)),
            (0x12, 2) => u32::from(registers.queue_count()),
            (0x14, 1) => u32::from(registers.status()),
            (0x15, 1) => registers.config_generation(),
            (0x16, 2) => u32::from(registers.selected_queue()),
            (0x18, 2) => u32::from(registers.queue_size()),
            (0x1a, 2) => u32::from(self.interrupt.vector(Vector::Queue(registers.selected_queue()))),
            (0x1c, 2) => u32::from(registers.queue_ready()),
            (0x1e, 2) => u32::from(registers.selected_queue()),
            (0x20, 4) => half(RingPart::Descriptors, 0),
            (0x24, 4) => half(RingPart::Descriptors, 32),
            (0x28, 4) => half(RingPart::Available, 0),
            (0x2c, 4) => half(RingPart::Available, 32),
            (0x30, 4) => half(RingPart::Used, 0),
            (0x34, 4) => half(RingPart::Used, 32),
            _ => 0,
        };
        for (to, byte) in data.iter_mut().zip(value.to_le_bytes()) {
            *to = byte;
        }
    }

    fn write_common(&self, offset: u64, data: &[u8]) {
        let mut registers = self.registers();
        match *data {
            [status] if offset == 0x14 => {
                registers.set_status(status);
                if status == 0 {
                    self.interrupt.reset();
                }
            }
            [low, high] => {
                let value = u16::from_le_bytes([low, high]);
                match offset {
                    0x10 => self.interrupt.set_vector(Vector::Config, value),
                    0x16 => registers.select_queue(value),
                    0x18 => registers.set_queue_size(value),
                    0x1a => {
                        let queue = Vector::Queue(registers.selected_queue());
                        self.interrupt.set_vector(queue, value);
                    }
                    // A queue is disabled by a reset only (§4.1.4.3.2).
                    0x1c if value == 1 => registers.set_queue_ready(true),
                    _ => {}
                }
            }
            [a, b, c, d] => {
                let value = u32::from_le_bytes([a, b, c, d]);
                match offset {
                    0x00 => registers.select_device_features(value),
                    0x08 => registers.select_driver_features(value),
                    0x0c => registers.set_driver_features(value),
                    0x20 => registers.set_ring_address(RingPart::Descriptors, Some(value), None),
                    0x24 => registers.set_ring_address(RingPart::Descriptors, None, Some(value)),
                    0x28 => registers.set_ring_address(RingPart::Available, Some(value), None),
                    0x2c => registers.set_ring_address(RingPart::Available, None, Some(value)),
                    0x30 => registers.set_ring_address(RingPart::Used, Some(value), None),
                    0x34 => registers.set_ring_address(RingPart::Used, None, Some(value)),
                    _ => {}
                }
            }
            _ => {}
        }
    }

    /// The doorbells in the BAR at `base`: index, address.
    fn each_doorbell(&self, base: u64, mut act: impl FnMut(u64, &vmm_sys_util::eventfd::EventFd)) {
        let registers = self.registers();
        for index in 0..registers.queue_count() {
            if let Some(kick) = registers.kick(index) {
                act(
                    base + NOTIFY + u64::from(index) * u64::from(DOORBELL_SPACING),
                    kick,
                );
            }
        }
    }
}

impl PciFunction for PciTransport {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        let access = self.function().window_access(offset, data.len());
        if let Some(WindowAccess { offset, len }) = access {
            let mut value = [0; 4];
            if let Some(value) = value.get_mut(..len) {
                self.read_bar(BAR, offset, value);
            }
            let mut function = self.function();
            let at = usize::from(function.window_data());
            function.space.set(at, &value);
        }
        self.function().space.read(offset, data);
    }

    fn write_config(&self, offset: u16, data: &[u8]) {
        let mut function = self.function();
        let before = function.space.u16(usize::from(function.msix_control));
        function.space.write(offset, data);
        let control = function.space.u16(usize::from(function.msix_control));
        if control != before {
            self.interrupt.msix.set_control(control);
        }
        let access = function.window_access(offset, data.len());
        let value: [u8; 4] = function.space.get(usize::from(function.window_data()));
        drop(function);
        if let Some(WindowAccess { offset, len }) = access
            && let Some(value) = value.get(..len)
        {
            self.write_bar(BAR, offset, value);
        }
    }

    fn bars(&self) -> Vec<BarRange> {
        let function = self.function();
        function.bar.range(&function.space).into_iter().collect()
    }

    fn read_bar(&self, _bar: u8, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let within = offset % PAGE;
        match offset - within {
            COMMON => self.read_common(within, data),
            ISR => {
                if let (0, Some(first)) = (within, data.first_mut()) {
                    *first = self.interrupt.take_isr();
                }
            }
            DEVICE => self.registers().read_config(within, data),
            MSIX_TABLE => self.interrupt.msix.read_table(within, data),
            MSIX_PENDING => self.interrupt.msix.read_pending(within, data),
            _ => {}
        }
    }

    fn write_bar(&self, _bar: u8, offset: u64, data: &[u8]) {
        let within = offset % PAGE;
        match offset - within {
            COMMON => self.write_common(within, data),
            DEVICE => self.registers().write_config(within, data),
            // The address says which queue, as it does to the kernel's doorbells.
            NOTIFY if within.is_multiple_of(u64::from(DOORBELL_SPACING)) => {
                self.registers()
                    .ring((within / u64::from(DOORBELL_SPACING)) as u16);
            }
            MSIX_TABLE => self.interrupt.msix.write_table(within, data),
            _ => {}
        }
    }

    fn mapped(&self, range: BarRange) {
        self.each_doorbell(range.base, |address, kick| {
            if let Err(error) = self.doorbells.assign(address, kick) {
                log::warn!("the doorbell at {address:#x} is served by the monitor: {error}");
            }
        });
    }

    fn unmapped(&self, range: BarRange) {
        self.each_doorbell(range.base, |address, kick| {
            if let Err(error) = self.doorbells.release(address, kick) {
                log::debug!("the doorbell at {address:#x} was not there: {error}");
            }
        });
    }

    fn reset(&self) {
        self.registers().reset();
        self.interrupt.reset();
        let mut function = self.function();
        let bar = function.bar;
        function.space.reset();
        bar.reset(&mut function.space);
        self.interrupt.msix.reset();
    }
}

impl Transport for PciTransport {
    fn registers(&self) -> MutexGuard<'_, RegisterFile> {
        self.registers()
    }

    /// The bus moves the BAR home at its own reset.
    fn reset(&self) {
        PciFunction::reset(self);
    }

    fn save(&self) -> TransportState {
        TransportState::Pci(self.save())
    }

    fn restore(&self, state: TransportState) -> Result<()> {
        match state {
            TransportState::Pci(state) => self.restore(state),
            TransportState::Mmio(_) => Err(Error::State {
                device: self.registers().name(),
                reason: "it was behind virtio-mmio".into(),
            }),
        }
    }
}

#[cfg(test)]
mod tests;
