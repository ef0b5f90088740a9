//! `nacelle migrate` and `nacelle receive` as people use them, with the small Linux guest on this machine's KVM.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests"
)]

mod support;

use rustix::process::Signal;
use support::place::{Place, certificates};
use support::{Bed, Running};

#[test]
fn a_running_linux_moves_over_a_socket_and_over_tls_and_notices_nothing() {
    let bed = Bed::new();
    certificates(&bed, None);
    let place = Place::new(&bed, "wanderer");
    let mut first = place.run();
    // It counts and writes, and says when it finds that a step took long.
    first.type_in(
        "(i=0; while [ ! -e /end ]; do i=$((i+1)); echo $i >>/count; done; sync; echo counted-to-$i) & echo be''gun\n",
    );
    first.wait_for("\nbegun");

    let (mut second, at) = place.receive(&format!("unix:{}", bed.path("in").display()));
    let (code, said, log) = place.ask(&["migrate", "wanderer", "--to", &at, "--downtime", "1s"]);
    assert_eq!(code, Some(0), "{said} {log}");
    assert!(
        said.starts_with(&format!("wanderer runs at {at}: moved in ")),
        "{said}"
    );
    println!("{said}");
    let (status, _, log) = first.end();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(log.contains("wanderer was moved and runs elsewhere"), "{log}");
    second.type_in("echo se''cond\n");
    second.wait_for("second");
    let (_, list, _) = place.ask(&["ls", "--output", "json"]);
    assert_eq!(list.matches("\"wanderer\"").count(), 1, "{list}");

    let (mut third, at) = place.receive("127.0.0.1:0");
    let (code, said, log) = place.ask(&[
        "migrate",
        "wanderer",
        "--to",
        &at,
        "--downtime",
        "1s",
        "--streams",
        "2",
        "--output",
        "json",
    ]);
    assert_eq!(code, Some(0), "{said} {log}");
    println!("{said}");
    assert!(log.lines().all(|line| line.starts_with('{')), "{log}");
    assert_eq!(second.end().0.code(), Some(0));
    third.type_in("touch /end; wait; sort -nc /count && wc -l </count; poweroff -f\n");
    third.wait_for("counted-to-");
    let (status, said, _) = third.end();
    assert_eq!(status.code(), Some(0), "{said}");
    // Every number was written once, in order.
    let counted = said
        .split("counted-to-")
        .nth(1)
        .unwrap()
        .split_whitespace()
        .next()
        .unwrap();
    let lines = said
        .lines()
        .map(str::trim)
        .filter(|line| *line == counted)
        .count();
    assert!(lines >= 1, "{said}");
    assert!(!said.contains("disorder"), "{said}");
}

#[test]
fn a_machine_that_cannot_go_there_says_why_and_goes_on() {
    let bed = Bed::new();
    let place = Place::new(&bed, "stayer");
    let mut guest = place.run();
    guest.type_in("echo be''gun\n");
    guest.wait_for("\nbegun");
    let nowhere = format!("unix:{}", bed.path("nowhere").display());
    let (code, _, log) = place.ask(&["migrate", "stayer", "--to", &nowhere]);
    assert_eq!(code, Some(1), "{log}");
    assert!(
        log.contains("cannot connect to where the machine should go: No such file"),
        "{log}"
    );
    let (code, _, log) = place.ask(&["migrate", "stayer", "--to", "127.0.0.1:9"]);
    assert_eq!(code, Some(1), "{log}");
    assert!(
        log.contains("ca.pem") && log.contains("docs/migration.md"),
        "{log}"
    );
    let (code, _, log) = place.ask(&["migrate-cancel", "stayer"]);
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("the machine is not being moved"), "{log}");

    // Another machine than is prepared there.
    let other = Place {
        vm: place.vm.replace("128Mi", "64Mi"),
        ..place.clone()
    };
    let (waiting, at) = other.receive(&format!("unix:{}", bed.path("in").display()));
    let (code, _, log) = place.ask(&["migrate", "stayer", "--to", &at]);
    assert_eq!(code, Some(1), "{log}");
    assert!(
        log.contains("the machine has memory of 128 MiB, the one prepared here 64 MiB"),
        "{log}"
    );
    assert_ne!(waiting.end().0.code(), Some(0));

    // One that waits can be told not to.
    let (waiting, _) = place.receive(&format!("unix:{}", bed.path("in").display()));
    waiting.signal(Signal::INT);
    assert_ne!(waiting.end().0.code(), Some(0));
    assert!(!bed.path("in").exists());
    guest.type_in("echo still''-here; poweroff -f\n");
    guest.wait_for("still-here");
    assert_eq!(guest.end().0.code(), Some(0));
}

#[test]
fn a_machine_goes_on_from_its_snapshot_in_the_middle_of_what_it_did() {
    let bed = Bed::new();
    let place = Place::new(&bed, "sleeper");
    let mut guest = place.run();
    guest.type_in("word=remembered; echo be''gun\n");
    guest.wait_for("\nbegun");
    let snapshot = bed.path("snapshot").display().to_string();
    let (code, said, log) = place.ask(&["snapshot", "sleeper", &snapshot, "--then", "stop"]);
    assert_eq!(code, Some(0), "{said} {log}");
    println!("{said}");
    assert!(said.starts_with(&format!("sleeper is in {snapshot}: ")), "{said}");
    let (status, _, log) = guest.end();
    assert_eq!(status.code(), Some(0), "{log}");

    let mut command = bed.command("restore");
    command.arg(&snapshot);
    let mut guest = Running::start(command);
    guest.type_in("echo $word-since; poweroff -f\n");
    guest.wait_for("remembered-since");
    let (status, said, log) = guest.end();
    assert_eq!(status.code(), Some(0), "{said} {log}");

    let (code, _, log) = place.ask(&["restore", "/nowhere"]);
    assert_eq!(code, Some(5), "{log}");
    assert!(log.contains("/nowhere/machine.json"), "{log}");
}
