//! What can be booted: boot entries as distributions leave them on their disks, and the kernels that they name.
//!
//! | kind | where | by |
//! |---|---|---|
//! | unified kernel image | `EFI/Linux/*.efi` | systemd's kernel-install, ukify, dracut |
//! | boot loader specification | `loader/entries/*.conf` | kernel-install, Fedora, RHEL, systemd-boot |
//! | GRUB | `grub.cfg` | grub-mkconfig, cloud images |
//! | extlinux | `extlinux.conf`, `syslinux.cfg` | Alpine, images of U-Boot's world |

pub mod bls;
pub mod choose;
pub mod extlinux;
pub mod find;
pub mod grub;
pub mod linux;
pub mod uki;
pub mod version;

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use crate::fs::FileSystem;
use crate::partitions::Purpose;

/// A file system of a disk.
pub struct Volume {
    /// Its name as GRUB has it: `hd0` or `hd0,gpt1`.
    pub name: String,
    /// What its partition is for.
    pub purpose: Purpose,
    /// UUID of its partition, or empty.
    pub partition_uuid: String,
    /// The file system.
    pub fs: Box<dyn FileSystem>,
}

/// A file on one of the volumes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Index of the volume.
    pub volume: usize,
    /// Absolute path.
    pub path: String,
}

/// What kind of entry it is. Kinds are tried in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A unified kernel image.
    Unified,
    /// An entry of the boot loader specification, type 1.
    Specification,
    /// A menu entry of GRUB.
    Grub,
    /// A label of extlinux.
    Extlinux,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Unified => "unified kernel image",
            Kind::Specification => "boot loader entry",
            Kind::Grub => "grub.cfg",
            Kind::Extlinux => "extlinux.conf",
        })
    }
}

/// Something that can be booted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What people call it.
    pub title: String,
    /// What configurations call it.
    pub id: String,
    /// What it is.
    pub kind: Kind,
    /// The kernel, a bzImage; of a unified kernel image the whole.
    pub kernel: File,
    /// Initial RAM disks, to be joined in this order.
    pub initrds: Vec<File>,
    /// The kernel's command line. A unified kernel image has its own where this is empty.
    pub options: String,
}

/// Entries that belong together, in the order of their menu.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Menu {
    /// The entries.
    pub entries: Vec<Entry>,
    /// Which of them boots by itself.
    pub default: usize,
}
