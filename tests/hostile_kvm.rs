//! A guest that attacks its devices on /dev/kvm (`tests/guest/payload/src/tests/hostile.rs`), by seeds. After each attack
//! it looks whether the device can be used again and another one works; here the monitor's memory is looked at.
//!
//! `NACELLE_HOSTILE_SEEDS=FIRST..END` attacks with others than those of every day, for hours if one likes.

#![allow(clippy::unwrap_used)]

mod support;

use std::ops::Range;
use std::os::unix::net::UnixListener;
use std::sync::{Mutex, PoisonError};

use nacelle_vmm::config::{
    BalloonConfig, ConsoleConfig, ConsolePort, DeviceConfig, DeviceKind, Transport, VsockConfig, VsockHost,
};
use support::network::{Host, in_namespace};
use support::payload::{Payload, over_both_transports, with};
use support::{device, disk, empty_disk};
use vmm_sys_util::tempdir::TempDir;

const MIB: u64 = 1 << 20;
/// What the monitor may have more at the end than after the first attack: its allocator's arenas, logs.
const GROWTH: u64 = 8 * MIB;

const NET: u64 = 1;
const BLK: u64 = 2;
const CONSOLE: u64 = 3;
const BALLOON: u64 = 5;
const VSOCK: u64 = 19;

const ATTACKS: [&str; 10] = [
    "rings",
    "indices",
    "descriptors",
    "races",
    "longest",
    "resets",
    "configuration",
    "doorbells",
    "messages",
    "pages",
];

over_both_transports! {
    a_disk_is_attacked
    a_raw_disk_in_memory_is_attacked
    an_interface_is_attacked
    a_console_is_attacked_that_nobody_reads
    a_balloon_is_attacked
    sockets_are_attacked
    every_port_and_register_is_written_in_every_width
}

fn seeds() -> Range<u64> {
    let Ok(text) = std::env::var("NACELLE_HOSTILE_SEEDS") else {
        return 1..3;
    };
    let (first, end) = text.split_once("..").unwrap();
    first.parse().unwrap()..end.parse().unwrap()
}

/// One machine at a time: its memory is the process's.
static ONE: Mutex<()> = Mutex::new(());

/// What this process has in memory, without the guest's.
fn own_memory(guest: &Payload) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    (kib << 10).saturating_sub(guest.resident())
}

/// Attacks device `kind`, which `make` gives, with all seeds.
fn attack(transport: Transport, kind: u64, mut make: impl FnMut() -> DeviceConfig) {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut first = None;
    for seed in seeds() {
        let words = format!("hostile={}", seed << 8 | kind);
        let devices = vec![make(), device("witness", DeviceKind::Rng)];
        let mut guest = Payload::boot(with(transport, &words, devices));
        for name in ATTACKS {
            let said = guest.ok("hostile");
            assert!(said.starts_with(name), "seed {seed}: {said} instead of {name}");
            let memory = own_memory(&guest);
            let before = *first.get_or_insert(memory);
            assert!(
                memory <= before + GROWTH,
                "seed {seed}: the monitor has {memory} bytes after {name}, {before} before"
            );
        }
        guest.end();
    }
}

fn a_disk_is_attacked(transport: Transport) {
    let directory = TempDir::new_in(std::path::Path::new(env!("CARGO_TARGET_TMPDIR"))).unwrap();
    let path = directory.as_path().join("disk");
    std::fs::File::create(&path).unwrap().set_len(9 * MIB).unwrap();
    attack(transport, BLK, || device("victim", disk(&path)));
}

fn a_raw_disk_in_memory_is_attacked(transport: Transport) {
    let file = empty_disk(9);
    attack(transport, BLK, || device("victim", disk(file.as_path())));
}

fn an_interface_is_attacked(transport: Transport) {
    in_namespace(move || {
        let host = Host::new();
        attack(transport, NET, || device("victim", host.interface()));
    });
}

fn a_console_is_attacked_that_nobody_reads(transport: Transport) {
    let port = |name: &str, console| ConsolePort {
        name: name.into(),
        console,
    };
    attack(transport, CONSOLE, || {
        let ports = vec![port("org.qemu.guest_agent.0", false), port("shell", true)];
        device("victim", DeviceKind::Console(ConsoleConfig { ports }))
    });
}

fn a_balloon_is_attacked(transport: Transport) {
    attack(transport, BALLOON, || {
        let config = BalloonConfig {
            statistics_interval: 1,
            ..Default::default()
        };
        device("victim", DeviceKind::Balloon(config))
    });
}

fn sockets_are_attacked(transport: Transport) {
    let directory = TempDir::new().unwrap();
    // Who listens and never accepts.
    let _listener = UnixListener::bind(directory.as_path().join("vsock_1234")).unwrap();
    attack(transport, VSOCK, || {
        let host = VsockHost::Unix(directory.as_path().join("vsock"));
        device("victim", DeviceKind::Vsock(VsockConfig { cid: 42, host }))
    });
}

fn every_port_and_register_is_written_in_every_width(transport: Transport) {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    for seed in seeds() {
        let file = empty_disk(1);
        let devices = vec![
            device("root", disk(file.as_path())),
            device("rng", DeviceKind::Rng),
            device("balloon", DeviceKind::Balloon(BalloonConfig::default())),
        ];
        let mut guest = Payload::boot(with(transport, &format!("sweep={seed}"), devices));
        assert_eq!(guest.ok("sweep"), "ports");
        assert_eq!(guest.ok("sweep"), "registers");
        guest.end();
    }
}
