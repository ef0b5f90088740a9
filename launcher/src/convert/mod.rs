//! From the spec of an instance to what the monitor is to build. Pure: nothing is opened or looked up here, so
//! that the same manifest gives the same machine everywhere.

mod boot;
pub(crate) mod cpu;
mod credentials;
mod disks;
mod nets;

use std::path::PathBuf;

use nacelle_api::devices::Devices;
use nacelle_api::vmi::VirtualMachineInstanceSpec;
use nacelle_vmm::VmConfig;
use nacelle_vmm::config::{
    BalloonConfig, BootConfig, ConsoleConfig, ConsolePort, CpuConfig, CpuFeatures, DeviceConfig, DeviceKind,
    DiskConfig, HypervisorConfig, Identity, IoThreads, MemoryConfig, NetConfig, Opened, Transport,
    VsockConfig, VsockHost,
};
use nacelle_vmm::sandbox::Sandbox;
use sha2::{Digest, Sha256};

pub use boot::{Boot, FirmwareWishes, KernelFiles};
pub use credentials::{Credential, CredentialKind};
pub use disks::{BlockSize, Disk, FilesKind, PullPolicy, Seed, SeedData, SeedKind, Source, of_claim};

use crate::net::{HostNet, Net};
use crate::{Error, Result};

/// Who the machine is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// Its name.
    pub name: String,
    /// Its namespace; `default` outside a cluster.
    pub namespace: String,
    /// The instance's UID; empty outside a cluster.
    pub uid: String,
}

/// A machine as a manifest describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Who it is.
    pub names: Names,
    /// Its host name, for DHCP and cloud-init.
    pub hostname: String,
    /// Processors.
    pub cpus: CpuConfig,
    /// Which features of the host's processor the guest is shown.
    pub cpu_features: CpuFeatures,
    /// Memory.
    pub memory: MemoryConfig,
    /// What runs first.
    pub boot: Boot,
    /// What the guest reads from SMBIOS.
    pub identity: Identity,
    /// Disks, in the order in which the guest finds them.
    pub disks: Vec<Disk>,
    /// Secrets with keys and passwords that the guest agent brings into the guest.
    pub credentials: Vec<Credential>,
    /// Interfaces, in the order in which the guest finds them.
    pub nets: Vec<Net>,
    /// Entropy.
    pub rng: bool,
    /// Memory that the guest can give back.
    pub balloon: Option<BalloonConfig>,
    /// Sockets between host and guest: the guest's context identifier.
    pub vsock: Option<u32>,
    /// Whether the serial line is anybody's console.
    pub serial_console: bool,
    /// Whether disks may come while it runs.
    pub hot_plug: bool,
    /// Threads that serve the devices.
    pub io_threads: IoThreads,
    /// Seconds by which the guest's hardware clock is ahead of UTC.
    pub clock_offset: i64,
    /// Seconds from the power button to pulling the plug.
    pub grace_period: u64,
    /// What follows when the guest does not feed its watchdog; none where it has none.
    pub watchdog: Option<Watchdog>,
    /// Whether a reboot by the guest ends the machine.
    pub reboot_ends: bool,
    /// Whether the machine is to wait for a `resume` before its first instruction.
    pub start_paused: bool,
}

impl Plan {
    /// The machine's configuration, with what was opened for it: its kernel, the disks in the plan's order, a tap
    /// for each interface.
    pub fn config(
        &self,
        boot: BootConfig,
        disks: Vec<DiskConfig>,
        nets: Vec<HostNet>,
        host: HostConfig,
    ) -> VmConfig {
        let device = |kind: &str, name: &str, config| DeviceConfig::new(format!("{kind}{name}"), config);
        let nets = self.nets.iter().zip(nets).map(|(net, host)| {
            let config = NetConfig {
                tap: host.tap,
                mac: host.mac.unwrap_or(net.mac),
                mtu: host.mtu,
                queue_pairs: net.queue_pairs,
                vhost: true,
                limit: None,
            };
            device("net-", &net.name, DeviceKind::Net(config))
        });
        let disks = self
            .disks
            .iter()
            .zip(disks)
            .map(|(disk, config)| device("disk-", &disk.name, DeviceKind::Disk(config)));
        let balloon = self
            .balloon
            .map(|config| device("balloon", "", DeviceKind::Balloon(config)));
        let agent = ConsoleConfig {
            ports: vec![ConsolePort {
                name: AGENT_PORT.into(),
                console: false,
            }],
        };
        let agent = device("console", "", DeviceKind::Console(agent));
        let vsock = self.vsock.map(|cid| {
            let host = host.vsock;
            device("vsock", "", DeviceKind::Vsock(VsockConfig { cid, host }))
        });
        let rng = self.rng.then(|| device("rng", "", DeviceKind::Rng));
        VmConfig {
            cpus: self.cpus,
            cpu_features: self.cpu_features.clone(),
            memory: self.memory,
            boot,
            identity: self.identity.clone(),
            devices: (nets.chain(disks).chain([agent]))
                .chain(balloon)
                .chain(rng)
                .chain(vsock)
                .collect(),
            transport: host.transport,
            hot_plug_slots: if self.hot_plug { HOT_PLUG_SLOTS } else { 0 },
            watchdog: self.watchdog.is_some(),
            io_threads: self.io_threads,
            clock_offset: self.clock_offset,
            scratch: host.scratch,
            hypervisor: host.hypervisor,
            opened: Opened::default(),
            sandbox: Sandbox::default(),
        }
    }
}

/// How many devices more than it began with a machine can have: a guest takes time over each slot when it boots.
const HOT_PLUG_SLOTS: u8 = 8;

/// What a manifest does not say of a machine: how it meets this host.
#[derive(Debug)]
pub struct HostConfig {
    /// How the guest finds virtio devices.
    pub transport: Transport,
    /// Directory for what ends with the machine.
    pub scratch: PathBuf,
    /// What is on the host's side of its sockets.
    pub vsock: VsockHost,
    /// The hypervisor.
    pub hypervisor: HypervisorConfig,
}

/// The console port by which a guest agent is reached (virtio-serial, as in KubeVirt): the machine's only one.
const AGENT_PORT: &str = "org.qemu.guest_agent.0";

/// The annotation that keeps free page reporting off, as in KubeVirt.
pub const NO_FREE_PAGE_REPORTING: &str = "kubevirt.io/free-page-reporting-disabled";

/// Plans the machine of a spec that has its defaults, is valid and has nothing that is not supported.
///
/// `kernel` is booted instead of what the spec names, the firmware offers its menu for `menu` seconds; `free_page_reporting` is off where the annotation
/// [`NO_FREE_PAGE_REPORTING`] says so.
///
/// # Errors
/// When a value cannot be had here, although it is valid in a cluster.
pub fn plan(
    names: Names,
    spec: &VirtualMachineInstanceSpec,
    kernel: Option<KernelFiles>,
    free_page_reporting: bool,
    menu: u32,
) -> Result<Plan> {
    let domain = &spec.domain;
    let devices = &domain.devices;
    let hostname = hostname(spec.hostname.as_deref(), &names.name);
    let cpus = cpu::topology(domain.cpu.as_ref())?;
    let on = |switch: Option<bool>| switch.unwrap_or(true);
    let disks = disks::disks(&names, &hostname, spec, cpus)?;
    Ok(Plan {
        cpu_features: cpu::features(domain.cpu.as_ref())?,
        memory: cpu::memory(domain)?,
        boot: boot::boot(&names, domain.firmware.as_ref(), kernel, &disks, menu)?,
        identity: boot::identity(&names, domain.firmware.as_ref())?,
        disks,
        credentials: credentials::by_agent(spec),
        nets: nets::nets(&names, spec, cpus)?,
        rng: devices.rng.is_some(),
        balloon: on(devices.autoattach_mem_balloon).then(|| BalloonConfig {
            free_page_reporting,
            ..BalloonConfig::default()
        }),
        vsock: (devices.autoattach_vsock == Some(true)).then(|| context_id(&names)),
        hot_plug: devices.disable_hotplug != Some(true),
        serial_console: on(devices.autoattach_serial_console),
        io_threads: cpu::io_threads(domain, cpus),
        clock_offset: cpu::clock_offset(domain),
        grace_period: spec
            .termination_grace_period_seconds
            .and_then(|seconds| u64::try_from(seconds).ok())
            .unwrap_or(30),
        watchdog: watchdog(devices)?,
        reboot_ends: domain.reboot_policy.as_deref() == Some("Terminate"),
        start_paused: spec.start_strategy.as_deref() == Some("Paused"),
        names,
        hostname,
        cpus,
    })
}

/// What a watchdog does that was not fed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Watchdog {
    /// The machine is reset.
    #[default]
    Reset,
    /// It ends, and has failed.
    PowerOff,
    /// The guest is asked to power off, and has its grace period for that.
    Shutdown,
}

fn watchdog(devices: &Devices) -> Result<Option<Watchdog>> {
    let Some(i6300esb) = devices
        .watchdog
        .as_ref()
        .and_then(|watchdog| watchdog.i6300esb.as_ref())
    else {
        return Ok(None);
    };
    match i6300esb.action.as_deref() {
        None | Some("reset") => Ok(Some(Watchdog::Reset)),
        Some("poweroff") => Ok(Some(Watchdog::PowerOff)),
        Some("shutdown") => Ok(Some(Watchdog::Shutdown)),
        Some(other) => Err(Error::Usage(format!(
            "spec.domain.devices.watchdog: there is no action {other}"
        ))),
    }
}

/// A context identifier that follows from the names. Those up to 2 are taken (VMADDR_CID_HOST and others), those
/// from 2^31 on look negative to some programs.
fn context_id(names: &Names) -> u32 {
    let hash = Sha256::digest(format!("{}/{}", names.namespace, names.name));
    let number = hash
        .iter()
        .take(4)
        .fold(0, |number, &byte| number << 8 | u32::from(byte));
    3 + number % ((1 << 31) - 3)
}

/// The host name: what is given, else the machine's name up to its first dot, as long as a label may be.
fn hostname(given: Option<&str>, name: &str) -> String {
    let label = given.unwrap_or_else(|| name.split('.').next().unwrap_or(name));
    let end = label.char_indices().nth(63).map_or(label.len(), |(end, _)| end);
    let label = label.get(..end).unwrap_or(label);
    label.trim_end_matches('-').to_owned()
}

#[cfg(test)]
mod tests;
