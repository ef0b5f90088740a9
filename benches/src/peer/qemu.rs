//! What both machine types of QEMU share.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::qmp::Qmp;
use super::{Found, LOOK, Launch, MAC, Machine};
use crate::error::{Error, Result};

/// Of a machine that may leave: its monitor's socket.
const CONTROL: &str = "qmp";

/// A machine of a type, whose virtio devices end in `suffix` (`device` for mmio, `pci`).
pub(super) fn launch(machine: &Machine, kind: &str, suffix: &str) -> Launch {
    let mut launch = Launch::default()
        .argument("-nodefaults")
        .argument("-no-user-config")
        .argument("-no-reboot")
        .option("-display", "none")
        // Threads are named, so that those of the processors can be told from the others.
        .option("-name", "bench,debug-threads=on")
        .option("-machine", kind)
        // Software KVM does not take this register's value back; the guest's kernel runs without mitigations anyhow.
        .option("-cpu", "host,arch-capabilities=off")
        .option("-smp", "1")
        .option("-m", machine.memory.to_string())
        .option("-chardev", "stdio,id=serial,signal=off")
        .option("-serial", "chardev:serial")
        .option("-kernel", &machine.kernel)
        .option("-initrd", &machine.initrd)
        .option("-append", &machine.cmdline);
    if machine.leaves {
        let socket = machine.directory.join(CONTROL);
        launch = launch.option("-qmp", format!("unix:{},server=on,wait=off", socket.display()));
    }
    for (index, disk) in machine.disks.iter().enumerate() {
        let format = if disk.qcow2 { "qcow2" } else { "raw" };
        // The kernel's own asynchronous I/O is for files past the page cache; QEMU's default is a pool of threads.
        let cache = if disk.direct {
            "cache=none,aio=native"
        } else {
            "cache=writeback"
        };
        let file = disk.path.display().to_string().replace(',', ",,");
        launch = launch
            .option(
                "-drive",
                format!("id=d{index},if=none,format={format},{cache},file={file}"),
            )
            .option("-device", format!("virtio-blk-{suffix},drive=d{index}"));
    }
    match &machine.tap {
        Some(tap) => launch
            .option(
                "-netdev",
                format!("tap,id=n0,ifname={tap},script=no,downscript=no,vhost=off"),
            )
            // No boot ROM is needed, nor there in Debian's package without its recommendations.
            .option(
                "-device",
                format!("virtio-net-{suffix},netdev=n0,mac={MAC}{}", rom(suffix)),
            ),
        None => launch,
    }
}

fn rom(suffix: &str) -> &'static str {
    if suffix == "pci" { ",romfile=" } else { "" }
}

/// The same machine as `launch` makes, which waits for another one's state.
pub(super) fn receive(launch: Launch, port: u16) -> Launch {
    launch.option("-incoming", format!("tcp:127.0.0.1:{port}"))
}

/// Sends a machine to what `uri` names.
fn migrate(machine: &Machine, uri: String, limit: Duration) -> Result<Qmp> {
    let mut qemu = Qmp::connect(&machine.directory.join(CONTROL), limit)?;
    let capabilities = ["events", "auto-converge"].map(|name| json!({"capability": name, "state": true}));
    qemu.ask("migrate-set-capabilities", json!({"capabilities": capabilities}))?;
    // It sends as fast as the link takes it.
    let parameters = json!({"max-bandwidth": 0, "downtime-limit": 50});
    qemu.ask("migrate-set-parameters", parameters)?;
    qemu.ask("migrate", json!({"uri": uri}))?;
    qemu.migrated()?;
    Ok(qemu)
}

/// Saves a machine: QEMU has its state read and written by a program, which ends after QEMU says that all is done.
pub(super) fn save(_: &Found, machine: &Machine, snapshot: &Path, limit: Duration) -> Result<()> {
    let begun = Instant::now();
    let file = snapshot.display();
    migrate(
        machine,
        format!("exec:cat > '{file}.part' && mv '{file}.part' '{file}'"),
        limit,
    )?;
    while !snapshot.exists() {
        if begun.elapsed() >= limit {
            return Err(Error::Late {
                awaited: format!("the end of {file}"),
                limit,
                said: String::new(),
            });
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// The same machine as `launch` makes, which goes on from what was saved.
pub(super) fn restore(launch: Launch, snapshot: &Path) -> Launch {
    launch.option("-incoming", format!("exec:cat '{}'", snapshot.display()))
}

/// Moves a machine: as ours, with the same downtime wanted, slowed down when it writes faster than can be sent.
pub(super) fn send(_: &Found, machine: &Machine, port: u16, limit: Duration) -> Result<Duration> {
    let mut qemu = migrate(machine, format!("tcp:127.0.0.1:{port}"), limit)?;
    let went = qemu.ask("query-migrate", json!({}))?;
    let still = went.get("downtime").and_then(Value::as_u64);
    still.map(Duration::from_millis).ok_or_else(|| Error::Tool {
        command: "QEMU's query-migrate".into(),
        said: format!("no downtime: {went}"),
    })
}
