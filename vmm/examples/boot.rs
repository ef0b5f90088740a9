//! Boots a Linux kernel, its console on standard input and output: `boot KERNEL [INITRD [ARGUMENTS]]`.

use std::io::copy;
use std::sync::mpsc::channel;

use nacelle_vmm::config::{BootConfig, DeviceConfig, DeviceKind, MemoryConfig};
use nacelle_vmm::{Vm, VmConfig, VmEvent};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut words = std::env::args().skip(1);
    let config = VmConfig {
        memory: MemoryConfig {
            size: 128 << 20,
            ..Default::default()
        },
        boot: BootConfig {
            kernel: words
                .next()
                .ok_or("usage: boot KERNEL [INITRD [ARGUMENTS]]")?
                .into(),
            initrd: words.next().map(Into::into),
            cmdline: words.next().unwrap_or("console=ttyS0".into()),
        },
        devices: vec![DeviceConfig::new("rng", DeviceKind::Rng)],
        ..Default::default()
    };
    let (sender, events) = channel::<VmEvent>();
    let mut vm = Vm::build(config, sender)?;
    let (mut output, mut input) = (vm.console(0)?, vm.console(0)?);
    std::thread::spawn(move || copy(&mut output, &mut std::io::stdout()));
    std::thread::spawn(move || copy(&mut std::io::stdin(), &mut input));
    vm.start()?;
    for event in events {
        match event {
            VmEvent::Shutdown => break,
            VmEvent::Reset | VmEvent::Watchdog => vm.reset()?,
            VmEvent::VcpuFailed { error, .. } => return Err(error.into()),
            VmEvent::DiskFailed { error, .. } => return Err(error.into()),
            VmEvent::Detached { id } => vm.remove(&id)?,
            VmEvent::Panicked => eprintln!("the guest panicked"),
        }
    }
    Ok(())
}
