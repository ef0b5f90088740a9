//! QEMU's usual machine: PCI Express, ACPI, SeaBIOS; what libvirt would make.

use super::{Launch, Machine, Moves, Peer, Saves, qemu};

pub(super) const PEER: Peer = Peer {
    name: "qemu-q35",
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
    qemu::launch(machine, "q35,accel=kvm,usb=off,smbus=off,sata=off", "pci")
}
