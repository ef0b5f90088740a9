//! A machine put together, as one list of steps that boot and restore share.

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use nacelle_devices::bus::Bus;
use nacelle_devices::disk::{Lock, Pool};
use nacelle_devices::memory::{Memory, SharedMemory};
use nacelle_devices::worker::Worker;

use crate::boot::{RSDP_ADDRESS, SMBIOS_ADDRESS, acpi, reset, smbios};
use crate::config::{BootConfig, HypervisorConfig, IoThreads};
use crate::device::platform::{LAYOUT, Platform};
use crate::device::{DeviceManager, Host};
use crate::hypervisor::kvm::KvmHypervisor;
use crate::hypervisor::{Hypervisor, Partition};
use crate::irq::MsiRoutes;
use crate::migrate::message::{Description, DeviceDescription};
use crate::power::Power;
use crate::sandbox::{Role, Sandbox};
use crate::vcpu::cpuid::{self, Topology};
use crate::vcpu::features::Base;
use crate::vcpu::profile::Profile;
use crate::vcpu::state::VcpuState;
use crate::vcpu::throttle::Share;
use crate::vcpu::{Buses, VcpuHandle};
use crate::vm::PowerOn;
use crate::{Error, Result, VmConfig, memory};

/// Everything that a machine owns.
pub(crate) struct Parts {
    pub vcpus: Vec<VcpuHandle>,
    pub devices: DeviceManager,
    pub platform: Platform,
    pub partition: Arc<dyn Partition>,
    pub memory: SharedMemory,
    pub power: Arc<Power>,
    pub consoles: Vec<UnixStream>,
    pub boot: BootConfig,
    /// Firmware tables, the reset vector, and their addresses.
    pub tables: Vec<(u64, Vec<u8>)>,
    pub power_on: PowerOn,
    /// What both sides of a migration must agree on.
    pub description: Description,
    /// Percentage of time that the vCPUs are held still.
    pub share: Share,
    /// How threads are confined.
    pub sandbox: Sandbox,
}

/// Builds the parts around `memory`.
pub(crate) fn parts(mut config: VmConfig, memory: Memory, power: Power, lock: Lock) -> Result<Parts> {
    config.validate()?;
    config.place()?;
    let described = config.devices.iter().map(DeviceDescription::of).collect();
    let hypervisor: Box<dyn Hypervisor> = match config.hypervisor {
        HypervisorConfig::Kvm(path) => Box::new(KvmHypervisor::open(&path)?),
        HypervisorConfig::KvmFd(fd) => Box::new(KvmHypervisor::from_fd(fd)?),
    };
    let size = memory::size(&memory);
    if size != config.memory.size {
        return Err(Error::Restore(format!(
            "{size} bytes of memory instead of {}",
            config.memory.size
        )));
    }
    let partition = hypervisor.create_partition()?;
    memory::give_to(&*partition, &memory, false)?;
    let memory = SharedMemory::new(memory);

    let power = Arc::new(power);
    let buses = Buses {
        ports: Arc::new(Bus::new()),
        memory: Arc::new(Bus::new()),
    };
    let sandbox = config.sandbox;
    let workers = workers(config.io_threads, &sandbox)?;
    let first = workers.first().ok_or_else(|| Error::ThreadEnded("I/O".into()))?;
    let (console, host) = UnixStream::pair().map_err(Error::io("make a socket for the console"))?;
    let platform = Platform::new(
        &*partition,
        &buses.ports,
        &buses.memory,
        first,
        &power,
        host,
        config.clock_offset,
    )?;

    let host = Host {
        partition: Arc::clone(&partition),
        memory: memory.clone(),
        buses: buses.clone(),
        msi: Arc::new(MsiRoutes::new(Arc::clone(&partition))),
        workers,
        pool: pool(sandbox.clone()),
        scratch: config.scratch,
        lock,
        power: Arc::clone(&power),
    };
    let mut devices = DeviceManager::new(
        host,
        config.transport,
        config.devices,
        config.hot_plug_slots,
        config.watchdog,
        config.opened,
    )?;

    let topology = Topology::new(config.cpus);
    let count = config.cpus.count()?;
    let apic_ids: Vec<u8> = (0..count).map(|index| topology.apic_id(index)).collect();
    let supported = hypervisor.supported_cpuid()?;
    let mut vcpus = Vec::new();
    let mut power_on = Vec::new();
    let share = Share::default();
    let (mut profile, mut most) = (Profile::default(), Profile::default());
    for (index, &apic_id) in (0..count).zip(&apic_ids) {
        let mut vcpu = partition.create_vcpu(apic_id)?;
        let mut leaves = cpuid::leaves(&supported, &topology, apic_id, hypervisor.has_tsc_deadline());
        most = Profile::of(&leaves);
        let shown = config.cpu_features.show(&mut leaves);
        shown.map_err(|unfit| Error::Config {
            field: "cpu_features",
            reason: unfit.to_string(),
        })?;
        profile = Profile::of(&leaves);
        if config.cpu_features.base != Base::Named {
            most = profile.clone();
        }
        let leaves = kvm_bindings::CpuId::from_entries(&leaves)
            .map_err(|_| Error::Capability("room for the guest's CPUID"))?;
        vcpu.set_cpuid(&leaves)?;
        power_on.push(after_reset(vcpu.save()?));
        let power = Arc::clone(&power);
        vcpus.push(VcpuHandle::spawn(
            index,
            vcpu,
            buses.clone(),
            power,
            share.clone(),
            sandbox.clone(),
        )?);
    }

    let window = memory::pci64_base(size);
    let bus = devices
        .last_slot()
        .map(|last_slot| acpi::Pci { window, last_slot });
    let tables = vec![
        (
            RSDP_ADDRESS,
            acpi::tables(&LAYOUT, &apic_ids, bus, devices.mmio()),
        ),
        (SMBIOS_ADDRESS, smbios::tables(&config.identity, SMBIOS_ADDRESS)),
        (reset::ADDRESS, reset::CODE.to_vec()),
    ];
    let description = Description {
        cpus: config.cpus,
        memory: size,
        transport: config.transport,
        devices: described,
        watchdog: config.watchdog,
        profile,
        most,
        ..Description::default()
    };
    let power_on = PowerOn {
        vcpus: power_on,
        partition: partition.save()?,
        platform: platform.save(),
    };
    Ok(Parts {
        vcpus,
        platform,
        partition,
        memory,
        power,
        consoles: std::iter::once(console).chain(devices.take_consoles()).collect(),
        devices,
        boot: config.boot,
        tables,
        power_on,
        description,
        share,
        sandbox,
    })
}

/// A fresh vCPU, with what firmware would have set before a kernel runs.
fn after_reset(mut state: VcpuState) -> VcpuState {
    // A reset leaves it as it is.
    state.cpuid.clear();
    const MISC_ENABLE: u32 = 0x1a0;
    const FAST_STRINGS: u64 = 1;
    const MTRR_DEF_TYPE: u32 = 0x2ff;
    /// MTRRs on, everything write-back.
    const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;
    for (index, value) in &mut state.msrs {
        match *index {
            MISC_ENABLE => *value |= FAST_STRINGS,
            MTRR_DEF_TYPE => *value = MTRR_WRITE_BACK,
            _ => {}
        }
    }
    state
}

fn pool(sandbox: Sandbox) -> Pool {
    Pool::with(move || sandbox.enter(Role::Disk))
}

fn workers(threads: IoThreads, sandbox: &Sandbox) -> Result<Vec<Worker>> {
    let count = match threads {
        IoThreads::Shared => 1,
        IoThreads::Pool(count) => count.max(1),
    };
    let spawn = |index| {
        let sandbox = sandbox.clone();
        Worker::spawn_with(&format!("io{index}"), move || sandbox.enter(Role::Io))
    };
    (0..count)
        .map(spawn)
        .collect::<nacelle_devices::Result<_>>()
        .map_err(|source| Error::Device {
            id: "I/O thread".into(),
            source,
        })
}
