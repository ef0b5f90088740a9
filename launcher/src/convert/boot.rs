//! What is booted, a kernel or what firmware finds on a disk, and the identity that the guest reads.

use std::path::PathBuf;

use nacelle_api::firmware::Firmware;
use nacelle_vmm::config::Identity;
use uuid::Uuid;

use super::{Disk, Names, PullPolicy};
use crate::{Error, Result};

/// What runs first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Boot {
    /// A kernel inside a container image (`kernelBoot`).
    Image {
        /// The image.
        image: String,
        /// When to ask its registry.
        pull: PullPolicy,
        /// Path of the kernel in it.
        kernel: String,
        /// Path of the initial RAM disk in it.
        initrd: Option<String>,
        /// The kernel's arguments, as the user gave them: like KubeVirt, nothing is added.
        cmdline: String,
    },
    /// Files of the host.
    Files(KernelFiles),
    /// What the firmware finds on a disk.
    Disk(FirmwareWishes),
}

/// What the firmware is told (docs/firmware.md).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirmwareWishes {
    /// Disks to look at, by their place among the machine's disks, in this order.
    pub disks: Vec<usize>,
    /// Seconds for which it offers a menu on the serial line; no menu where it is 0.
    pub menu: u32,
}

impl FirmwareWishes {
    /// The firmware's command line.
    pub fn cmdline(&self) -> String {
        let disks: Vec<String> = self.disks.iter().map(usize::to_string).collect();
        let disks = format!("disks={}", disks.join(","));
        match self.menu {
            0 => disks,
            seconds => format!("{disks} wait={seconds}"),
        }
    }
}

/// A kernel in files of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelFiles {
    /// The kernel.
    pub kernel: PathBuf,
    /// Its initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Its arguments.
    pub cmdline: String,
}

/// Names of machines become UUIDs under this one (RFC 9562, version 5).
const MACHINES: Uuid = Uuid::from_u128(0x6e61_6365_6c6c_4065_8001_6d61_6368_696e);

/// The kernel that is named, else what is on the disks; `menu` is for the firmware.
pub(super) fn boot(
    names: &Names,
    firmware: Option<&Firmware>,
    kernel: Option<KernelFiles>,
    disks: &[Disk],
    menu: u32,
) -> Result<Boot> {
    if let Some(files) = kernel {
        return Ok(Boot::Files(files));
    }
    let Some(kernel_boot) = firmware.and_then(|firmware| firmware.kernel_boot.as_ref()) else {
        return match disks {
            [] => Err(Error::NothingToBoot(names.name.clone())),
            disks => Ok(Boot::Disk(FirmwareWishes {
                disks: boot_order(disks),
                menu,
            })),
        };
    };
    let container = kernel_boot
        .container
        .as_ref()
        .ok_or_else(|| Error::NothingToBoot(names.name.clone()))?;
    Ok(Boot::Image {
        image: container.image.clone(),
        pull: PullPolicy::from(container.image_pull_policy.as_deref()),
        kernel: container
            .kernel_path
            .clone()
            .ok_or_else(|| Error::NothingToBoot(names.name.clone()))?,
        initrd: container.initrd_path.clone(),
        cmdline: kernel_boot.kernel_args.clone().unwrap_or_default(),
    })
}

/// Where a disk has a `bootOrder` those that have one, in that order, and no other, as in KubeVirt; else all disks.
fn boot_order(disks: &[Disk]) -> Vec<usize> {
    let order = |(place, disk): (usize, &Disk)| disk.boot_order.map(|order| (order, place));
    let mut ordered: Vec<(u32, usize)> = disks.iter().enumerate().filter_map(order).collect();
    ordered.sort_unstable();
    match ordered.is_empty() {
        true => (0..disks.len()).collect(),
        false => ordered.into_iter().map(|(_, place)| place).collect(),
    }
}

/// The UUID given, else one that follows from namespace and name: the same at every start, so that the guest
/// stays the machine that it was.
pub(super) fn identity(names: &Names, firmware: Option<&Firmware>) -> Result<Identity> {
    let uuid = match firmware.and_then(|firmware| firmware.uuid.as_deref()) {
        Some(text) => Uuid::parse_str(text).map_err(|error| {
            Error::Usage(format!("spec.domain.firmware.uuid '{text}' is no UUID: {error}"))
        })?,
        None => Uuid::new_v5(
            &MACHINES,
            format!("{}/{}", names.namespace, names.name).as_bytes(),
        ),
    };
    Ok(Identity {
        uuid: uuid.into_bytes(),
        serial: firmware
            .and_then(|firmware| firmware.serial.clone())
            .unwrap_or_default(),
        sku: String::new(),
    })
}
