//! What is behind a machine's disks and its kernel: files of the host, made or fetched as the plan says.

pub mod cloud_init;
pub mod iso9660;
pub mod layout;
pub mod paths;
pub mod plug;
pub mod pull;
pub mod supply;
mod unpack;

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nacelle_vmm::config::{BootConfig, CacheMode, DiskConfig, DiskFormat};
use rustix::fs::{ioctl_blkpbszget, ioctl_blksszget};

use crate::cli::VolumeMapping;
use crate::convert::{BlockSize, Boot, Disk, FilesKind, Plan, Seed, SeedData, Source};
use crate::upgrade::Behind;
use crate::{Error, Result};
use layout::Layout;
use pull::Puller;
use supply::{Found, INITRD, KERNEL, Supply, Wish};
use unpack::Wanted;

/// Name of the file in a claim that is a directory, as KubeVirt has it.
const DISK_IN_DIRECTORY: &str = "disk.img";
/// The firmware (firmware/), which launcher/build.rs builds.
pub const FIRMWARE: &[u8] = include_bytes!(env!("NACELLE_FIRMWARE"));
/// First bytes of a qcow2 image.
const QCOW2_MAGIC: [u8; 4] = *b"QFI\xfb";

/// Where things are and come from.
#[derive(Clone, Debug)]
pub struct Places {
    /// The OCI image layout.
    pub images: PathBuf,
    /// What is unpacked from images, by digest.
    pub cache: PathBuf,
    /// Disks that end with their machine.
    pub scratch: PathBuf,
    /// Who pulls images.
    pub puller: Puller,
    /// What is behind claims.
    pub volumes: Vec<VolumeMapping>,
}

/// The files of a machine.
#[derive(Debug)]
pub struct Storage {
    /// Kernel, initial RAM disk, arguments.
    pub boot: BootConfig,
    /// In the order of the plan's disks.
    pub disks: Vec<DiskConfig>,
    /// Files without a name, which end with the process.
    pub held: Vec<File>,
}

/// Makes and fetches what `plan` needs.
///
/// # Errors
/// When something is not there or cannot be made; nothing of it is left then but what images were unpacked.
pub fn prepare(plan: &Plan, supply: &impl Supply) -> Result<Storage> {
    let scratch = supply.scratch();
    fs::create_dir_all(scratch).map_err(Error::file("make the directory", scratch))?;
    supply.check(plan)?;
    let mut prepare = Prepare {
        supply,
        held: Vec::new(),
    };
    let boot = prepare.boot(&plan.boot)?;
    let disks = plan
        .disks
        .iter()
        .map(|disk| prepare.disk(disk))
        .collect::<Result<_>>()?;
    Ok(Storage {
        boot,
        disks,
        held: prepare.held,
    })
}

/// The disk of the plan, with what is behind it.
pub fn disk(disk: &Disk, behind: Behind) -> DiskConfig {
    DiskConfig {
        cache: behind.cache,
        path: behind.path,
        format: behind.format,
        read_only: disk.read_only,
        ephemeral: behind.ephemeral,
        local: !lasts(disk),
        serial: disk.serial.clone(),
        queues: disk.queues,
        block_size: behind.block_size,
        discard_granularity: disk.discard_granularity,
        io: disk.io,
        shared: disk.shared,
        limit: None,
        on_error: disk.on_error,
    }
}

/// What the file behind a disk is.
struct Backing {
    path: PathBuf,
    format: DiskFormat,
    ephemeral: bool,
}

struct Prepare<'a, S> {
    supply: &'a S,
    held: Vec<File>,
}

impl<S: Supply> Prepare<'_, S> {
    fn boot(&mut self, boot: &Boot) -> Result<BootConfig> {
        match boot {
            Boot::Disk(wishes) => {
                let mut file = self.scratch_file()?;
                file.write_all(FIRMWARE)
                    .map_err(Error::file("write the firmware to", self.supply.scratch()))?;
                Ok(BootConfig {
                    kernel: self.hold(file),
                    initrd: None,
                    cmdline: wishes.cmdline(),
                })
            }
            Boot::Files(files) => Ok(BootConfig {
                kernel: files.kernel.clone(),
                initrd: files.initrd.clone(),
                cmdline: files.cmdline.clone(),
            }),
            Boot::Image {
                image,
                pull,
                kernel,
                initrd,
                cmdline,
            } => {
                let mut file = |volume, path: &String| {
                    let (pull, file) = (*pull, Wanted::Path(path));
                    self.image(Wish {
                        volume,
                        image,
                        pull,
                        file,
                    })
                };
                Ok(BootConfig {
                    kernel: file(KERNEL, kernel)?,
                    initrd: initrd.as_ref().map(|path| file(INITRD, path)).transpose()?,
                    cmdline: cmdline.clone(),
                })
            }
        }
    }

    /// Asks for a file of an image; it is there as long as what is held.
    fn image(&mut self, wish: Wish<'_>) -> Result<PathBuf> {
        Ok(match self.supply.image(wish)? {
            Found::Path(path) => path,
            Found::Open(file) => self.hold(file),
        })
    }

    fn disk(&mut self, disk: &Disk) -> Result<DiskConfig> {
        let Backing {
            path,
            format,
            ephemeral,
        } = self.backing(disk)?;
        let cache = cache(disk, &path);
        let block_size = block_size(disk, || File::open(&path).map_err(Error::file("open", &path)))?;
        let behind = Behind {
            path,
            format,
            ephemeral,
            cache,
            block_size,
        };
        Ok(self::disk(disk, behind))
    }

    fn backing(&mut self, disk: &Disk) -> Result<Backing> {
        let raw = |path, ephemeral| Backing {
            path,
            format: DiskFormat::Raw,
            ephemeral,
        };
        match &disk.source {
            Source::Image { image, pull, path } => {
                let path = self.image(Wish {
                    volume: &disk.name,
                    image,
                    pull: *pull,
                    file: path.as_ref().map_or(Wanted::Disk, |path| Wanted::Path(path)),
                })?;
                // The image's bytes are its author's and pinned by digest: no guest ever wrote to them.
                let format = format_of(&path)?;
                Ok(Backing {
                    path,
                    format,
                    ephemeral: true,
                })
            }
            Source::Claim { name, ephemeral } => {
                let (path, format) = self.supply.claim(&disk.name, name)?;
                Ok(Backing {
                    path,
                    format,
                    ephemeral: *ephemeral,
                })
            }
            Source::Host { path, create } => {
                let path = PathBuf::from(path);
                if let Some(capacity) = create {
                    create_once(&path, *capacity)?;
                }
                fs::metadata(&path).map_err(Error::file("open the hostDisk", &path))?;
                Ok(raw(path, false))
            }
            Source::Empty { capacity } => {
                let file = self.scratch_file()?;
                file.set_len(*capacity)
                    .map_err(Error::file("make an emptyDisk in", self.supply.scratch()))?;
                Ok(raw(self.hold(file), false))
            }
            Source::Seed(seed) => {
                let image = cloud_init::image(seed, &self.seed_data(&disk.name, seed)?);
                Ok(raw(self.iso(&disk.name, image)?, false))
            }
            Source::Files { kind, label } => {
                let files = self.supply.files(&disk.name, *kind)?;
                let files: Vec<_> = files
                    .iter()
                    .map(|(path, content)| (path.as_str(), content.as_slice()))
                    .collect();
                let image = iso9660::image(label, &files).map_err(|error| error.to_string());
                Ok(raw(self.iso(&disk.name, image)?, false))
            }
        }
    }

    fn seed_data(&self, volume: &str, seed: &Seed) -> Result<cloud_init::Data> {
        let read = |data: &Option<SeedData>, network| match data {
            None => Ok(None),
            Some(SeedData::Given(data)) => Ok(Some(data.clone())),
            Some(SeedData::Secret) => self.supply.secret(volume, network).map(Some),
        };
        let mut keys = Vec::new();
        for secret in &seed.keys {
            keys.extend(cloud_init::keys(&self.supply.credential(secret)?));
        }
        Ok(cloud_init::Data {
            keys,
            user: read(&seed.user_data, false)?,
            network: read(&seed.network_data, true)?,
        })
    }

    /// A file that holds an image which was made for `volume`.
    fn iso(&mut self, volume: &str, image: Result<Vec<u8>, String>) -> Result<PathBuf> {
        let image = image.map_err(|reason| refuse(volume, reason))?;
        let mut file = self.scratch_file()?;
        file.write_all(&image)
            .map_err(Error::file("write an ISO image to", self.supply.scratch()))?;
        Ok(self.hold(file))
    }

    /// A file without a name: it goes with the process, however that ends.
    fn scratch_file(&self) -> Result<File> {
        let directory = self.supply.scratch();
        tempfile::tempfile_in(directory).map_err(Error::file("make a file without a name in", directory))
    }

    /// Keeps `file` open and says by which path it can be opened again.
    fn hold(&mut self, file: File) -> PathBuf {
        let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        self.held.push(file);
        path
    }
}

impl Supply for Places {
    fn scratch(&self) -> &Path {
        &self.scratch
    }

    fn check(&self, plan: &Plan) -> Result<()> {
        if let Some(credential) = plan.credentials.first() {
            return Err(no_credentials(&credential.secret));
        }
        let claims: Vec<&str> = plan
            .disks
            .iter()
            .filter_map(|disk| match &disk.source {
                Source::Claim { name, .. } => Some(name.as_str()),
                _ => None,
            })
            .collect();
        for mapping in &self.volumes {
            if !claims.contains(&mapping.name.as_str()) {
                let known = match claims.as_slice() {
                    [] => "it has none".to_owned(),
                    names => format!("it has {}", names.join(", ")),
                };
                return Err(Error::Usage(format!(
                    "--volume {}: the manifest has no persistentVolumeClaim or dataVolume of this name; {known}",
                    mapping.name
                )));
            }
        }
        Ok(())
    }

    fn image(&self, wish: Wish<'_>) -> Result<Found> {
        let layout = Layout::new(&self.images);
        let found = pull::find(&layout, wish.image, wish.pull, &self.puller)?;
        unpack::unpack(&layout, &found, wish.file, &self.cache).map(Found::Path)
    }

    fn claim(&self, volume: &str, claim: &str) -> Result<(PathBuf, DiskFormat)> {
        let mapping = self.volumes.iter().find(|mapping| mapping.name == claim);
        let mapping = mapping.ok_or_else(|| {
            refuse(
                volume,
                format!(
                    "nothing is mapped for {claim}; give its image file or block device: --volume {claim}=PATH"
                ),
            )
        })?;
        Ok((self::claim(volume, mapping)?, mapping.format))
    }

    fn credential(&self, secret: &str) -> Result<Vec<(String, Vec<u8>)>> {
        Err(no_credentials(secret))
    }

    fn files(&self, volume: &str, kind: FilesKind) -> Result<Vec<(String, Vec<u8>)>> {
        Err(refuse(
            volume,
            format!("a {} is the cluster's; nacelle run has none", kind.field()),
        ))
    }

    fn secret(&self, volume: &str, network: bool) -> Result<Vec<u8>> {
        let instead = match network {
            false => "give userData or userDataBase64 instead",
            true => "give networkData or networkDataBase64 instead",
        };
        Err(refuse(
            volume,
            format!("a secret is the cluster's; nacelle run has none: {instead}"),
        ))
    }
}

fn no_credentials(secret: &str) -> Error {
    Error::Usage(format!(
        "accessCredentials: secret {secret} is the cluster's; nacelle run has none: give keys and passwords in cloud-init's userData instead"
    ))
}

fn refuse(volume: &str, reason: impl Into<String>) -> Error {
    Error::Volume {
        volume: volume.to_owned(),
        reason: reason.into(),
    }
}

/// Whether what is written to a disk outlives its machine.
fn lasts(disk: &Disk) -> bool {
    matches!(
        disk.source,
        Source::Claim { ephemeral: false, .. } | Source::Host { .. }
    )
}

/// What is said, else as KubeVirt chooses: for what must last past the host's page cache, or, where the file system has
/// no O_DIRECT, write-through; what ends with the machine through the page cache.
fn cache(disk: &Disk, path: &Path) -> CacheMode {
    match disk.cache {
        Some(said) => said,
        None if !lasts(disk) => CacheMode::WriteBack,
        None if takes_direct(path) => CacheMode::None,
        None => {
            log::info!(
                "disk {}: {} lies on a file system without O_DIRECT; its cache is writethrough",
                disk.name,
                path.display()
            );
            CacheMode::WriteThrough
        }
    }
}

/// Block sizes of a disk whose file is what `open` gives: what is said, or the storage's own.
fn block_size(disk: &Disk, open: impl FnOnce() -> Result<File>) -> Result<Option<(u32, u32)>> {
    match disk.block_size {
        BlockSize::Usual => Ok(None),
        BlockSize::Custom(logical, physical) => Ok(Some((logical, physical))),
        BlockSize::OfVolume => {
            let file = open()?;
            let failed = Error::io("see which blocks a volume has");
            let sizes = match file.metadata() {
                Ok(metadata) if metadata.file_type().is_block_device() => ioctl_blksszget(&file)
                    .and_then(|logical| Ok((logical, ioctl_blkpbszget(&file)?)))
                    .map_err(std::io::Error::from),
                // What a file system writes at once; a guest's block has no more than 4096 bytes.
                Ok(metadata) => {
                    let block = u32::try_from(metadata.blksize()).unwrap_or(512).clamp(512, 4096);
                    Ok((block, block))
                }
                Err(error) => Err(error),
            };
            sizes.map(Some).map_err(failed)
        }
    }
}

/// Whether a file can be read past the page cache. What else keeps it from being opened is told when it is.
fn takes_direct(path: &Path) -> bool {
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(path);
    opened.map_or_else(|error| error.raw_os_error() != Some(libc::EINVAL), |_| true)
}

/// The file or block device of a claim.
fn claim(volume: &str, mapping: &VolumeMapping) -> Result<PathBuf> {
    let metadata = fs::metadata(&mapping.path).map_err(|source| Error::File {
        what: "use as a volume",
        path: mapping.path.clone(),
        source,
    })?;
    let kind = metadata.file_type();
    let path = if kind.is_dir() {
        mapping.path.join(DISK_IN_DIRECTORY)
    } else {
        mapping.path.clone()
    };
    if !kind.is_dir() && !kind.is_file() && !kind.is_block_device() {
        return Err(Error::Volume {
            volume: volume.to_owned(),
            reason: format!("{} is no file, block device or directory", path.display()),
        });
    }
    if mapping.format == DiskFormat::Raw && format_of(&path)? == DiskFormat::Qcow2 {
        log::warn!(
            "{} begins like a qcow2 image and is given to the guest as it is; if it is one, write --volume {}={},format=qcow2",
            path.display(),
            mapping.name,
            mapping.path.display()
        );
    }
    Ok(path)
}

/// What an image that nobody wrote to holds, by its first bytes.
fn format_of(path: &Path) -> Result<DiskFormat> {
    let mut magic = Vec::new();
    File::open(path)
        .and_then(|file| file.take(4).read_to_end(&mut magic))
        .map_err(Error::file("read", path))?;
    Ok(if magic == QCOW2_MAGIC {
        DiskFormat::Qcow2
    } else {
        DiskFormat::Raw
    })
}

/// Makes a sparse file; one that is there is left as it is.
fn create_once(path: &Path, capacity: u64) -> Result<()> {
    match OpenOptions::new().write(true).create_new(true).open(path) {
        Ok(file) => file
            .set_len(capacity)
            .map_err(Error::file("make the hostDisk", path)),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(Error::file("make the hostDisk", path)(error)),
    }
}

#[cfg(test)]
mod tests;
