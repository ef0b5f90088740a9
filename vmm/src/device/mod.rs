//! The devices of a machine: made, placed, held still and set going together.

mod create;
mod kernel_writes;
mod pci;
pub mod platform;
mod state;

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;

use nacelle_devices::Error as DeviceError;
use nacelle_devices::disk::{Disk, Lock, Pool};
use nacelle_devices::irq::MsiController;
use nacelle_devices::memory::SharedMemory;
use nacelle_devices::pci::hotplug::HotPlug;
use nacelle_devices::pci::root::SLOTS;
use nacelle_devices::platform::i6300esb::I6300Esb;
use nacelle_devices::transport::Transport;
use nacelle_devices::transport::mmio::{self, MmioTransport};
use nacelle_devices::virtio::VirtioDevice;
use nacelle_devices::virtio::balloon::BalloonControl;
use nacelle_devices::worker::Worker;
use vm_memory::GuestAddressSpace;

use self::create::{Control, Created};
pub(crate) use self::kernel_writes::KernelWrites;
use self::pci::PciBus;
pub(crate) use self::state::places;
pub use self::state::{DevicesState, NamedState};
use crate::config::{DeviceConfig, Opened, Transport as TransportKind};
use crate::hypervisor::{IoAddress, Partition};
use crate::irq;
use crate::memory::MMIO_BASE;
use crate::migrate::Local;
use crate::power::Power;
use crate::stats::{self, Stats};
use crate::vcpu::Buses;
use crate::{Error, Result};

/// I/O APIC pins that virtio-mmio devices get, in order; the others belong to the platform.
const MMIO_PINS: [u32; 15] = [5, 6, 7, 10, 11, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22];

/// What devices are built from.
pub(crate) struct Host {
    pub partition: Arc<dyn Partition>,
    pub memory: SharedMemory,
    pub buses: Buses,
    pub msi: Arc<dyn MsiController>,
    pub workers: Vec<Worker>,
    /// Threads for disk operations that block.
    pub pool: Pool,
    /// Directory for what ends with the machine.
    pub scratch: PathBuf,
    /// When disks are locked.
    pub lock: Lock,
    /// The way to the machine's owner.
    pub power: Arc<Power>,
}

/// A device in its place.
struct Attached {
    id: String,
    slot: u8,
    transport: Arc<dyn Transport>,
    control: Control,
    /// Why it cannot move to another monitor.
    stays: Option<&'static str>,
    /// The host's kernel writes guest memory for it.
    in_kernel: bool,
}

/// All virtio devices of a machine, in the order in which the guest finds them.
pub(crate) struct DeviceManager {
    attached: Vec<Attached>,
    host: Host,
    /// Addresses and interrupts of those on virtio-mmio.
    mmio: Vec<(u64, u32)>,
    /// The bus of those on virtio-pci.
    pci: Option<PciBus>,
    /// Host's ends of console ports, in order.
    consoles: Vec<UnixStream>,
}

/// The first slot up to `last` that is not `taken`.
pub(crate) fn free_slot(last: u8, taken: impl Fn(u8) -> bool) -> Result<u8> {
    (1..=last)
        .find(|slot| !taken(*slot))
        .ok_or_else(|| Error::Config {
            field: "devices",
            reason: match last {
                last if last == SLOTS - 1 => format!("all {last} slots of the bus are taken"),
                _ => format!("all {last} slots that the guest knows are taken (hot_plug_slots)"),
            },
        })
}

fn device_error(id: &str) -> impl FnOnce(DeviceError) -> Error {
    let id = id.to_owned();
    move |source| Error::Device { id, source }
}

impl DeviceManager {
    /// Makes the devices of `configs` and puts them where the guest finds them; as many slots as `spare` stay free for
    /// those that come later. A watchdog takes the last slot of all.
    pub fn new(
        host: Host,
        transport: TransportKind,
        configs: Vec<DeviceConfig>,
        spare: u8,
        watchdog: bool,
        mut opened: Opened,
    ) -> Result<Self> {
        let last = configs.iter().filter_map(|config| config.slot).max();
        let most = SLOTS - 1 - u8::from(watchdog);
        let last = last.unwrap_or(0).saturating_add(spare).min(most);
        let pci = match transport {
            TransportKind::Pci => Some(PciBus::new(&host, last, watchdog)?),
            TransportKind::Mmio if watchdog => {
                return Err(Error::Config {
                    field: "watchdog",
                    reason: "it lives on a PCI bus, and this machine has virtio-mmio".into(),
                });
            }
            TransportKind::Mmio => None,
        };
        let mut manager = DeviceManager {
            attached: Vec::new(),
            host,
            mmio: Vec::new(),
            pci,
            consoles: Vec::new(),
        };
        for config in configs {
            manager.attach(config, &mut opened)?;
        }
        Ok(manager)
    }

    /// Makes a device, with what somebody opened for it, and puts it where the guest finds it: the slot.
    pub fn attach(&mut self, config: DeviceConfig, opened: &mut Opened) -> Result<u8> {
        let DeviceConfig { id, kind, slot } = config;
        let last = self.last_slot().unwrap_or(SLOTS - 1);
        let slot = match slot {
            Some(slot) if slot > last => {
                let reason =
                    format!("{id} is to be in slot {slot}, and the guest knows of {last} (hot_plug_slots)");
                return Err(Error::Config {
                    field: "devices",
                    reason,
                });
            }
            Some(slot) => slot,
            None => free_slot(last, |slot| {
                self.attached.iter().any(|attached| attached.slot == slot)
            })?,
        };
        let Created {
            device,
            control,
            consoles,
            stays,
            in_kernel,
        } = create::device(&self.host, &id, kind, opened)?;
        let transport = match &self.pci {
            Some(bus) => bus.attach(&self.host, &id, slot, device)?,
            None => self.attach_mmio(&id, slot, device)?,
        };
        self.consoles.extend(consoles);
        self.attached.push(Attached {
            id,
            slot,
            transport,
            control,
            stays,
            in_kernel,
        });
        Ok(slot)
    }

    /// How devices come and go while the guest runs.
    ///
    /// # Errors
    /// When it finds them on virtio-mmio, where they do not.
    pub fn hot_plug(&self) -> Result<&HotPlug> {
        let bus = self.pci.as_ref().ok_or_else(|| {
            Error::Cannot("devices come and go on a PCI bus, and this machine has virtio-mmio".into())
        })?;
        Ok(bus.hot_plug())
    }

    /// The last slot of the PCI bus that devices come to; none where they are on virtio-mmio.
    pub fn last_slot(&self) -> Option<u8> {
        self.pci.as_ref().map(|bus| bus.hot_plug().last_slot())
    }

    /// The slot of device `id`.
    pub fn slot(&self, id: &str) -> Result<u8> {
        Ok(self.find(id)?.slot)
    }

    /// Takes device `id` off the bus, if it is still there, and lets go of all that it has of the host.
    pub fn remove(&mut self, id: &str) -> Result<()> {
        let slot = self.slot(id)?;
        self.hot_plug()?.remove(slot);
        self.attached.retain(|attached| attached.id != id);
        Ok(())
    }

    fn find(&self, id: &str) -> Result<&Attached> {
        let mut attached = self.attached.iter();
        attached
            .find(|attached| attached.id == id)
            .ok_or_else(|| Error::NotFound(format!("device {id} in this machine")))
    }

    fn attach_mmio(
        &mut self,
        id: &str,
        slot: u8,
        device: Box<dyn VirtioDevice>,
    ) -> Result<Arc<dyn Transport>> {
        let host = &self.host;
        let page = slot.saturating_sub(1);
        let Some(&gsi) = MMIO_PINS.get(usize::from(page)) else {
            let reason = format!("virtio-mmio has interrupts for {} devices", MMIO_PINS.len());
            return Err(Error::Config {
                field: "devices",
                reason,
            });
        };
        let base = MMIO_BASE + u64::from(page) * mmio::SIZE;
        let line = irq::line(&*host.partition, gsi)?;
        let transport = MmioTransport::new(device, host.memory.clone(), line).map_err(device_error(id))?;
        let transport = Arc::new(transport);
        {
            let registers = transport.registers();
            for index in 0..registers.queue_count() {
                if let Some(kick) = registers.kick(index) {
                    let doorbell = IoAddress::Memory(base + mmio::NOTIFY_OFFSET, Some(index.into()));
                    host.partition.add_ioeventfd(kick, doorbell)?;
                }
            }
        }
        host.buses
            .memory
            .insert(id, base, mmio::SIZE, transport.clone())
            .map_err(device_error(id))?;
        self.mmio.push((base, gsi));
        Ok(transport)
    }

    /// Addresses and interrupts of the devices on virtio-mmio, for the tables.
    pub fn mmio(&self) -> &[(u64, u32)] {
        &self.mmio
    }

    /// Gives the host's ends of console ports away.
    pub fn take_consoles(&mut self) -> Vec<UnixStream> {
        std::mem::take(&mut self.consoles)
    }

    /// The balloon, where there is one.
    pub fn balloon(&self) -> Option<&BalloonControl> {
        self.attached.iter().find_map(|attached| match &attached.control {
            Control::Balloon(control) => Some(control),
            _ => None,
        })
    }

    /// What cannot move to another monitor, and why.
    pub fn staying(&self) -> Option<(&str, &'static str)> {
        let mut attached = self.attached.iter();
        attached.find_map(|attached| Some((attached.id.as_str(), attached.stays?)))
    }

    /// Has the host's kernel note what it writes to guest memory, where it serves devices.
    pub fn log_writes(&self) -> Result<Arc<KernelWrites>> {
        let writes = Arc::new(KernelWrites::new(&self.host.memory.memory()));
        for attached in self.attached.iter().filter(|attached| attached.in_kernel) {
            let set = writes.note(&attached.transport);
            set.map_err(device_error(&attached.id))?;
        }
        Ok(writes)
    }

    /// The same for device `id` alone, which has come since.
    pub fn log_writes_of(&self, id: &str, writes: &KernelWrites) -> Result<()> {
        let attached = self.find(id)?;
        match attached.in_kernel {
            true => writes.note(&attached.transport).map_err(device_error(id)),
            false => Ok(()),
        }
    }

    /// Brings what was written to stable storage and lets another machine have the disks. Only right while
    /// paused.
    pub fn unlock_disks(&self) -> Result<()> {
        self.each_disk(|disk| disk.unlock())
    }

    /// Takes the disks, which nobody else may have, and the socket.
    pub fn lock_disks(&self) -> Result<()> {
        self.give_socket(false);
        self.each_disk(|disk| disk.lock())
    }

    /// Leaves disks, locks and all, and the socket to who has [`DeviceManager::opened`]. Only right while paused.
    pub fn hand_over(&self) -> Result<()> {
        self.each_disk(|disk| disk.hand_over())?;
        self.give_socket(true);
        Ok(())
    }

    fn give_socket(&self, given: bool) {
        for attached in &self.attached {
            if let Control::Vsock(control) = &attached.control {
                control.give(given);
            }
        }
    }

    /// Descriptors of what the devices have open, but for what their owner opened.
    pub fn opened(&self) -> Result<Opened> {
        let mut opened = Opened::default();
        for attached in &self.attached {
            match &attached.control {
                Control::Disk(control, _) => {
                    let files = control.disk().files().map_err(device_error(&attached.id))?;
                    opened.disks.insert(attached.id.clone(), files);
                }
                Control::Vsock(control) => {
                    opened.vsock = Some(control.listener().map_err(device_error(&attached.id))?);
                }
                Control::Net(_) | Control::Balloon(_) | Control::None => {}
            }
        }
        Ok(opened)
    }

    /// The disk that is this device.
    pub fn disk(&self, id: &str) -> Option<Arc<dyn Disk>> {
        self.attached.iter().find_map(|attached| match &attached.control {
            Control::Disk(control, _) if attached.id == id => Some(Arc::clone(control.disk())),
            _ => None,
        })
    }

    /// The disks that must go along to another host: those that end with the machine, and `copied`.
    pub fn local_disks(&self, copied: &[String]) -> Result<Vec<Local>> {
        if let Some(id) = copied.iter().find(|id| self.disk(id).is_none()) {
            return Err(Error::NotFound(format!("disk {id}")));
        }
        let local = |attached: &Attached| match &attached.control {
            Control::Disk(control, own) if own.local || copied.contains(&attached.id) => Some(Local {
                id: attached.id.clone(),
                disk: Arc::clone(control.disk()),
                changes: own.changes.clone(),
            }),
            _ => None,
        };
        let disks: Vec<Local> = self.attached.iter().filter_map(local).collect();
        // What nobody can write is the same everywhere.
        Ok(disks
            .into_iter()
            .filter(|local| !local.disk.read_only())
            .collect())
    }

    fn each_disk(&self, act: impl Fn(&dyn Disk) -> nacelle_devices::Result<()>) -> Result<()> {
        self.each(|attached| match &attached.control {
            Control::Disk(control, _) => act(&**control.disk()),
            _ => Ok(()),
        })
    }

    /// Makes the guest known on its networks at its new place.
    pub fn announce(&self) {
        for attached in &self.attached {
            if let Control::Net(control) = &attached.control
                && let Err(error) = control.announce()
            {
                log::warn!("{}: {error}", attached.id);
            }
        }
    }

    /// Adds what the devices count to `stats`.
    pub fn count(&self, stats: &mut Stats) {
        for attached in &self.attached {
            match &attached.control {
                Control::Disk(control, _) => stats.disks.push(stats::disk(&attached.id, control)),
                Control::Net(control) => stats.nets.push(stats::net(&attached.id, control)),
                Control::Balloon(control) => stats.balloon = Some(stats::balloon(control)),
                Control::Vsock(_) | Control::None => {}
            }
        }
    }

    /// Holds every device still; nothing is in flight afterwards.
    pub fn pause(&self) -> Result<()> {
        if let Some(watchdog) = self.watchdog() {
            watchdog.pause();
        }
        self.each(|attached| attached.transport.pause())
    }

    /// Lets every device go on.
    pub fn resume(&self) -> Result<()> {
        self.each(|attached| attached.transport.resume())?;
        if let Some(watchdog) = self.watchdog() {
            watchdog.resume();
        }
        Ok(())
    }

    fn watchdog(&self) -> Option<&I6300Esb> {
        self.pci.as_ref()?.watchdog()
    }

    /// Brings every device back to how it was at power-on.
    pub fn reset(&self) {
        for attached in &self.attached {
            attached.transport.reset();
        }
        if let Some(bus) = &self.pci {
            bus.reset();
        }
    }

    /// What every device saves. Only right while paused.
    pub fn save(&self) -> DevicesState {
        let save = |attached: &Attached| NamedState {
            id: attached.id.clone(),
            slot: attached.slot,
            transport: attached.transport.save(),
        };
        let mut state = DevicesState {
            virtio: self.attached.iter().map(save).collect(),
            ..DevicesState::default()
        };
        if let Some(bus) = &self.pci {
            bus.save(&mut state);
        }
        state
    }

    /// Gives every device its saved state; they stay paused.
    pub fn restore(&self, state: DevicesState) -> Result<()> {
        let mut states = state.virtio;
        self.each_id(|attached| {
            let Some(at) = states.iter().position(|state| state.id == attached.id) else {
                return Err(Error::Restore(format!("it knows no device {}", attached.id)));
            };
            let state = states.swap_remove(at);
            attached
                .transport
                .restore(state.transport)
                .map_err(device_error(&attached.id))
        })?;
        if let Some(state) = states.first() {
            return Err(Error::Restore(format!("there is no device {} here", state.id)));
        }
        match (self.watchdog(), &state.watchdog) {
            (Some(watchdog), Some(state)) => watchdog.restore(state).map_err(device_error("watchdog"))?,
            (None, None) => {}
            (Some(_), None) => return Err(Error::Restore("it has no watchdog".into())),
            (None, Some(_)) => return Err(Error::Restore("there is no watchdog here".into())),
        }
        match (&self.pci, state.pci) {
            (Some(bus), Some(pci)) => bus.restore(&pci, &state.hot_plug),
            (None, None) => Ok(()),
            (Some(_), None) => Err(Error::Restore("it has no PCI bus".into())),
            (None, Some(_)) => Err(Error::Restore("there is no PCI bus here".into())),
        }
    }

    fn each(&self, act: impl Fn(&Attached) -> nacelle_devices::Result<()>) -> Result<()> {
        self.each_id(|attached| act(attached).map_err(device_error(&attached.id)))
    }

    /// Acts on every device even when one fails; gives the first failure.
    fn each_id(&self, mut act: impl FnMut(&Attached) -> Result<()>) -> Result<()> {
        let mut first = Ok(());
        for attached in &self.attached {
            first = first.and(act(attached));
        }
        first
    }
}
