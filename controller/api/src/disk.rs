//! `domain.devices.disks[]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;

use crate::features::FeatureState;

/// A disk, LUN or CD-ROM (at most one of the three; a disk by default) that shows the volume of its name.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Disk {
    /// Its name, which is a volume's.
    pub name: String,
    /// A disk.
    pub disk: Option<DiskTarget>,
    /// A SCSI LUN.
    pub lun: Option<LunTarget>,
    /// A CD-ROM.
    pub cdrom: Option<CdRomTarget>,
    /// Place in the boot order, from 1.
    pub boot_order: Option<u32>,
    /// Serial number.
    pub serial: Option<String>,
    /// Whether the disk has an I/O thread for itself.
    #[serde(rename = "dedicatedIOThread")]
    pub dedicated_io_thread: Option<bool>,
    /// `none`, `writethrough` or `writeback`.
    pub cache: Option<String>,
    /// `native` or `threads`.
    pub io: Option<String>,
    /// Tag in the config drive.
    pub tag: Option<String>,
    /// Block sizes that the guest sees.
    pub block_size: Option<BlockSize>,
    /// Whether several machines may write to it.
    pub shareable: Option<bool>,
    /// What an I/O error does: `stop` (the default), `ignore`, `report` or `enospace`.
    pub error_policy: Option<String>,
    /// Whether changed blocks are tracked for backups.
    pub changed_block_tracking: Option<bool>,
}

/// A disk.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DiskTarget {
    /// `virtio`, `sata`, `scsi` or `usb`.
    ///
    /// KubeVirt shows a disk without a bus on SATA; Nacelle, which has no SATA controller, shows it as
    /// virtio-blk, and the field stays absent.
    pub bus: Option<String>,
    /// Whether it cannot be written.
    pub readonly: Option<bool>,
    /// Where it lies on the PCI bus.
    pub pci_address: Option<String>,
}

/// A SCSI LUN.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LunTarget {
    /// `virtio`, `sata` or `scsi`.
    pub bus: Option<String>,
    /// Whether it cannot be written.
    pub readonly: Option<bool>,
    /// SCSI persistent reservation.
    pub reservation: Option<bool>,
}

/// A CD-ROM.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CdRomTarget {
    /// `sata`, `scsi` or `usb`; without one Nacelle shows a read-only virtio-blk disk.
    pub bus: Option<String>,
    /// True by default.
    pub readonly: Option<bool>,
    /// `closed` (the default) or `open`.
    pub tray: Option<String>,
}

/// Block sizes: exactly one of its members.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BlockSize {
    /// These.
    pub custom: Option<CustomBlockSize>,
    /// Those of the volume.
    pub match_volume: Option<FeatureState>,
}

/// Block sizes in bytes.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CustomBlockSize {
    /// The smallest unit that can be read.
    pub logical: u32,
    /// The unit that is written without read-modify-write.
    pub physical: u32,
    /// The unit of discards.
    pub discard_granularity: Option<u32>,
}
