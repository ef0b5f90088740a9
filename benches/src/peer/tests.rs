use super::*;

fn machine() -> Machine {
    Machine {
        kernel: "/g/vmlinux".into(),
        initrd: "/g/initrd".into(),
        cmdline: "console=ttyS0 quiet".into(),
        memory: 128,
        disks: vec![
            Disk {
                path: "/d/a".into(),
                qcow2: false,
                direct: false,
            },
            Disk {
                path: "/d/b".into(),
                qcow2: true,
                direct: true,
            },
        ],
        tap: Some("bench0".into()),
        directory: "/r".into(),
        leaves: false,
        certificates: None,
    }
}

/// The command line, as a shell would be given it, and the files.
fn told(name: &str) -> (String, Vec<(&'static str, String)>) {
    let launch = (Peer::named(name).unwrap().launch)(&machine());
    let words = launch.arguments.iter().map(|word| {
        let word = word.to_str().unwrap();
        if word.contains(' ') {
            format!("'{word}'")
        } else {
            word.to_owned()
        }
    });
    (words.collect::<Vec<_>>().join(" "), launch.files)
}

#[test]
fn every_monitor_is_told_the_same_machine_in_its_own_words() {
    assert_eq!(
        told("qemu-microvm").0,
        "-nodefaults -no-user-config -no-reboot -display none -name bench,debug-threads=on \
         -machine microvm,accel=kvm,acpi=off,pit=off,pic=off,rtc=on,isa-serial=on -cpu host,arch-capabilities=off -smp 1 -m 128 \
         -chardev stdio,id=serial,signal=off -serial chardev:serial \
         -kernel /g/vmlinux -initrd /g/initrd -append 'console=ttyS0 quiet' \
         -drive id=d0,if=none,format=raw,cache=writeback,file=/d/a -device virtio-blk-device,drive=d0 \
         -drive id=d1,if=none,format=qcow2,cache=none,aio=native,file=/d/b -device virtio-blk-device,drive=d1 \
         -netdev tap,id=n0,ifname=bench0,script=no,downscript=no,vhost=off \
         -device virtio-net-device,netdev=n0,mac=02:00:00:77:00:02"
    );
    assert!(told("qemu-q35").0.ends_with(
        "-device virtio-blk-pci,drive=d1 -netdev tap,id=n0,ifname=bench0,script=no,downscript=no,vhost=off \
         -device virtio-net-pci,netdev=n0,mac=02:00:00:77:00:02,romfile="
    ));
    assert_eq!(
        told("cloud-hypervisor").0,
        "--kernel /g/vmlinux --initramfs /g/initrd --cmdline 'console=ttyS0 quiet' --cpus boot=1 --memory size=128M \
         --serial tty --console off --disk path=/d/a,direct=off path=/d/b,direct=on \
         --net tap=bench0,mac=02:00:00:77:00:02"
    );
    assert_eq!(
        told("crosvm").0,
        "run --disable-sandbox --cpus num-cores=1 --mem size=128 --serial type=stdout,hardware=serial,num=1,console=true \
         --initrd /g/initrd --params 'console=ttyS0 quiet' --block path=/d/a,direct=false --block path=/d/b,direct=true \
         --net tap-name=bench0,mac=02:00:00:77:00:02 /g/vmlinux"
    );
    assert_eq!(
        told("nacelle").0,
        "run /r/vm.json --kernel /g/vmlinux --initrd /g/initrd --cmdline 'console=ttyS0 quiet' \
         --volume disk0=/d/a,format=raw --volume disk1=/d/b,format=qcow2 --tap bench0"
    );
    assert_eq!(
        told("nacelle-slim").0,
        "/g/vmlinux /g/initrd 'console=ttyS0 quiet' 128 disk=raw,writeback,/d/a disk=qcow2,none,/d/b \
         tap=02:00:00:77:00:02,bench0"
    );
}

#[test]
fn a_target_is_the_same_machine_that_waits_at_a_port() {
    let machine = Machine {
        leaves: true,
        certificates: Some("/c".into()),
        ..machine()
    };
    let told = |name: &str| {
        let receive = Peer::named(name).unwrap().moves.unwrap().receive;
        let arguments = receive(&machine, 4001).arguments;
        arguments.join(" ".as_ref()).into_string().unwrap()
    };
    let ours = told("nacelle");
    assert!(
        ours.starts_with("receive /r/vm.json --kernel /g/vmlinux"),
        "{ours}"
    );
    assert!(
        ours.ends_with("--tap bench0 --listen 127.0.0.1:4001 --tls /c"),
        "{ours}"
    );
    for name in ["qemu-microvm", "qemu-q35"] {
        let theirs = told(name);
        assert!(theirs.contains("-qmp unix:/r/qmp,server=on,wait=off"), "{theirs}");
        assert!(theirs.ends_with("-incoming tcp:127.0.0.1:4001"), "{theirs}");
    }
    for name in ["nacelle-slim", "firecracker", "cloud-hypervisor", "crosvm"] {
        assert!(Peer::named(name).unwrap().moves.is_none(), "{name}");
    }
}

#[test]
fn firecracker_is_told_by_its_file() {
    let (command, files) = told("firecracker");
    assert_eq!(command, "--no-api --config-file /r/firecracker.json");
    let config: serde_json::Value = serde_json::from_str(&files[0].1).unwrap();
    assert_eq!(
        config,
        serde_json::json!({
            "boot-source": {
                "kernel_image_path": "/g/vmlinux", "initrd_path": "/g/initrd", "boot_args": "console=ttyS0 quiet"
            },
            "machine-config": {"vcpu_count": 1, "mem_size_mib": 128},
            "drives": [
                {"drive_id": "d0", "path_on_host": "/d/a", "is_root_device": false, "is_read_only": false,
                 "cache_type": "Writeback"},
                {"drive_id": "d1", "path_on_host": "/d/b", "is_root_device": false, "is_read_only": false,
                 "cache_type": "Writeback"}
            ],
            "network-interfaces": [
                {"iface_id": "eth0", "guest_mac": "02:00:00:77:00:02", "host_dev_name": "bench0"}
            ]
        })
    );
}

#[test]
fn our_manifest_names_what_the_machine_has_and_nothing_else() {
    let (_, files) = told("nacelle");
    let manifest: serde_json::Value = serde_json::from_str(&files[0].1).unwrap();
    let devices = &manifest["spec"]["domain"]["devices"];
    assert_eq!(devices["disks"][0]["cache"], "writeback");
    assert_eq!(devices["disks"][1]["cache"], "none");
    assert_eq!(devices["interfaces"][0]["macAddress"], MAC);
    assert_eq!(devices["autoattachMemBalloon"], false);
    assert_eq!(
        manifest["spec"]["volumes"][1]["persistentVolumeClaim"]["claimName"],
        "disk1"
    );
}

#[test]
fn a_monitor_is_found_by_its_name_its_path_or_not_at_all() {
    let here = tempfile::tempdir().unwrap();
    let program = here.path().join("crosvm");
    let peer = Peer::named("crosvm").unwrap();
    let find = |named: Option<&Path>| peer.find(named, here.path(), here.path().to_str().unwrap());
    let said = find(None).unwrap_err().to_string();
    assert_eq!(
        said,
        "crosvm: there is no crosvm on PATH; install it, or name it by --peer-path crosvm=PATH"
    );
    fs::write(&program, "#!/bin/sh\necho crosvm 1.2\n").unwrap();
    assert!(find(None).is_err(), "a file that may not be run is no program");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let found = find(None).unwrap();
    assert_eq!(found.program.file_name(), program.file_name());
    assert_eq!(found.version, "crosvm 1.2");
    let missing = here.path().join("no");
    assert!(
        find(Some(&missing))
            .unwrap_err()
            .to_string()
            .contains("/no is not there")
    );
}
