//! `nacelle run`, as people run it: a manifest, and a kernel of the host's.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Found, Launch, MAC, Machine, Moves, Peer, Saves, ask};
use crate::error::{Error, Result};

/// Its name.
const NAME: &str = "bench";

pub(super) const PEER: Peer = Peer {
    name: "nacelle",
    program: "nacelle",
    qcow2: true,
    launch,
    moves: Some(&Moves {
        receive: |machine, port| {
            made(machine, "receive")
                .option("--listen", format!("127.0.0.1:{port}"))
                .certificates(machine)
        },
        send,
    }),
    saves: Some(&Saves {
        save,
        restore: |machine, snapshot| environment(machine).option("restore", snapshot),
    }),
};

fn launch(machine: &Machine) -> Launch {
    made(machine, "run")
}

/// A command for a machine of this directory.
fn environment(machine: &Machine) -> Launch {
    Launch {
        environment: vec![
            ("XDG_RUNTIME_DIR", machine.directory.clone()),
            ("XDG_DATA_HOME", machine.directory.join("data")),
            ("XDG_CACHE_HOME", machine.directory.join("cache")),
        ],
        ..Launch::default()
    }
}

impl Launch {
    fn certificates(self, machine: &Machine) -> Launch {
        match &machine.certificates {
            Some(directory) => self.option("--tls", directory),
            None => self,
        }
    }
}

/// Moves a machine, as people do it.
fn send(found: &Found, machine: &Machine, port: u16, limit: Duration) -> Result<Duration> {
    let command = environment(machine)
        .option("migrate", NAME)
        .option("--to", format!("127.0.0.1:{port}"))
        .option("--timeout", humantime::format_duration(limit).to_string())
        .option("--output", "json")
        .certificates(machine);
    let said = ask(found, machine, &command, limit)?;
    let went: Value = serde_json::from_str(&said).unwrap_or_default();
    let still = went.get("downtimeMicroseconds").and_then(Value::as_u64);
    still.map(Duration::from_micros).ok_or_else(|| Error::Tool {
        command: "nacelle migrate".into(),
        said: format!("no downtime: {said}"),
    })
}

/// Saves a machine, as people do it.
fn save(found: &Found, machine: &Machine, snapshot: &Path, limit: Duration) -> Result<()> {
    let command = environment(machine)
        .option("snapshot", NAME)
        .argument(snapshot)
        .option("--then", "stop");
    ask(found, machine, &command, limit).map(drop)
}

/// What makes a machine: `nacelle run`, or another command that takes the same.
fn made(machine: &Machine, command: &str) -> Launch {
    let names = (0..machine.disks.len()).map(|index| format!("disk{index}"));
    let disks = names.clone().zip(&machine.disks).map(|(name, disk)| {
        let cache = if disk.direct { "none" } else { "writeback" };
        json!({"name": name, "disk": {"bus": "virtio"}, "cache": cache})
    });
    let volumes = names
        .clone()
        .map(|name| json!({"name": name, "persistentVolumeClaim": {"claimName": name}}));
    let interfaces = machine
        .tap
        .iter()
        .map(|_| json!({"name": "default", "bridge": {}, "macAddress": MAC}));
    let networks = machine.tap.iter().map(|_| json!({"name": "default", "pod": {}}));
    let manifest = json!({
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachineInstance",
        "metadata": {"name": NAME},
        "spec": {
            "domain": {
                "cpu": {"cores": 1},
                "memory": {"guest": format!("{}Mi", machine.memory)},
                "devices": {
                    "autoattachPodInterface": false,
                    "autoattachMemBalloon": false,
                    "disks": disks.collect::<Vec<_>>(),
                    "interfaces": interfaces.collect::<Vec<_>>(),
                },
            },
            "networks": networks.collect::<Vec<_>>(),
            "volumes": volumes.collect::<Vec<_>>(),
        },
    });
    let mut launch = Launch {
        files: vec![("vm.json", manifest.to_string())],
        ..environment(machine)
    }
    .argument(command)
    .argument(machine.directory.join("vm.json"))
    .option("--kernel", &machine.kernel)
    .option("--initrd", &machine.initrd)
    .option("--cmdline", &machine.cmdline);
    for (name, disk) in names.zip(&machine.disks) {
        let format = if disk.qcow2 { "qcow2" } else { "raw" };
        launch = launch.option(
            "--volume",
            format!("{name}={},format={format}", disk.path.display()),
        );
    }
    match &machine.tap {
        Some(tap) => launch.option("--tap", tap),
        None => launch,
    }
}
