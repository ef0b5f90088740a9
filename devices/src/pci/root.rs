//! The bus: slots, and the two ways into configuration space (ECAM; ports 0xcf8 to 0xcff).
//!
//! After every write to configuration space the bus brings the ranges of all functions to where the guest
//! wants them. A range that is outside the bridge's windows, or where another answers already, is kept off
//! the memory bus until it can be put there.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::PciFunction;
use super::bar::BarRange;
use super::config::{ConfigSpace, Identity};
use crate::bus::{Bus, BusDevice};
use crate::state::PciRootState;
use crate::{Error, Result};

/// Slots of the bus, the host bridge's at 0 among them.
pub const SLOTS: u8 = 32;
/// Size of the ECAM window: one bus (MCFG: start and end bus 0).
pub const ECAM_SIZE: u64 = 1 << 20;
/// First of the configuration ports.
pub const CONFIG_PORTS: u64 = 0xcf8;
/// How many there are.
pub const CONFIG_PORTS_SIZE: u64 = 8;

/// Red Hat's generic PCI Express host bridge: what QEMU shows where a machine is no particular chipset, so
/// no driver looks for more behind it.
const HOST_BRIDGE: Identity = Identity {
    vendor: 0x1b36,
    device: 0x0008,
    revision: 0,
    class: [0x06, 0x00, 0x00],
    subsystem_vendor: 0x1af4,
    subsystem: 0x1100,
};

/// The host bridge: there is nothing behind it to set up.
struct HostBridge(Mutex<ConfigSpace>);

impl HostBridge {
    fn space(&self) -> MutexGuard<'_, ConfigSpace> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PciFunction for HostBridge {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        self.space().read(offset, data);
    }
    fn write_config(&self, offset: u16, data: &[u8]) {
        self.space().write(offset, data);
    }
    fn bars(&self) -> Vec<BarRange> {
        Vec::new()
    }
    fn read_bar(&self, _bar: u8, _offset: u64, _data: &mut [u8]) {}
    fn write_bar(&self, _bar: u8, _offset: u64, _data: &[u8]) {}
    fn reset(&self) {
        self.space().reset();
    }
}

struct Plugged {
    name: String,
    function: Arc<dyn PciFunction>,
    /// What of it is on the memory bus.
    mapped: Vec<BarRange>,
}

/// Bus 0 and what is plugged into it.
pub struct PciRoot {
    /// The bus holds the windows that hold this; so not the other way round.
    bus: Weak<Bus>,
    windows: Vec<Range<u64>>,
    host_bridge: Arc<HostBridge>,
    config_address: AtomicU32,
    slots: Mutex<[Option<Plugged>; SLOTS as usize]>,
}

impl PciRoot {
    /// A bus with a host bridge. Functions answer on `bus`, within `windows` only: the guest is told of them
    /// (ACPI `_CRS`).
    pub fn new(bus: &Arc<Bus>, windows: Vec<Range<u64>>) -> Arc<Self> {
        let host_bridge = Arc::new(HostBridge(Mutex::new(ConfigSpace::new(HOST_BRIDGE))));
        let mut slots = [const { None }; SLOTS as usize];
        slots[0] = Some(Plugged {
            name: "host bridge".into(),
            function: host_bridge.clone(),
            mapped: Vec::new(),
        });
        Arc::new(PciRoot {
            bus: Arc::downgrade(bus),
            windows,
            host_bridge,
            config_address: AtomicU32::new(0),
            slots: Mutex::new(slots),
        })
    }

    /// Configuration space as memory, [`ECAM_SIZE`] bytes: to be put on the memory bus.
    pub fn ecam(self: &Arc<Self>) -> Arc<dyn BusDevice> {
        Arc::new(Ecam(self.clone()))
    }

    /// Configuration space behind [`CONFIG_PORTS`]: to be put on the port bus.
    pub fn ports(self: &Arc<Self>) -> Arc<dyn BusDevice> {
        Arc::new(ConfigPorts(self.clone()))
    }

    fn slots(&self) -> MutexGuard<'_, [Option<Plugged>; SLOTS as usize]> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Plugs `function` into `slot`; `name` is for messages.
    ///
    /// # Errors
    /// When there is no such slot, or it is taken.
    pub fn attach(&self, slot: u8, name: &str, function: Arc<dyn PciFunction>) -> Result<()> {
        let mut slots = self.slots();
        let refuse = |reason: String| Error::Slot { slot, reason };
        let place = slots
            .get_mut(usize::from(slot))
            .ok_or_else(|| refuse(format!("there are {SLOTS}")))?;
        if let Some(other) = place {
            return Err(refuse(format!("{} is there", other.name)));
        }
        *place = Some(Plugged {
            name: name.to_owned(),
            function,
            mapped: Vec::new(),
        });
        self.settle(&mut *slots);
        Ok(())
    }

    /// Takes what is in `slot` out, off the memory bus first: its name, and it.
    pub fn detach(&self, slot: u8) -> Option<(String, Arc<dyn PciFunction>)> {
        let mut slots = self.slots();
        let plugged = slots.get_mut(usize::from(slot))?.take()?;
        for range in &plugged.mapped {
            self.unmap(&plugged, *range);
        }
        self.settle(&mut *slots);
        Some((plugged.name, plugged.function))
    }

    /// Brings the bus and every function on it back to how they were at power-on.
    pub fn reset(&self) {
        self.config_address.store(0, Ordering::Release);
        let mut slots = self.slots();
        for plugged in slots.iter().flatten() {
            plugged.function.reset();
        }
        self.settle(&mut *slots);
    }

    /// What the bus itself keeps; each function is saved by its owner.
    pub fn save(&self) -> PciRootState {
        PciRootState {
            config_address: self.config_address.load(Ordering::Acquire),
            host_bridge: self.host_bridge.space().save(),
        }
    }

    /// Takes up a saved state, after the functions have taken up theirs: their ranges go where they were.
    ///
    /// # Errors
    /// When the host bridge saved is another.
    pub fn restore(&self, state: &PciRootState) -> Result<()> {
        self.host_bridge
            .space()
            .restore("PCI host bridge", &state.host_bridge)?;
        self.config_address.store(state.config_address, Ordering::Release);
        self.settle(&mut *self.slots());
        Ok(())
    }

    /// The function that both mechanisms name by these bits: 7..3 the slot, 2..0 the function, of which we
    /// have number 0 only.
    fn function(&self, device_function: u64) -> Option<Arc<dyn PciFunction>> {
        if !device_function.is_multiple_of(8) {
            return None;
        }
        let slots = self.slots();
        let plugged = slots.get(usize::try_from(device_function / 8).ok()?)?.as_ref()?;
        Some(plugged.function.clone())
    }

    fn read_config(&self, device_function: u64, offset: u16, data: &mut [u8]) {
        match self.function(device_function) {
            Some(function) => function.read_config(offset, data),
            None => data.fill(0xff),
        }
    }

    fn write_config(&self, device_function: u64, offset: u16, data: &[u8]) {
        if let Some(function) = self.function(device_function) {
            function.write_config(offset, data);
            self.settle(&mut *self.slots());
        }
    }

    /// Brings every range to where its function answers now. First off, then on: one function may take the
    /// place that another leaves.
    fn settle(&self, slots: &mut [Option<Plugged>]) {
        for plugged in slots.iter_mut().flatten() {
            let wanted = plugged.function.bars();
            let (stay, leave) = plugged.mapped.iter().partition(|range| wanted.contains(range));
            plugged.mapped = stay;
            let leave: Vec<BarRange> = leave;
            for range in leave {
                self.unmap(plugged, range);
            }
        }
        for plugged in slots.iter_mut().flatten() {
            for range in plugged.function.bars() {
                if !plugged.mapped.contains(&range) && self.map(plugged, range) {
                    plugged.mapped.push(range);
                }
            }
        }
    }

    fn map(&self, plugged: &Plugged, range: BarRange) -> bool {
        let inside = |window: &Range<u64>| {
            let end = range.base.checked_add(range.size);
            window.start <= range.base && end.is_some_and(|end| end <= window.end)
        };
        let Some(bus) = self.bus.upgrade() else {
            return false;
        };
        if !self.windows.iter().any(inside) {
            log::debug!(
                "{}: {range:x?} is outside the windows of the bridge",
                plugged.name
            );
            return false;
        }
        let memory = BarMemory {
            function: plugged.function.clone(),
            bar: range.index,
        };
        if let Err(error) = bus.insert(&plugged.name, range.base, range.size, Arc::new(memory)) {
            log::debug!("{}: BAR {} stays off the bus: {error}", plugged.name, range.index);
            return false;
        }
        plugged.function.mapped(range);
        true
    }

    fn unmap(&self, plugged: &Plugged, range: BarRange) {
        plugged.function.unmapped(range);
        if let Some(bus) = self.bus.upgrade() {
            bus.remove(range.base);
        }
    }
}

/// What the memory bus holds of a function.
struct BarMemory {
    function: Arc<dyn PciFunction>,
    bar: u8,
}

impl BusDevice for BarMemory {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.function.read_bar(self.bar, offset, data);
    }
    fn write(&self, offset: u64, data: &[u8]) {
        self.function.write_bar(self.bar, offset, data);
    }
}

/// Enhanced configuration access: bits 19..12 name device and function, 11..0 the register.
struct Ecam(Arc<PciRoot>);

impl BusDevice for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.0.read_config(offset >> 12, (offset & 0xfff) as u16, data);
    }
    fn write(&self, offset: u64, data: &[u8]) {
        self.0.write_config(offset >> 12, (offset & 0xfff) as u16, data);
    }
}

/// Configuration mechanism #1 (PCI 3.0, §3.2.2.3.2): an address at the first four ports, data at the others.
struct ConfigPorts(Arc<PciRoot>);

impl ConfigPorts {
    /// Device and function, and register, that an access at the data ports is for; bus 0 only.
    fn target(&self, offset: u64) -> Option<(u64, u16)> {
        let byte = offset.checked_sub(4)?;
        let address = self.0.config_address.load(Ordering::Acquire);
        let enabled = address & 1 << 31 != 0;
        let bus = address >> 16 & 0xff;
        let register = (address & 0xfc) as u16;
        (enabled && bus == 0).then_some((u64::from(address >> 8 & 0xff), register + byte as u16))
    }
}

impl BusDevice for ConfigPorts {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some((device_function, register)) = self.target(offset) {
            self.0.read_config(device_function, register, data);
        } else if offset == 0
            && let Ok(data) = <&mut [u8; 4]>::try_from(&mut *data)
        {
            *data = self.0.config_address.load(Ordering::Acquire).to_le_bytes();
        } else {
            data.fill(0xff);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some((device_function, register)) = self.target(offset) {
            self.0.write_config(device_function, register, data);
        } else if offset == 0
            && let Ok(&data) = <&[u8; 4]>::try_from(data)
        {
            // Only whole double words are for this register; narrower ones pass it by.
            self.0
                .config_address
                .store(u32::from_le_bytes(data), Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests;
