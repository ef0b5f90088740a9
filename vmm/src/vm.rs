//! A machine: the owner of everything in it.

mod hot_plug;
mod moving;

use std::os::unix::net::UnixStream;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Weak};

use nacelle_devices::disk::Lock;
use nacelle_devices::memory::{Memory, SharedMemory};
use nacelle_devices::platform::{ged, vmgenid};
use serde::{Deserialize, Serialize};
use vm_memory::GuestAddressSpace;

use crate::boot;
use crate::build::{self, Parts};
use crate::config::BootConfig;
use crate::device::platform::{Platform, PlatformState, VMGENID_ADDRESS};
use crate::device::{DeviceManager, DevicesState, KernelWrites};
use crate::hypervisor::{Partition, PartitionState};
use crate::migrate::message::Description;
use crate::power::Power;
use crate::sandbox::Sandbox;
use crate::stats::Stats;
use crate::vcpu::VcpuHandle;
use crate::vcpu::profile::Profile;
use crate::vcpu::state::VcpuState;
use crate::vcpu::throttle::Share;
use crate::{Error, Result, VmConfig, VmEvent};

/// What a machine is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lifecycle {
    /// Built or reset, no instruction run.
    Created,
    Running,
    Paused,
}

impl Lifecycle {
    fn name(self) -> &'static str {
        match self {
            Lifecycle::Created => "not started",
            Lifecycle::Running => "running",
            Lifecycle::Paused => "paused",
        }
    }
}

/// A virtual machine. Dropping it ends it, without asking the guest.
pub struct Vm {
    // Dropped in this order: who uses guest memory goes before it.
    vcpus: Vec<VcpuHandle>,
    devices: DeviceManager,
    platform: Platform,
    partition: Arc<dyn Partition>,
    memory: SharedMemory,
    power: Arc<Power>,
    consoles: Vec<UnixStream>,
    boot: BootConfig,
    tables: Vec<(u64, Vec<u8>)>,
    power_on: PowerOn,
    description: Description,
    share: Share,
    lifecycle: Lifecycle,
    /// The hypervisor's part when the machine was paused: its clock goes on from there.
    paused: Option<PartitionState>,
    /// Its disks are another machine's at present.
    disks_free: bool,
    /// What the host's kernel writes to its memory, while that is noted.
    kernel_writes: Weak<KernelWrites>,
    sandbox: Sandbox,
}

/// The machine as it is when it is switched on, to come back to.
pub(crate) struct PowerOn {
    pub vcpus: Vec<VcpuState>,
    pub partition: PartitionState,
    pub platform: PlatformState,
}

/// All of a machine but its memory.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct VmState {
    /// vCPUs by index.
    pub vcpus: Vec<VcpuState>,
    /// Interrupt controllers, timer, clock.
    pub partition: PartitionState,
    /// Platform devices.
    pub platform: PlatformState,
    /// Virtio devices and their bus.
    pub devices: DevicesState,
}

impl Vm {
    /// Builds a machine; the guest is loaded and has not run. `events` hears of what happens to it, as
    /// [`VmEvent`] or as the message that its owner makes of one.
    ///
    /// # Errors
    /// When the configuration cannot be, or the host lacks something.
    pub fn build<M>(config: VmConfig, events: Sender<M>) -> Result<Vm>
    where
        M: From<VmEvent> + Send + 'static,
    {
        let memory = crate::memory::create(&config.memory)?;
        let mut vm = Self::assemble(config, memory, Power::new(events), Lock::Now)?;
        vm.boot(boot::Before::Zeroes)?;
        Ok(vm)
    }

    /// Builds a machine from a snapshot. It is paused; [`Vm::resume`] lets it go on. The guest is told that it
    /// may not be the only one (generation id).
    ///
    /// # Errors
    /// As [`Vm::build`], and when the state does not fit `config`.
    pub fn restore<M>(mut config: VmConfig, state: VmState, memory: Memory, events: Sender<M>) -> Result<Vm>
    where
        M: From<VmEvent> + Send + 'static,
    {
        config.put(&state.devices.places());
        let mut vm = Self::assemble(config, memory, Power::new(events), Lock::Now)?;
        vm.take_up(state)?;
        vmgenid::renew(&vm.memory.memory(), VMGENID_ADDRESS).map_err(|source| Error::Device {
            id: "vmgenid".into(),
            source,
        })?;
        vm.platform.notify(ged::NEW_GENERATION)?;
        Ok(vm)
    }

    /// Builds a machine for one that is to come from elsewhere: around `memory`, which is filled meanwhile, its
    /// disks open and not locked. [`Vm::take_up`] then makes it that machine.
    pub(crate) fn prepare(config: VmConfig, memory: Memory, power: Power) -> Result<Vm> {
        Self::assemble(config, memory, power, Lock::Later)
    }

    /// Makes a machine that has not run another one's continuation; it is paused.
    pub(crate) fn take_up(&mut self, state: VmState) -> Result<()> {
        let vm = self;
        if state.vcpus.len() != vm.vcpus.len() {
            return Err(Error::Restore(format!(
                "{} vCPUs instead of {}",
                state.vcpus.len(),
                vm.vcpus.len()
            )));
        }
        vm.take_profile(&state.vcpus)?;
        vm.devices.pause()?;
        vm.devices.restore(state.devices)?;
        vm.platform.restore(&state.platform)?;
        vm.partition.restore(&state.partition)?;
        for (vcpu, state) in vm.vcpus.iter().zip(state.vcpus) {
            vcpu.restore(state)?;
        }
        vm.paused = Some(state.partition);
        vm.lifecycle = Lifecycle::Paused;
        Ok(())
    }

    /// What the guest is shown of the processor.
    pub fn profile(&self) -> &Profile {
        &self.description.profile
    }

    /// The guest goes on seeing the processor that it saw elsewhere, which this host must be able to show.
    fn take_profile(&mut self, vcpus: &[VcpuState]) -> Result<()> {
        let Some(leaves) = vcpus
            .first()
            .map(|vcpu| &vcpu.cpuid)
            .filter(|leaves| !leaves.is_empty())
        else {
            return Ok(());
        };
        let shown = Profile::of(leaves);
        shown.check(&self.description.most)?;
        self.description.profile = shown;
        Ok(())
    }

    fn assemble(config: VmConfig, memory: Memory, power: Power, lock: Lock) -> Result<Vm> {
        let Parts {
            vcpus,
            devices,
            platform,
            partition,
            memory,
            power,
            consoles,
            boot,
            tables,
            power_on,
            description,
            share,
            sandbox,
        } = build::parts(config, memory, power, lock)?;
        Ok(Vm {
            vcpus,
            devices,
            platform,
            partition,
            memory,
            power,
            consoles,
            boot,
            tables,
            power_on,
            description,
            share,
            lifecycle: Lifecycle::Created,
            paused: None,
            disks_free: lock == Lock::Later,
            kernel_writes: Weak::new(),
            sandbox,
        })
    }

    /// Puts the guest into memory and its boot processor at its first instruction.
    fn boot(&mut self, before: boot::Before) -> Result<()> {
        let memory = self.memory.memory();
        let entry = boot::load(&memory, &self.boot, before)?;
        for (address, bytes) in &self.tables {
            crate::memory::write(&memory, *address, bytes, "the firmware tables")?;
        }
        vmgenid::renew(&memory, VMGENID_ADDRESS).map_err(|source| Error::Device {
            id: "vmgenid".into(),
            source,
        })?;
        if let (Some(vcpu), Some(power_on)) = (self.vcpus.first(), self.power_on.vcpus.first()) {
            let mut state = power_on.clone();
            (state.regs, state.sregs) = entry.registers(&power_on.sregs);
            vcpu.restore(state)?;
        }
        Ok(())
    }

    fn refuse(&self, what: &'static str) -> Error {
        Error::State {
            what,
            state: self.lifecycle.name(),
        }
    }

    /// Lets a machine run for the first time.
    ///
    /// # Errors
    /// When it has been started before.
    pub fn start(&mut self) -> Result<()> {
        if self.lifecycle != Lifecycle::Created {
            return Err(self.refuse("start"));
        }
        self.run()
    }

    fn run(&mut self) -> Result<()> {
        for vcpu in &self.vcpus {
            vcpu.run()?;
        }
        self.lifecycle = Lifecycle::Running;
        Ok(())
    }

    /// Brings the machine to rest: no vCPU runs, no device works, the guest's clock stands. A paused machine
    /// stays paused.
    ///
    /// # Errors
    /// When it has not been started, or a thread of it has ended.
    pub fn pause(&mut self) -> Result<()> {
        match self.lifecycle {
            Lifecycle::Paused => return Ok(()),
            Lifecycle::Created => return Err(self.refuse("pause")),
            Lifecycle::Running => {}
        }
        self.halt()?;
        self.paused = Some(self.partition.save()?);
        self.lifecycle = Lifecycle::Paused;
        Ok(())
    }

    /// Stops vCPUs, then devices: what a vCPU began, a device can still take.
    fn halt(&mut self) -> Result<()> {
        let paused: Vec<_> = self.vcpus.iter().map(VcpuHandle::pause).collect::<Result<_>>()?;
        for (vcpu, paused) in self.vcpus.iter().zip(&paused) {
            vcpu.wait(paused)?;
        }
        self.devices.pause()
    }

    /// Lets a paused machine go on; for the guest no time has passed. A running machine stays running.
    ///
    /// # Errors
    /// When it has not been started, or a device cannot go on.
    pub fn resume(&mut self) -> Result<()> {
        match self.lifecycle {
            Lifecycle::Running => return Ok(()),
            Lifecycle::Created => return Err(self.refuse("resume")),
            Lifecycle::Paused => {}
        }
        self.lock_disks()?;
        if let Some(state) = self.paused.take() {
            self.partition.restore_clock(&state)?;
        }
        self.devices.resume()?;
        self.run()
    }

    /// Switches the machine off and on again: memory keeps nothing that the guest may rely on, disks do.
    ///
    /// # Errors
    /// When the guest cannot be loaded again.
    pub fn reset(&mut self) -> Result<()> {
        self.halt()?;
        self.devices.reset();
        self.partition.restore(&self.power_on.partition)?;
        self.platform.restore(&self.power_on.platform)?;
        for (vcpu, state) in self.vcpus.iter().zip(&self.power_on.vcpus) {
            vcpu.restore(state.clone())?;
        }
        self.boot(boot::Before::Used)?;
        self.devices.resume()?;
        self.paused = None;
        self.power.settled();
        self.run()
    }

    /// All of the machine but its memory.
    ///
    /// # Errors
    /// When it is not paused, or the hypervisor does not give a part.
    pub fn save(&mut self) -> Result<VmState> {
        let Some(partition) = self.paused.clone() else {
            return Err(self.refuse("save"));
        };
        Ok(VmState {
            vcpus: self.vcpus.iter().map(VcpuHandle::save).collect::<Result<_>>()?,
            partition,
            platform: self.platform.save(),
            devices: self.devices.save(),
        })
    }

    /// The host's end of a console: 0 is the serial line, then the ports of console devices in order.
    ///
    /// # Errors
    /// When there is no such port.
    pub fn console(&self, port: u8) -> Result<UnixStream> {
        let console = self
            .consoles
            .get(usize::from(port))
            .ok_or_else(|| Error::NotFound(format!("console port {port}")))?;
        console.try_clone().map_err(Error::io("duplicate a console"))
    }

    /// Presses the power button: a guest that listens powers itself off.
    ///
    /// # Errors
    /// When the kernel does not take the interrupt.
    pub fn power_button(&self) -> Result<()> {
        self.platform.notify(ged::POWER_BUTTON)
    }

    /// Asks the guest to have `bytes` of its memory in the balloon; [`Vm::stats`] says how far it is.
    ///
    /// # Errors
    /// When the machine has no balloon or less memory than that.
    pub fn balloon(&self, bytes: u64) -> Result<()> {
        let control = self
            .devices
            .balloon()
            .ok_or_else(|| Error::NotFound("balloon in this machine".into()))?;
        let memory = crate::memory::size(&self.memory.memory());
        if bytes > memory {
            let reason = format!("{bytes} bytes cannot be in the balloon of a machine with {memory}");
            return Err(Error::Config {
                field: "balloon",
                reason,
            });
        }
        control.set_target_bytes(bytes).map_err(|source| Error::Device {
            id: "balloon".into(),
            source,
        })
    }

    /// Guest memory, for who saves it. Quiet only while the machine is paused.
    pub fn memory(&self) -> SharedMemory {
        self.memory.clone()
    }

    /// Counters.
    pub fn stats(&self) -> Stats {
        let memory = crate::memory::size(&self.memory.memory());
        let mut stats = Stats {
            memory,
            vcpus: self.vcpus.len() as u8,
            ..Stats::default()
        };
        self.devices.count(&mut stats);
        stats
    }
}
