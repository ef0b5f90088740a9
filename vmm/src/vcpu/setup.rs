//! Registers that a boot protocol asks for, from those after reset (pure).

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};

/// Where the descriptor table for the first instructions lies.
pub const GDT_ADDRESS: u64 = 0x500;
/// Page tables that map the first 4 GiB to themselves, for 64-bit entry.
pub const PAGE_TABLES: u64 = 0x9000;
/// Top of the small stack at entry.
const STACK: u64 = 0x8ff0;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// How a kernel wants to be entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// PVH (Xen's boot ABI): 32-bit protected mode without paging, EBX points at `start_info`.
    Pvh {
        /// First instruction.
        rip: u64,
        /// Address of `hvm_start_info`.
        start_info: u64,
    },
    /// Linux's 64-bit protocol: long mode, RSI points at the zero page.
    Linux64 {
        /// First instruction.
        rip: u64,
        /// Address of `boot_params`.
        boot_params: u64,
    },
}

fn segment(selector: u16, type_: u8, long: bool, code_or_data: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: if code_or_data { 0xffff_ffff } else { 0x67 },
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: u8::from(code_or_data && !long),
        s: u8::from(code_or_data),
        l: u8::from(long),
        g: u8::from(code_or_data),
        avl: 0,
        unusable: 0,
        padding: 0,
    }
}

/// The descriptor that a segment register was loaded from (Intel SDM 3, §3.4.5).
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = if segment.g != 0 {
        segment.limit >> 12
    } else {
        segment.limit
    };
    let flags = u64::from(segment.type_)
        | u64::from(segment.s) << 4
        | u64::from(segment.dpl) << 5
        | u64::from(segment.present) << 7
        | u64::from(segment.l) << 13
        | u64::from(segment.db) << 14
        | u64::from(segment.g) << 15;
    u64::from(limit & 0xffff) | u64::from(limit >> 16) << 48 | flags << 40
}

impl Entry {
    fn long(&self) -> bool {
        matches!(self, Entry::Linux64 { .. })
    }

    fn segments(&self) -> (kvm_segment, kvm_segment, kvm_segment) {
        let code = segment(0x10, 0xb, self.long(), true);
        let mut data = segment(0x18, 0x3, false, true);
        data.db = 1;
        (code, data, segment(0x20, 0xb, false, false))
    }

    /// The descriptor table to be put at [`GDT_ADDRESS`].
    pub fn gdt(&self) -> Vec<u8> {
        let (code, data, task) = self.segments();
        let table = [0, 0, descriptor(&code), descriptor(&data), descriptor(&task), 0];
        table.iter().flat_map(|entry| entry.to_le_bytes()).collect()
    }

    /// The page tables to be put at [`PAGE_TABLES`]: 2 MiB pages, the first 4 GiB.
    pub fn page_tables(&self) -> Vec<u8> {
        if !self.long() {
            return Vec::new();
        }
        const PRESENT_WRITABLE: u64 = 3;
        const LARGE: u64 = 1 << 7;
        let mut tables = vec![0u64; 512 * 6];
        let mut set = |index: usize, value| {
            if let Some(entry) = tables.get_mut(index) {
                *entry = value;
            }
        };
        set(0, (PAGE_TABLES + 0x1000) | PRESENT_WRITABLE);
        for gib in 0..4 {
            set(
                512 + gib,
                (PAGE_TABLES + 0x2000 + 0x1000 * gib as u64) | PRESENT_WRITABLE,
            );
        }
        for page in 0..4 * 512 {
            set(1024 + page, (page as u64) << 21 | PRESENT_WRITABLE | LARGE);
        }
        tables.iter().flat_map(|entry| entry.to_le_bytes()).collect()
    }

    /// The registers of the boot processor at entry; `after_reset` are those of a fresh one.
    pub fn registers(&self, after_reset: &kvm_sregs) -> (kvm_regs, kvm_sregs) {
        let mut sregs = *after_reset;
        let (code, data, task) = self.segments();
        sregs.cs = code;
        (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
        sregs.tr = task;
        sregs.gdt.base = GDT_ADDRESS;
        sregs.gdt.limit = (self.gdt().len() - 1) as u16;
        sregs.idt.base = 0;
        sregs.idt.limit = 0;
        sregs.cr0 = CR0_PE | CR0_ET;
        sregs.cr4 = 0;
        let mut regs = kvm_regs {
            rflags: 2,
            ..Default::default()
        };
        match *self {
            Entry::Pvh { rip, start_info } => {
                regs.rip = rip;
                regs.rbx = start_info;
            }
            Entry::Linux64 { rip, boot_params } => {
                sregs.cr0 |= CR0_PG;
                sregs.cr3 = PAGE_TABLES;
                sregs.cr4 = CR4_PAE;
                sregs.efer |= EFER_LME | EFER_LMA;
                regs.rip = rip;
                regs.rsi = boot_params;
                regs.rsp = STACK;
                regs.rbp = STACK;
            }
        }
        (regs, sregs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pvh_enters_flat_32_bit_mode_without_paging() {
        let entry = Entry::Pvh {
            rip: 0x100_0000,
            start_info: 0x6000,
        };
        let (regs, sregs) = entry.registers(&kvm_sregs::default());
        assert_eq!((regs.rip, regs.rbx, regs.rflags), (0x100_0000, 0x6000, 2));
        assert_eq!((sregs.cr0, sregs.cr4, sregs.efer), (CR0_PE | CR0_ET, 0, 0));
        assert_eq!((sregs.cs.db, sregs.cs.l, sregs.cs.limit), (1, 0, 0xffff_ffff));
        assert!(entry.page_tables().is_empty());
    }

    #[test]
    fn linux_enters_long_mode_with_its_first_4_gib_mapped() {
        let entry = Entry::Linux64 {
            rip: 0x100_0200,
            boot_params: 0x7000,
        };
        let (regs, sregs) = entry.registers(&kvm_sregs::default());
        assert_eq!((regs.rip, regs.rsi), (0x100_0200, 0x7000));
        assert_eq!(sregs.efer, EFER_LME | EFER_LMA);
        assert_eq!((sregs.cs.db, sregs.cs.l), (0, 1));
        let tables = entry.page_tables();
        let last = u64::from_le_bytes(tables[tables.len() - 8..].try_into().unwrap());
        assert_eq!(last & !0xfff, (4 << 30) - (2 << 20));
    }

    #[test]
    fn descriptors_are_the_flat_ones_of_every_textbook() {
        let gdt = Entry::Pvh {
            rip: 0,
            start_info: 0,
        }
        .gdt();
        assert_eq!(gdt[16..24], 0x00cf_9b00_0000_ffffu64.to_le_bytes());
        assert_eq!(gdt[24..32], 0x00cf_9300_0000_ffffu64.to_le_bytes());
    }
}
