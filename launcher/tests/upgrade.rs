//! `nacelle upgrade`: the small Linux goes on in another process, over and over, with what it has open. Needs root, for
//! a network of the test's own.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests"
)]

mod support;

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;

use rustix::process::Signal;
use rustix::thread::{UnshareFlags, unshare_unsafe};
use support::{Bed, KERNEL_ARGS, Running, artefact};

const MANIFEST: &str = "apiVersion: kubevirt.io/v1
kind: VirtualMachineInstance
metadata: {name: keeper}
spec:
  terminationGracePeriodSeconds: 600
  domain:
    memory: {guest: 128Mi}
    devices:
      rng: {}
      interfaces: [{name: default, masquerade: {}}]
      disks: [{name: root, disk: {bus: virtio}}, {name: scratch, disk: {bus: virtio}}]
  networks: [{name: default, pod: {}}]
  volumes:
    - {name: root, ephemeral: {persistentVolumeClaim: {claimName: root}}}
    - {name: scratch, emptyDisk: {capacity: 16Mi}}
";

fn ask(bed: &Bed, words: &[&str]) -> (Option<i32>, String, String) {
    let output = bed.command(words[0]).args(&words[1..]).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn pid(bed: &Bed) -> i32 {
    let (code, said, log) = ask(bed, &["status", "keeper", "--output", "json"]);
    assert_eq!(code, Some(0), "{log}");
    let machine: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(machine["state"], "Running", "{said}");
    machine["pid"].as_i64().unwrap() as i32
}

fn start(bed: &Bed, words: &[&str]) -> Running {
    fs::copy(artefact("DISK"), bed.path("root.img")).unwrap();
    let volume = format!("root={}", bed.path("root.img").display());
    let kernel = artefact("LINUX_SMALL_VMLINUX").display().to_string();
    let cmdline = format!("{KERNEL_ARGS} clocksource=kvm-clock root=/dev/vda rw init=/init");
    let all = ["--volume", &volume, "--kernel", &kernel, "--cmdline", &cmdline];
    Running::start(bed.nacelle(MANIFEST, &[&all, words].concat()))
}

/// Numbers that the guest counts and sends over one connection, each once and in order; the last one.
fn counts(listener: &TcpListener) -> std::thread::JoinHandle<u64> {
    let (stream, _) = listener.accept().unwrap();
    std::thread::spawn(move || {
        let mut last = 0;
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            let number: u64 = line.trim().parse().unwrap();
            assert_eq!(number, last + 1);
            last = number;
        }
        last
    })
}

#[test]
fn a_running_linux_goes_on_in_a_new_program_with_its_connections_disks_and_console() {
    let host = std::thread::spawn(|| {
        // SAFETY: this thread is alone in the new namespace; no descriptor is touched.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
        goes_on(&["--shared-memory"]);
    });
    host.join().unwrap();
}

fn goes_on(words: &[&str]) {
    let bed = Bed::new();
    let mut guest = start(&bed, words);
    let nacelle = env!("CARGO_BIN_EXE_nacelle");
    guest.type_in("ifconfig eth0 10.0.2.2 netmask 255.255.255.0; echo kept > /note; echo be''gun\n");
    guest.wait_for("\nbegun");
    let listener = TcpListener::bind("0.0.0.0:4242").unwrap();
    guest.type_in(
        "(i=0; while [ ! -e /end ]; do i=$((i+1)); echo $i; echo $i >>/count; done) | nc 10.0.2.1 4242 & echo\n",
    );
    let counting = counts(&listener);

    let before = pid(&bed);
    // What cannot take it over leaves it where it is.
    for (binary, reason) in [
        // It ends at once: before the first word is sent to it, or after.
        ("/bin/false", "machine keeper: cannot"),
        ("/nowhere/nacelle", "No such file"),
    ] {
        let (code, _, log) = ask(&bed, &["upgrade", "keeper", "--binary", binary]);
        assert_eq!(code, Some(1), "{log}");
        assert!(log.contains(reason), "{log}");
        assert_eq!(pid(&bed), before);
    }
    let mut pids = vec![before];
    for round in 0..2 {
        let (code, said, log) = ask(&bed, &["upgrade", "keeper", "--binary", nacelle]);
        assert_eq!(code, Some(0), "{said} {log}");
        println!("{words:?}: {said}");
        let now = pid(&bed);
        assert!(!pids.contains(&now));
        pids.push(now);
        // The same terminal, and the same socket.
        guest.type_in(&format!("echo round''-{round}; cat /note\n"));
        guest.wait_for(&format!("round-{round}"));
        guest.wait_for("kept");
        let (_, list, _) = ask(&bed, &["ls", "--output", "json"]);
        assert_eq!(list.matches("\"keeper\"").count(), 1, "{list}");
    }
    // The one between has gone, the first one waits.
    assert!(!Path::new(&format!("/proc/{}", pids[1])).exists());
    assert_eq!(guest.child.id() as i32, pids[0]);

    // Without its old process a reset finds its kernel.
    guest.type_in("touch /end; wait; sort -nc /count && echo in''-order\n");
    guest.wait_for("in-order");
    let counted = counting.join().unwrap();
    assert!(counted > 10, "{counted}");
    let (code, _, log) = ask(&bed, &["reset", "keeper"]);
    assert_eq!(code, Some(0), "{log}");
    guest.type_in("cat /note; echo a''gain\n");
    guest.wait_for("kept");
    guest.wait_for("again");
    // What the first process is told, the machine hears; it ends by how that ends.
    guest.signal(Signal::TERM);
    while !ask(&bed, &["status", "keeper"]).1.contains("Stopping") {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    guest.signal(Signal::TERM);
    let (status, said, log) = guest.end();
    assert!(matches!(status.code(), Some(0 | 9)), "{status:?} {said} {log}");
    let (_, list, _) = ask(&bed, &["ls", "--output", "json"]);
    assert!(!list.contains("keeper"), "{list}");
}
