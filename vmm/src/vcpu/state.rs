//! What of a vCPU is saved.

use kvm_bindings::{
    kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_regs, kvm_sregs, kvm_vcpu_events,
    kvm_xcrs,
};
use serde::{Deserialize, Serialize};

/// A vCPU at rest: everything that the hypervisor keeps of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct VcpuState {
    /// Running, halted, waiting for INIT or SIPI.
    pub mp_state: kvm_mp_state,
    /// General registers.
    pub regs: kvm_regs,
    /// Segments, control registers, EFER, APIC base.
    pub sregs: kvm_sregs,
    /// FPU and vector registers, as XSAVE lays them out (at most 4 KiB: no dynamic features are enabled).
    pub xsave: Vec<u8>,
    /// XCR0.
    pub xcrs: kvm_xcrs,
    /// Debug registers.
    pub debug_regs: kvm_debugregs,
    /// Local APIC.
    pub lapic: kvm_lapic_state,
    /// Pending exceptions, interrupts, NMIs.
    pub events: kvm_vcpu_events,
    /// Model-specific registers: index and value.
    pub msrs: Vec<(u32, u64)>,
    /// Frequency of the time-stamp counter in kHz, 0 where it is not known.
    pub tsc_khz: u32,
    /// What CPUID shows the guest; nothing where it stays as it is.
    pub cpuid: Vec<kvm_cpuid_entry2>,
}
