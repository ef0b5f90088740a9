//! Live migration on /dev/kvm between two monitors in one process, of a guest that writes its disk all the time.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::Duration;

use nacelle_vmm::config::{DeviceKind, Transport};
use nacelle_vmm::migrate::{OnTimeout, Phase};
use nacelle_vmm::{Error, Vm, VmConfig, VmEvent};
use support::migration::{Route, gave_up};
use support::payload::{Payload, pattern, with};
use support::{device, disk, empty_disk};
use vmm_sys_util::tempfile::TempFile;

/// What `rounds` rounds of the guest wrote, half a MiB each to one of 16 places in turn, is all there.
fn has_all(file: &TempFile, rounds: u64) {
    for region in 0..16u64 {
        let len = 1 << 19;
        let last = (rounds - 1 - region) / 16 * 16 + region;
        let mut written = vec![0; len as usize];
        file.as_file().read_exact_at(&mut written, region * len).unwrap();
        assert!(
            written == pattern(region * len, len, last),
            "half a MiB at {region}"
        );
    }
}

#[test]
fn a_disk_moves_with_its_guest_and_is_at_every_moment_one_machines() {
    const ROUNDS: u64 = 24;
    let file = empty_disk(8);
    let machine = || {
        with(
            Transport::Pci,
            &format!("blk-stream={ROUNDS}"),
            vec![device("root", disk(file.as_path()))],
        )
    };
    let in_use = || {
        let (sender, _events) = std::sync::mpsc::channel::<VmEvent>();
        let error = Vm::build(machine(), sender).err().unwrap();
        let text = std::error::Error::source(&error).unwrap().to_string();
        assert!(
            text.ends_with("is locked by another virtual machine or program"),
            "{text}"
        );
    };
    let mut guest = Payload::boot(machine());
    for round in 0..ROUNDS {
        assert_eq!(guest.ok("blk-stream"), round.to_string());
        in_use();
        if round % 4 == 0 && round + 2 < ROUNDS {
            (guest, _) = guest.moved(machine(), &Route::verified());
            in_use();
        }
    }
    guest.end();
    has_all(&file, ROUNDS);
}

#[test]
fn disks_go_to_the_new_process_with_their_locks_and_layers_and_no_page_of_memory_is_sent() {
    const ROUNDS: u64 = 16;
    let base = empty_disk(8);
    for (ephemeral, shared) in [(false, true), (true, true), (true, false)] {
        let machine = || {
            let mut root = disk(base.as_path());
            if let DeviceKind::Disk(root) = &mut root {
                root.ephemeral = ephemeral;
            }
            let mut machine = with(
                Transport::Pci,
                &format!("blk-stream={ROUNDS}"),
                vec![device("root", root)],
            );
            machine.memory.shared = shared;
            machine
        };
        let route = || Route {
            handover: true,
            ..Route::verified()
        };
        let mut guest = Payload::boot(machine());
        for round in 0..ROUNDS {
            assert_eq!(guest.ok("blk-stream"), round.to_string());
            if round % 4 == 1 {
                let report;
                (guest, report) = guest.moved(machine(), &route());
                println!("ephemeral {ephemeral}, shared {shared}: {report:?}");
                assert_eq!(report.pages == 0, shared, "{report:?}");
            }
            if !ephemeral {
                let file = File::open(base.as_path()).unwrap();
                assert!(is_locked(&file), "in round {round}");
            }
        }
        guest.end();
    }
}

#[test]
fn a_disk_that_the_target_does_not_share_goes_along_while_it_is_written() {
    const ROUNDS: u64 = 24;
    let (base, mut here) = (empty_disk(64), empty_disk(64));
    let machine = |file: &TempFile| {
        let mut layer = disk(base.as_path());
        if let DeviceKind::Disk(layer) = &mut layer {
            layer.ephemeral = true;
        }
        let devices = vec![device("root", disk(file.as_path())), device("layer", layer)];
        with(Transport::Pci, &format!("blk-stream={ROUNDS}"), devices)
    };
    let mut guest = Payload::boot(machine(&here));
    for round in 0..ROUNDS {
        assert_eq!(guest.ok("blk-stream"), round.to_string());
        if round % 8 != 2 {
            continue;
        }
        let route = || Route {
            copied: vec!["root".into()],
            ..Route::verified()
        };
        // One that both sides share is no copy's target, and what is shorter neither.
        let (sent, received);
        (guest, sent, received) = guest.migrate(machine(&here), &route());
        assert!(sent.is_err() && received.unwrap_err().to_string().starts_with("device root"));
        let there = empty_disk(1);
        let received;
        (guest, _, received) = guest.migrate(machine(&there), &route());
        assert!(received.unwrap_err().to_string().contains("is to be copied"));
        there.as_file().set_len(64 << 20).unwrap();
        let report;
        (guest, report) = guest.moved(machine(&there), &route());
        println!("{report:?}");
        // Most of it are holes.
        assert!(report.wire < 40 << 20, "{report:?}");
        here = there;
    }
    guest.end();
    has_all(&here, ROUNDS);
    assert!(here.as_file().metadata().unwrap().blocks() * 512 < 32 << 20);
}

/// A machine that writes to its disk without end.
fn writes_to(file: &TempFile) -> VmConfig {
    let devices = vec![device("root", disk(file.as_path()))];
    with(Transport::Pci, "blk-stream=1000000", devices)
}

/// It runs, and its disk is full of what it wrote.
fn writing_to(file: &TempFile) -> Payload {
    let mut guest = Payload::boot(writes_to(file));
    while guest.ok("blk-stream") != "16" {}
    guest
}

/// It goes on writing.
fn writes_on(guest: &mut Payload) {
    let before = last_round(guest);
    while guest.ok("blk-stream").parse::<u64>().unwrap() <= before {}
}

/// It ends, and all that it wrote is in its disk.
fn ends_with_all_in(disk: &TempFile, mut guest: Payload) {
    guest.type_text("q");
    let rounds = guest.ok("streamed").parse().unwrap();
    guest.end();
    has_all(disk, rounds);
}

#[test]
fn a_disk_that_takes_longer_than_all_may_ends_as_was_chosen() {
    let (mut here, mut there) = (empty_disk(8), empty_disk(8));
    let mut guest = writing_to(&here);
    // Alone the disk, which is full, would take 8 s at this bandwidth.
    const WHOLE: u64 = 7;
    let route = |mebibytes: u64, end| {
        let mut route = Route::with(|options| {
            options.bandwidth = Some(mebibytes << 20);
            options.limits.downtime = Duration::from_millis(10);
            options.limits.timeout = Duration::from_secs(1);
            options.limits.on_timeout = end;
        });
        route.copied = vec!["root".into()];
        route
    };
    let (sent, received);
    (guest, sent, received) = guest.migrate(writes_to(&there), &route(1, OnTimeout::Cancel));
    gave_up(&sent, &received, WHOLE);
    // A disk cannot follow: all of it is sent before a guest that goes ahead.
    for (mebibytes, end) in [(1, OnTimeout::Finish), (4, OnTimeout::PostCopy)] {
        let route = route(mebibytes, end);
        let report;
        (guest, report) = guest.moved(writes_to(&there), &route);
        println!("{end:?}: {report:?}");
        let ahead = end == OnTimeout::PostCopy;
        assert_eq!(route.entered(Phase::Serve, true), ahead, "{end:?}");
        let first = *route.source.rounds.lock().unwrap().first().unwrap();
        assert!(ahead || first.elapsed < Duration::from_secs(WHOLE), "{first:?}");
        std::mem::swap(&mut here, &mut there);
        writes_on(&mut guest);
    }
    ends_with_all_in(&here, guest);
}

/// The last round that the guest is known to have done.
fn last_round(guest: &Payload) -> u64 {
    let said = guest.said();
    // The last line may not be all here.
    let (whole, _) = said.rsplit_once('\n').unwrap();
    let mut numbers = whole
        .lines()
        .filter_map(|line| line.strip_prefix("ok blk-stream "));
    numbers.next_back().unwrap().parse().unwrap()
}

#[test]
fn whatever_the_phase_in_which_the_connection_breaks_a_disk_that_goes_along_is_whole_where_its_guest_runs() {
    let (mut here, mut there) = (empty_disk(8), empty_disk(8));
    let mut guest = writing_to(&here);
    let attempts = [true, false].into_iter();
    for (source, &phase) in attempts.flat_map(|source| Phase::ALL.iter().map(move |phase| (source, phase))) {
        let route = Route {
            copied: vec!["root".into()],
            ..Route::verified()
        };
        let (sent, received);
        (guest, sent, received) = guest.migrate(writes_to(&there), &route.cut_in(phase, source));
        let what = format!("{phase:?} of the source {source}: {sent:?}, {received:?}");
        println!("{what}");
        match (sent, received) {
            // What is left here is old, and is sent over the next time.
            (Ok(_) | Err(Error::Unconfirmed { .. }), Ok(_)) => std::mem::swap(&mut here, &mut there),
            (Err(Error::Unconfirmed { .. }), Err(_)) => guest.vm.resume().unwrap(),
            (Err(_), Err(_)) => assert!(phase < Phase::Resume, "{what}"),
            (Ok(_), Err(_)) | (Err(_), Ok(_)) => panic!("{what}"),
        }
        assert!(is_locked(here.as_file()), "{what}");
        assert!(!is_locked(there.as_file()), "{what}");
        writes_on(&mut guest);
    }
    ends_with_all_in(&here, guest);
}

/// Whether somebody writes a disk.
fn is_locked(file: &File) -> bool {
    // SAFETY: all-zero bytes are a valid `flock`.
    let mut range: libc::flock = unsafe { std::mem::zeroed() };
    range.l_type = libc::F_RDLCK as libc::c_short;
    // SAFETY: it reads and writes one `flock`, which lives as long as the call.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut range) };
    assert_eq!(done, 0);
    i32::from(range.l_type) != libc::F_UNLCK
}
