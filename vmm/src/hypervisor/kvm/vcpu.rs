//! A vCPU of `/dev/kvm`: running it, and its registers.

use std::sync::Arc;

use kvm_bindings::{
    CpuId, KVM_INTERNAL_ERROR_EMULATION, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN, Msrs,
    kvm_cpuid_entry2, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_xsave,
};
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::super::explain::{Unemulated, unemulated};
use super::super::{Exit, Vcpu};
use crate::vcpu::state::VcpuState;
use crate::{Error, Result};

/// A vCPU of a partition, on the thread that runs it.
pub(super) struct KvmVcpu {
    fd: VcpuFd,
    saved_msrs: Arc<[u32]>,
    cpuid: Vec<kvm_cpuid_entry2>,
}

impl KvmVcpu {
    /// The vCPU of this descriptor; `saved_msrs` are the registers that its state consists of, beside those with a
    /// call of their own.
    pub(super) fn new(fd: VcpuFd, saved_msrs: Arc<[u32]>) -> Self {
        KvmVcpu {
            fd,
            saved_msrs,
            cpuid: Vec::new(),
        }
    }

    /// The values of the MSRs that this vCPU has; those that it refuses to give are left out.
    fn msrs(&self) -> Result<Vec<(u32, u64)>> {
        let mut values = Vec::with_capacity(self.saved_msrs.len());
        let mut rest = &self.saved_msrs[..];
        while !rest.is_empty() {
            let wanted: Vec<_> = rest
                .iter()
                .map(|&index| kvm_msr_entry {
                    index,
                    ..Default::default()
                })
                .collect();
            let mut msrs = Msrs::from_entries(&wanted).map_err(|_| Error::Restore("too many MSRs".into()))?;
            let read = self
                .fd
                .get_msrs(&mut msrs)
                .map_err(Error::hypervisor("save MSRs"))?;
            values.extend(msrs.as_slice().iter().take(read).map(|msr| (msr.index, msr.data)));
            // It stops at the first one that it does not give: skip that.
            rest = rest.get(read + 1..).unwrap_or_default();
        }
        Ok(values)
    }

    /// Lets the time-stamp counter run as fast as it did elsewhere.
    fn set_tsc_khz(&self, khz: u32) -> Result<()> {
        let here = self.fd.get_tsc_khz().unwrap_or(0);
        // KVM itself takes 250 parts in a million for the same.
        if khz == 0 || here == 0 || u64::from(khz.abs_diff(here)) * 4000 <= u64::from(here) {
            return Ok(());
        }
        self.fd.set_tsc_khz(khz).map_err(Error::hypervisor(
            "run the time-stamp counter as fast as it did elsewhere",
        ))
    }

    fn set_msrs(&mut self, values: &[(u32, u64)]) -> Result<()> {
        let entries: Vec<_> = values
            .iter()
            .map(|&(index, data)| kvm_msr_entry {
                index,
                data,
                ..Default::default()
            })
            .collect();
        let mut rest = &entries[..];
        while !rest.is_empty() {
            let msrs = Msrs::from_entries(rest).map_err(|_| Error::Restore("too many MSRs".into()))?;
            let set = self
                .fd
                .set_msrs(&msrs)
                .map_err(Error::hypervisor("restore MSRs"))?;
            if let Some(refused) = rest.get(set)
                && refused.data != 0
            {
                log::debug!(
                    "MSR {:#x} cannot be set to {:#x} here",
                    refused.index,
                    refused.data
                );
            }
            rest = rest.get(set + 1..).unwrap_or_default();
        }
        Ok(())
    }
}

impl Vcpu for KvmVcpu {
    fn run(&mut self) -> Result<Exit<'_>> {
        match self.fd.run() {
            Ok(exit) => Ok(match exit {
                VcpuExit::IoIn(port, data) => Exit::PortRead(port, data),
                VcpuExit::IoOut(port, data) => Exit::PortWrite(port, data),
                VcpuExit::MmioRead(address, data) => Exit::MemoryRead(address, data),
                VcpuExit::MmioWrite(address, data) => Exit::MemoryWrite(address, data),
                VcpuExit::Shutdown => Exit::Reset,
                VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _) => Exit::Reset,
                VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _) => Exit::Shutdown,
                VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::Hlt => Exit::Again,
                _ => Exit::Failed,
            }),
            Err(error) if error.errno() == libc::EINTR => Ok(Exit::Interrupted),
            // A vCPU that waits for INIT or SIPI says so once.
            Err(error) if error.errno() == libc::EAGAIN => Ok(Exit::Again),
            Err(error) => Err(Error::Hypervisor {
                what: "run a vCPU",
                source: error.into(),
            }),
        }
    }

    fn explain(&mut self) -> String {
        let registers = self.registers();
        let run = self.fd.get_kvm_run();
        match run.exit_reason {
            kvm_bindings::KVM_EXIT_INTERNAL_ERROR => {
                // SAFETY: the exit reason says that this member of the union is the one that KVM wrote.
                let (internal, failure) = unsafe {
                    (
                        run.__bindgen_anon_1.internal,
                        run.__bindgen_anon_1.emulation_failure,
                    )
                };
                if internal.suberror != KVM_INTERNAL_ERROR_EMULATION {
                    return format!(
                        "internal error {} of KVM: {:x?}",
                        internal.suberror, internal.data
                    );
                }
                // SAFETY: a union of plain numbers, valid whatever KVM wrote.
                let fields = unsafe { failure.__bindgen_anon_1.__bindgen_anon_1 };
                let has_bytes = failure.ndata >= 3 && failure.flags & 1 != 0;
                let len = if has_bytes {
                    usize::from(fields.insn_size).min(fields.insn_bytes.len())
                } else {
                    0
                };
                let bytes = fields.insn_bytes;
                let (rip, bitness, ring) = match registers {
                    Ok((regs, sregs)) if sregs.cs.l != 0 => (regs.rip, 64, sregs.cs.dpl),
                    Ok((regs, sregs)) => (regs.rip, if sregs.cs.db != 0 { 32 } else { 16 }, sregs.cs.dpl),
                    Err(_) => (0, 64, 0),
                };
                unemulated(&Unemulated {
                    bytes: bytes.get(..len).unwrap_or_default(),
                    rip,
                    bitness,
                    ring,
                })
            }
            kvm_bindings::KVM_EXIT_FAIL_ENTRY => {
                // SAFETY: the exit reason says that this member of the union is the one that KVM wrote.
                let fail = unsafe { run.__bindgen_anon_1.fail_entry };
                format!(
                    "the processor refused to enter the guest (reason {:#x})",
                    fail.hardware_entry_failure_reason
                )
            }
            reason => format!("KVM left the guest for reason {reason}, which this monitor does not know"),
        }
    }

    fn set_immediate_exit(&mut self, exit: bool) {
        self.fd.set_kvm_immediate_exit(u8::from(exit));
    }

    fn immediate_exit_byte(&mut self) -> *mut u8 {
        &raw mut self.fd.get_kvm_run().immediate_exit
    }

    fn set_cpuid(&mut self, cpuid: &CpuId) -> Result<()> {
        self.fd
            .set_cpuid2(cpuid)
            .map_err(Error::hypervisor("set CPUID"))?;
        self.cpuid = cpuid.as_slice().to_vec();
        Ok(())
    }

    fn resumed(&mut self) {
        // A guest without the paravirtual clock has nobody to tell.
        if let Err(error) = self.fd.kvmclock_ctrl() {
            log::trace!("a vCPU is not told that it was paused: {error}");
        }
    }

    fn registers(&self) -> Result<(kvm_regs, kvm_sregs)> {
        let regs = self.fd.get_regs().map_err(Error::hypervisor("read registers"))?;
        let sregs = self
            .fd
            .get_sregs()
            .map_err(Error::hypervisor("read system registers"))?;
        Ok((regs, sregs))
    }

    fn set_registers(&mut self, regs: &kvm_regs, sregs: &kvm_sregs) -> Result<()> {
        self.fd
            .set_sregs(sregs)
            .map_err(Error::hypervisor("set system registers"))?;
        self.fd.set_regs(regs).map_err(Error::hypervisor("set registers"))
    }

    fn save(&self) -> Result<VcpuState> {
        // The order matters: KVM settles the run state first, and reading events must come after it.
        let mp_state = self
            .fd
            .get_mp_state()
            .map_err(Error::hypervisor("save the run state"))?;
        let (regs, sregs) = self.registers()?;
        Ok(VcpuState {
            mp_state,
            regs,
            sregs,
            xsave: {
                let xsave = self
                    .fd
                    .get_xsave()
                    .map_err(Error::hypervisor("save vector registers"))?;
                xsave.region.iter().flat_map(|word| word.to_le_bytes()).collect()
            },
            xcrs: self.fd.get_xcrs().map_err(Error::hypervisor("save XCR0"))?,
            debug_regs: self
                .fd
                .get_debug_regs()
                .map_err(Error::hypervisor("save debug registers"))?,
            lapic: self
                .fd
                .get_lapic()
                .map_err(Error::hypervisor("save the local APIC"))?,
            msrs: self.msrs()?,
            events: self
                .fd
                .get_vcpu_events()
                .map_err(Error::hypervisor("save pending events"))?,
            tsc_khz: self.fd.get_tsc_khz().unwrap_or(0),
            cpuid: self.cpuid.clone(),
        })
    }

    fn restore(&mut self, state: &VcpuState) -> Result<()> {
        if !state.cpuid.is_empty() {
            let leaves = CpuId::from_entries(&state.cpuid)
                .map_err(|_| Error::Restore("too many CPUID leaves".into()))?;
            self.set_cpuid(&leaves)?;
        }
        self.set_tsc_khz(state.tsc_khz)?;
        self.fd
            .set_mp_state(state.mp_state)
            .map_err(Error::hypervisor("restore the run state"))?;
        self.set_registers(&state.regs, &state.sregs)?;
        let mut xsave = kvm_xsave::default();
        for (word, bytes) in xsave.region.iter_mut().zip(state.xsave.as_chunks().0) {
            *word = u32::from_le_bytes(*bytes);
        }
        // SAFETY: the structure is whole; no dynamic feature that would need a larger one is enabled.
        unsafe { self.fd.set_xsave(&xsave) }.map_err(Error::hypervisor("restore vector registers"))?;
        self.fd
            .set_xcrs(&state.xcrs)
            .map_err(Error::hypervisor("restore XCR0"))?;
        self.fd
            .set_debug_regs(&state.debug_regs)
            .map_err(Error::hypervisor("restore debug registers"))?;
        self.fd
            .set_lapic(&state.lapic)
            .map_err(Error::hypervisor("restore the local APIC"))?;
        // The TSC deadline is an MSR that acts on the local APIC, so MSRs come after it.
        self.set_msrs(&state.msrs)?;
        self.fd
            .set_vcpu_events(&state.events)
            .map_err(Error::hypervisor("restore pending events"))
    }
}
