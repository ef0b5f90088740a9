//! The machine itself on /dev/kvm, as a bare-metal guest sees it.

#![allow(clippy::unwrap_used)]

mod support;

use std::process::Command;

use nacelle_vmm::VmEvent;
use nacelle_vmm::config::{CpuConfig, DeviceKind, Identity, Transport};
use nacelle_vmm::hypervisor::explain::software_kvm;
use support::device;
use support::payload::{Payload, config, over_both_transports, with};

over_both_transports! {
    after_a_reset_everything_is_as_at_the_first_boot
}

#[test]
fn a_bare_metal_guest_sees_its_memory_and_powers_off() {
    let mut guest = Payload::boot(config("hello"));
    // All but the 384 KiB below 1 MiB that firmware has.
    assert_eq!(guest.ok("hello"), format!("{} bytes", (64 << 20) - (384 << 10)));
    guest.end();
}

/// What the kernel says of this process's threads with that name.
fn threads(name: &str) -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let statuses = tasks.filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("status")).ok());
    let named = format!("Name:\t{name}\n");
    statuses.filter(|status| status.starts_with(&named)).collect()
}

#[test]
fn the_threads_that_a_guest_reaches_are_confined() {
    let mut guest = Payload::boot(with(
        Transport::Pci,
        "serve",
        vec![device("rng", DeviceKind::Rng)],
    ));
    guest.ok("serving");
    for name in ["vcpu0", "io0"] {
        let threads = threads(name);
        assert!(!threads.is_empty(), "no thread {name}");
        for status in threads {
            for line in ["CapPrm:\t0000000000000000\n", "NoNewPrivs:\t1\n", "Seccomp:\t2\n"] {
                assert!(status.contains(line), "{line} is not in {status}");
            }
        }
    }
    guest.type_text("bye\n");
    guest.end();
}

#[test]
fn what_is_typed_on_the_serial_line_is_heard_and_answered() {
    let mut guest = Payload::boot(config("serve"));
    guest.ok("serving");
    for line in [
        "hello",
        "a line of more than sixteen bytes, which is what a fifo holds",
    ] {
        guest.type_text(&format!("{line}\n"));
        assert_eq!(guest.ok("typed"), line);
    }
    guest.type_text("bye\n");
    guest.end();
}

fn now() -> String {
    let output = Command::new("date").args(["-u", "+%FT%T"]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn the_clock_shows_the_hosts_date() {
    let before = now();
    let mut guest = Payload::boot(config("clock"));
    let clock = guest.ok("clock");
    assert!(
        before <= clock && clock <= now(),
        "{clock} is not between {before} and {}",
        now()
    );
    guest.end();
}

#[test]
fn tables_lead_from_the_root_to_all_that_a_kernel_needs() {
    let mut config = config("tables");
    config.cpus.cores = 3;
    config.identity = Identity {
        uuid: *b"0123456789abcdef",
        serial: "S-1".into(),
        sku: String::new(),
    };
    let mut guest = Payload::boot(config);
    for name in ["FACP", "DSDT", "APIC", "MCFG"] {
        let table = guest.ok("table");
        assert!(table.starts_with(name), "{table} instead of {name}");
    }
    assert_eq!(guest.ok("registers"), "reset 0x64 0xfe sleep 0x600");
    assert_eq!(guest.ok("processors"), "3");
    // The first three fields of the UUID are little-endian in SMBIOS.
    assert_eq!(guest.ok("smbios"), "33323130353437363839616263646566 S-1");
    guest.end();
}

#[test]
fn other_processors_start_at_init_and_sipi() {
    let mut config = config("smp");
    config.cpus = CpuConfig {
        sockets: 1,
        cores: 2,
        threads: 2,
    };
    let mut guest = Payload::boot(config);
    for id in 1..4 {
        assert_eq!(guest.ok("processor"), id.to_string());
    }
    assert_eq!(guest.ok("smp"), "4");
    guest.end();
}

#[test]
fn the_power_button_arrives_once_as_an_event() {
    let mut guest = Payload::boot(config("button"));
    assert_eq!(guest.ok("button"), "ready");
    guest.vm.power_button().unwrap();
    assert_eq!(guest.ok("button"), "1 then 0");
    guest.end();
}

fn after_a_reset_everything_is_as_at_the_first_boot(transport: Transport) {
    let mut config = with(transport, "boot", vec![device("rng", DeviceKind::Rng)]);
    config.cpus.cores = 2;
    let mut guest = Payload::boot(config);
    for _ in 0..5 {
        let boot = guest.ok("boot");
        assert_eq!(boot, "1 status 0 unmasked 0 processors 1 priority 0");
        assert_eq!(guest.ok("used"), "1");
        assert!(matches!(guest.event(), VmEvent::Reset));
        guest.vm.reset().unwrap();
    }
}

#[test]
fn a_guest_that_gives_up_is_a_reset() {
    let mut guest = Payload::boot(config("exception=3"));
    guest.ok("exception");
    let event = guest.event();
    assert!(matches!(event, VmEvent::Reset), "{event:?}");
    guest.vm.reset().unwrap();
    guest.ok("exception");
    assert!(matches!(guest.event(), VmEvent::Reset));
}

#[test]
fn an_instruction_that_this_kvm_lacks_is_named() {
    for (which, name) in [(1, "int3"), (2, "wait")] {
        let mut guest = Payload::boot(config(&format!("exception={which}")));
        guest.ok("exception");
        if !software_kvm() {
            continue;
        }
        match guest.event() {
            VmEvent::VcpuFailed { vcpu: 0, error } => {
                let text = error.to_string();
                assert!(
                    text.contains(&format!("`{name}`"))
                        && text.contains("in ring 0")
                        && text.contains("software KVM"),
                    "{text}"
                );
            }
            event => panic!("{event:?}"),
        }
        // It can be reset even so.
        guest.vm.reset().unwrap();
        guest.ok("exception");
    }
}
