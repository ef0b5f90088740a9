//! A guest that moves, measured: on real monitors, and where one of them fails. Needs root.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::Value;
use support::{Place, Ran, nacelle, values};

/// Moves once on each monitor.
fn migrate(place: &Place, words: &str) -> Ran {
    place.bench(&format!("migrate --runs 1 --warm-up 0 {words}"))
}

/// On this machine's KVM.
#[test]
fn a_guest_moves_three_times_on_ours_and_on_qemu_and_is_seen_all_the_way() {
    let words = format!(
        "--peer qemu-microvm,nacelle-slim --output json --limit 300 --peer-path nacelle={}",
        nacelle().display()
    );
    let ran = migrate(&Place::new(), &words);
    let report: Value = serde_json::from_str(&ran.is(0).said).unwrap();
    assert_eq!(
        report["notes"][0],
        "migrate of nacelle-slim: it cannot move a running machine to another process"
    );
    assert_eq!(report["measures"][0]["peers"].as_array().unwrap().len(), 2);
    for peer in ["nacelle", "qemu-microvm"] {
        let value = |name: &str| values(&report, "migrate", peer, name)[0].as_f64().unwrap();
        let used = value("memory in use");
        for load in [
            "idle",
            "asked to write 65 % of the link",
            "asked to write 90 % of the link",
        ] {
            let of = |what: &str| value(&format!("{load}: {what}"));
            // It cannot have been still for longer than from before the move until after it.
            for still in ["still, by the guest's stamps", "still, by a pinger"] {
                assert!(
                    of(still) > 0.0 && of(still) < of("in all") + 5e9,
                    "{load}: {still}: {}",
                    of(still)
                );
            }
            // What it wrote to last cannot be compressed, and is a quarter of its memory.
            assert!(of("sent") > 32e6 && of("sent") < 100.0 * used, "{load}");
        }
        assert!(value("asked to write 65 % of the link: wrote before") > 0.0);
    }
}

/// A QEMU whose guest comes up, and whose target ends at once.
#[test]
fn a_move_that_fails_is_told_of_with_its_case_and_leaves_nothing_running() {
    let place = Place::new();
    let program = place.path("qemu");
    let script = "#!/bin/sh
[ \"$1\" = --version ] && echo fake 1.0 && exit
case \"$*\" in *-incoming*) echo 'I am no target' >&2; exit 3 ;; esac
printf '@moving free=1000\\n'
exec sleep 60
";
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let words = format!(
        "--without-nacelle --peer qemu-microvm --limit 2 --peer-path qemu-microvm={}",
        program.display()
    );
    let ran = migrate(&place, &words);
    let said = &ran.is(1).said;
    let expected = "qemu-microvm FAILED: idle: the target, which is to listen at port 4000, did not come within 2s (--limit)";
    assert!(said.contains(expected), "{said}");
    assert!(said.contains("I am no target"), "{said}");
    assert!(!said.contains("in all"), "{said}");
}
