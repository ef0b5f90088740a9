//! `nacelle attach` and `nacelle detach` as a person uses them, with the small Linux guest on this machine's KVM.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod support;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::Output;

use support::{Bed, Running, manifest};

#[test]
fn a_linux_that_runs_gets_a_disk_loses_it_and_finds_on_it_what_it_wrote() {
    let bed = Bed::new();
    let mut guest = Running::start(bed.guest(&manifest("plug", "", "", ""), &[]));
    guest.wait_for("nacelle-guest ready");
    let image = bed.file("data.img", "");
    File::options()
        .write(true)
        .open(&image)
        .unwrap()
        .set_len(8 << 20)
        .unwrap();
    let image = image.to_str().unwrap().to_owned();
    let nacelle = |words: &[&str]| -> Output {
        let mut command = bed.command(words[0]);
        command.args(&words[1..]).output().unwrap()
    };
    let well = |words: &[&str]| {
        let output = nacelle(words);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{words:?}: {error}");
        String::from_utf8(output.stdout).unwrap()
    };

    let attach = ["attach", "plug", "data", &image, "--serial", "D1"];
    assert_eq!(well(&attach), "plug: disk data is attached\n");
    // Who asks twice has it once.
    well(&attach);
    assert!(well(&["status", "plug"]).contains("disk data\n"));
    let refused = nacelle(&["snapshot", "plug", bed.path("snapshot").to_str().unwrap()]);
    let refused = String::from_utf8(refused.stderr).unwrap();
    assert!(
        refused.contains("disks were attached to the machine while it ran"),
        "{refused}"
    );
    guest.type_in("until [ -b /dev/vda ]; do sleep 0.1; done; cat /sys/block/vda/serial; echo\n");
    guest.wait_for("\r\nD1");
    guest.type_in("echo written by the guest | dd of=/dev/vda conv=fsync 2>/dev/null; echo it-is''-there\n");
    guest.wait_for("it-is-there");
    let mut data = [0; 20];
    File::open(&image).unwrap().read_exact_at(&mut data, 0).unwrap();
    assert_eq!(&data, b"written by the guest");

    assert_eq!(well(&["detach", "plug", "data"]), "plug: disk data has left\n");
    assert!(!well(&["status", "plug"]).contains("Attached"));
    guest.type_in("[ -e /dev/vda ] || echo it-is''-gone\n");
    guest.wait_for("it-is-gone");
    let unknown = nacelle(&["detach", "plug", "data"]);
    let unknown = String::from_utf8(unknown.stderr).unwrap();
    assert!(
        unknown.contains("there is no disk data among those that were attached"),
        "{unknown}"
    );

    // Again, and for reading only.
    well(&[
        "attach",
        "plug",
        "data",
        &image,
        "--read-only",
        "--cache",
        "writeback",
    ]);
    guest.type_in("until [ -b /dev/vda ]; do sleep 0.1; done; head -c 20 /dev/vda; cat /sys/block/vda/ro\n");
    guest.wait_for("written by the guest1");
    well(&["detach", "plug", "data"]);
    guest.type_in("poweroff -f\n");
    let (status, said, log) = guest.end();
    assert_eq!(status.code(), Some(0), "{said} {log}");
}
