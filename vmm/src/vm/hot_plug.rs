//! Devices that come and go.

use std::fs::File;

use nacelle_devices::platform::ged;

use super::{Lifecycle, Vm};
use crate::config::{DeviceConfig, Opened};
use crate::migrate::message::DeviceDescription;
use crate::{Error, Result};

impl Vm {
    /// Plugs a device in. A running guest is told (ACPI) and finds it by itself where it has a driver for PCI
    /// hot-plug (Linux: `CONFIG_HOTPLUG_PCI_ACPI`).
    ///
    /// # Errors
    /// When the machine is paused, its devices are on virtio-mmio, it has a device of that name, no slot is free, or
    /// the device cannot be made. Then nothing has changed.
    pub fn attach(&mut self, device: DeviceConfig) -> Result<()> {
        self.attach_opened(device, Vec::new())
    }

    /// The same with the files of a disk that somebody opened for it, as [`crate::config::Opened::disks`] has them: its path
    /// is then but its name.
    ///
    /// # Errors
    /// As [`Vm::attach`].
    pub fn attach_opened(&mut self, device: DeviceConfig, files: Vec<File>) -> Result<()> {
        device.validate()?;
        self.may_change("attach a device")?;
        if self.description.devices.iter().any(|there| there.id == device.id) {
            let reason = format!("there is a device named {} already", device.id);
            return Err(Error::Config {
                field: "devices",
                reason,
            });
        }
        let mut description = DeviceDescription::of(&device);
        let mut opened = Opened::default();
        if !files.is_empty() {
            opened.disks.insert(device.id.clone(), files);
        }
        description.slot = self.devices.attach(device, &mut opened)?;
        let (id, slot) = (description.id.clone(), description.slot);
        self.description.devices.push(description);
        self.consoles.extend(self.devices.take_consoles());
        let told = self.tell_of(&id, slot);
        if told.is_err() {
            self.remove(&id)?;
        }
        told
    }

    fn tell_of(&self, id: &str, slot: u8) -> Result<()> {
        if let Some(writes) = self.kernel_writes.upgrade() {
            self.devices.log_writes_of(id, &writes)?;
        }
        if self.lifecycle == Lifecycle::Running {
            self.devices.hot_plug()?.insert(slot);
            self.platform.notify(ged::PCI_HOT_PLUG)?;
        }
        Ok(())
    }

    /// Asks a running guest to let go of device `id`; [`crate::VmEvent::Detached`] says when it has, which may be never. From
    /// a machine that has not run yet it is taken at once; a reset takes it, too.
    ///
    /// # Errors
    /// When the machine is paused, its devices are on virtio-mmio, or it has no such device.
    pub fn detach(&mut self, id: &str) -> Result<()> {
        self.may_change("detach a device")?;
        let slot = self.devices.slot(id)?;
        let hot_plug = self.devices.hot_plug()?;
        hot_plug.request(slot);
        if self.lifecycle == Lifecycle::Created {
            hot_plug.reset();
            return Ok(());
        }
        self.platform.notify(ged::PCI_HOT_PLUG)
    }

    /// Closes all that device `id` has of the host, after [`crate::VmEvent::Detached`]. One that is still there is taken off
    /// the bus under the guest's feet.
    ///
    /// # Errors
    /// When its devices are on virtio-mmio, or it has no such device.
    pub fn remove(&mut self, id: &str) -> Result<()> {
        self.devices.remove(id)?;
        self.description.devices.retain(|device| device.id != id);
        Ok(())
    }

    fn may_change(&self, what: &'static str) -> Result<()> {
        // An interrupt would come between the state that a pause keeps and what is saved of it.
        match self.lifecycle {
            Lifecycle::Paused => Err(self.refuse(what)),
            Lifecycle::Created | Lifecycle::Running => self.devices.hot_plug().map(drop),
        }
    }
}
