//! Disks and the volumes behind them.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use nacelle_api::disk::Disk as DiskSpec;
use nacelle_api::quantity;
use nacelle_api::vmi::VirtualMachineInstanceSpec;
use nacelle_api::volume::{CloudInit, Volume};
use nacelle_vmm::config::{CacheMode, CpuConfig, DiskIo, ErrorPolicy};

use super::{Names, credentials};
use crate::{Error, Result};

/// A disk that the guest sees, and where its bytes come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Its name, which is its volume's.
    pub name: String,
    /// Where its bytes come from.
    pub source: Source,
    /// The guest may not write.
    pub read_only: bool,
    /// Its serial number.
    pub serial: String,
    /// Place in the order of booting, from 1; firmware goes by it, a kernel that is named does not.
    pub boot_order: Option<u32>,
    /// When a write is done, where that is said.
    pub cache: Option<CacheMode>,
    /// Queues.
    pub queues: u16,
    /// Block sizes that the guest sees.
    pub block_size: BlockSize,
    /// What the guest discards at once, in bytes.
    pub discard_granularity: Option<u32>,
    /// How its operations reach the host's kernel.
    pub io: DiskIo,
    /// Other machines may write it at the same time.
    pub shared: bool,
    /// What happens when it fails.
    pub on_error: ErrorPolicy,
}

/// Block sizes that the guest sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BlockSize {
    /// Logically 512 bytes, physically what the storage has.
    #[default]
    Usual,
    /// These: logical and physical.
    Custom(u32, u32),
    /// Those of the storage.
    OfVolume,
}

/// Where a disk's bytes come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A file in a container image; what the guest writes ends with the machine.
    Image {
        /// The image.
        image: String,
        /// When to ask its registry.
        pull: PullPolicy,
        /// Path of the file in it; without it the only file under `/disk`.
        path: Option<String>,
    },
    /// What `--volume` maps for this claim or DataVolume.
    Claim {
        /// The claim's name.
        name: String,
        /// What the guest writes ends with the machine.
        ephemeral: bool,
    },
    /// A file of the host.
    Host {
        /// The file.
        path: String,
        /// Make it, with this many bytes, where it is not there.
        create: Option<u64>,
    },
    /// Nothing but zeroes at the start; gone when the machine ends.
    Empty {
        /// Bytes.
        capacity: u64,
    },
    /// An ISO 9660 image for cloud-init.
    Seed(Seed),
    /// An ISO 9660 image of files that the cluster provides.
    Files {
        /// Which files.
        kind: FilesKind,
        /// Label of the image.
        label: String,
    },
}

/// Files that a cluster provides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilesKind {
    /// A ConfigMap's.
    ConfigMap,
    /// A Secret's.
    Secret,
    /// Fields of the pod.
    DownwardApi,
    /// A service account's token, with the cluster's certificate and the namespace.
    ServiceAccount,
}

impl FilesKind {
    /// The volume's field.
    pub fn field(self) -> &'static str {
        match self {
            FilesKind::ConfigMap => "configMap",
            FilesKind::Secret => "secret",
            FilesKind::DownwardApi => "downwardAPI",
            FilesKind::ServiceAccount => "serviceAccount",
        }
    }
}

/// The label of an image of files that names none, as in KubeVirt.
const FILES_LABEL: &str = "cfgdata";

/// When to ask an image's registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullPolicy {
    /// At every start; the local image serves where the registry does not answer.
    Always,
    /// When the image is not there.
    IfNotPresent,
    /// Never.
    Never,
}

impl From<Option<&str>> for PullPolicy {
    fn from(name: Option<&str>) -> PullPolicy {
        match name {
            Some("Always") => PullPolicy::Always,
            Some("Never") => PullPolicy::Never,
            _ => PullPolicy::IfNotPresent,
        }
    }
}

/// What cloud-init is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seed {
    /// In which of its formats.
    pub kind: SeedKind,
    /// A name that stays the same for the life of the instance.
    pub instance_id: String,
    /// Host name.
    pub hostname: String,
    /// User data.
    pub user_data: Option<SeedData>,
    /// Network configuration.
    pub network_data: Option<SeedData>,
    /// Secrets with SSH public keys.
    pub keys: Vec<String>,
}

/// Where data for cloud-init is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SeedData {
    /// In the manifest.
    Given(Vec<u8>),
    /// In a Secret.
    Secret,
}

/// Formats of cloud-init's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeedKind {
    /// NoCloud: volume `cidata`.
    NoCloud,
    /// OpenStack's configuration drive: volume `config-2`.
    ConfigDrive,
}

/// Every disk in the order of the spec. (Where a kernel is named `bootOrder` changes nothing; in KubeVirt, too,
/// it is the order of `disks` that makes vda, vdb, ...)
pub(super) fn disks(
    names: &Names,
    hostname: &str,
    spec: &VirtualMachineInstanceSpec,
    cpus: CpuConfig,
) -> Result<Vec<Disk>> {
    let devices = &spec.domain.devices;
    let queues = match devices.block_multi_queue {
        Some(true) => cpus.count().map_or(1, u16::from),
        _ => 1,
    };
    let plan = |given: &DiskSpec| {
        let volume = spec.volumes.iter().find(|volume| volume.name == given.name);
        let volume = volume.ok_or_else(|| refuse(&given.name, "there is no volume of this name"))?;
        let source = source(names, hostname, spec, volume)?;
        Ok(disk(given, source, read_only(given, volume), queues))
    };
    devices.disks.iter().map(plan).collect()
}

/// The disk of a claim that comes to a machine which runs; what was said of it has been found good.
pub fn of_claim(given: &DiskSpec) -> Disk {
    let source = Source::Claim {
        name: given.name.clone(),
        ephemeral: false,
    };
    disk(given, source, read_only(given, &Volume::default()), 1)
}

fn disk(given: &DiskSpec, source: Source, read_only: bool, queues: u16) -> Disk {
    Disk {
        name: given.name.clone(),
        read_only,
        serial: given.serial.clone().unwrap_or_default(),
        boot_order: given.boot_order,
        // What one host's page cache has, another's does not know of.
        cache: match given.shareable {
            Some(true) => Some(CacheMode::None),
            _ => given.cache.as_deref().and_then(cache),
        },
        queues,
        block_size: match given.block_size.as_ref() {
            None => BlockSize::Usual,
            Some(size) => match (&size.custom, &size.match_volume) {
                (Some(custom), _) => BlockSize::Custom(custom.logical, custom.physical),
                (None, Some(state)) if state.enabled != Some(false) => BlockSize::OfVolume,
                _ => BlockSize::Usual,
            },
        },
        discard_granularity: given
            .block_size
            .as_ref()
            .and_then(|size| size.custom.as_ref()?.discard_granularity),
        io: match given.io.as_deref() {
            Some("threads") => DiskIo::Threads,
            _ => DiskIo::Native,
        },
        shared: given.shareable == Some(true),
        on_error: on_error(given.error_policy.as_deref()),
        source,
    }
}

fn refuse(volume: &str, reason: impl Into<String>) -> Error {
    Error::Volume {
        volume: volume.to_owned(),
        reason: reason.into(),
    }
}

/// A CD-ROM, and what a volume gives for reading only.
fn read_only(disk: &DiskSpec, volume: &Volume) -> bool {
    let claim = volume
        .persistent_volume_claim
        .as_ref()
        .and_then(|claim| claim.read_only);
    let disk_says = disk.disk.as_ref().and_then(|disk| disk.readonly);
    disk.cdrom.is_some()
        || claim == Some(true)
        || disk_says == Some(true)
        || volume.cloud_init_no_cloud.is_some()
        || volume.cloud_init_config_drive.is_some()
        || files(volume).is_some()
}

fn cache(given: &str) -> Option<CacheMode> {
    match given {
        "none" => Some(CacheMode::None),
        "writethrough" => Some(CacheMode::WriteThrough),
        "writeback" => Some(CacheMode::WriteBack),
        _ => None,
    }
}

/// Where nothing is said the machine stops, as in KubeVirt; validation has refused all other words.
fn on_error(given: Option<&str>) -> ErrorPolicy {
    match given {
        Some("report") => ErrorPolicy::Report,
        Some("ignore") => ErrorPolicy::Ignore,
        Some("enospace") => ErrorPolicy::StopWhenFull,
        _ => ErrorPolicy::Stop,
    }
}

fn source(
    names: &Names,
    hostname: &str,
    spec: &VirtualMachineInstanceSpec,
    volume: &Volume,
) -> Result<Source> {
    let seed = |init, kind| {
        let keys = credentials::in_seed(spec, kind);
        seed(names, hostname, volume, init, kind, keys)
    };
    let claim = |name: &str, ephemeral| Source::Claim {
        name: name.to_owned(),
        ephemeral,
    };
    let bytes = |capacity| quantity::whole(capacity).map_err(|error| refuse(&volume.name, error.to_string()));
    if let Some(disk) = &volume.container_disk {
        Ok(Source::Image {
            image: disk.image.clone(),
            pull: PullPolicy::from(disk.image_pull_policy.as_deref()),
            path: disk.path.clone(),
        })
    } else if let Some(volume) = &volume.persistent_volume_claim {
        Ok(claim(&volume.claim_name, false))
    } else if let Some(volume) = &volume.data_volume {
        Ok(claim(&volume.name, false))
    } else if let Some(claim_volume) = &volume.ephemeral {
        let inner = claim_volume.persistent_volume_claim.as_ref();
        let inner = inner.ok_or_else(|| refuse(&volume.name, "ephemeral needs a persistentVolumeClaim"))?;
        Ok(claim(&inner.claim_name, true))
    } else if let Some(disk) = &volume.empty_disk {
        Ok(Source::Empty {
            capacity: bytes(&disk.capacity)?,
        })
    } else if let Some(disk) = &volume.host_disk {
        if disk.shared == Some(true) {
            return Err(refuse(&volume.name, "a hostDisk that is shared is not supported"));
        }
        let create = match (disk.type_.as_str(), &disk.capacity) {
            ("DiskOrCreate", Some(capacity)) => Some(bytes(capacity)?),
            _ => None,
        };
        Ok(Source::Host {
            path: disk.path.clone(),
            create,
        })
    } else if let Some(init) = &volume.cloud_init_no_cloud {
        seed(init, SeedKind::NoCloud)
    } else if let Some(init) = &volume.cloud_init_config_drive {
        seed(init, SeedKind::ConfigDrive)
    } else if let Some((kind, label)) = files(volume) {
        let label = label.filter(|label| !label.is_empty()).unwrap_or(FILES_LABEL);
        Ok(Source::Files {
            kind,
            label: label.to_owned(),
        })
    } else {
        Err(refuse(&volume.name, "this kind of volume is not supported"))
    }
}

/// The files of a volume that has some, and its label.
fn files(volume: &Volume) -> Option<(FilesKind, Option<&str>)> {
    if let Some(map) = &volume.config_map {
        Some((FilesKind::ConfigMap, map.volume_label.as_deref()))
    } else if let Some(secret) = &volume.secret {
        Some((FilesKind::Secret, secret.volume_label.as_deref()))
    } else if let Some(fields) = &volume.downward_api {
        Some((FilesKind::DownwardApi, fields.volume_label.as_deref()))
    } else if volume.service_account.is_some() {
        Some((FilesKind::ServiceAccount, None))
    } else {
        None
    }
}

fn seed(
    names: &Names,
    hostname: &str,
    volume: &Volume,
    init: &CloudInit,
    kind: SeedKind,
    keys: Vec<String>,
) -> Result<Source> {
    let data = |plain: &Option<String>, encoded: &Option<String>, secret: bool| match (plain, encoded) {
        _ if secret => Ok(Some(SeedData::Secret)),
        (Some(plain), _) if !plain.is_empty() => Ok(Some(SeedData::Given(plain.as_bytes().to_vec()))),
        (_, Some(encoded)) if !encoded.is_empty() => BASE64_STANDARD
            .decode(encoded)
            .map(|data| Some(SeedData::Given(data)))
            .map_err(|error| refuse(&volume.name, format!("no valid base64: {error}"))),
        _ => Ok(None),
    };
    Ok(Source::Seed(Seed {
        kind,
        instance_id: format!("{}.{}", names.name, names.namespace),
        hostname: hostname.to_owned(),
        user_data: data(&init.user_data, &init.user_data_base64, init.secret_ref.is_some())?,
        network_data: data(
            &init.network_data,
            &init.network_data_base64,
            init.network_data_secret_ref.is_some(),
        )?,
        keys,
    }))
}
