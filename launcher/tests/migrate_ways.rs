//! `nacelle migrate` in the ways of docs/migration.md beside the plain one, between two hosts that are directories of
//! their own: disks that go along, memory that follows, a connection that breaks. With the small Linux guest on this
//! machine's KVM.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests"
)]

mod support;

use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use nacelle_vmm::migrate::wire::Kind;
use rustix::process::Signal;
use sha2::{Digest, Sha256};
use support::place::{Place, certificates};
use support::relay::{Break, Relay};
use support::{Bed, Running};

/// As `sha256sum` says it.
fn sha256(file: &Path) -> String {
    let digest = Sha256::digest(fs::read(file).unwrap());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn empty(file: &Path, len: u64) {
    File::create(file).unwrap().set_len(len).unwrap();
}

/// What the guest says after `mark-` at the begin of a line.
fn told(guest: &mut Running, mark: &str) -> String {
    guest.wait_for(&format!("\n{mark}-"));
    guest.wait_for(" ")
}

#[test]
fn a_disk_goes_along_to_another_host_while_it_is_written_and_so_does_what_ends_with_the_machine() {
    let (here, there) = (Bed::new(), Bed::new());
    certificates(&here, Some(&there));
    let (old, new) = (here.path("old.img"), there.path("new.img"));
    let len = 2 << 20;
    empty(&old, len);
    let place = Place::new(&here, "mover")
        .and_disk("data", "persistentVolumeClaim: {claimName: data}")
        .and_scratch()
        .with("data", &old);
    let mut first = place.run();
    // It writes one block after the other to the disk, and knows what it wrote.
    first.type_in(
        "head -c 20000 /dev/urandom >/dev/vdc; echo; echo scratch-$(sha256sum </dev/vdc); mount -t tmpfs none /mnt; \
         (i=0; while [ ! -e /mnt/end ]; do i=$((i+1)); echo $i >>/mnt/count; head -c 4096 /dev/urandom >/mnt/block; \
         dd if=/mnt/block of=/dev/vdb bs=4096 seek=$((i%256)) conv=notrunc,fsync 2>/dev/null; \
         sha256sum </mnt/block >/mnt/sum-$((i%256)); done) & until [ -e /mnt/sum-4 ]; do sleep 0.1; done; echo be''gun\n",
    );
    let scratch = told(&mut first, "scratch");
    first.wait_for("begun");

    // A disk of another length, one that both sides share, and one that there is not.
    for (file, named, reason) in [
        (&new, "data", "disk-data has"),
        (&old, "data", "is locked by another virtual machine or program"),
        (&old, "date", "disk-date"),
    ] {
        empty(&new, len / 2);
        let (waiting, at) = place.at(&there).with("data", file).receive("127.0.0.1:0");
        let to = at.replace("127.0.0.1", "localhost");
        let (code, _, log) = place.ask(&["migrate", "mover", "--to", &to, "--copy-disk", named]);
        assert_eq!(code, Some(1), "{log}");
        assert!(log.contains(reason), "{log}");
        assert_eq!(place.state("mover"), "Running");
        waiting.signal(Signal::TERM);
        assert_ne!(waiting.end().0.code(), Some(0));
    }

    empty(&new, len);
    let (mut second, at) = place.at(&there).with("data", &new).receive("127.0.0.1:0");
    let to = at.replace("127.0.0.1", "localhost");
    let words = [
        "migrate",
        "mover",
        "--to",
        &to,
        "--copy-disk",
        "data",
        "--downtime",
        "1s",
    ];
    let (code, said, log) = place.ask(&words);
    assert_eq!(code, Some(0), "{said} {log}");
    println!("{said}");
    assert_eq!(first.end().0.code(), Some(0));
    let left = sha256(&old);
    second.type_in(
        "touch /mnt/end; wait; sort -nc /mnt/count && echo in''-order; for sum in /mnt/sum-*; do \
         dd if=/dev/vdb bs=4096 skip=${sum##*-} count=1 iflag=direct 2>/dev/null | sha256sum | cmp - $sum || echo wrong $sum; \
         done; echo; echo scratch-$(sha256sum </dev/vdc); echo data-$(sha256sum </dev/vdb); poweroff -f\n",
    );
    second.wait_for("in-order");
    assert_eq!(told(&mut second, "scratch"), scratch);
    let data = told(&mut second, "data");
    let (status, said, log) = second.end();
    assert_eq!(status.code(), Some(0), "{said} {log}");
    assert!(!said.contains("wrong /mnt"), "{said}");
    // All that the guest has is in the new file, and nothing of it went to the old one since.
    assert_eq!(sha256(&new), data);
    assert_eq!(sha256(&old), left);
    assert_ne!(left, data);
}

#[test]
fn memory_that_follows_waits_where_its_connection_breaks_until_it_is_recovered() {
    let (here, there) = (Bed::new(), Bed::new());
    certificates(&here, Some(&there));
    let place = Place::new(&here, "follower").and_scratch();
    let target = place.at(&there);
    let mut first = place.run();
    first.listen();
    first.type_in(
        "head -c 20000 /dev/urandom >/dev/vdb; mount -t tmpfs none /mnt; head -c 100000 /dev/urandom >/mnt/block; \
         sha256sum /mnt/block >/sum; (i=0; while [ ! -e /end ]; do i=$((i+1)); echo $i >>/count; done) & \
         echo; echo scratch-$(sha256sum </dev/vdb)\n",
    );
    let scratch = told(&mut first, "scratch");
    let (mut second, at) = target.receive("127.0.0.1:0");
    let relay = Relay::to(&at, &here);
    // After the disk, of which the rest is holes; more than that has to follow.
    relay.breaks(Break::After(5 << 20));
    let words = [
        "migrate",
        "follower",
        "--to",
        &relay.at,
        "--post-copy",
        "--compression",
        "never",
    ];
    let mut moving = place.begin(&words);
    for more in [true, false] {
        first.wait_for_log("its guest waits there for nacelle migrate-recover here");
        second.wait_for_log("its guest waits for nacelle migrate-recover at the source");
        // Both keep what they have, and nobody else may do anything with it here.
        assert!(moving.child.try_wait().unwrap().is_none());
        assert_eq!(place.state("follower"), "HandedOver");
        assert_eq!(target.state("follower"), "Running");
        for command in ["resume", "reset", "migrate-cancel"] {
            let (code, _, log) = place.ask(&[command, "follower"]);
            assert_eq!(code, Some(1), "{command}: {log}");
            assert!(
                log.contains("was handed over to another monitor"),
                "{command}: {log}"
            );
        }
        if more {
            relay.breaks(Break::After(3 << 20));
        }
        let (code, said, log) = place.ask(&["migrate-recover", "follower"]);
        assert_eq!(code, Some(0), "{said} {log}");
    }
    let (status, said, log) = moving.end();
    assert_eq!(status.code(), Some(0), "{said} {log}");
    println!("{said}");
    assert!(
        said.starts_with(&format!("follower runs at {}: moved in ", relay.at)),
        "{said}"
    );
    assert!(log.contains("\"phase\":\"Serve\""), "{log}");
    let (status, _, log) = first.end();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(log.contains("follower was moved and runs elsewhere"), "{log}");
    second.type_in(
        "touch /end; wait; sort -nc /count && echo in''-order; sha256sum -c /sum; echo; \
         echo scratch-$(sha256sum </dev/vdb); poweroff -f\n",
    );
    second.wait_for("in-order");
    second.wait_for("/mnt/block: OK");
    assert_eq!(told(&mut second, "scratch"), scratch);
    assert_eq!(second.end().0.code(), Some(0));
}

#[test]
fn a_guest_that_does_not_fit_in_time_goes_before_its_memory() {
    let (here, there) = (Bed::new(), Bed::new());
    let place = Place::new(&here, "hasty");
    let mut first = place.run();
    first.type_in(
        "mount -t tmpfs none /mnt; head -c 100000 /dev/urandom >/mnt/block; sha256sum /mnt/block >/mnt/sum; \
         (i=0; while [ ! -e /end ]; do i=$((i+1)); echo $i >>/mnt/count; done) & echo be''gun\n",
    );
    first.wait_for("begun");
    let (mut second, at) = place.at(&there).receive_here();
    let relay = Relay::to(&at, &here);
    // One round takes longer than all of it may, and what the guest writes meanwhile never fits.
    let words = [
        "migrate",
        "hasty",
        "--to",
        &relay.at,
        "--timeout",
        "500ms",
        "--downtime",
        "1ms",
        "--bandwidth",
        "8Mi",
    ];
    let (code, _, log) = place.ask(&words);
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("more than the 1 ms allowed"), "{log}");
    assert_eq!(place.state("hasty"), "Running");
    assert_ne!(second.end().0.code(), Some(0));
    assert!(!relay.has_seen(Kind::Missing));

    (second, _) = place.at(&there).receive_here();
    let (code, said, log) = place.ask(&[&words[..], &["--on-timeout", "post-copy"]].concat());
    assert_eq!(code, Some(0), "{said} {log}");
    println!("{said}");
    assert!(relay.has_seen(Kind::Round) && relay.has_seen(Kind::Missing));
    assert_eq!(first.end().0.code(), Some(0));
    second.type_in(
        "touch /end; wait; sort -nc /mnt/count && echo in''-order; sha256sum -c /mnt/sum; poweroff -f\n",
    );
    second.wait_for("in-order");
    second.wait_for("/mnt/block: OK");
    assert_eq!(second.end().0.code(), Some(0));
}

#[test]
fn a_machine_whose_connection_breaks_at_the_order_to_go_on_is_one_sides_only() {
    let (here, there) = (Bed::new(), Bed::new());
    let place = Place::new(&here, "torn");
    let target = place.at(&there);
    let mut first = place.run();
    first.listen();
    first.type_in("word=remembered; echo be''gun\n");
    first.wait_for("begun");
    let relay = Relay::to(&format!("unix:{}", there.path("in").display()), &here);
    let words = ["migrate", "torn", "--to", &relay.at, "--downtime", "1s"];

    // The order does not come: nobody runs it, until it is taken back.
    for post_copy in [false, true] {
        let (waiting, _) = target.receive_here();
        relay.breaks(Break::Before(Kind::Resume));
        let more: &[&str] = if post_copy { &["--post-copy"] } else { &[] };
        let mut moving = place.begin(&[&words, more].concat());
        assert_ne!(waiting.end().0.code(), Some(0));
        if post_copy {
            // It may run there, and need its memory: it is looked there first.
            while place.state("torn") != "HandedOver" {
                std::thread::sleep(Duration::from_millis(20));
            }
            assert!(moving.child.try_wait().unwrap().is_none());
            let (code, _, log) = place.ask(&["migrate-recover", "torn"]);
            assert_eq!(code, Some(0), "{log}");
        }
        let (status, _, log) = moving.end();
        assert_eq!(status.code(), Some(1), "{log}");
        assert!(log.contains("has not confirmed that it runs"), "{log}");
        assert_eq!(place.state("torn"), "HandedOver");
        let (code, _, log) = place.ask(&["migrate-recover", "torn"]);
        assert_eq!(code, Some(0), "{log}");
        assert_eq!(place.state("torn"), "Running");
        first.type_in("echo $word-here\n");
        first.wait_for("remembered-here");
    }

    // It comes, and its confirmation does not: the disk says that it runs there.
    let (mut second, _) = target.receive_here();
    relay.breaks(Break::Behind(Kind::Resume));
    let (code, _, log) = place.ask(&words);
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("has not confirmed that it runs"), "{log}");
    second.wait_for_log("has come and runs here");
    let (code, _, log) = place.ask(&["migrate-recover", "torn"]);
    assert_eq!(code, Some(1), "{log}");
    assert!(
        log.contains("is locked by another virtual machine or program"),
        "{log}"
    );
    assert_eq!(place.state("torn"), "HandedOver");
    first.signal(Signal::TERM);
    first.wait_for_log("torn is not stopped: the machine was handed over to another monitor");
    assert_eq!(place.ask(&["kill", "torn"]).0, Some(0));
    assert_eq!(first.end().0.code(), Some(9));
    second.type_in("echo $word-there; poweroff -f\n");
    second.wait_for("remembered-there");
    assert_eq!(second.end().0.code(), Some(0));
}
