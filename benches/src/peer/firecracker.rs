//! Firecracker, which is told by a file what its API would be told. It knows raw files only, always through the host's
//! page cache.

use serde_json::json;

use super::{Launch, MAC, Machine, Peer};

pub(super) const PEER: Peer = Peer {
    name: "firecracker",
    program: "firecracker",
    qcow2: false,
    launch,
    moves: None,
    saves: None,
};

fn launch(machine: &Machine) -> Launch {
    let drives = machine.disks.iter().enumerate().map(|(index, disk)| {
        json!({
            "drive_id": format!("d{index}"),
            "path_on_host": disk.path,
            "is_root_device": false,
            "is_read_only": false,
            "cache_type": "Writeback",
        })
    });
    let nets = machine
        .tap
        .iter()
        .map(|tap| json!({"iface_id": "eth0", "guest_mac": MAC, "host_dev_name": tap}));
    let config = json!({
        "boot-source": {
            "kernel_image_path": machine.kernel,
            "initrd_path": machine.initrd,
            "boot_args": machine.cmdline,
        },
        "machine-config": {"vcpu_count": 1, "mem_size_mib": machine.memory},
        "drives": drives.collect::<Vec<_>>(),
        "network-interfaces": nets.collect::<Vec<_>>(),
    });
    Launch {
        files: vec![("firecracker.json", config.to_string())],
        ..Launch::default()
    }
    .argument("--no-api")
    .option("--config-file", machine.directory.join("firecracker.json"))
}
