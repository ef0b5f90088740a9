//! What a monitor needs of a hypervisor. The machine and its devices call these traits, never an ioctl.

pub mod explain;
pub mod kvm;

use std::sync::Arc;

use kvm_bindings::{CpuId, kvm_clock_data, kvm_irqchip, kvm_pit_state2, kvm_regs, kvm_sregs};
use nacelle_devices::irq::MsiMessage;
use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use crate::Result;
use crate::vcpu::state::VcpuState;

/// A way to make machines: `/dev/kvm`.
pub trait Hypervisor: Send + Sync {
    /// A new machine with interrupt controllers and no memory.
    ///
    /// # Errors
    /// When the host gives no more.
    fn create_partition(&self) -> Result<Arc<dyn Partition>>;

    /// The CPUID leaves that a guest may be shown here.
    ///
    /// # Errors
    /// When the hypervisor does not say.
    fn supported_cpuid(&self) -> Result<CpuId>;

    /// The MSRs that make up a vCPU's state here.
    fn saved_msrs(&self) -> &[u32];

    /// The local APIC's timer can be set to a time-stamp (TSC deadline), whatever CPUID says.
    fn has_tsc_deadline(&self) -> bool;
}

/// A range of guest memory, as the hypervisor is told of it.
#[derive(Clone, Copy, Debug)]
pub struct MemorySlot {
    /// Number of the slot.
    pub slot: u32,
    /// Guest address.
    pub guest: u64,
    /// Size in bytes; 0 removes the slot.
    pub size: u64,
    /// Where it lies in this process.
    pub host: u64,
    /// Keep a log of pages that the guest writes.
    pub log_dirty: bool,
}

/// An address that the guest writes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoAddress {
    /// A port.
    Port(u16),
    /// Guest memory, and the value that must be written when not any will do.
    Memory(u64, Option<u32>),
}

/// Where a global system interrupt goes, beyond the pins of the interrupt controllers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiRoute {
    /// Number of the interrupt.
    pub gsi: u32,
    /// The message it becomes.
    pub message: MsiMessage,
}

/// What a hypervisor keeps of a machine beside its vCPUs.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PartitionState {
    /// Both 8259 and the I/O APIC.
    pub irqchips: Vec<kvm_irqchip>,
    /// The 8254 timer.
    pub pit: kvm_pit_state2,
    /// The guest's paravirtual clock.
    pub clock: kvm_clock_data,
}

/// A machine of the hypervisor.
pub trait Partition: Send + Sync {
    /// Sets, changes or removes a range of guest memory.
    ///
    /// # Errors
    /// When it overlaps another or the hypervisor has no slot left.
    ///
    /// # Safety
    /// `slot.host` must be mapped for `slot.size` bytes until the slot is removed or the partition is gone.
    #[expect(unsafe_code, reason = "the hypervisor is given raw memory")]
    unsafe fn set_memory(&self, slot: MemorySlot) -> Result<()>;

    /// A vCPU with this index, which is also its APIC id.
    ///
    /// # Errors
    /// When there is one already or the host gives no more.
    fn create_vcpu(&self, index: u8) -> Result<Box<dyn Vcpu>>;

    /// A write to `fd` raises interrupt `gsi`.
    ///
    /// # Errors
    /// When `gsi` has no route.
    fn add_irqfd(&self, fd: &EventFd, gsi: u32) -> Result<()>;

    /// Undoes [`Partition::add_irqfd`].
    ///
    /// # Errors
    /// When there is none.
    fn remove_irqfd(&self, fd: &EventFd, gsi: u32) -> Result<()>;

    /// A guest's write to `address` signals `fd` and does not leave the kernel.
    ///
    /// # Errors
    /// When the address is taken.
    fn add_ioeventfd(&self, fd: &EventFd, address: IoAddress) -> Result<()>;

    /// Undoes [`Partition::add_ioeventfd`].
    ///
    /// # Errors
    /// When there is none.
    fn remove_ioeventfd(&self, fd: &EventFd, address: IoAddress) -> Result<()>;

    /// Replaces the routes of message-signalled interrupts; the controllers' pins keep theirs.
    ///
    /// # Errors
    /// When a route cannot be.
    fn set_msi_routes(&self, routes: &[MsiRoute]) -> Result<()>;

    /// The pages of a slot written since the last call, a bit each.
    ///
    /// # Errors
    /// When the slot keeps no log.
    fn dirty_log(&self, slot: u32, size: u64) -> Result<Vec<u64>>;

    /// What the hypervisor keeps of the machine. Only right while no vCPU runs.
    ///
    /// # Errors
    /// When the hypervisor does not say.
    fn save(&self) -> Result<PartitionState>;

    /// Takes up a saved state, the clock aside.
    ///
    /// # Errors
    /// When the hypervisor refuses it.
    fn restore(&self, state: &PartitionState) -> Result<()>;

    /// Sets the guest's paravirtual clock, which goes on from there.
    ///
    /// # Errors
    /// When the hypervisor refuses.
    fn restore_clock(&self, state: &PartitionState) -> Result<()>;
}

/// Why a vCPU came back.
#[derive(Debug)]
pub enum Exit<'a> {
    /// The guest reads a port.
    PortRead(u16, &'a mut [u8]),
    /// The guest writes a port.
    PortWrite(u16, &'a [u8]),
    /// The guest reads where no memory is.
    MemoryRead(u64, &'a mut [u8]),
    /// The guest writes where no memory is.
    MemoryWrite(u64, &'a [u8]),
    /// Triple fault, or the guest asks for a reset.
    Reset,
    /// The guest asks to be powered off.
    Shutdown,
    /// A signal or [`Vcpu::set_immediate_exit`] ended the run; nothing is pending.
    Interrupted,
    /// Nothing to do but to run again.
    Again,
    /// The hypervisor cannot go on; [`Vcpu::explain`] says why.
    Failed,
}

/// A vCPU of the hypervisor. The thread that runs it owns it.
pub trait Vcpu: Send {
    /// Runs the guest until it needs us.
    ///
    /// # Errors
    /// When the hypervisor does not run it.
    fn run(&mut self) -> Result<Exit<'_>>;

    /// Why the last [`Exit::Failed`] happened, in words for a person.
    fn explain(&mut self) -> String;

    /// The next run only completes what is pending and returns.
    fn set_immediate_exit(&mut self, exit: bool);

    /// The byte that [`Vcpu::set_immediate_exit`] sets, for a signal handler on the vCPU's own thread.
    fn immediate_exit_byte(&mut self) -> *mut u8;

    /// Sets what CPUID shows the guest.
    ///
    /// # Errors
    /// When the hypervisor refuses.
    fn set_cpuid(&mut self, cpuid: &CpuId) -> Result<()>;

    /// Tells the guest, where it listens, that it was held still: its watchdogs then find nothing wrong.
    fn resumed(&mut self);

    /// General registers and system registers.
    ///
    /// # Errors
    /// When the hypervisor does not say.
    fn registers(&self) -> Result<(kvm_regs, kvm_sregs)>;

    /// Sets general registers and system registers.
    ///
    /// # Errors
    /// When the hypervisor refuses.
    fn set_registers(&mut self, regs: &kvm_regs, sregs: &kvm_sregs) -> Result<()>;

    /// The whole vCPU. Only right while nothing is pending.
    ///
    /// # Errors
    /// When the hypervisor does not say.
    fn save(&self) -> Result<VcpuState>;

    /// Takes up a saved state.
    ///
    /// # Errors
    /// When the hypervisor refuses it.
    fn restore(&mut self, state: &VcpuState) -> Result<()>;
}
