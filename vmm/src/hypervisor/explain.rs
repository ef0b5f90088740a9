//! Says what a guest did that its hypervisor cannot do: names the instruction.

use std::arch::x86_64::__cpuid;

use iced_x86::{Decoder, DecoderOptions, Formatter, NasmFormatter};

/// What KVM could not emulate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unemulated<'a> {
    /// The instruction's bytes, where the hypervisor gives them.
    pub bytes: &'a [u8],
    /// Its address.
    pub rip: u64,
    /// Width of the code segment: 16, 32 or 64.
    pub bitness: u32,
    /// Privilege level, 0 to 3.
    pub ring: u8,
}

/// A sentence on an instruction that KVM could not emulate, with the cause and what to do.
pub fn unemulated(fault: &Unemulated) -> String {
    let where_ = format!("at {:#x} in ring {}", fault.rip, fault.ring);
    let what = match instruction(fault) {
        Some(text) => format!("KVM cannot emulate the instruction `{text}` {where_}"),
        None => format!("KVM cannot emulate an instruction {where_}"),
    };
    let cause = if software_kvm() {
        "this machine has software KVM (no VT-x or SVM), which emulates the guest's kernel and lacks some \
         instructions: use a machine with hardware virtualization, or a guest kernel made for software KVM"
    } else {
        "the guest ran it on memory that no RAM or device answers, or jumped astray"
    };
    format!("{what}; {cause}")
}

/// The instruction as an assembler writes it.
fn instruction(fault: &Unemulated) -> Option<String> {
    if fault.bytes.is_empty() {
        return None;
    }
    let mut decoder = Decoder::with_ip(fault.bitness, fault.bytes, fault.rip, DecoderOptions::NONE);
    let decoded = decoder.decode();
    if decoded.is_invalid() {
        let bytes: Vec<String> = fault.bytes.iter().map(|b| format!("{b:02x}")).collect();
        return Some(format!("db {}", bytes.join(" ")));
    }
    let mut text = String::new();
    NasmFormatter::new().format(&decoded, &mut text);
    Some(text)
}

/// Whether KVM here works without the processor's help: no VT-x or SVM, yet there is a `/dev/kvm`. The processor itself
/// is asked: the vCPU's thread, which says what went wrong, opens no file.
pub fn software_kvm() -> bool {
    let vmx = __cpuid(1).ecx & 1 << 5 != 0;
    let svm = __cpuid(0x8000_0000).eax >= 0x8000_0001 && __cpuid(0x8000_0001).ecx & 1 << 2 != 0;
    !vmx && !svm
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_instruction_is_named() {
        let cases: [(&[u8], u32, &str); 4] = [
            (&[0xcc], 64, "int3"),
            (&[0x9b], 64, "wait"),
            (&[0xf3, 0x48, 0x0f, 0xb8, 0xc0], 64, "popcnt rax,rax"),
            (&[0xff, 0xff], 64, "db ff ff"),
        ];
        for (bytes, bitness, text) in cases {
            let fault = Unemulated {
                bytes,
                rip: 0x1000,
                bitness,
                ring: 0,
            };
            assert_eq!(instruction(&fault).as_deref(), Some(text));
        }
    }

    #[test]
    fn the_processor_says_of_itself_what_the_kernel_says_of_it() {
        let text = std::fs::read_to_string("/proc/cpuinfo").unwrap();
        let mut flags = text
            .lines()
            .filter(|line| line.starts_with("flags"))
            .flat_map(str::split_whitespace);
        assert_eq!(software_kvm(), !flags.any(|flag| flag == "vmx" || flag == "svm"));
    }
}
