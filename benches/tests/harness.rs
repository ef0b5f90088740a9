//! The harness as a person uses it: on real monitors and a real guest.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use support::{Place, Ran, nacelle, values};

/// fio of Debian's sources, built where it is not there yet.
fn fio() -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest/fio");
    let built = Command::new(script).stderr(Stdio::inherit()).output().unwrap();
    assert!(built.status.success());
    String::from_utf8(built.stdout).unwrap().trim().into()
}

/// In the lab: its KVM is complete, so that a guest is up in a second or two.
#[test]
fn ours_and_qemu_are_measured_in_every_way_on_the_same_guest() {
    let place = Place::new();
    let (json, svg) = (place.path("run.json"), place.path("run.svg"));
    let mut command = place.command(
        "boot memory blk net exits density --lab --peer qemu-microvm --runs 1 --warm-up 0 --operations 64 --count 1",
    );
    let output = command
        .arg(format!("--peer-path=nacelle={}", nacelle().display()))
        .args([
            "--json".as_ref(),
            json.as_os_str(),
            "--plot".as_ref(),
            svg.as_os_str(),
        ])
        .output()
        .unwrap();
    let ran = Ran::new(&output);
    ran.is(0);
    place.is_clean();
    assert!(ran.said.contains("ratio to qemu-microvm"), "{}", ran.said);

    let report: Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    let drawing = fs::read_to_string(&svg).unwrap();
    assert!(drawing.starts_with("<svg") && drawing.ends_with("</svg>\n"));
    for peer in ["nacelle", "qemu-microvm"] {
        assert!(drawing.contains(peer));
        let spans = ["start → kernel's first instruction", "kernel's clock → init"];
        let number = |measure: &str, metric: &str| {
            let values = values(&report, measure, peer, metric);
            assert_eq!(values.len(), 1);
            values[0].as_f64().unwrap()
        };
        let whole = number("boot", "start → init");
        for span in spans {
            let span = number("boot", span);
            assert!(span > 0.0 && span < whole);
        }
        assert!(number("memory", "idle: private dirty") > 0.0);
        assert!(number("memory", "after I/O: threads") >= 2.0);
        for disk in ["tmpfs", "qcow2"] {
            for phase in ["randread-1", "randread-32", "randwrite-1", "randwrite-32"] {
                let at = |what: &str| number("blk", &format!("{disk} {phase}: {what}"));
                assert!(at("p50") > 0.0 && at("p50") <= at("p99") && at("p99") <= at("p99.9"));
                assert!(at("operations") > 0.0 && at("monitor's CPU per 100 000") > 0.0);
            }
            assert!(number("blk", &format!("{disk} seqread: throughput")) > 0.0);
            assert!(number("blk", &format!("{disk} seqwrite: throughput")) > 0.0);
        }
        assert!(number("net", "UDP round trip: p50") <= number("net", "UDP round trip: p99"));
        for rate in [
            "UDP 1400 B to the guest, window 32",
            "TCP stream to the guest",
            "TCP stream from the guest",
        ] {
            assert!(number("net", rate) > 0.0);
        }
        assert!(number("exits", "to the monitor's serial line (port read)") > 0.0);
        assert!(number("exits", "io_exits until init") > 0.0);
        assert_eq!(number("density", "guests running"), 1.0);
    }
}

#[test]
fn fio_reads_the_disks_that_ours_has_read() {
    let place = Place::new();
    let mut command = place.command(
        "blk --lab --disks tmpfs --without-nacelle --peer nacelle-slim --runs 1 --warm-up 0 --operations 20 --output json",
    );
    let ran = Ran::new(&command.arg("--fio").arg(fio()).output().unwrap());
    place.is_clean();
    let report: Value = serde_json::from_str(&ran.is(0).said).unwrap();
    for depth in ["randread-1", "randread-32"] {
        for what in ["p50", "operations"] {
            for by in [depth.to_owned(), format!("{depth}, by fio")] {
                let values = values(&report, "blk", "nacelle-slim", &format!("tmpfs {by}: {what}"));
                assert!(values[0].as_f64().unwrap() > 0.0, "{by}");
            }
        }
    }
}

/// On this machine's own KVM and disk: the lab's disk is in its memory.
#[test]
fn the_library_alone_and_qemu_are_measured_on_a_real_disk() {
    let place = Place::new();
    let words = "blk --without-nacelle --peer nacelle-slim,qemu-microvm --runs 1 --warm-up 0 --operations 64 --disks disk \
                 --output json";
    let report: Value = serde_json::from_str(&place.bench(words).is(0).said).unwrap();
    for peer in ["nacelle-slim", "qemu-microvm"] {
        let p50 = &values(&report, "blk", peer, "disk randread-1: p50")[0];
        assert!(p50.as_f64().unwrap() > 0.0);
    }
}

/// On this machine's KVM: in the lab, the small kernel ends in a panic on QEMU's q35 (docs/performance.md).
#[test]
fn qemus_usual_machine_boots_the_guest_too() {
    let place = Place::new();
    let ran = place.bench("boot --without-nacelle --peer qemu-q35 --runs 1 --warm-up 0 --output json");
    let report: Value = serde_json::from_str(&ran.is(0).said).unwrap();
    assert!(
        values(&report, "boot", "qemu-q35", "start → init")[0]
            .as_f64()
            .unwrap()
            > 0.0
    );
}

/// Where one of these is at hand it is measured; where none is, the list says so.
#[test]
fn other_monitors_are_measured_wherever_they_are_at_hand() {
    let place = Place::new();
    let path = std::env::var("PATH").unwrap();
    let here: Vec<_> = ["firecracker", "cloud-hypervisor", "crosvm"]
        .into_iter()
        .filter(|name| {
            path.split(':')
                .any(|directory| Path::new(directory).join(name).is_file())
        })
        .collect();
    if here.is_empty() {
        let ran = place.bench("boot --without-nacelle --peer nacelle-slim,firecracker --runs 1");
        assert!(
            ran.is(2)
                .errors
                .contains("firecracker: there is no firecracker on PATH"),
            "{}",
            ran.errors
        );
        return;
    }
    let words = format!(
        "boot blk net --without-nacelle --peer {} --runs 1 --warm-up 0 --operations 64",
        here.join(",")
    );
    place.bench(&words).is(0);
}
