//! The harness where something is slow or wrong: monitors, guests and disks that fail.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod support;

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::{Place, Ran, values};

/// A monitor that is a script: what it writes is what its guest would have said.
fn monitor(place: &Place, name: &str, body: &str) -> PathBuf {
    let path = place.path(name);
    let text = format!("#!/bin/sh\n[ \"$1\" = --version ] && echo {name} 1.0 && exit\n{body}\n");
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn runs_take_turns_and_the_first_are_thrown_away() {
    let place = Place::new();
    let log = place.path("log");
    for name in ["a", "b"] {
        let body = format!(
            "echo {name} >>{}\nprintf '\\002\\003@init uptime=1000\\n@done\\n'\nsleep 60",
            log.display()
        );
        monitor(&place, name, &body);
    }
    let words = format!(
        "boot --without-nacelle --peer crosvm,cloud-hypervisor --peer-path crosvm={} --peer-path cloud-hypervisor={} \
         --runs 2 --warm-up 1 --output json",
        place.path("a").display(),
        place.path("b").display()
    );
    let ran = place.bench(&words);
    let report: Value = serde_json::from_str(&ran.is(0).said).unwrap();
    assert_eq!(values(&report, "boot", "crosvm", "start → init").len(), 2);
    // Monitors have a fixed order among themselves.
    assert_eq!(fs::read_to_string(&log).unwrap(), "b\na\nb\na\nb\na\n");
}

#[test]
fn a_machine_that_is_slow_has_fewer_runs_and_they_are_counted() {
    let place = Place::new();
    let slow = monitor(
        &place,
        "slow",
        "printf '\\002\\003@init uptime=1000\\n'\nsleep 60",
    );
    let words = format!(
        "boot --without-nacelle --peer crosvm --peer-path crosvm={} --runs 3 --measure-limit 0",
        slow.display()
    );
    let ran = place.bench(&words);
    assert!(ran.is(0).said.contains("boot, 1 run each"), "{}", ran.said);
    assert!(
        ran.said
            .contains("Not measured: boot: 2 of 3 runs, as 0s were over (--measure-limit)"),
        "{}",
        ran.said
    );
}

#[test]
fn a_monitor_that_fails_is_told_of_and_the_others_go_on() {
    let place = Place::new();
    let bad = monitor(&place, "bad", "echo 'cannot open /dev/kvm' >&2\nexit 3");
    let good = monitor(
        &place,
        "good",
        "printf '\\002\\003@init uptime=1000\\n'\nsleep 60",
    );
    let words = format!(
        "boot --without-nacelle --peer crosvm,firecracker --peer-path crosvm={} --peer-path firecracker={} --runs 2",
        bad.display(),
        good.display()
    );
    let ran = place.bench(&words);
    ran.is(1);
    assert!(
        ran.said.contains("firecracker, 2 runs") || ran.said.contains("boot, 2 runs each"),
        "{}",
        ran.said
    );
    assert!(
        ran.said.contains(
            "crosvm FAILED: the monitor ended (exit status: 3) before the kernel's first instruction\n  the monitor \
             said:\n    cannot open /dev/kvm"
        ),
        "{}",
        ran.said
    );
}

#[test]
fn a_guest_that_never_comes_up_is_ended_at_its_time_limit() {
    let place = Place::new();
    // It is entered, says something and hangs, with a child of its own.
    let file = monitor(&place, "file", "");
    let body = format!(
        "printf '\\002panic: no init found\\n'\ntail -f {0} &\ntail -f {0}",
        file.display()
    );
    let hung = monitor(&place, "hung", &body);
    let words = format!(
        "boot --without-nacelle --peer crosvm --peer-path crosvm={} --runs 1 --limit 2",
        hung.display()
    );
    let begun = Instant::now();
    let ran = place.bench(&words);
    assert!(begun.elapsed() < Duration::from_secs(60));
    ran.is(1);
    assert!(
        ran.said.contains(
            "crosvm FAILED: init's first instruction did not come within 2s (--limit)\n  the guest said:\n    panic: no \
             init found"
        ),
        "{}",
        ran.said
    );
}

/// A kernel that is one, and stops its processor for good at its first instruction.
fn kernel_that_halts() -> Vec<u8> {
    const PLACE: u64 = 0x100_0000;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    file.extend([PLACE, 64, 0].iter().flat_map(|word: &u64| word.to_le_bytes()));
    file.extend(
        [0u16, 0, 64, 56, 1, 0, 0, 0]
            .iter()
            .flat_map(|half| half.to_le_bytes()),
    );
    file.extend([1u32, 5].iter().flat_map(|word| word.to_le_bytes()));
    file.extend(
        [4096, PLACE, PLACE, 3, 3, 4096]
            .iter()
            .flat_map(|word: &u64| word.to_le_bytes()),
    );
    file.resize(4096, 0);
    // hlt, with interrupts off; and again.
    file.extend([0xf4, 0xeb, 0xfd]);
    file
}

/// On this machine's KVM.
#[test]
fn a_real_guest_that_never_comes_up_is_ended_at_its_time_limit() {
    let place = Place::new();
    let kernel = place.path("kernel");
    fs::write(&kernel, kernel_that_halts()).unwrap();
    let words = format!(
        "boot --without-nacelle --peer nacelle-slim --kernel {0} --initrd {0} --runs 1 --warm-up 0 --limit 5",
        kernel.display()
    );
    let ran = place.bench(&words);
    assert!(
        ran.is(1)
            .said
            .contains("nacelle-slim FAILED: init's first instruction did not come within 5s (--limit)"),
        "{}",
        ran.said
    );
}

#[test]
fn a_monitor_that_is_not_here_is_named_before_anything_is_started() {
    let place = Place::new();
    let mut command = place.command("boot --without-nacelle --peer nacelle-slim,firecracker");
    let ran = Ran::new(&command.env("PATH", place.path("memory")).output().unwrap());
    assert_eq!(
        ran.is(2).errors,
        "nacelle-bench: firecracker: there is no firecracker on PATH; install it, or name it by --peer-path \
         firecracker=PATH\n"
    );
    let ran = place.bench("boot --without-nacelle --peer crosvm --peer-path crosvm=/no/crosvm");
    assert_eq!(
        ran.is(2).errors,
        "nacelle-bench: /no/crosvm is not there or is no program that may be run\n"
    );
}

#[test]
fn a_kernel_that_is_none_is_refused_before_anything_is_started() {
    let place = Place::new();
    let kernel = place.path("kernel");
    fs::write(&kernel, "MZ this is no vmlinux").unwrap();
    let words = format!(
        "boot --without-nacelle --peer nacelle-slim --kernel {0} --initrd {0}",
        kernel.display()
    );
    let ran = place.bench(&words);
    assert_eq!(
        ran.is(2).errors,
        "nacelle-bench: the kernel cannot be used: it is no 64-bit ELF file (a vmlinux, not a bzImage)\n"
    );
}

#[test]
fn a_guest_with_another_init_is_told_from_ours() {
    let place = Place::new();
    let other = monitor(&place, "other", "printf '\\002\\003@init started\\n'\nsleep 60");
    let words = format!(
        "boot --without-nacelle --peer crosvm --peer-path crosvm={} --runs 1",
        other.display()
    );
    let ran = place.bench(&words);
    assert!(
        ran.is(1)
            .said
            .contains("the guest said something that is not understood: @init started has no uptime"),
        "{}",
        ran.said
    );
}

#[test]
fn a_full_disk_is_an_error_that_names_it() {
    let place = Place::new();
    // In a mount namespace of its own, where the directory is 8 MiB large.
    let script = format!(
        "mount -t tmpfs -o size=8M none {0} && exec \"$@\"",
        place.path("disk").display()
    );
    let bench = place.command("blk --without-nacelle --peer nacelle-slim --disks disk");
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", &script, "sh"])
        .arg(bench.get_program())
        .args(bench.get_args())
        .output()
        .unwrap();
    let ran = Ran::new(&output);
    assert!(
        ran.is(2).errors.contains("No space left on device"),
        "{}",
        ran.errors
    );
    assert!(
        ran.errors.contains("write a disk of 64 MiB in "),
        "{}",
        ran.errors
    );
    place.is_clean();

    let good = monitor(
        &place,
        "good",
        "printf '\\002\\003@init uptime=1000\\n'\nsleep 60",
    );
    let words = format!(
        "boot --without-nacelle --peer crosvm --peer-path crosvm={} --runs 1 --json /dev/full",
        good.display()
    );
    let ran = place.bench(&words);
    assert!(
        ran.is(2)
            .errors
            .contains("cannot write /dev/full: No space left on device"),
        "{}",
        ran.errors
    );
    assert!(
        ran.said.contains("start → init"),
        "the table is not lost: {}",
        ran.said
    );
}

#[test]
fn an_interrupted_measurement_leaves_nothing_behind() {
    let place = Place::new();
    let file = monitor(&place, "file", "");
    let hung = monitor(
        &place,
        "hung",
        &format!("printf '\\002'\ntail -f {}", file.display()),
    );
    let words = format!(
        "boot --without-nacelle --peer crosvm --peer-path crosvm={} --runs 1",
        hung.display()
    );
    let mut child = place.command(&words).stdout(Stdio::piped()).spawn().unwrap();
    let memory = place.path("memory");
    let until = Instant::now() + Duration::from_secs(60);
    // The run's own directory is inside the process's.
    while !fs::read_dir(&memory)
        .unwrap()
        .flatten()
        .any(|entry| fs::read_dir(entry.path()).is_ok_and(|inside| inside.count() > 1))
    {
        assert!(Instant::now() < until);
        std::thread::sleep(Duration::from_millis(20));
    }
    // SAFETY: it is our child, which we have not waited for.
    unsafe { libc::kill(child.id() as i32, libc::SIGINT) };
    assert_eq!(child.wait().unwrap().code(), Some(130));
    // The kernel ends its children; that takes a moment.
    std::thread::sleep(Duration::from_millis(500));
    place.is_clean();
    std::io::stdout().flush().unwrap();
}
