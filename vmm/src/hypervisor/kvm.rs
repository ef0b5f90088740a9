//! The hypervisor on `/dev/kvm`.
#![expect(unsafe_code, reason = "memory slots and the shared run page are raw memory")]

mod vcpu;

use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use kvm_bindings::{
    CpuId, KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KVM_MAX_CPUID_ENTRIES, KVM_MEM_LOG_DIRTY_PAGES, KVM_PIT_SPEAKER_DUMMY,
    KvmIrqRouting, kvm_irq_routing_entry, kvm_irqchip, kvm_pit_config, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VmFd};
use vmm_sys_util::eventfd::EventFd;

use super::{Hypervisor, IoAddress, MemorySlot, MsiRoute, Partition, PartitionState, Vcpu};
use crate::{Error, Result};
use vcpu::KvmVcpu;

/// Pins of the I/O APIC.
pub const IOAPIC_PINS: u32 = 24;
/// Three pages below 4 GiB that Intel processors need for real mode; no guest memory lies there.
const TSS_ADDRESS: usize = 0xfffb_d000;
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;

/// `/dev/kvm`.
pub struct KvmHypervisor {
    kvm: Kvm,
    saved_msrs: Arc<[u32]>,
}

impl KvmHypervisor {
    /// Opens the device file at `path`.
    ///
    /// # Errors
    /// When it is not there, may not be opened, or lacks what we need.
    pub fn open(path: &Path) -> Result<Self> {
        let text =
            std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).map_err(|_| Error::NoHypervisor {
                path: path.to_owned(),
            })?;
        let kvm = Kvm::new_with_path(&text).map_err(|error| match error.errno() {
            libc::ENOENT | libc::ENODEV | libc::ENXIO => Error::NoHypervisor {
                path: path.to_owned(),
            },
            libc::EACCES | libc::EPERM => Error::HypervisorPermission {
                path: path.to_owned(),
            },
            _ => Error::Hypervisor {
                what: "be opened",
                source: error.into(),
            },
        })?;
        Self::new(kvm)
    }

    /// Uses a device file that the caller has opened.
    ///
    /// # Errors
    /// When it is not KVM's or lacks what we need.
    pub fn from_fd(fd: OwnedFd) -> Result<Self> {
        // SAFETY: the descriptor is owned and open, and given away here; a wrong file fails the version check.
        Self::new(unsafe { Kvm::from_raw_fd(fd.into_raw_fd()) })
    }

    fn new(kvm: Kvm) -> Result<Self> {
        if kvm.get_api_version() != 12 {
            return Err(Error::Capability("version 12 of its interface"));
        }
        let needed = [
            (Cap::Irqchip, "interrupt controllers"),
            (Cap::UserMemory, "user memory"),
            (Cap::Irqfd, "irqfd"),
            (Cap::Ioeventfd, "ioeventfd"),
            (Cap::IrqRouting, "interrupt routing"),
            (Cap::ExtCpuid, "CPUID"),
            (Cap::ImmediateExit, "immediate exit"),
        ];
        if let Some((_, name)) = needed.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
            return Err(Error::Capability(name));
        }
        let msrs = kvm
            .get_msr_index_list()
            .map_err(Error::hypervisor("list its MSRs"))?;
        Ok(KvmHypervisor {
            saved_msrs: msrs.as_slice().into(),
            kvm,
        })
    }
}

impl Hypervisor for KvmHypervisor {
    fn create_partition(&self) -> Result<Arc<dyn Partition>> {
        let vm = loop {
            match self.kvm.create_vm() {
                // Making a machine takes locks that a signal may interrupt.
                Err(error) if error.errno() == libc::EINTR => {}
                other => break other.map_err(Error::hypervisor("create a virtual machine"))?,
            }
        };
        vm.set_identity_map_address(IDENTITY_MAP_ADDRESS)
            .map_err(Error::hypervisor("set the identity map address"))?;
        vm.set_tss_address(TSS_ADDRESS)
            .map_err(Error::hypervisor("set the TSS address"))?;
        vm.create_irq_chip()
            .map_err(Error::hypervisor("create interrupt controllers"))?;
        let pit = kvm_pit_config {
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..Default::default()
        };
        vm.create_pit2(pit).map_err(Error::hypervisor("create a timer"))?;
        let partition = KvmPartition {
            vm,
            saved_msrs: Arc::clone(&self.saved_msrs),
        };
        partition.mask_pics()?;
        Ok(Arc::new(partition))
    }

    fn supported_cpuid(&self) -> Result<CpuId> {
        self.kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(Error::hypervisor("say which CPUID it supports"))
    }

    fn saved_msrs(&self) -> &[u32] {
        &self.saved_msrs
    }

    fn has_tsc_deadline(&self) -> bool {
        self.kvm.check_extension(Cap::TscDeadlineTimer)
    }
}

struct KvmPartition {
    vm: VmFd,
    saved_msrs: Arc<[u32]>,
}

impl KvmPartition {
    /// Masks the lines of both 8259s, as a PC's firmware leaves them. A guest with an I/O APIC never sets them up, and
    /// an event before it has set up its local APIC would reach it as an exception (vector 7).
    fn mask_pics(&self) -> Result<()> {
        for id in [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE] {
            let mut chip = self.irqchip(id)?;
            chip.chip.pic.imr = 0xff;
            self.vm
                .set_irqchip(&chip)
                .map_err(Error::hypervisor("mask an interrupt controller"))?;
        }
        Ok(())
    }

    fn irqchip(&self, chip_id: u32) -> Result<kvm_irqchip> {
        let mut chip = kvm_irqchip {
            chip_id,
            ..Default::default()
        };
        self.vm
            .get_irqchip(&mut chip)
            .map_err(Error::hypervisor("save an interrupt controller"))?;
        Ok(chip)
    }
}

/// The pins of the interrupt controllers as KVM wires them by itself; a new table must name them again.
fn pin_routes() -> Vec<kvm_irq_routing_entry> {
    let entry = |gsi, irqchip, pin| {
        let mut entry = kvm_irq_routing_entry {
            gsi,
            type_: KVM_IRQ_ROUTING_IRQCHIP,
            ..Default::default()
        };
        entry.u.irqchip = kvm_bindings::kvm_irq_routing_irqchip { irqchip, pin };
        entry
    };
    let mut routes = Vec::new();
    for gsi in 0..16 {
        let (chip, pin) = if gsi < 8 {
            (KVM_IRQCHIP_PIC_MASTER, gsi)
        } else {
            (KVM_IRQCHIP_PIC_SLAVE, gsi - 8)
        };
        routes.push(entry(gsi, chip, pin));
    }
    for gsi in 0..IOAPIC_PINS {
        // The timer's interrupt 0 arrives at pin 2, as on every PC.
        routes.push(entry(gsi, KVM_IRQCHIP_IOAPIC, if gsi == 0 { 2 } else { gsi }));
    }
    routes
}

impl Partition for KvmPartition {
    unsafe fn set_memory(&self, slot: MemorySlot) -> Result<()> {
        let region = kvm_userspace_memory_region {
            slot: slot.slot,
            flags: if slot.log_dirty {
                KVM_MEM_LOG_DIRTY_PAGES
            } else {
                0
            },
            guest_phys_addr: slot.guest,
            memory_size: slot.size,
            userspace_addr: slot.host,
        };
        // SAFETY: the caller keeps the range mapped for as long as the slot stands.
        unsafe { self.vm.set_user_memory_region(region) }.map_err(Error::hypervisor("map guest memory"))
    }

    fn create_vcpu(&self, index: u8) -> Result<Box<dyn Vcpu>> {
        let fd = self
            .vm
            .create_vcpu(u64::from(index))
            .map_err(Error::hypervisor("create a vCPU"))?;
        Ok(Box::new(KvmVcpu::new(fd, Arc::clone(&self.saved_msrs))))
    }

    fn add_irqfd(&self, fd: &EventFd, gsi: u32) -> Result<()> {
        self.vm
            .register_irqfd(fd, gsi)
            .map_err(Error::hypervisor("connect an interrupt"))
    }

    fn remove_irqfd(&self, fd: &EventFd, gsi: u32) -> Result<()> {
        self.vm
            .unregister_irqfd(fd, gsi)
            .map_err(Error::hypervisor("disconnect an interrupt"))
    }

    fn add_ioeventfd(&self, fd: &EventFd, address: IoAddress) -> Result<()> {
        match address {
            IoAddress::Port(port) => {
                self.vm
                    .register_ioevent(fd, &IoEventAddress::Pio(port.into()), kvm_ioctls::NoDatamatch)
            }
            IoAddress::Memory(address, None) => {
                self.vm
                    .register_ioevent(fd, &IoEventAddress::Mmio(address), kvm_ioctls::NoDatamatch)
            }
            IoAddress::Memory(address, Some(value)) => {
                self.vm
                    .register_ioevent(fd, &IoEventAddress::Mmio(address), value)
            }
        }
        .map_err(Error::hypervisor("watch a doorbell"))
    }

    fn remove_ioeventfd(&self, fd: &EventFd, address: IoAddress) -> Result<()> {
        match address {
            IoAddress::Port(port) => {
                self.vm
                    .unregister_ioevent(fd, &IoEventAddress::Pio(port.into()), kvm_ioctls::NoDatamatch)
            }
            IoAddress::Memory(address, None) => {
                self.vm
                    .unregister_ioevent(fd, &IoEventAddress::Mmio(address), kvm_ioctls::NoDatamatch)
            }
            IoAddress::Memory(address, Some(value)) => {
                self.vm
                    .unregister_ioevent(fd, &IoEventAddress::Mmio(address), value)
            }
        }
        .map_err(Error::hypervisor("forget a doorbell"))
    }

    fn set_msi_routes(&self, routes: &[MsiRoute]) -> Result<()> {
        let mut entries = pin_routes();
        entries.extend(routes.iter().map(|route| {
            let mut entry = kvm_irq_routing_entry {
                gsi: route.gsi,
                type_: KVM_IRQ_ROUTING_MSI,
                ..Default::default()
            };
            entry.u.msi.address_lo = route.message.address as u32;
            entry.u.msi.address_hi = (route.message.address >> 32) as u32;
            entry.u.msi.data = route.message.data;
            entry
        }));
        let table = KvmIrqRouting::from_entries(&entries).map_err(|_| Error::Hypervisor {
            what: "route so many interrupts",
            source: io::ErrorKind::OutOfMemory.into(),
        })?;
        self.vm
            .set_gsi_routing(&table)
            .map_err(Error::hypervisor("route interrupts"))
    }

    fn dirty_log(&self, slot: u32, size: u64) -> Result<Vec<u64>> {
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        self.vm
            .get_dirty_log(slot, size)
            .map_err(Error::hypervisor("give its log of written pages"))
    }

    fn save(&self) -> Result<PartitionState> {
        Ok(PartitionState {
            irqchips: vec![
                self.irqchip(KVM_IRQCHIP_PIC_MASTER)?,
                self.irqchip(KVM_IRQCHIP_PIC_SLAVE)?,
                self.irqchip(KVM_IRQCHIP_IOAPIC)?,
            ],
            pit: self.vm.get_pit2().map_err(Error::hypervisor("save the timer"))?,
            clock: self.vm.get_clock().map_err(Error::hypervisor("save the clock"))?,
        })
    }

    fn restore(&self, state: &PartitionState) -> Result<()> {
        for chip in &state.irqchips {
            self.vm
                .set_irqchip(chip)
                .map_err(Error::hypervisor("restore an interrupt controller"))?;
        }
        self.vm
            .set_pit2(&state.pit)
            .map_err(Error::hypervisor("restore the timer"))
    }

    fn restore_clock(&self, state: &PartitionState) -> Result<()> {
        let mut clock = state.clock;
        // The flags that GET gives are not all allowed for SET; what counts is the time.
        clock.flags = 0;
        self.vm
            .set_clock(&clock)
            .map_err(Error::hypervisor("restore the clock"))
    }
}
