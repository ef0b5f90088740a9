//! The monitor without the launcher: `nacelle-slim` (`src/slim.rs`), the library in the smallest program around it.

use super::{Launch, MAC, Machine, Peer};

pub(super) const PEER: Peer = Peer {
    name: "nacelle-slim",
    program: "nacelle-slim",
    qcow2: true,
    launch,
    moves: None,
    saves: None,
};

fn launch(machine: &Machine) -> Launch {
    let mut launch = Launch::default()
        .argument(&machine.kernel)
        .argument(&machine.initrd)
        .argument(&machine.cmdline)
        .argument(machine.memory.to_string());
    for disk in &machine.disks {
        let (format, cache) = (
            if disk.qcow2 { "qcow2" } else { "raw" },
            if disk.direct { "none" } else { "writeback" },
        );
        launch = launch.argument(format!("disk={format},{cache},{}", disk.path.display()));
    }
    match &machine.tap {
        Some(tap) => launch.argument(format!("tap={MAC},{tap}")),
        None => launch,
    }
}
