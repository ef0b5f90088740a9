//! The monitor in the smallest program around it, for the benchmark:
//! `nacelle-slim KERNEL INITRD CMDLINE MIB [disk=FORMAT,CACHE,PATH]... [tap=MAC,NAME]`.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::sync::mpsc::channel;

use nacelle_vmm::config::{
    BootConfig, CacheMode, DeviceConfig, DeviceKind, DiskConfig, DiskFormat, MemoryConfig, NetConfig,
    TapConfig,
};
use nacelle_vmm::{Vm, VmConfig, VmEvent};

type Error = Box<dyn std::error::Error>;

const USAGE: &str =
    "usage: nacelle-slim KERNEL INITRD CMDLINE MIB [disk=FORMAT,CACHE,PATH]... [tap=MAC,NAME]";

fn main() -> Result<(), Error> {
    let mut words = std::env::args().skip(1);
    let mut next = || words.next().ok_or(USAGE);
    let boot = BootConfig {
        kernel: next()?.into(),
        initrd: Some(next()?.into()),
        cmdline: next()?,
    };
    let memory = MemoryConfig {
        size: next()?.parse::<u64>()? << 20,
        ..Default::default()
    };
    let devices = words
        .enumerate()
        .map(|(index, word)| {
            let id = format!("device{index}");
            device(&word).map(|kind| DeviceConfig::new(id, kind))
        })
        .collect::<Result<_, _>>()?;
    let config = VmConfig {
        memory,
        boot,
        devices,
        ..Default::default()
    };
    let (sender, events) = channel::<VmEvent>();
    let mut vm = Vm::build(config, sender)?;
    let mut console = vm.console(0)?;
    // As a file: standard output waits for the end of a line, and the benchmark for each byte.
    let mut output = File::from(std::io::stdout().as_fd().try_clone_to_owned()?);
    std::thread::Builder::new().stack_size(64 << 10).spawn(move || {
        let mut bytes = [0; 1024];
        while let Ok(n @ 1..) = console.read(&mut bytes) {
            if output.write_all(bytes.get(..n).unwrap_or_default()).is_err() {
                return;
            }
        }
    })?;
    vm.start()?;
    match events.recv()? {
        VmEvent::Shutdown | VmEvent::Reset => Ok(()),
        VmEvent::VcpuFailed { error, .. } => Err(error.into()),
        VmEvent::DiskFailed { id, error } => Err(format!("disk {id} failed: {error}").into()),
        VmEvent::Panicked => Err("the guest panicked".into()),
        VmEvent::Watchdog => Err("its watchdog bit, and it has none".into()),
        VmEvent::Detached { id } => Err(format!("{id} left, which nobody asked for").into()),
    }
}

fn device(word: &str) -> Result<DeviceKind, Error> {
    if let Some(disk) = word.strip_prefix("disk=") {
        let mut fields = disk.splitn(3, ',');
        let mut next = || fields.next().ok_or(USAGE);
        let format = match next()? {
            "qcow2" => DiskFormat::Qcow2,
            _ => DiskFormat::Raw,
        };
        let cache = match next()? {
            "none" => CacheMode::None,
            _ => CacheMode::WriteBack,
        };
        return Ok(DeviceKind::Disk(DiskConfig {
            path: next()?.into(),
            format,
            read_only: false,
            ephemeral: false,
            local: false,
            cache,
            serial: String::new(),
            queues: 1,
            block_size: None,
            discard_granularity: None,
            io: Default::default(),
            shared: false,
            limit: None,
            on_error: Default::default(),
        }));
    }
    let (mac, name) = word
        .strip_prefix("tap=")
        .and_then(|tap| tap.split_once(','))
        .ok_or(USAGE)?;
    let bytes: Result<Vec<u8>, _> = mac.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect();
    Ok(DeviceKind::Net(NetConfig {
        tap: TapConfig::Name(name.into()),
        mac: bytes?.try_into().map_err(|_| USAGE)?,
        mtu: None,
        queue_pairs: 1,
        vhost: false,
        limit: None,
    }))
}
