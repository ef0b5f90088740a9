//! What stands on top of every table: the machine that it was measured on.

use std::fs;

use crate::record::Host;

/// Whether this machine's KVM runs guests on the processor, not by emulating their kernel.
pub fn has_hardware_kvm() -> bool {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    flags(&cpuinfo).any(|flag| flag == "vmx" || flag == "svm")
}

/// This machine; `counted` when its clock counts instructions.
pub fn host(counted: bool) -> Host {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let processors = cpuinfo
        .lines()
        .filter(|line| line.starts_with("processor"))
        .count();
    let kvm = match (
        flags(&cpuinfo).find(|flag| *flag == "vmx" || *flag == "svm"),
        counted,
    ) {
        (None, _) => "software: no VT-x or SVM, the guest's kernel is emulated",
        (Some("vmx"), _) => "VT-x",
        (Some(_), false) => "SVM",
        (Some(_), true) => "SVM of QEMU's emulator (tests/lab)",
    };
    let clock = if counted {
        "the number of instructions executed, 1 ns each"
    } else {
        "the host's"
    };
    Host {
        cpu: format!("{processors} × {}", model.map_or("unknown", |(_, model)| model)),
        kernel: format!(
            "{} {}",
            read("/proc/sys/kernel/ostype"),
            read("/proc/sys/kernel/osrelease")
        ),
        kvm: kvm.into(),
        clock: clock.into(),
    }
}

fn flags(cpuinfo: &str) -> impl Iterator<Item = &str> {
    let line = cpuinfo.lines().find(|line| line.starts_with("flags"));
    line.unwrap_or_default().split_whitespace()
}
