//! Where the files behind a machine come from: an interface that a host ([`super::Places`]) and a pod
//! ([`crate::pod::storage::Mounts`]) implement.

use std::fs::File;
use std::path::{Path, PathBuf};

use nacelle_vmm::config::DiskFormat;

use super::unpack::Wanted;
use crate::Result;
use crate::convert::{FilesKind, Plan, PullPolicy};

/// The volume under which the kernel of `kernelBoot` is asked for.
pub const KERNEL: &str = "kernel-boot.kernel";
/// The volume under which the initial RAM disk of `kernelBoot` is asked for.
pub const INITRD: &str = "kernel-boot.initrd";

/// A file that was asked for.
#[derive(Debug)]
pub enum Found {
    /// By its path.
    Path(PathBuf),
    /// Opened by somebody else.
    Open(File),
}

/// An image's file that is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    /// The volume that it is for, or [`KERNEL`], [`INITRD`].
    pub volume: &'a str,
    /// The image.
    pub image: &'a str,
    /// When to ask its registry.
    pub pull: PullPolicy,
    /// The file in it.
    pub(super) file: Wanted<'a>,
}

/// Finds files. What it does not have it refuses with a reason and what to do.
pub trait Supply {
    /// The directory for what ends with the machine.
    fn scratch(&self) -> &Path;

    /// Says what is wrong with a plan before anything of it is done.
    ///
    /// # Errors
    /// When something is.
    fn check(&self, plan: &Plan) -> Result<()>;

    /// A file of an image, for reading.
    ///
    /// # Errors
    /// When it cannot be had.
    fn image(&self, wish: Wish<'_>) -> Result<Found>;

    /// The file or block device behind the claim of `volume`, and what is in it.
    ///
    /// # Errors
    /// When it is not there.
    fn claim(&self, volume: &str, claim: &str) -> Result<(PathBuf, DiskFormat)>;

    /// The files that the cluster provides for `volume`, by their paths in it.
    ///
    /// # Errors
    /// When there is no cluster, or they cannot be read.
    fn files(&self, volume: &str, kind: FilesKind) -> Result<Vec<(String, Vec<u8>)>>;

    /// What is in a Secret with keys or passwords, by its keys.
    ///
    /// # Errors
    /// When there is no cluster, or it cannot be read.
    fn credential(&self, secret: &str) -> Result<Vec<(String, Vec<u8>)>>;

    /// What a Secret says to cloud-init: user data, or network configuration.
    ///
    /// # Errors
    /// When there is no cluster, or it cannot be read.
    fn secret(&self, volume: &str, network: bool) -> Result<Vec<u8>>;
}
