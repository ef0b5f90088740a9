//! crosvm, without its sandbox, which would need files of its own.

use super::{Launch, MAC, Machine, Peer};

pub(super) const PEER: Peer = Peer {
    name: "crosvm",
    program: "crosvm",
    qcow2: true,
    launch,
    moves: None,
    saves: None,
};

fn launch(machine: &Machine) -> Launch {
    let mut launch = Launch::default()
        .argument("run")
        .argument("--disable-sandbox")
        .option("--cpus", "num-cores=1")
        .option("--mem", format!("size={}", machine.memory))
        .option("--serial", "type=stdout,hardware=serial,num=1,console=true")
        .option("--initrd", &machine.initrd)
        .option("--params", &machine.cmdline);
    for disk in &machine.disks {
        launch = launch.option(
            "--block",
            format!("path={},direct={}", disk.path.display(), disk.direct),
        );
    }
    if let Some(tap) = &machine.tap {
        launch = launch.option("--net", format!("tap-name={tap},mac={MAC}"));
    }
    launch.argument(&machine.kernel)
}
