//! Pause, reset, save and restore on /dev/kvm while every device is busy; machines beside each other; kernels
//! that are none.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nacelle_vmm::config::{
    BalloonConfig, BootConfig, ConsoleConfig, ConsolePort, DeviceKind, MemoryConfig, Transport, VsockConfig,
    VsockHost,
};
use nacelle_vmm::{Error, VmConfig, VmEvent, boot, memory};
use support::network::{Host, in_namespace};
use support::payload::{Payload, config, elf, over_both_transports, pattern, with};
use support::{device, disk, eventually};
use vmm_sys_util::tempdir::TempDir;
use vmm_sys_util::tempfile::TempFile;

const MIB: u64 = 1 << 20;

over_both_transports! {
    a_disk_in_use_loses_nothing_over_pauses
    a_disk_in_use_loses_nothing_over_moves
    entropy_goes_on_over_moves
    datagrams_under_way_arrive_after_a_move
    ports_and_the_serial_line_go_on_after_a_move
    a_balloon_stays_as_large_over_a_move
    streams_end_with_a_move_and_new_ones_are_taken
    a_reset_in_the_middle_of_everything_starts_afresh
}

fn disk_of_8_mib() -> TempFile {
    let file = TempFile::new().unwrap();
    file.as_file().set_len(8 * MIB).unwrap();
    file
}

/// What `blk-stream` leaves on the disk after `rounds`.
fn check_stream(file: &TempFile, rounds: u64) {
    let len = MIB / 2;
    for region in 0..16.min(rounds) {
        let last = (rounds - 1 - region) / 16 * 16 + region;
        let mut written = vec![0; len as usize];
        file.as_file().read_exact_at(&mut written, region * len).unwrap();
        assert!(
            written == pattern(region * len, len, last),
            "half a MiB at {region} is not that of round {last}"
        );
    }
}

/// Some time that is not the same twice.
fn a_moment(i: u64) -> Duration {
    Duration::from_micros(i * 2_654_435_761 % 9000)
}

fn a_disk_in_use_loses_nothing_over_pauses(transport: Transport) {
    const ROUNDS: u64 = 40;
    let file = disk_of_8_mib();
    let devices = vec![device("root", disk(file.as_path()))];
    let mut guest = Payload::boot(with(transport, &format!("blk-stream={ROUNDS}"), devices));
    for round in 0..ROUNDS {
        assert_eq!(guest.ok("blk-stream"), round.to_string());
        std::thread::sleep(a_moment(round));
        guest.vm.pause().unwrap();
        guest.vm.resume().unwrap();
    }
    guest.end();
    check_stream(&file, ROUNDS);
}

fn a_disk_in_use_loses_nothing_over_moves(transport: Transport) {
    const ROUNDS: u64 = 30;
    let file = disk_of_8_mib();
    let config = || {
        with(
            transport,
            &format!("blk-stream={ROUNDS}"),
            vec![device("root", disk(file.as_path()))],
        )
    };
    let mut guest = Payload::boot(config());
    for round in 0..ROUNDS {
        assert_eq!(guest.ok("blk-stream"), round.to_string());
        if round % 3 == 0 && round + 2 < ROUNDS {
            std::thread::sleep(a_moment(round));
            guest = guest.move_to(config());
        }
    }
    guest.end();
    check_stream(&file, ROUNDS);
}

fn entropy_goes_on_over_moves(transport: Transport) {
    let config = || with(transport, "rng=200", vec![device("rng", DeviceKind::Rng)]);
    let mut guest = Payload::boot(config());
    for round in 1..=200 {
        assert_eq!(guest.ok("rng"), format!("{round} len 256"));
        if round % 40 == 0 && round < 200 {
            guest = guest.move_to(config());
        }
    }
    guest.end();
}

fn datagrams_under_way_arrive_after_a_move(transport: Transport) {
    in_namespace(move || {
        let host = Host::new();
        let config = || with(transport, "serve", vec![device("net", host.interface())]);
        let mut guest = Payload::boot(config());
        guest.ok("serving");
        host.send(0);
        assert_eq!(host.receive(), 0);
        for round in 0..5 {
            // Some before, some of them answered before, and some while it is nowhere.
            for number in 0..20 {
                host.send(round * 100 + number);
            }
            std::thread::sleep(a_moment(round.into()));
            guest.vm.pause().unwrap();
            for number in 20..40 {
                host.send(round * 100 + number);
            }
            guest = guest.move_to(config());
            for number in 0..40 {
                assert_eq!(host.receive(), round * 100 + number);
            }
        }
        guest.type_text("bye\n");
        guest.end();
    });
}

fn port() -> DeviceKind {
    DeviceKind::Console(ConsoleConfig {
        ports: vec![ConsolePort {
            name: "agent".into(),
            console: false,
        }],
    })
}

fn echoed(mut stream: &UnixStream, text: &str) {
    stream.write_all(text.as_bytes()).unwrap();
    let mut heard = vec![0; text.len()];
    stream.read_exact(&mut heard).unwrap();
    assert_eq!(String::from_utf8(heard).unwrap(), text);
}

fn ports_and_the_serial_line_go_on_after_a_move(transport: Transport) {
    let config = || with(transport, "serve", vec![device("console", port())]);
    let mut guest = Payload::boot(config());
    guest.ok("serving");
    for round in 0..5 {
        echoed(&guest.vm.console(1).unwrap(), "through the port");
        guest.type_text("half a ");
        guest = guest.move_to(config());
        guest.type_text(&format!("line {round}\n"));
        let line = guest.ok("typed");
        // What nobody had taken off the old line went with it.
        assert!(line.ends_with(&format!("line {round}")), "{line}");
    }
    echoed(&guest.vm.console(1).unwrap(), &"long ".repeat(1000));
    guest.type_text("bye\n");
    guest.end();
}

fn a_balloon_stays_as_large_over_a_move(transport: Transport) {
    let config = || {
        let balloon = BalloonConfig {
            statistics_interval: 1,
            ..Default::default()
        };
        with(
            transport,
            "serve",
            vec![device("balloon", DeviceKind::Balloon(balloon))],
        )
    };
    let mut guest = Payload::boot(config());
    guest.ok("serving");
    guest.vm.balloon(16 * MIB).unwrap();
    assert_eq!(guest.ok("balloon"), (16 * MIB / 4096).to_string());
    let mut guest = guest.move_to(config());
    let stats = guest.vm.stats().balloon.unwrap();
    assert_eq!((stats.target, stats.actual), (16 * MIB, 16 * MIB));
    eventually("statistics in the new machine", || {
        guest.vm.stats().balloon.unwrap().free == Some(16 * MIB)
    });
    guest.vm.balloon(24 * MIB).unwrap();
    assert_eq!(guest.ok("balloon"), (24 * MIB / 4096).to_string());
    // In the middle of it.
    guest.vm.balloon(0).unwrap();
    let mut guest = guest.move_to(config());
    assert_eq!(guest.ok("balloon"), "0");
    guest.type_text("bye\n");
    guest.end();
}

fn streams_end_with_a_move_and_new_ones_are_taken(transport: Transport) {
    let directory = TempDir::new().unwrap();
    let path = directory.as_path().join("vsock");
    let config = || {
        let vsock = VsockConfig {
            cid: 42,
            host: VsockHost::Unix(path.clone()),
        };
        with(
            transport,
            "serve",
            vec![device("vsock", DeviceKind::Vsock(vsock))],
        )
    };
    let call = || {
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.write_all(b"CONNECT 7\n").unwrap();
        let mut byte = [0];
        while byte != *b"\n" {
            stream.read_exact(&mut byte).unwrap();
        }
        stream
    };
    let mut guest = Payload::boot(config());
    guest.ok("serving");
    for _ in 0..3 {
        let mut stream = call();
        echoed(&stream, "before");
        guest = guest.move_to(config());
        assert_eq!(guest.ok("vsock"), "reset");
        assert!(
            !matches!(stream.read(&mut [0]), Ok(1..)),
            "the old stream goes on"
        );
    }
    echoed(&call(), "after");
    guest.type_text("bye\n");
    guest.end();
}

fn a_reset_in_the_middle_of_everything_starts_afresh(transport: Transport) {
    let file = disk_of_8_mib();
    let devices = vec![
        device("root", disk(file.as_path())),
        device("rng", DeviceKind::Rng),
    ];
    let mut guest = Payload::boot(with(transport, "blk-stream=20", devices));
    guest.ok("start");
    for i in 0..5 {
        assert_eq!(guest.ok("blk-stream"), "0");
        guest.ok("blk-stream");
        std::thread::sleep(a_moment(i));
        // The owner's own wish, not the guest's.
        guest.vm.reset().unwrap();
        guest.ok("start");
    }
    assert_eq!(guest.ok("blk-stream"), "0");
    guest.end();
    check_stream(&file, 20);
}

#[test]
fn two_machines_in_one_process_do_not_disturb_each_other() {
    let machine = || with(Transport::Pci, "serve", vec![device("console", port())]);
    let mut one = Payload::boot(machine());
    let mut other = Payload::boot(machine());
    one.ok("serving");
    other.ok("serving");
    let (first, second) = (one.vm.console(1).unwrap(), other.vm.console(1).unwrap());
    echoed(&first, "one");
    echoed(&second, "other");

    one.vm.pause().unwrap();
    echoed(&second, "the other goes on while one is paused");
    one.vm.resume().unwrap();
    other.vm.reset().unwrap();
    echoed(&first, "one goes on while the other is reset");
    drop(other);
    echoed(&first, "and when the other is gone");
    one.type_text("bye\n");
    one.end();
}

#[test]
fn a_machine_can_be_made_anew_many_times() {
    let open = || std::fs::read_dir("/proc/self/task").unwrap().count();
    for _ in 0..20 {
        let mut guest = Payload::boot(config("hello"));
        guest.ok("hello");
        guest.end();
    }
    // Other tests run in this process: it cannot be exact, but 20 machines would have 60 threads.
    assert!(open() < 150, "{} threads", open());
}

#[test]
fn what_was_asked_for_at_the_wrong_time_is_refused() {
    let (sender, _events) = std::sync::mpsc::channel::<nacelle_vmm::VmEvent>();
    let mut vm = nacelle_vmm::Vm::build(config("serve"), sender).unwrap();
    let refused = |result: nacelle_vmm::Result<()>, text: &str| {
        assert_eq!(result.unwrap_err().to_string(), text);
    };
    refused(vm.pause(), "cannot pause while the machine is not started");
    refused(vm.resume(), "cannot resume while the machine is not started");
    refused(
        vm.save().map(|_| ()),
        "cannot save while the machine is not started",
    );
    vm.start().unwrap();
    refused(vm.start(), "cannot start while the machine is running");
    refused(vm.save().map(|_| ()), "cannot save while the machine is running");
    vm.pause().unwrap();
    vm.pause().unwrap();
    vm.save().unwrap();
    vm.resume().unwrap();
}

#[test]
fn a_state_of_another_machine_is_refused() {
    let rng = || vec![device("rng", DeviceKind::Rng)];
    let mut guest = Payload::boot(with(Transport::Pci, "serve", rng()));
    guest.ok("serving");
    guest.vm.pause().unwrap();
    let state = guest.vm.save().unwrap();
    let others: [(VmConfig, &str); 4] = [
        (
            with(Transport::Pci, "serve", Vec::new()),
            "there is no device rng here",
        ),
        (with(Transport::Mmio, "serve", rng()), "virtio-pci"),
        (
            with(Transport::Pci, "serve", vec![device("other", DeviceKind::Rng)]),
            "it knows no device other",
        ),
        (
            {
                let mut config = with(Transport::Pci, "serve", rng());
                config.cpus.cores = 2;
                config
            },
            "1 vCPUs instead of 2",
        ),
    ];
    for (config, reason) in others {
        let memory = memory::create(&config.memory).unwrap();
        let (sender, _events) = std::sync::mpsc::channel::<nacelle_vmm::VmEvent>();
        let error = match nacelle_vmm::Vm::restore(config, state.clone(), memory, sender) {
            Ok(_) => panic!("a state that does not fit is taken: {reason}"),
            Err(error) => error,
        };
        let text = match &error {
            Error::Device { source, .. } => format!("{error}: {source}"),
            _ => error.to_string(),
        };
        assert!(text.contains(reason), "{text}");
    }
}

fn file(content: &[u8]) -> TempFile {
    let file = TempFile::new().unwrap();
    file.as_file().write_all_at(content, 0).unwrap();
    file
}

fn load(kernel: &TempFile, initrd: Option<&TempFile>) -> nacelle_vmm::Result<()> {
    let config = MemoryConfig {
        size: 16 * MIB,
        ..Default::default()
    };
    let boot = BootConfig {
        kernel: kernel.as_path().to_owned(),
        initrd: initrd.map(|initrd| initrd.as_path().to_owned()),
        cmdline: String::new(),
    };
    boot::load(&memory::create(&config).unwrap(), &boot, boot::Before::Zeroes).map(|_| ())
}

#[test]
fn what_is_no_kernel_is_an_error_that_says_why() {
    let good = std::fs::read(elf()).unwrap();
    load(&file(&good), None).unwrap();
    let cases: [(&[u8], &str); 4] = [
        (b"#!/bin/sh\n", "it is neither ELF nor bzImage"),
        (b"", "it is empty"),
        (&good[..40], "not a kernel that can be started"),
        (&good[..8000], "not a kernel that can be started"),
    ];
    for (content, reason) in cases {
        let error = load(&file(content), None).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
    let initrd = TempFile::new().unwrap();
    initrd.as_file().set_len(15 * MIB).unwrap();
    let error = load(&file(&good), Some(&initrd)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the initial RAM disk of 15 MiB beside the kernel does not fit into 16 MiB of guest memory"
    );
    // More than a machine can have.
    initrd.as_file().set_len(1 << 42).unwrap();
    assert!(matches!(
        load(&file(&good), Some(&initrd)),
        Err(Error::DoesNotFit { .. })
    ));
    let config = BootConfig {
        kernel: "/nowhere/vmlinux".into(),
        ..config("").boot
    };
    let memory = memory::create(&MemoryConfig::default()).unwrap();
    let error = boot::load(&memory, &config, boot::Before::Zeroes)
        .unwrap_err()
        .to_string();
    assert_eq!(error, "cannot read /nowhere/vmlinux");
}

#[test]
fn a_damaged_kernel_is_an_error_and_no_panic() {
    let good = std::fs::read(elf()).unwrap();
    let mut random = 1u64;
    for _ in 0..400 {
        let mut damaged = good[..0x6000].to_vec();
        for _ in 0..3 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            // The headers and the note.
            let places = [0..0xb0, 0x1000..0x1020];
            let place = &places[(random >> 60) as usize % 2];
            let at = place.start + (random >> 33) as usize % place.len();
            damaged[at] = (random >> 20) as u8;
        }
        let _ = load(&file(&damaged), None);
    }
}

#[test]
fn a_guest_that_asks_for_the_end_while_it_is_paused_is_heard() {
    let mut guest = Payload::boot(config("serve"));
    guest.ok("serving");
    guest.vm.pause().unwrap();
    guest.type_text("bye\n");
    guest.vm.resume().unwrap();
    assert!(matches!(guest.event(), VmEvent::Shutdown));
    // And can be switched on again.
    guest.vm.reset().unwrap();
    guest.ok("serving");
}
