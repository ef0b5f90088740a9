//! Snapshots on /dev/kvm: taken while the guest writes its memory, restored once and many times.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::os::unix::fs::FileExt;

use nacelle_vmm::config::{DeviceKind, MemoryConfig, Transport};
use nacelle_vmm::snapshot::Options;
use support::device;
use support::payload::{Payload, config, with};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::tempdir::TempDir;

const TRACKED: Options = Options {
    track: true,
    incremental: false,
    pause: false,
};
const ON_TOP: Options = Options {
    track: true,
    incremental: true,
    pause: false,
};

fn machine() -> nacelle_vmm::VmConfig {
    config("dirty=1500")
}

fn writing() -> Payload {
    let mut guest = Payload::boot(machine());
    guest.ok("dirty");
    guest
}

fn is_well(guest: &mut Payload) {
    guest.type_text("wc");
    guest.ok("checked");
    guest.ok("written");
}

fn ends(mut guest: Payload) {
    is_well(&mut guest);
    guest.type_text("q");
    guest.end();
}

/// Batches of pages that it has written.
fn written(guest: &mut Payload) -> u64 {
    guest.type_text("im");
    guest.ok("mark").parse().unwrap()
}

#[test]
fn a_guest_goes_on_from_its_snapshot_as_often_as_one_likes_and_where_it_was_taken() {
    let home = TempDir::new().unwrap();
    let directory = home.as_path().join("snapshot");
    let mut guest = writing();
    let before = written(&mut guest);
    guest.type_text("w");
    let (report, _) = guest.snapshot(&directory, Options::default(), None).unwrap();
    println!("{report:?}");
    assert!(report.written > 4 << 20);
    is_well(&mut guest);
    let now = written(&mut guest);

    let mut copies: Vec<_> = (0..2)
        .map(|_| Payload::restore(&directory, machine()).unwrap())
        .collect();
    let generation = |guest: &Payload| {
        let memory = guest.vm.memory();
        let id: u128 = memory.memory().read_obj(GuestAddress(0xe_f000)).unwrap();
        id
    };
    // Each is told that it is not the only one.
    let ids = [&guest, &copies[0], &copies[1]].map(generation);
    assert!(ids[0] != ids[1] && ids[1] != ids[2] && ids[0] != ids[2]);
    for copy in &mut copies {
        let there = written(copy);
        assert!(before <= there && there < now + 10_000, "{before} {there} {now}");
    }
    copies.into_iter().for_each(ends);
    ends(guest);
}

#[test]
fn a_snapshot_on_top_of_another_holds_only_what_was_written_since() {
    let home = TempDir::new().unwrap();
    let place = |name: &str| home.as_path().join(name);
    let mut guest = writing();
    let (first, tracking) = guest.snapshot(&place("first"), TRACKED, None).unwrap();
    let mut tracking = tracking.unwrap();
    guest.type_text("im");
    guest.ok("mark");
    let (second, next) = guest.snapshot(&place("second"), ON_TOP, Some(tracking)).unwrap();
    tracking = next.unwrap();
    // Nothing since but the little that it did.
    let (third, next) = guest.snapshot(&place("third"), ON_TOP, Some(tracking)).unwrap();
    println!("{first:?}\n{second:?}\n{third:?}");
    assert!(third.written < first.written / 10, "{third:?}");
    guest.type_text("wc");
    guest.ok("checked");
    let (_, _) = guest.snapshot(&place("fourth"), ON_TOP, next).unwrap();
    for name in ["first", "second", "third", "fourth"] {
        ends(Payload::restore(&place(name), machine()).unwrap());
    }
    ends(guest);

    let error = writing().snapshot(&place("fifth"), ON_TOP, None).err().unwrap();
    assert!(
        error
            .to_string()
            .starts_with("there is no snapshot of this machine"),
        "{error}"
    );
    fs::rename(place("first"), place("elsewhere")).unwrap();
    let error = Payload::restore(&place("fourth"), machine()).err().unwrap();
    assert!(
        error.to_string().starts_with("cannot read the snapshot"),
        "{error}"
    );
    // Another one in its place.
    let (_, _) = writing()
        .snapshot(&place("first"), Options::default(), None)
        .unwrap();
    let error = Payload::restore(&place("fourth"), machine()).err().unwrap();
    assert!(
        error
            .to_string()
            .ends_with("another snapshot than this one is on top of"),
        "{error}"
    );
}

#[test]
fn memory_is_not_read_before_it_is_used() {
    let home = TempDir::new().unwrap();
    let directory = home.as_path().join("snapshot");
    let mut guest = writing();
    guest.type_text("im");
    guest.ok("mark");
    guest.snapshot(&directory, Options::default(), None).unwrap();
    drop(guest);
    let present = |guest: &Payload| {
        let (memory, mut present) = (guest.vm.memory(), 0);
        let pages = fs::File::open("/proc/self/pagemap").unwrap();
        for region in memory.memory().iter() {
            let mut entries = vec![0; (region.len() / 4096 * 8) as usize];
            pages
                .read_exact_at(&mut entries, region.as_ptr() as u64 / 4096 * 8)
                .unwrap();
            let (entries, _) = entries.as_chunks::<8>();
            present += entries
                .iter()
                .filter(|entry| u64::from_le_bytes(**entry) >> 63 == 1)
                .count();
        }
        present
    };
    let lazy = Payload::restore(&directory, machine()).unwrap();
    let idle = present(&lazy);
    ends(lazy);
    let eager = MemoryConfig {
        prefault: true,
        ..machine().memory
    };
    let whole = Payload::restore(
        &directory,
        nacelle_vmm::VmConfig {
            memory: eager,
            ..machine()
        },
    )
    .unwrap();
    let all = present(&whole);
    println!("{idle} pages of {all} are there when it goes on");
    assert!(idle < all / 4);
    ends(whole);
}

#[test]
fn a_snapshot_that_is_not_whole_or_anothers_is_refused() {
    let home = TempDir::new().unwrap();
    let directory = home.as_path().join("snapshot");
    let mut guest = writing();
    guest.snapshot(&directory, Options::default(), None).unwrap();
    let refused =
        |config: nacelle_vmm::VmConfig| Payload::restore(&directory, config).err().unwrap().to_string();
    let mut larger = machine();
    larger.memory.size *= 2;
    assert!(refused(larger).contains("67108864 bytes of memory instead of 134217728"));
    let other = with(Transport::Pci, "", vec![device("rng", DeviceKind::Rng)]);
    assert!(refused(other).contains("it knows no device rng"));
    // It is not written over.
    let error = guest
        .snapshot(&directory, Options::default(), None)
        .err()
        .unwrap();
    assert!(
        error.to_string().starts_with("cannot write the snapshot"),
        "{error}"
    );
    is_well(&mut guest);
    let memory = directory.join("memory");
    fs::OpenOptions::new()
        .write(true)
        .open(&memory)
        .unwrap()
        .set_len(1 << 20)
        .unwrap();
    assert!(refused(machine()).ends_with("memory is cut off"));
    fs::remove_file(directory.join("state")).unwrap();
    assert!(refused(machine()).starts_with("cannot read the snapshot"));
    ends(guest);
}

#[test]
fn a_guest_goes_on_where_there_is_no_room_for_its_snapshot() {
    let mut guest = writing();
    // A file system that is always full: the directory is not made.
    let error = guest
        .snapshot("/proc/snapshot".as_ref(), Options::default(), None)
        .err()
        .unwrap();
    assert!(
        error
            .to_string()
            .starts_with("cannot write the snapshot /proc/snapshot"),
        "{error}"
    );
    ends(guest);
}

/// Bytes of this process's mappings of a file that are in its page tables.
fn mapped(file: &str) -> u64 {
    let maps = fs::read_to_string("/proc/self/smaps").unwrap();
    let mut ours = false;
    let mut bytes = 0;
    for line in maps.lines() {
        match line.split_once(':') {
            Some(("Rss", size)) if ours => {
                let size: u64 = size.trim().trim_end_matches(" kB").parse().unwrap();
                bytes += size << 10;
            }
            Some((range, _)) if range.contains('-') => ours = line.ends_with(file),
            _ => {}
        }
    }
    bytes
}

#[test]
fn a_guest_of_a_gib_goes_on_before_its_memory_is_read() {
    let machine = || {
        let mut machine = config("dirty=20000");
        machine.memory.size = 1 << 30;
        machine
    };
    let home = TempDir::new().unwrap();
    let directory = home.as_path().join("snapshot");
    let mut guest = Payload::boot(machine());
    guest.ok("dirty");
    guest.type_text("im");
    guest.ok("mark");
    guest.snapshot(&directory, Options::default(), None).unwrap();
    guest.type_text("q");
    guest.end();
    let mut best = std::time::Duration::MAX;
    for _ in 0..5 {
        let begun = std::time::Instant::now();
        let mut copy = Payload::restore(&directory, machine()).unwrap();
        best = best.min(begun.elapsed());
        let there = mapped("/snapshot/memory");
        copy.type_text("c");
        copy.ok("checked");
        // What it did not need is still only in the file.
        assert!(there < 64 << 20, "{there} bytes");
        copy.type_text("q");
        copy.end();
    }
    println!("from the snapshot's opening to the guest's first instruction: {best:?}");
}
