//! The PCI bus of a machine: devices come to its slots and leave them, while the guest runs too.

use std::sync::Arc;

use nacelle_devices::pci::hotplug::{self, HotPlug};
use nacelle_devices::pci::root::{CONFIG_PORTS, CONFIG_PORTS_SIZE, PciRoot, SLOTS};
use nacelle_devices::platform::i6300esb::{Alarm, I6300Esb};
use nacelle_devices::state::{HotPlugState, PciRootState};
use nacelle_devices::transport::Transport;
use nacelle_devices::transport::pci::{BAR_SIZE, PciTransport};
use nacelle_devices::virtio::VirtioDevice;
use nacelle_devices::worker::Placed;
use vm_memory::GuestAddressSpace;

use super::{DevicesState, Host, create, device_error};
use crate::irq::IoEventDoorbells;
use crate::memory::{self, ECAM_BASE, ECAM_SIZE, HOT_PLUG_BASE, PCI32_BASE, PCI32_SIZE, PCI64_SIZE};
use crate::{Result, VmEvent};

/// The bus, and how devices come and go.
pub(super) struct PciBus {
    root: Arc<PciRoot>,
    hot_plug: Arc<HotPlug>,
    /// Where BARs are at power-on, in the order of slots.
    bars: u64,
    watchdog: Option<(Arc<I6300Esb>, Placed<Alarm>)>,
}

/// Where a watchdog is: no device comes there, as there are never so many.
const WATCHDOG_SLOT: u8 = SLOTS - 1;

impl PciBus {
    /// Devices come while the guest runs to the slots up to `last_slot`.
    pub fn new(host: &Host, last_slot: u8, watchdog: bool) -> Result<Self> {
        let size = memory::size(&host.memory.memory());
        let bars = memory::pci64_base(size);
        let windows = vec![PCI32_BASE..PCI32_BASE + PCI32_SIZE, bars..bars + PCI64_SIZE];
        let root = PciRoot::new(&host.buses.memory, windows);
        let power = Arc::clone(&host.power);
        let ejected = Box::new(move |id: &str| power.tell(VmEvent::Detached { id: id.into() }));
        let hot_plug = Arc::new(HotPlug::new(Arc::clone(&root), last_slot, ejected));
        let buses = &host.buses;
        for (bus, name, base, size, device) in [
            (
                &buses.memory,
                "PCI configuration",
                ECAM_BASE,
                ECAM_SIZE,
                root.ecam(),
            ),
            (
                &buses.ports,
                "PCI ports",
                CONFIG_PORTS,
                CONFIG_PORTS_SIZE,
                root.ports(),
            ),
            (
                &buses.memory,
                "PCI hot-plug",
                HOT_PLUG_BASE,
                hotplug::SIZE,
                hot_plug.clone(),
            ),
        ] {
            bus.insert(name, base, size, device).map_err(device_error(name))?;
        }
        let mut bus = PciBus {
            root,
            hot_plug,
            bars,
            watchdog: None,
        };
        if watchdog {
            bus.watch(host)?;
        }
        Ok(bus)
    }

    /// Where the BAR of the function in `slot` is at power-on. Slot 0 is the host bridge's, which has none.
    fn home(&self, slot: u8) -> u64 {
        self.bars + u64::from(slot.saturating_sub(1)) * BAR_SIZE
    }

    /// Plugs a watchdog in.
    fn watch(&mut self, host: &Host) -> Result<()> {
        let power = Arc::clone(&host.power);
        let bites = Box::new(move || power.tell(VmEvent::Watchdog));
        let plug = || {
            let (watchdog, alarm) = I6300Esb::new(self.home(WATCHDOG_SLOT), bites)?;
            self.root.attach(WATCHDOG_SLOT, "watchdog", watchdog.clone())?;
            Ok((watchdog, alarm))
        };
        let (watchdog, alarm) = plug().map_err(device_error("watchdog"))?;
        let alarm = create::worker(host)?
            .add(alarm)
            .map_err(device_error("watchdog"))?;
        self.watchdog = Some((watchdog, alarm));
        Ok(())
    }

    /// The watchdog, where there is one.
    pub fn watchdog(&self) -> Option<&I6300Esb> {
        self.watchdog.as_ref().map(|(watchdog, _)| &**watchdog)
    }

    /// Plugs `device` into `slot`.
    pub fn attach(
        &self,
        host: &Host,
        id: &str,
        slot: u8,
        device: Box<dyn VirtioDevice>,
    ) -> Result<Arc<dyn Transport>> {
        let doorbells = Arc::new(IoEventDoorbells(Arc::clone(&host.partition)));
        let function = PciTransport::new(
            device,
            host.memory.clone(),
            &*host.msi,
            doorbells,
            self.home(slot),
        );
        let function = Arc::new(function.map_err(device_error(id))?);
        self.root
            .attach(slot, id, function.clone())
            .map_err(device_error(id))?;
        Ok(function)
    }

    /// How devices come and go while the guest runs.
    pub fn hot_plug(&self) -> &HotPlug {
        &self.hot_plug
    }

    /// Brings the bus back to how it was at power-on; what was to leave has left.
    pub fn reset(&self) {
        self.hot_plug.reset();
        self.root.reset();
    }

    /// Adds to `state` what the bus keeps.
    pub fn save(&self, state: &mut DevicesState) {
        state.pci = Some(self.root.save());
        state.hot_plug = self.hot_plug.save();
        state.watchdog = self.watchdog().map(I6300Esb::save);
    }

    /// Takes up a saved state, after the devices have.
    pub fn restore(&self, state: &PciRootState, hot_plug: &HotPlugState) -> Result<()> {
        self.root.restore(state).map_err(device_error("PCI bus"))?;
        self.hot_plug.restore(hot_plug);
        Ok(())
    }
}
