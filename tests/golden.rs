//! Migration streams that releases have written (`tests/golden/VERSION.stream`) are still understood: a machine
//! goes on from each. `NACELLE_GOLDEN=tests/golden/VERSION.stream cargo test --test golden` writes that of a
//! release.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};

use nacelle_vmm::config::{ConsoleConfig, ConsolePort, DeviceKind, Transport};
use nacelle_vmm::migrate::wire::{self, Kind};
use nacelle_vmm::migrate::{Cancel, Compression, Options, Stream, receive};
use nacelle_vmm::{Error, Vm, VmConfig, VmState};
use support::migration::Route;
use support::payload::{Payload, with};
use support::{Said, device};

fn machine() -> VmConfig {
    let port = ConsolePort {
        name: "agent".into(),
        console: false,
    };
    let devices = vec![
        device("rng", DeviceKind::Rng),
        device("balloon", DeviceKind::Balloon(Default::default())),
        device(
            "console",
            DeviceKind::Console(ConsoleConfig { ports: vec![port] }),
        ),
    ];
    with(Transport::Pci, "serve", devices)
}

/// Plays what a source sent, and listens to nothing.
struct Replay(io::Cursor<Vec<u8>>);

impl Read for Replay {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.0.read(bytes)
    }
}

impl Write for Replay {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Has a machine go on from a stream, and speaks with it.
fn goes_on_from(stream: Vec<u8>, name: &Path) {
    let (sender, _events) = channel::<nacelle_vmm::VmEvent>();
    let mut streams = vec![Replay(io::Cursor::new(stream.clone()))];
    let mut accept = || -> io::Result<Box<dyn Stream>> { Ok(Box::new(streams.pop().unwrap())) };
    let arrived = receive(
        machine(),
        sender,
        &mut accept,
        &Options::default(),
        &Cancel::new(),
        &mut (),
    );
    let vm = match arrived {
        Ok(arrived) => arrived.vm,
        // Written on a host with a newer processor: as much as can be held against it here.
        Err(Error::Cannot(reason)) if reason.contains("this host's processor lacks") => {
            println!("{}: {reason}", name.display());
            assert_eq!(state(&stream).vcpus.len(), 1);
            return;
        }
        Err(error) => panic!(
            "{}: {error}: {:?}",
            name.display(),
            std::error::Error::source(&error)
        ),
    };
    speaks(&vm);
}

fn speaks(vm: &Vm) {
    let mut console = vm.console(0).unwrap();
    let said = Said::listen(console.try_clone().unwrap());
    console.write_all(b"hello\n").unwrap();
    said.wait(0, "an answer", |said| {
        said.contains("ok typed hello").then_some(())
    });
    let mut port = vm.console(1).unwrap();
    port.write_all(b"through the port").unwrap();
    let mut heard = [0; 16];
    port.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"through the port");
}

/// The state in a stream.
fn state(stream: &[u8]) -> VmState {
    #[derive(serde::Deserialize)]
    struct Saved {
        state: VmState,
    }
    let (mut left, mut payload) = (stream, Vec::new());
    while let Some(frame) = wire::read(&mut left, &mut payload).unwrap() {
        if frame.kind == Kind::State {
            return wire::decode::<Saved>(&payload).unwrap().state;
        }
    }
    panic!("no state in it")
}

#[test]
fn a_stream_can_be_kept_and_played_later() {
    let mut guest = Payload::boot(machine());
    guest.ok("serving");
    let mut route = Route::with(|options| {
        options.compression = Compression::Always;
        options.verify = false;
    });
    let record = Arc::new(Mutex::new(Vec::new()));
    route.record = Some(record.clone());
    let (guest, _) = guest.moved(machine(), &route);
    guest.type_text("bye\n");
    guest.end();
    let stream = std::mem::take(&mut *record.lock().unwrap());
    println!("{} bytes", stream.len());
    if let Some(path) = std::env::var_os("NACELLE_GOLDEN") {
        fs::write(path, &stream).unwrap();
    }
    goes_on_from(stream, Path::new("the one of now"));
}

#[test]
fn the_streams_of_all_releases_are_understood() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");
    let entries = fs::read_dir(directory).unwrap();
    let paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    assert!(!paths.is_empty());
    for path in paths {
        goes_on_from(fs::read(&path).unwrap(), &path);
    }
}
