//! `nacelle run` as a person or a script uses it, with the small Linux guest on this machine's KVM. Guests are made
//! by `tests/guest/build`; machines have no network here (those are in tests/net.rs of the workspace).

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests"
)]

mod support;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};

use rustix::process::Signal;
use support::{Bed, KERNEL_ARGS, Running, artefact, manifest};

#[test]
fn a_script_on_standard_input_is_typed_whole_and_the_guest_has_its_disks() {
    let bed = Bed::new();
    let vm = manifest(
        "script",
        "",
        ", disks: [{name: root, disk: {bus: virtio}, serial: S1}, {name: seed, cdrom: {}}, {name: scratch, disk: {}}]",
        "{name: root, containerDisk: {image: 'nacelle.local/disk-debian:12'}}, \
         {name: seed, cloudInitNoCloud: {userData: '#cloud-config for you'}}, \
         {name: scratch, emptyDisk: {capacity: 3Mi}}",
    );
    // All of it is there long before the guest has a terminal, and then standard input ends.
    let script = bed.file(
        "script",
        "mkdir /mnt/seed /mnt/root\n\
         mount -t iso9660 -o ro /dev/vdb /mnt/seed && cat /mnt/seed/meta-data /mnt/seed/user-data\n\
         mount -t ext4 /dev/vda /mnt/root && echo gone > /mnt/root/written && sync && ls /mnt/root/written\n\
         cat /sys/block/vda/serial; echo; cat /sys/block/vdb/ro /sys/block/vdc/size\n\
         ls /sys/class/virtio-ports/*/name && cat /sys/class/virtio-ports/*/name\n\
         echo end-of-script; poweroff -f\n",
    );
    let mut command = bed.guest(&vm, &[]);
    command.stdin(File::open(script).unwrap());
    let (status, said, log) = Running::start(command).end();
    let said: Vec<&str> = said.lines().map(str::trim).collect();
    assert_eq!(status.code(), Some(0), "{said:?} {log}");
    for line in [
        r#"{"instance-id":"script.default","local-hostname":"script"}#cloud-config for you"#,
        "/mnt/root/written",
        "S1",
        "1",
        "6144",
        "org.qemu.guest_agent.0",
        "end-of-script",
    ] {
        assert!(
            said.iter().any(|said| said.starts_with(line)),
            "no {line} in {said:#?}"
        );
    }
}

#[test]
fn what_was_prepared_is_there_when_the_machine_starts() {
    let bed = Bed::new();
    let vm = manifest("prepared", "", "", "");
    let mut prepare = bed.command("prepare");
    prepare
        .arg(bed.file("vm.yaml", &vm))
        .arg("--images")
        .arg(artefact("IMAGES"));
    let (status, _, log) = Running::start(prepare).end();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(log.contains("unpacking /boot/vmlinux"), "{log}");
    let mut guest = Running::start(bed.guest(&vm, &[]));
    guest.wait_for("nacelle-guest ready");
    is_confined(guest.child.id());
    guest.type_in("poweroff -f\n");
    let (status, said, log) = guest.end();
    assert_eq!(status.code(), Some(0), "{said} {log}");
    assert!(!log.contains("unpacking"), "{log}");
}

/// Every thread of a machine's process has its filter, and the process leaves no core file.
fn is_confined(process: u32) {
    let limits = fs::read_to_string(format!("/proc/{process}/limits")).unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .unwrap();
    assert_eq!(
        core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(),
        ["0", "0"]
    );
    let mut kinds = Vec::new();
    for task in fs::read_dir(format!("/proc/{process}/task")).unwrap() {
        let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        for line in ["NoNewPrivs:\t1\n", "Seccomp:\t2\n"] {
            assert!(status.contains(line), "{line} is not in {status}");
        }
        kinds.push(
            status
                .lines()
                .next()
                .unwrap()
                .trim_start_matches("Name:\t")
                .to_owned(),
        );
    }
    for kind in ["nacelle", "driver", "vcpu0", "io0"] {
        assert!(
            kinds.iter().any(|known| known == kind),
            "no {kind} among {kinds:?}"
        );
    }
}

/// The manifest that people have, its memory made small for software KVM.
#[test]
fn the_ledger_boots_with_its_volume_mapped_and_stops_when_it_is_told() {
    let bed = Bed::new();
    let example = include_str!("../../examples/ledger.yaml");
    let vm = example
        .replace("guest: 4Gi", "guest: 128Mi")
        .replace(
            "interfaces: [{name: default, masquerade: {}}]",
            "autoattachPodInterface: false",
        )
        .replace(
            "networks: [{name: default, pod: {}}]",
            "terminationGracePeriodSeconds: 600",
        );
    assert!(vm.contains("guest: 128Mi") && !vm.contains("masquerade"));
    fs::copy(artefact("DISK"), bed.path("ledger.img")).unwrap();
    let volume = format!("ledger-root={}", bed.path("ledger.img").display());
    let kernel = artefact("LINUX_SMALL_VMLINUX");
    let cmdline = format!("{KERNEL_ARGS} root=/dev/vda rw init=/init");
    let words = [
        "--volume",
        &volume,
        "--kernel",
        kernel.to_str().unwrap(),
        "--cmdline",
        &cmdline,
    ];
    let mut guest = Running::start(bed.nacelle(&vm, &words));
    guest.type_in("echo kept-in-the-volume > /root/note; sync; echo written\n");
    guest.wait_for("\nwritten");
    // Its disk is its own while it runs.
    let (code, log) = bed.fails(&vm, &[&words[..], &["--name", "second"]].concat());
    assert_eq!(code, Some(6), "{log}");
    assert!(log.contains("locked"), "{log}");
    guest.signal(Signal::TERM);
    let (status, said, log) = guest.end();
    assert_eq!(status.code(), Some(0), "{said} {log}");
    assert!(said.contains("nacelle-guest power button"), "{said}");
    assert!(
        log.contains("stopping ledger: the guest has 600 s to power off"),
        "{log}"
    );
    let image = fs::read(bed.path("ledger.img")).unwrap();
    let note = b"kept-in-the-volume";
    assert!(image.windows(note.len()).any(|window| window == note));
}

#[test]
fn on_a_terminal_a_reboot_boots_again_and_ctrl_bracket_leaves() {
    let bed = Bed::new();
    let vm = manifest("terminal", "", "", "");
    // script(1) gives it a terminal, and its own standard input is what is typed.
    let inner = bed.guest(&vm, &[]);
    let words: Vec<_> = std::iter::once(inner.get_program())
        .chain(inner.get_args())
        .map(|word| word.to_str().unwrap())
        .collect();
    let mut command = Command::new("script");
    command
        .args(["-qec", &words.join(" "), "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    for (variable, value) in inner.get_envs() {
        command.env(variable, value.unwrap());
    }
    let mut guest = Running::start(command);
    guest.wait_for("nacelle-guest ready");
    // Ctrl-C is the guest's: it ends what runs there, not the machine.
    // What runs says so: before that the shell itself would hear it.
    guest.type_in("sh -c 'echo be''gun; exec sleep 1000'\n");
    guest.wait_for("begun");
    guest.type_in("\x03");
    guest.type_in("reboot -f\n");
    guest.wait_for("nacelle-guest ready");
    guest.type_in("\x1d");
    let (status, said, _) = guest.end();
    assert_eq!(status.code(), Some(0), "{said}");
    assert!(
        said.contains("stopping terminal: the guest has 600 s to power off; once more kills it\r\n"),
        "{said}"
    );
}

#[test]
fn where_a_reboot_is_to_end_the_machine_it_does() {
    let bed = Bed::new();
    let vm = manifest("once", "    rebootPolicy: Terminate", "", "");
    let mut guest = Running::start(bed.guest(&vm, &[]));
    guest.type_in("reboot -f\n");
    let (status, said, log) = guest.end();
    assert_eq!(status.code(), Some(0), "{said} {log}");
    assert_eq!(said.matches("nacelle-guest ready").count(), 1);
}

#[test]
fn a_guest_that_stops_feeding_its_watchdog_is_powered_off_where_that_is_its_action() {
    let bed = Bed::new();
    let dog = ", watchdog: {name: dog, i6300esb: {action: poweroff}}";
    let vm = manifest("watched", "", dog, "");
    let mut guest = Running::start(bed.guest(&vm, &[]));
    guest.type_in("watchdog -t 1 -T 8 /dev/watchdog; kill -9 $(pidof watchdog)\n");
    let (status, said, log) = guest.end();
    assert_eq!(status.code(), Some(9), "{said} {log}");
    assert!(
        log.contains("watched: the guest did not feed its watchdog, and was powered off"),
        "{log}"
    );
}

#[test]
fn a_paused_machine_runs_nothing_and_ends_when_it_is_told() {
    let bed = Bed::new();
    let vm = manifest("paused", "", "", "").replace("  domain:\n", "  startStrategy: Paused\n  domain:\n");
    let mut guest = Running::start(bed.guest(&vm, &["-v"]));
    let mut log = BufReader::new(guest.child.stderr.take().unwrap()).lines();
    assert!(log.any(|line| line.unwrap().ends_with("paused is started")));
    let tell = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nacelle"));
        let output = command
            .args(words)
            .env("XDG_RUNTIME_DIR", bed.path("run"))
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(text).unwrap())
    };
    let (code, said) = tell(&["ls"]);
    assert!(
        code == Some(0) && said.contains("paused") && said.contains("Paused"),
        "{said}"
    );
    let (code, said) = bed.fails(&vm, &[]);
    assert!(
        code == Some(1) && said.contains("a machine named paused runs already"),
        "{said}"
    );
    assert_eq!(tell(&["status", "other"]).0, Some(5));
    // A guest that never ran has nothing to put in order.
    guest.signal(Signal::TERM);
    let mut said = String::new();
    guest
        .child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    assert_eq!((guest.child.wait().unwrap().code(), said.as_str()), (Some(0), ""));
    assert!(!tell(&["ls"]).1.contains("paused"));
}

#[test]
fn each_failure_has_its_status_and_says_what_to_do() {
    let bed = Bed::new();
    let vm = manifest("failing", "", "", "");
    let text = bed.file("text", "no kernel").display().to_string();
    let absent = bed.path("absent").display().to_string();
    let mut cases = vec![
        (vm.clone(), vec!["--volume", "x"], 2, "must be NAME=PATH"),
        (
            vm.clone(),
            vec!["--volume", "x=y"],
            2,
            "the manifest has no persistentVolumeClaim or dataVolume",
        ),
        (
            vm.replace("memory:", "memroy:"),
            vec![],
            3,
            "did you mean `memory`?",
        ),
        (vm.clone(), vec!["--kvm", &absent], 4, "the machine has no KVM"),
        (vm.replace("linux-small:6.1", "absent:1"), vec![], 5, "--images"),
        (
            vm.replace("/boot/vmlinux", "/boot/absent"),
            vec![],
            5,
            "there is no /boot/absent in it",
        ),
        (vm.clone(), vec!["--kernel", &absent], 5, "absent"),
        (
            vm.clone(),
            vec!["--kernel", &text],
            8,
            "is not a kernel that can be started",
        ),
    ];
    let huge = vm.replace("{guest: 128Mi}", "{guest: 4096Gi, hugepages: {pageSize: 1Gi}}");
    cases.push((
        huge,
        vec![],
        7,
        "cannot get 4194304 MiB of guest memory from the host",
    ));
    for (manifest, words, code, message) in cases {
        let (status, log) = bed.fails(&manifest, &words);
        assert_eq!(status, Some(code), "{words:?}: {log}");
        assert!(log.contains(message), "{message:?} is not in {log}");
        assert!(!log.contains('\x1b'), "colours without a terminal: {log}");
    }
}

#[test]
fn logs_are_json_where_they_are_to_be() {
    let bed = Bed::new();
    let (status, log) = bed.fails(
        &manifest("json", "", "", ""),
        &["--log", "json", "--kernel", "/absent"],
    );
    assert_eq!(status, Some(5));
    let last: serde_json::Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
    assert_eq!(last["level"], "error");
    assert!(last["message"].as_str().unwrap().contains("/absent"));
}
