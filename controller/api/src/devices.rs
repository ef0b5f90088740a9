//! `domain.devices`: everything but disks ([`crate::disk`]) and interfaces ([`crate::network`]).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;

use crate::Empty;
use crate::disk::Disk;
use crate::features::FeatureState;
use crate::network::Interface;

/// Devices of the machine.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Devices {
    /// Disks, CD-ROMs and LUNs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<Disk>,
    /// Network interfaces.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
    /// Whether a machine without interfaces gets one on the pod network; true by default.
    pub autoattach_pod_interface: Option<bool>,
    /// Whether there is a graphics adapter; true by default.
    pub autoattach_graphics_device: Option<bool>,
    /// Whether there is a serial console; true by default.
    pub autoattach_serial_console: Option<bool>,
    /// Whether the console's output is logged.
    pub log_serial_console: Option<bool>,
    /// Whether there is a memory balloon; true by default.
    pub autoattach_mem_balloon: Option<bool>,
    /// Whether there is a tablet.
    pub autoattach_input_device: Option<bool>,
    /// Whether there is a vsock device.
    #[serde(rename = "autoattachVSOCK")]
    pub autoattach_vsock: Option<bool>,
    /// Entropy.
    pub rng: Option<Empty>,
    /// Whether each disk has a queue for every vCPU.
    pub block_multi_queue: Option<bool>,
    /// Whether each interface has a queue pair for every vCPU.
    pub network_interface_multiqueue: Option<bool>,
    /// Legacy virtio for old guests.
    pub use_virtio_transitional: Option<bool>,
    /// No hot-plug.
    pub disable_hotplug: Option<bool>,
    /// Input devices.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<Input>,
    /// Watchdog.
    pub watchdog: Option<Watchdog>,
    /// Sound card.
    pub sound: Option<Sound>,
    /// TPM.
    pub tpm: Option<Tpm>,
    /// Graphics adapter.
    pub video: Option<Video>,
    /// Panic notifiers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub panic_devices: Vec<PanicDevice>,
    /// Shared directories.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filesystems: Vec<Filesystem>,
    /// GPUs that are passed through.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<Gpu>,
    /// Other host devices that are passed through.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_devices: Vec<HostDevice>,
    /// Host metrics by virtio-serial.
    pub downward_metrics: Option<Empty>,
    /// USB redirection from a client.
    pub client_passthrough: Option<Empty>,
}

/// An input device.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Input {
    /// Its name.
    pub name: String,
    /// `tablet`.
    #[serde(rename = "type", default)]
    pub type_: String,
    /// `usb` (the default) or `virtio`.
    pub bus: Option<String>,
}

/// A watchdog: exactly one of the kinds.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Watchdog {
    /// Its name.
    pub name: String,
    /// The PCI watchdog of amd64.
    pub i6300esb: Option<WatchdogAction>,
    /// The watchdog of s390x.
    pub diag288: Option<WatchdogAction>,
}

/// What a watchdog does.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WatchdogAction {
    /// `poweroff`, `reset` (the default) or `shutdown`.
    pub action: Option<String>,
}

/// A sound card.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Sound {
    /// Its name.
    pub name: String,
    /// `ich9` (the default) or `ac97`.
    pub model: Option<String>,
}

/// A TPM.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Tpm {
    /// True when absent.
    pub enabled: Option<bool>,
    /// Whether its state outlives the instance.
    pub persistent: Option<bool>,
}

/// A graphics adapter.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Video {
    /// `virtio`, `vga`, `bochs`, `cirrus` or `ramfb`.
    #[serde(rename = "type")]
    pub type_: Option<String>,
}

/// A panic notifier.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PanicDevice {
    /// `isa`, `hyperv` or `pvpanic`.
    pub model: Option<String>,
}

/// A shared directory.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Filesystem {
    /// Its name, which is a volume's.
    pub name: String,
    /// Shared by virtiofs, the only way there is.
    pub virtiofs: Option<Empty>,
}

/// A GPU that is passed through: by `deviceName`, or by `claimName` and `requestName`.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Gpu {
    /// Its name.
    pub name: String,
    /// The device plugin's resource.
    pub device_name: Option<String>,
    /// The resource claim.
    pub claim_name: Option<String>,
    /// The request in the claim.
    pub request_name: Option<String>,
    /// A virtual GPU's options.
    #[serde(rename = "virtualGPUOptions")]
    pub virtual_gpu_options: Option<VgpuOptions>,
    /// Tag in the config drive.
    pub tag: Option<String>,
}

/// A virtual GPU's options.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VgpuOptions {
    /// Its display.
    pub display: Option<VgpuDisplay>,
}

/// A virtual GPU's display.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VgpuDisplay {
    /// True when absent.
    pub enabled: Option<bool>,
    /// A boot framebuffer.
    #[serde(rename = "ramFB")]
    pub ram_fb: Option<FeatureState>,
}

/// A host device that is passed through: by `deviceName`, or by `claimName` and `requestName`.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostDevice {
    /// Its name.
    pub name: String,
    /// The device plugin's resource.
    pub device_name: Option<String>,
    /// The resource claim.
    pub claim_name: Option<String>,
    /// The request in the claim.
    pub request_name: Option<String>,
    /// Tag in the config drive.
    pub tag: Option<String>,
}
