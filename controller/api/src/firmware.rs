//! `domain.firmware`: identity of the machine and how it boots.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;

/// Identity of the machine and how it boots.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Firmware {
    /// SMBIOS system UUID.
    pub uuid: Option<String>,
    /// SMBIOS system serial number.
    pub serial: Option<String>,
    /// Firmware that boots a disk.
    pub bootloader: Option<Bootloader>,
    /// Boot a kernel without firmware.
    pub kernel_boot: Option<KernelBoot>,
    /// ACPI tables from Secrets.
    pub acpi: Option<AcpiTables>,
}

/// Firmware: at most one of its members.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Bootloader {
    /// BIOS, the default.
    pub bios: Option<Bios>,
    /// UEFI.
    pub efi: Option<Efi>,
}

/// BIOS.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Bios {
    /// Whether it writes to the serial console.
    pub use_serial: Option<bool>,
}

/// UEFI.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Efi {
    /// Whether only signed code boots; **true** when absent.
    pub secure_boot: Option<bool>,
    /// Whether its variables outlive the instance.
    pub persistent: Option<bool>,
}

/// Boot a kernel without firmware.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KernelBoot {
    /// Kernel command line.
    pub kernel_args: Option<String>,
    /// The image that holds kernel and initrd.
    pub container: Option<KernelBootContainer>,
}

/// An image that holds a kernel, an initrd or both.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KernelBootContainer {
    /// The image.
    pub image: String,
    /// Secret with the registry's credentials.
    pub image_pull_secret: Option<String>,
    /// `Always`, `IfNotPresent` or `Never`.
    pub image_pull_policy: Option<String>,
    /// Path of the kernel in the image.
    pub kernel_path: Option<String>,
    /// Path of the initrd in the image.
    pub initrd_path: Option<String>,
}

/// ACPI tables from Secrets.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AcpiTables {
    /// The volume with the SLIC table.
    pub slic_name_ref: Option<String>,
    /// The volume with the MSDM table.
    pub msdm_name_ref: Option<String>,
}
