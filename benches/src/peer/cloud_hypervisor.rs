//! Cloud Hypervisor.

use super::{Launch, MAC, Machine, Peer};

pub(super) const PEER: Peer = Peer {
    name: "cloud-hypervisor",
    program: "cloud-hypervisor",
    qcow2: true,
    launch,
    moves: None,
    saves: None,
};

fn launch(machine: &Machine) -> Launch {
    let mut launch = Launch::default()
        .option("--kernel", &machine.kernel)
        .option("--initramfs", &machine.initrd)
        .option("--cmdline", &machine.cmdline)
        .option("--cpus", "boot=1")
        .option("--memory", format!("size={}M", machine.memory))
        .option("--serial", "tty")
        .option("--console", "off");
    // One option takes all disks.
    if !machine.disks.is_empty() {
        launch = launch.argument("--disk");
    }
    for disk in &machine.disks {
        let direct = if disk.direct { "on" } else { "off" };
        launch = launch.argument(format!("path={},direct={direct}", disk.path.display()));
    }
    match &machine.tap {
        Some(tap) => launch.option("--net", format!("tap={tap},mac={MAC}")),
        None => launch,
    }
}
