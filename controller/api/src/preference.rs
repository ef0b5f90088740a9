//! Preferences (`instancetype.kubevirt.io/v1beta1`): what a machine gets where it does not say itself.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;

use crate::Empty;
use crate::devices::{Tpm, VgpuOptions};
use crate::disk::BlockSize;
use crate::domain::CpuFeature;
use crate::features::{ClockUtc, FeatureApic, FeatureHyperv, FeatureKvm, FeatureState, Timer};
use crate::firmware::Efi;

/// What a VirtualMachinePreference or VirtualMachineClusterPreference says.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PreferenceSpec {
    /// Clock and timers.
    pub clock: Option<ClockPreferences>,
    /// Processors.
    pub cpu: Option<CpuPreferences>,
    /// Devices.
    pub devices: Option<DevicePreferences>,
    /// ACPI, APIC, Hyper-V and their like.
    pub features: Option<FeaturePreferences>,
    /// How the machine boots.
    pub firmware: Option<FirmwarePreferences>,
    /// Machine type.
    pub machine: Option<MachinePreferences>,
    /// Claims that are made for the machine.
    pub volumes: Option<VolumePreferences>,
    /// Subdomain.
    pub preferred_subdomain: Option<String>,
    /// Seconds between the power button and pulling the plug.
    pub preferred_termination_grace_period_seconds: Option<i64>,
    /// The least that a machine must have.
    pub requirements: Option<PreferenceRequirements>,
    /// Annotations that the instance gets.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Cores in each socket where `spread` is preferred; 2 by default. `cpu.spreadOptions.ratio` goes before it.
    pub prefer_spread_socket_to_core_ratio: Option<u32>,
    /// CPU architecture.
    pub preferred_architecture: Option<String>,
}

/// Processors, preferably.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CpuPreferences {
    /// What an instance type's vCPUs are: `sockets` (the default), `cores`, `threads`, `spread` or `any`.
    #[serde(rename = "preferredCPUTopology")]
    pub preferred_cpu_topology: Option<String>,
    /// How `spread` spreads them.
    pub spread_options: Option<SpreadOptions>,
    /// CPU features.
    #[serde(
        rename = "preferredCPUFeatures",
        default,
        skip_serializing_if = "Vec::is_empty"
    )]
    pub preferred_cpu_features: Vec<CpuFeature>,
}

/// How vCPUs are spread.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SpreadOptions {
    /// `SocketsCores` (the default), `CoresThreads` or `SocketsCoresThreads`.
    pub across: Option<String>,
    /// Cores in each socket, or threads in each core; 2 by default.
    pub ratio: Option<u32>,
}

/// Devices, preferably.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DevicePreferences {
    /// Whether there is a graphics adapter.
    pub preferred_autoattach_graphics_device: Option<bool>,
    /// Whether there is a memory balloon.
    pub preferred_autoattach_mem_balloon: Option<bool>,
    /// Whether a machine without interfaces gets one on the pod network.
    pub preferred_autoattach_pod_interface: Option<bool>,
    /// Whether there is a serial console.
    pub preferred_autoattach_serial_console: Option<bool>,
    /// Whether there is a tablet.
    pub preferred_autoattach_input_device: Option<bool>,
    /// No hot-plug.
    pub preferred_disable_hotplug: Option<bool>,
    /// Options of virtual GPUs.
    #[serde(rename = "preferredVirtualGPUOptions")]
    pub preferred_virtual_gpu_options: Option<VgpuOptions>,
    /// Model of the sound card.
    pub preferred_sound_model: Option<String>,
    /// Legacy virtio.
    pub preferred_use_virtio_transitional: Option<bool>,
    /// Bus of input devices.
    pub preferred_input_bus: Option<String>,
    /// Type of input devices.
    pub preferred_input_type: Option<String>,
    /// Bus of disks.
    pub preferred_disk_bus: Option<String>,
    /// Bus of LUNs.
    pub preferred_lun_bus: Option<String>,
    /// Bus of CD-ROMs.
    pub preferred_cdrom_bus: Option<String>,
    /// Whether a virtio disk has an I/O thread for itself.
    pub preferred_disk_dedicated_io_thread: Option<bool>,
    /// Cache of disks.
    pub preferred_disk_cache: Option<String>,
    /// `native` or `threads`.
    #[serde(rename = "preferredDiskIO")]
    pub preferred_disk_io: Option<String>,
    /// Block sizes of disks.
    pub preferred_disk_block_size: Option<BlockSize>,
    /// Model of interfaces.
    pub preferred_interface_model: Option<String>,
    /// Entropy.
    pub preferred_rng: Option<Empty>,
    /// Whether each disk has a queue for every vCPU.
    pub preferred_block_multi_queue: Option<bool>,
    /// Whether each interface has a queue pair for every vCPU.
    pub preferred_network_interface_multi_queue: Option<bool>,
    /// TPM.
    #[serde(rename = "preferredTPM")]
    pub preferred_tpm: Option<Tpm>,
    /// NAT for interfaces on the pod network that have no binding.
    pub preferred_interface_masquerade: Option<Empty>,
    /// Model of panic notifiers.
    pub preferred_panic_device_model: Option<String>,
    /// Type of the graphics adapter.
    pub preferred_video_type: Option<String>,
}

/// Features, preferably.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FeaturePreferences {
    /// ACPI.
    pub preferred_acpi: Option<FeatureState>,
    /// APIC.
    pub preferred_apic: Option<FeatureApic>,
    /// Hyper-V enlightenments.
    pub preferred_hyperv: Option<FeatureHyperv>,
    /// How KVM shows itself.
    pub preferred_kvm: Option<FeatureKvm>,
    /// Paravirtual spinlocks.
    pub preferred_pvspinlock: Option<FeatureState>,
    /// System management mode.
    pub preferred_smm: Option<FeatureState>,
}

/// How the machine boots, preferably.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FirmwarePreferences {
    /// BIOS.
    pub preferred_use_bios: Option<bool>,
    /// Whether it writes to the serial console.
    pub preferred_use_bios_serial: Option<bool>,
    /// UEFI. Deprecated in favour of `preferredEfi`.
    pub preferred_use_efi: Option<bool>,
    /// Whether only signed code boots. Deprecated in favour of `preferredEfi`.
    pub preferred_use_secure_boot: Option<bool>,
    /// UEFI.
    pub preferred_efi: Option<Efi>,
}

/// Machine type, preferably.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MachinePreferences {
    /// `q35` or `pc-q35-...`.
    pub preferred_machine_type: Option<String>,
}

/// Clock and timers, preferably.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClockPreferences {
    /// Where the clock starts.
    pub preferred_clock_offset: Option<ClockOffset>,
    /// Timers.
    pub preferred_timer: Option<Timer>,
}

/// Where the clock starts: one of its members.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClockOffset {
    /// At UTC.
    pub utc: Option<ClockUtc>,
    /// At the local time of a zone.
    pub timezone: Option<String>,
}

/// Claims that are made for the machine, preferably.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumePreferences {
    /// Their storage class.
    pub preferred_storage_class_name: Option<String>,
}

/// The least that a machine must have.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PreferenceRequirements {
    /// Processors.
    pub cpu: Option<CpuRequirement>,
    /// Memory.
    pub memory: Option<MemoryRequirement>,
    /// CPU architecture.
    pub architecture: Option<String>,
}

/// The fewest processors.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CpuRequirement {
    /// How many.
    pub guest: u32,
}

/// The least memory.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MemoryRequirement {
    /// How much.
    pub guest: Quantity,
}
