//! What the devices of a machine save.

use nacelle_devices::state::{HotPlugState, PciRootState, TransportState, WatchdogState};
use serde::{Deserialize, Serialize};

/// All that the devices of a machine save.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DevicesState {
    /// The PCI bus, where there is one.
    pub pci: Option<PciRootState>,
    /// Devices that come and go on it.
    pub hot_plug: HotPlugState,
    /// The watchdog, where there is one.
    pub watchdog: Option<WatchdogState>,
    /// Virtio devices.
    pub virtio: Vec<NamedState>,
}

/// A device's saved state, with the name that finds it again.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NamedState {
    /// Name of the device in the configuration.
    pub id: String,
    /// Where the guest knows it ([`crate::config::DeviceConfig::slot`]); 0: by its place in the list, from 1 on.
    #[serde(default)]
    pub slot: u8,
    /// What it saved.
    pub transport: TransportState,
}

impl DevicesState {
    /// Where the guest knows the devices, by name.
    pub(crate) fn places(&self) -> Vec<(&str, u8)> {
        places(self.virtio.iter().map(|state| (state.id.as_str(), state.slot)))
    }
}

/// Names and slots; those of a version that knew no slots (0) are in order.
pub(crate) fn places<'a>(devices: impl Iterator<Item = (&'a str, u8)>) -> Vec<(&'a str, u8)> {
    // No bus has more slots than a byte counts, whatever the other side says.
    let numbered = (1..=u8::MAX).zip(devices);
    numbered
        .map(|(place, (id, slot))| (id, if slot == 0 { place } else { slot }))
        .collect()
}
