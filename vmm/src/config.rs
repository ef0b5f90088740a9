//! What a machine is made of, as an embedder says it. Plain data: nothing is opened before [`crate::Vm::build`].

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use nacelle_devices::pci::root::SLOTS;
pub use nacelle_devices::virtio::blk::ErrorPolicy;
use serde::{Deserialize, Serialize};

use crate::device::free_slot;
use crate::sandbox::Sandbox;
pub use crate::vcpu::features::{Base, CpuFeatures, Policy};
use crate::vcpu::profile::Profile;
use crate::{Error, Result};

/// Most vCPUs of a machine: what xAPIC addressing and our tests cover.
pub const MAX_VCPUS: u16 = 64;
/// Memory comes in these steps.
pub const MEMORY_STEP: u64 = 2 << 20;

/// A whole machine.
#[derive(Debug)]
pub struct VmConfig {
    /// Processors.
    pub cpus: CpuConfig,
    /// Which features of the host's processor the guest is shown: all of them by default.
    pub cpu_features: CpuFeatures,
    /// Memory.
    pub memory: MemoryConfig,
    /// What runs first.
    pub boot: BootConfig,
    /// Identity that the guest sees (SMBIOS type 1).
    pub identity: Identity,
    /// Virtio devices, in the order in which the guest finds them.
    pub devices: Vec<DeviceConfig>,
    /// How the guest finds them.
    pub transport: Transport,
    /// Slots of the PCI bus for devices that come while the guest runs ([`crate::Vm::attach`]), after the last that is
    /// taken; 8 by default. A guest spends time on each when it boots.
    pub hot_plug_slots: u8,
    /// A watchdog on the PCI bus (i6300esb): a guest that feeds it and then stops is told of
    /// ([`crate::VmEvent::Watchdog`]).
    pub watchdog: bool,
    /// Threads that serve the devices.
    pub io_threads: IoThreads,
    /// Seconds by which the guest's hardware clock is ahead of UTC.
    pub clock_offset: i64,
    /// Directory for what ends with the machine, such as the layer of an ephemeral disk.
    pub scratch: PathBuf,
    /// What `/dev/kvm` stands for; [`HypervisorConfig::default`] opens it.
    pub hypervisor: HypervisorConfig,
    /// What another process of this host had open for this machine, which goes on here.
    pub opened: Opened,
    /// How its threads are confined: by the filters of this library unless an embedder brings its own.
    pub sandbox: Sandbox,
}

/// What a machine has open, for a process of the same host that goes on with it: [`crate::Vm::handover`] gives it there,
/// [`VmConfig::opened`] takes it here. Locks go along.
#[derive(Debug, Default)]
pub struct Opened {
    /// The file of guest memory, where it is mapped shared.
    pub memory: Option<File>,
    /// By the disk: its image, and the layer above it, where there is one.
    pub disks: BTreeMap<String, Vec<File>>,
    /// The socket to the guest's sockets.
    pub vsock: Option<UnixListener>,
}

impl Default for VmConfig {
    fn default() -> Self {
        VmConfig {
            cpus: CpuConfig::default(),
            cpu_features: CpuFeatures::default(),
            memory: MemoryConfig::default(),
            boot: BootConfig::default(),
            identity: Identity::default(),
            devices: Vec::new(),
            transport: Transport::default(),
            hot_plug_slots: 8,
            watchdog: false,
            io_threads: IoThreads::default(),
            clock_offset: 0,
            scratch: std::env::temp_dir(),
            hypervisor: HypervisorConfig::default(),
            opened: Opened::default(),
            sandbox: Sandbox::default(),
        }
    }
}

/// Processors: sockets × cores × threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuConfig {
    /// Sockets.
    pub sockets: u16,
    /// Cores of a socket.
    pub cores: u16,
    /// Threads of a core.
    pub threads: u16,
}

impl Default for CpuConfig {
    fn default() -> Self {
        CpuConfig {
            sockets: 1,
            cores: 1,
            threads: 1,
        }
    }
}

impl CpuConfig {
    /// Number of vCPUs, if it is a number of vCPUs that we can make.
    ///
    /// # Errors
    /// When it is 0 or more than [`MAX_VCPUS`].
    pub fn count(&self) -> Result<u8> {
        let count = u64::from(self.sockets) * u64::from(self.cores) * u64::from(self.threads);
        match u8::try_from(count) {
            Ok(count) if count > 0 && u16::from(count) <= MAX_VCPUS => Ok(count),
            _ => Err(Error::Config {
                field: "cpus",
                reason: format!("{count} vCPUs, must be 1 to {MAX_VCPUS} (sockets × cores × threads)"),
            }),
        }
    }
}

/// Guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryConfig {
    /// Size in bytes, a multiple of [`MEMORY_STEP`].
    pub size: u64,
    /// Pages of the host to back it with.
    pub pages: PageSize,
    /// Mapped shared, so that another process can have it (vhost-user, handover).
    pub shared: bool,
    /// Take all of it from the host at the start instead of at first use.
    pub prefault: bool,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        MemoryConfig {
            size: 512 << 20,
            pages: PageSize::default(),
            shared: false,
            prefault: false,
        }
    }
}

/// Pages of the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PageSize {
    /// Ordinary pages; the host may join them (transparent huge pages).
    #[default]
    Ordinary,
    /// Reserved 2 MiB pages.
    Huge2M,
    /// Reserved 1 GiB pages.
    Huge1G,
}

impl PageSize {
    /// Size in bytes.
    pub fn bytes(self) -> u64 {
        match self {
            PageSize::Ordinary => 4 << 10,
            PageSize::Huge2M => 2 << 20,
            PageSize::Huge1G => 1 << 30,
        }
    }
}

/// What runs first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BootConfig {
    /// A kernel: ELF (with or without a PVH note) or bzImage.
    pub kernel: PathBuf,
    /// Its initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Its arguments.
    pub cmdline: String,
}

/// Identity that the guest reads from SMBIOS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// System UUID, as bytes in the order in which it is written.
    pub uuid: [u8; 16],
    /// System serial number.
    pub serial: String,
    /// System SKU, or empty.
    pub sku: String,
}

/// How the guest finds virtio devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Transport {
    /// virtio-pci with MSI-X.
    #[default]
    Pci,
    /// virtio-mmio, named in the ACPI tables; at most 15 devices.
    Mmio,
}

/// Threads that serve the devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum IoThreads {
    /// One for the whole machine: the least memory.
    #[default]
    Shared,
    /// This many, over which devices and queues are spread.
    Pool(u16),
}

/// Where the hypervisor comes from.
#[derive(Debug)]
pub enum HypervisorConfig {
    /// The device file of KVM.
    Kvm(PathBuf),
    /// The device file of KVM, opened by the caller.
    KvmFd(OwnedFd),
}

impl Default for HypervisorConfig {
    fn default() -> Self {
        HypervisorConfig::Kvm("/dev/kvm".into())
    }
}

/// A virtio device.
#[derive(Debug)]
pub struct DeviceConfig {
    /// Name within the machine, unique.
    pub id: String,
    /// Which device.
    pub kind: DeviceKind,
    /// Where the guest finds it: slot 1 to 31 of the PCI bus, page 1 to 15 of virtio-mmio. The first that is free
    /// where none is named.
    pub slot: Option<u8>,
}

impl DeviceConfig {
    /// A device in the first slot that is free.
    pub fn new(id: impl Into<String>, kind: DeviceKind) -> DeviceConfig {
        DeviceConfig {
            id: id.into(),
            kind,
            slot: None,
        }
    }

    /// Checks what can be checked without opening anything.
    ///
    /// # Errors
    /// The first thing that cannot be.
    pub fn validate(&self) -> Result<()> {
        let wrong = |reason: String| {
            Err(Error::Config {
                field: "devices",
                reason,
            })
        };
        let id = &self.id;
        match &self.kind {
            DeviceKind::Disk(disk) if disk.queues == 0 => wrong(format!("disk {id} has no queue")),
            DeviceKind::Net(net) if net.queue_pairs == 0 => {
                wrong(format!("interface {id} has no queue pair"))
            }
            DeviceKind::Vsock(vsock) if vsock.cid <= 2 => {
                wrong(format!("the context identifier {} is reserved", vsock.cid))
            }
            _ => Ok(()),
        }
    }
}

/// Which virtio device, and how it is set up.
#[derive(Debug)]
pub enum DeviceKind {
    /// Entropy.
    Rng,
    /// A disk.
    Disk(DiskConfig),
    /// A network interface.
    Net(NetConfig),
    /// A memory balloon.
    Balloon(BalloonConfig),
    /// A console with ports.
    Console(ConsoleConfig),
    /// Sockets between host and guest.
    Vsock(VsockConfig),
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskConfig {
    /// File or block device.
    pub path: PathBuf,
    /// What is in the file. Never guessed: a guest could write another format's header into a raw disk.
    pub format: DiskFormat,
    /// The guest may not write.
    pub read_only: bool,
    /// What the guest writes goes to a layer of its own that ends with the machine; `path` is not changed.
    pub ephemeral: bool,
    /// Its content is on this host only and ends with the machine; it goes along when that moves.
    pub local: bool,
    /// When a write is done.
    pub cache: CacheMode,
    /// Serial number that the guest reads (20 bytes).
    pub serial: String,
    /// Queues, at least 1.
    pub queues: u16,
    /// Logical and physical block size in bytes, where they are not the file's own.
    pub block_size: Option<(u32, u32)>,
    /// What the guest discards at once, in bytes, where that is not the physical block size.
    pub discard_granularity: Option<u32>,
    /// How its operations reach the host's kernel.
    pub io: DiskIo,
    /// Other machines may write it at the same time, whose disks are shared, too (KubeVirt's `shareable`).
    pub shared: bool,
    /// Most bytes and operations a second.
    pub limit: Option<RateLimit>,
    /// What happens when the file or block device fails (KubeVirt's `errorPolicy`). To stop means
    /// [`crate::VmEvent::DiskFailed`].
    pub on_error: ErrorPolicy,
}

/// How the operations of a disk reach the host's kernel (KubeVirt's `io`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskIo {
    /// By io_uring where the process may use it and the disk is raw, else by threads; at once where the file is in memory.
    #[default]
    Native,
    /// By threads.
    Threads,
}

/// What a disk file holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskFormat {
    /// The disk itself, byte by byte.
    #[default]
    Raw,
    /// QEMU's copy-on-write format, version 2 or 3.
    Qcow2,
}

/// When a write is done, and whether the host's page cache is used (KubeVirt's `cache`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CacheMode {
    /// O_DIRECT where the file system has it; done at flush.
    None,
    /// Through the page cache, done when it is on the disk.
    WriteThrough,
    /// Through the page cache, done at flush.
    #[default]
    WriteBack,
}

/// Most per second; 0 is without limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimit {
    /// Bytes a second.
    pub bytes: u64,
    /// Operations a second.
    pub operations: u64,
}

/// A network interface.
#[derive(Debug)]
pub struct NetConfig {
    /// The host's end.
    pub tap: TapConfig,
    /// MAC address.
    pub mac: [u8; 6],
    /// Largest frame payload that the guest is told, where it is not the usual 1500.
    pub mtu: Option<u16>,
    /// Pairs of queues, at least 1.
    pub queue_pairs: u16,
    /// Let the host's kernel move the packets where it can: where there is `/dev/vhost-net`, and no limit,
    /// which it does not know.
    pub vhost: bool,
    /// Most per second.
    pub limit: Option<RateLimit>,
}

/// A tap device on the host.
#[derive(Debug)]
pub enum TapConfig {
    /// An existing one by name, or one to be made when we may.
    Name(String),
    /// Opened by the caller, one descriptor a queue pair.
    Fds(Vec<OwnedFd>),
}

/// A memory balloon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonConfig {
    /// The guest reports pages it does not use, which then go back to the host.
    pub free_page_reporting: bool,
    /// The guest may take memory back rather than kill a process.
    pub deflate_on_oom: bool,
    /// Seconds between two reports of statistics; 0 for none.
    pub statistics_interval: u16,
}

impl Default for BalloonConfig {
    fn default() -> Self {
        BalloonConfig {
            free_page_reporting: true,
            deflate_on_oom: true,
            statistics_interval: 10,
        }
    }
}

/// A console device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConsoleConfig {
    /// Its ports; the host's ends are had by [`crate::Vm::console`].
    pub ports: Vec<ConsolePort>,
}

/// A port of a console device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsolePort {
    /// Name that the guest sees, as in `org.qemu.guest_agent.0`.
    pub name: String,
    /// The guest makes a terminal of it (hvc).
    pub console: bool,
}

/// Sockets between host and guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VsockConfig {
    /// The guest's context identifier, above 2.
    pub cid: u32,
    /// What is on the host's side.
    pub host: VsockHost,
}

/// The host's side of a socket device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VsockHost {
    /// Unix sockets: `PATH` takes connections to the guest, `PATH_PORT` those that the guest makes.
    Unix(PathBuf),
    /// The host's own AF_VSOCK, in its kernel (`/dev/vhost-vsock`).
    Vhost,
}

impl VmConfig {
    /// Puts the devices where a guest knows them, by name.
    pub(crate) fn put(&mut self, places: &[(&str, u8)]) {
        for device in &mut self.devices {
            let known = places.iter().find(|(id, _)| *id == device.id);
            device.slot = known.map(|(_, slot)| *slot);
        }
    }

    /// Gives every device that names no slot the first that is free.
    ///
    /// # Errors
    /// When there are too many.
    pub(crate) fn place(&mut self) -> Result<()> {
        let mut taken: Vec<u8> = self.devices.iter().filter_map(|device| device.slot).collect();
        for device in self.devices.iter_mut().filter(|device| device.slot.is_none()) {
            let slot = free_slot(SLOTS - 1, |slot| taken.contains(&slot))?;
            taken.push(slot);
            device.slot = Some(slot);
        }
        Ok(())
    }

    /// Checks what can be checked without opening anything.
    ///
    /// # Errors
    /// The first thing that cannot be, with its field.
    pub fn validate(&self) -> Result<()> {
        let wrong = |field, reason: String| Err(Error::Config { field, reason });
        self.cpus.count()?;
        if let Some(name) = self.cpu_features.names().find(|name| !Profile::knows(name)) {
            return wrong("cpu_features", format!("no feature is known by the name {name}"));
        }
        let step = self.memory.pages.bytes().max(MEMORY_STEP);
        if self.memory.size == 0 || !self.memory.size.is_multiple_of(step) {
            let size = self.memory.size;
            return wrong("memory.size", format!("{size} bytes is not a multiple of {step}"));
        }
        if self.boot.kernel.as_os_str().is_empty() {
            return wrong("boot.kernel", "no kernel is named".into());
        }
        for (i, device) in self.devices.iter().enumerate() {
            if self.devices.iter().take(i).any(|other| other.id == device.id) {
                return wrong("devices", format!("two devices are named {}", device.id));
            }
            let same = |other: &&DeviceConfig| device.slot.is_some() && other.slot == device.slot;
            if let Some(other) = self.devices.iter().take(i).find(same) {
                let reason = format!("{} and {} are in the same slot", other.id, device.id);
                return wrong("devices", reason);
            }
            device.validate()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> VmConfig {
        VmConfig {
            boot: BootConfig {
                kernel: "vmlinux".into(),
                ..Default::default()
            },
            ..Default::default()
        }
    }

    #[test]
    fn a_small_machine_is_valid() {
        config().validate().unwrap();
    }

    #[test]
    fn what_cannot_be_is_named() {
        type Change = fn(&mut VmConfig);
        let cases: [(Change, &str); 6] = [
            (
                |c| c.cpu_features.base = Base::Only(["sse2", "mmx7"].into_iter().collect()),
                "cpu_features: no feature is known by the name mmx7",
            ),
            (
                |c| c.cpus.cores = 65,
                "cpus: 65 vCPUs, must be 1 to 64 (sockets × cores × threads)",
            ),
            (
                |c| c.cpus.threads = 0,
                "cpus: 0 vCPUs, must be 1 to 64 (sockets × cores × threads)",
            ),
            (
                |c| c.memory.size += 1,
                "memory.size: 536870913 bytes is not a multiple of 2097152",
            ),
            (|c| c.boot.kernel = "".into(), "boot.kernel: no kernel is named"),
            (
                |c| {
                    for _ in 0..2 {
                        c.devices.push(DeviceConfig::new("rng", DeviceKind::Rng));
                    }
                },
                "devices: two devices are named rng",
            ),
        ];
        for (change, message) in cases {
            let mut config = config();
            change(&mut config);
            assert_eq!(config.validate().unwrap_err().to_string(), message);
        }
    }
}
