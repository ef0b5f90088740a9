//! QEMU's small machine: virtio-mmio, no PCI, none of the old timers. Without ACPI it comes with the quicker of its two
//! firmwares, qboot. The clock of its board stays: a kernel with a driver for it waits a second for one that is not there.

use super::{Launch, Machine, Moves, Peer, Saves, qemu};

pub(super) const PEER: Peer = Peer {
    name: "qemu-microvm",
    program: "qemu-system-x86_64",
    qcow2: true,
    launch,
    moves: Some(&Moves {
        receive: |machine, port| qemu::receive(launch(machine), port),
        send: qemu::send,
    }),
    saves: Some(&Saves {
        save: qemu::save,
        restore: |machine, snapshot| qemu::restore(launch(machine), snapshot),
    }),
};

fn launch(machine: &Machine) -> Launch {
    let kind = "microvm,accel=kvm,acpi=off,pit=off,pic=off,rtc=on,isa-serial=on";
    qemu::launch(machine, kind, "device")
}
