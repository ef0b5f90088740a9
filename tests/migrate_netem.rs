//! Live migration over a network that is far away and loses packets, by TLS: two hosts that are network namespaces,
//! the link between them shaped by netem, which the kernels of some machines lack. Needs root.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use nacelle_launcher::migrate::address::Address;
use nacelle_launcher::migrate::stream::{Connector, Listener};
use nacelle_launcher::migrate::tls::Files;
use nacelle_launcher::migrate::{Credentials, Plan};
use nacelle_vmm::migrate::{Cancel, Options, receive, send};
use nacelle_vmm::{Vm, VmEvent};
use support::link::{THERE, between};
use support::payload::{Payload, config};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

/// Of the guest. All that carries it is in software, in the lab.
const MEMORY: usize = 24 << 20;

/// Certificates for both hosts, by the script that people use.
fn certificates(directory: &Path) -> Files {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/migration-certificates.sh");
    let mut command = Command::new("sh");
    let output = command
        .args([script, THERE])
        .current_dir(directory)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Files::new(directory)
}

fn memory(vm: &Vm) -> Vec<u8> {
    let mut bytes = vec![0; MEMORY];
    let memory = vm.memory().memory();
    memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
    bytes
}

/// What the guest of `vm` does not forget: its answer to a mark.
fn speaks(vm: &Vm) {
    let mut console = vm.console(0).unwrap();
    console.write_all(b"m").unwrap();
    let mut said = String::new();
    let mut byte = [0];
    while !(said.contains("ok mark ") && said.ends_with('\n')) {
        console.read_exact(&mut byte).unwrap();
        said.push(char::from(byte[0]));
    }
}

/// A guest that writes all the time moves over such a link, and runs there and nowhere else.
fn crosses(shape: &'static str, options: Options) {
    let machine = || {
        let mut machine = config("dirty=300");
        machine.memory.size = MEMORY as u64;
        machine
    };
    let keys = vmm_sys_util::tempdir::TempDir::new().unwrap();
    let files = certificates(keys.as_path());
    let (addresses, address) = channel::<Address>();
    let (moved, arrived) = channel::<(Vm, Receiver<VmEvent>)>();
    let (there, wanted) = (files.clone(), options.clone());
    let target = move || {
        let cancel = Cancel::new();
        let at = format!("{THERE}:0").parse().unwrap();
        let listener = Listener::bind(&at, || there.server(), cancel.clone()).unwrap();
        addresses.send(listener.address().parse().unwrap()).unwrap();
        let (sender, events) = channel();
        let mut accept = || listener.accept();
        let mut here = receive(machine(), sender, &mut accept, &wanted, &cancel, &mut ()).unwrap();
        if let Some(rest) = here.rest.take() {
            rest.take(&mut accept, &cancel).unwrap();
        }
        moved.send((here.vm, events)).unwrap();
    };
    let source = move || {
        let connector = Connector::new(&Plan {
            to: address.recv().unwrap(),
            tls: Some(Credentials::Files(files)),
            options: options.clone(),
            copied: Vec::new(),
        });
        let connector = connector.unwrap();
        let mut guest = Payload::boot(machine());
        guest.ok("dirty");
        guest.ok("written");
        guest.type_text("sm");
        guest.ok("mark");
        let port = guest.vm.migration().unwrap();
        let mut connect = |_| connector.connect();
        let report = send(
            port,
            &mut guest.vm,
            &mut connect,
            &options,
            &Cancel::new(),
            &mut (),
        )
        .unwrap();
        println!("{shape}: {report:?}");
        let (vm, events) = arrived.recv().unwrap();
        let before = (memory(&guest.vm), memory(&vm));
        speaks(&vm);
        assert!(memory(&guest.vm) == before.0, "it runs on at the source");
        assert!(memory(&vm) != before.1, "it does not run at the target");
        let mut guest = guest.became(vm, events);
        guest.type_text("c");
        guest.ok("checked");
        guest.type_text("q");
        guest.end();
    };
    between(shape, source, target);
}

fn options() -> Options {
    let mut options = Options {
        streams: 2,
        ..Options::default()
    };
    options.limits.downtime = Duration::from_secs(2);
    options
}

#[test]
#[ignore = "needs netem: tests/lab/guests"]
fn a_guest_that_writes_crosses_a_link_of_a_gigabit_that_takes_a_millisecond() {
    crosses("netem delay 1ms rate 1gbit", options());
}

#[test]
#[ignore = "needs netem: tests/lab/guests"]
fn a_guest_that_writes_crosses_a_link_that_loses_packets() {
    crosses("netem delay 1ms rate 1gbit loss 1%", options());
}

#[test]
#[ignore = "needs netem: tests/lab/guests"]
fn the_memory_of_a_guest_follows_it_over_a_link_that_loses_packets() {
    let options = Options {
        post_copy: true,
        ..options()
    };
    crosses("netem delay 1ms rate 1gbit loss 1%", options);
}
