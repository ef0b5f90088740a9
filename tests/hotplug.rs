//! Devices come to a running Linux guest and leave it: the small kernel on this machine's KVM, Debian's own kernel in
//! the lab (`NACELLE_KERNEL=debian`).

#![allow(clippy::unwrap_used)]

mod support;

use std::os::unix::fs::FileExt;

use nacelle_vmm::VmEvent;
use nacelle_vmm::config::{DeviceKind, Transport};
use support::{Guest, Namespace, config, device, disk, empty_disk, tap};
use vmm_sys_util::tempfile::TempFile;

/// Waits in the guest until `condition` holds, as its shell says it.
fn wait(guest: &Guest, condition: &str) {
    guest.run(&format!("until {condition}; do sleep 0.1; done"));
}

/// Waits until the guest has let go of `id`, and closes it.
fn detach(guest: &mut Guest, id: &str) {
    guest.vm.detach(id).unwrap();
    let VmEvent::Detached { id: gone } = guest.event() else {
        panic!("{id} did not leave");
    };
    assert_eq!(gone, id);
    guest.vm.remove(id).unwrap();
}

#[test]
fn a_disk_comes_is_used_and_leaves_and_another_takes_its_place() {
    let (first, second) = (empty_disk(8), empty_disk(16));
    let mut config = config();
    config.devices = vec![device("rng", DeviceKind::Rng)];
    let mut guest = Guest::boot(config);

    guest.vm.attach(device("first", disk(first.as_path()))).unwrap();
    wait(&guest, "[ -b /dev/vda ]");
    guest.run("echo written to the first | dd of=/dev/vda conv=fsync 2>/dev/null");
    let mut data = [0; 20];
    first.as_file().read_exact_at(&mut data, 0).unwrap();
    assert_eq!(&data, b"written to the first");
    let error = guest
        .vm
        .attach(device("first", disk(second.as_path())))
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "devices: there is a device named first already"
    );

    detach(&mut guest, "first");
    guest.run("[ ! -e /dev/vda ]");
    // Its file is closed: nobody holds the lock.
    guest.vm.attach(device("second", disk(second.as_path()))).unwrap();
    guest.vm.attach(device("again", disk(first.as_path()))).unwrap();
    wait(&guest, "[ -b /dev/vdb ]");
    assert_eq!(guest.run("cat /sys/block/vda/size"), (16 * 2048).to_string());
    assert_eq!(guest.run("head -c 20 /dev/vdb"), "written to the first");
    assert_eq!(guest.vm.stats().disks.len(), 2);
}

#[test]
fn a_guest_reaches_the_host_over_a_card_that_came_later() {
    let namespace = Namespace::enter();
    let mut guest = Guest::boot(config());
    guest.vm.attach(device("net", tap("tap0"))).unwrap();
    namespace.run("ip address add 10.77.0.1/24 dev tap0");
    namespace.run("ip link set tap0 up");
    wait(&guest, "[ -e /sys/class/net/eth0 ]");
    guest.run("ip address add 10.77.0.2/24 dev eth0; ip link set eth0 up; ping -c 3 -W 20 10.77.0.1");
    detach(&mut guest, "net");
    guest.run("[ ! -e /sys/class/net/eth0 ]");
}

#[test]
fn a_machine_whose_devices_changed_goes_on_elsewhere_and_finds_them_where_they_were() {
    let (first, second) = (empty_disk(8), empty_disk(16));
    let root = || device("root", disk(first.as_path()));
    let more = || device("more", disk(second.as_path()));
    let mut config_before = config();
    config_before.devices = vec![root(), device("rng", DeviceKind::Rng)];
    let mut guest = Guest::boot(config_before);
    detach(&mut guest, "rng");
    guest.vm.attach(more()).unwrap();
    wait(&guest, "[ -b /dev/vdb ]");
    detach(&mut guest, "root");

    let mut config_after = config();
    config_after.devices = vec![more()];
    let mut guest = guest.moved_to(config_after);
    guest.run("echo after | dd of=/dev/vdb conv=fsync 2>/dev/null");
    // The slot that became free at the source is free here.
    guest.vm.attach(root()).unwrap();
    wait(&guest, "[ -b /dev/vda ]");
    guest.run("echo root | dd of=/dev/vda conv=fsync 2>/dev/null");
    let said = |file: &TempFile, len| {
        let mut data = vec![0; len];
        file.as_file().read_exact_at(&mut data, 0).unwrap();
        String::from_utf8(data).unwrap()
    };
    assert_eq!(
        (said(&first, 4), said(&second, 5)),
        ("root".into(), "after".into())
    );
}

#[test]
fn a_reset_takes_what_the_guest_was_asked_to_let_go_of() {
    let file = empty_disk(8);
    let mut config = config();
    config.devices = vec![device("root", disk(file.as_path()))];
    let mut guest = Guest::start(config);
    // Its kernel does not listen yet, and the event must do no harm to the next one.
    guest.vm.detach("root").unwrap();
    guest.vm.reset().unwrap();
    assert!(matches!(guest.event(), VmEvent::Detached { id } if id == "root"));
    guest.vm.remove("root").unwrap();
    assert_eq!(
        guest.vm.detach("root").unwrap_err().to_string(),
        "there is no device root in this machine"
    );
    guest.wait_for_shell(0);
    guest.run("[ ! -e /dev/vda ]");
    guest.vm.pause().unwrap();
    assert_eq!(
        guest
            .vm
            .attach(device("root", disk(file.as_path())))
            .unwrap_err()
            .to_string(),
        "cannot attach a device while the machine is paused"
    );
    guest.vm.resume().unwrap();
    guest.vm.attach(device("root", disk(file.as_path()))).unwrap();
    wait(&guest, "[ -b /dev/vda ]");
}

#[test]
fn where_devices_cannot_come_or_go_it_is_said() {
    let file = empty_disk(8);
    let root = || device("root", disk(file.as_path()));
    let mut config = config();
    config.devices = vec![root()];
    config.transport = Transport::Mmio;
    let mut guest = Guest::start(config);
    let on_mmio = "devices come and go on a PCI bus, and this machine has virtio-mmio";
    let other = empty_disk(8);
    let error = guest
        .vm
        .attach(device("other", disk(other.as_path())))
        .unwrap_err();
    assert_eq!(error.to_string(), on_mmio);
    assert_eq!(guest.vm.detach("root").unwrap_err().to_string(), on_mmio);
    drop(guest);

    let mut config = support::config();
    config.devices = vec![root()];
    config.hot_plug_slots = 1;
    let mut guest = Guest::start(config);
    guest.vm.attach(device("second", DeviceKind::Rng)).unwrap();
    let error = guest.vm.attach(device("third", DeviceKind::Rng)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "devices: all 2 slots that the guest knows are taken (hot_plug_slots)"
    );
    let mut far = device("far", DeviceKind::Rng);
    far.slot = Some(9);
    assert_eq!(
        guest.vm.attach(far).unwrap_err().to_string(),
        "devices: far is to be in slot 9, and the guest knows of 2 (hot_plug_slots)"
    );
}
