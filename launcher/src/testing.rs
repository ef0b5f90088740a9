//! Guests of a few instructions for the tests: real machines that are up in milliseconds.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nacelle_vmm::VmConfig;
use nacelle_vmm::config::{BootConfig, MemoryConfig, Transport};
use nacelle_vmm::migrate::{Cancel, Phase, Watch};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::agent::Agent;
use crate::driver::{self, End, Options, Started};
use crate::http::console::Console;
use crate::http::socket::Endpoint;
use crate::http::{self, Machine};
use crate::manage::client::Client;
use crate::migrate::address::Address;
use crate::migrate::stream::Listener;
use crate::origin::Origin;

/// Guest memory of a test's machine.
pub const MEMORY: u64 = 16 << 20;

/// Says the alphabet on the serial line for ever, and listens to nothing.
pub const COUNTER: &[u8] = &[
    0x66,
    0xba,
    0xf8,
    0x03, // mov dx, 0x3f8
    0xb0,
    b'a', // mov al, 'a'
    0xee, // again: out dx, al
    0xb9,
    0xf4,
    0x01,
    0x00,
    0x00, // mov ecx, 500
    0xe2,
    0xfe, // wait: loop wait
    0xfe,
    0xc0, // inc al
    0x3c,
    b'z' + 1, // cmp al, 'z' + 1
    0x75,
    0xf2, // jne again
    0xb0,
    b'a', // mov al, 'a'
    0xeb,
    0xee, // jmp again
];

/// Raises RTS, greets with `>`, then says back what it hears. `R` makes it reset, `P` and the power button power off, `F`
/// fail, `!` say that it panicked.
pub const PARROT: &[u8] = &[
    0x66, 0xba, 0xfc, 0x03, // start: mov 0x3fc,dx
    0xb0, 0x02, // mov 2,al
    0xee, // out al,dx
    0x66, 0xba, 0xf8, 0x03, // mov 0x3f8,dx
    0xb0, 0x3e, // mov '>',al
    0xee, // out al,dx
    0x66, 0xba, 0xfd, 0x03, // poll: mov 0x3fd,dx
    0xec, // in dx,al
    0xa8, 0x01, // test 1,al
    0x75, 0x0b, // jnz heard
    0xa1, 0x00, 0x00, 0x00, 0xd8, // mov 0xd8000000,eax
    0xa8, 0x01, // test 1,al
    0x75, 0x27, // jnz off
    0xeb, 0xec, // jmp poll
    0x66, 0xba, 0xf8, 0x03, // heard: mov 0x3f8,dx
    0xec, // in dx,al
    0xee, // out al,dx
    0x3c, 0x52, // cmp 'R',al
    0x74, 0x15, // je reset
    0x3c, 0x50, // cmp 'P',al
    0x74, 0x17, // je off
    0x3c, 0x46, // cmp 'F',al
    0x74, 0x1c, // je fail
    0x3c, 0x21, // cmp '!',al
    0x75, 0xd6, // jne poll
    0x66, 0xba, 0x05, 0x05, // panic: mov 0x505,dx
    0xb0, 0x01, // mov 1,al
    0xee, // out al,dx
    0xeb, 0xcd, // jmp poll
    0xb0, 0xfe, // reset: mov 0xfe,al
    0xe6, 0x64, // out al,0x64
    0xeb, 0xfa, // jmp reset
    0x66, 0xba, 0x00, 0x06, // off: mov 0x600,dx
    0xb0, 0x34, // mov 0x34,al
    0xee, // out al,dx
    0xeb, 0xf7, // jmp off
    0xb8, 0x00, 0x00, 0x00, 0xd1, // fail: mov 0xd1000000,eax
    0xff, 0xe0, // jmp *eax
];

/// Writes `code` to `directory` as a kernel that is entered by PVH (32-bit, flat, no paging).
pub fn guest(directory: &Path, code: &[u8]) -> VmConfig {
    const ENTRY: u64 = 0x10_0000;
    const NOTE: u64 = 0xb0;
    const CODE: u64 = 0xe0;
    let header = |kind: u32, offset: u64, size: u64| {
        let words = [offset, ENTRY, ENTRY, size, size, 4];
        let fields = words.iter().flat_map(|word| word.to_le_bytes());
        [
            &kind.to_le_bytes()[..],
            &7u32.to_le_bytes(),
            &fields.collect::<Vec<_>>(),
        ]
        .concat()
    };
    let note = [
        &4u32.to_le_bytes()[..],
        &8u32.to_le_bytes(),
        // XEN_ELFNOTE_PHYS32_ENTRY
        &18u32.to_le_bytes(),
        b"Xen\0",
        &ENTRY.to_le_bytes(),
    ]
    .concat();
    // ELF-64, little endian, executable, x86-64; two program headers behind the header.
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    file.extend([ENTRY, 64, 0].iter().flat_map(|word| word.to_le_bytes()));
    file.extend(
        [0, 0, 64, 56, 2, 0, 0, 0]
            .iter()
            .flat_map(|half: &u16| half.to_le_bytes()),
    );
    file.extend(header(1, CODE, code.len() as u64));
    file.extend(header(4, NOTE, note.len() as u64));
    assert_eq!(file.len() as u64, NOTE);
    file.extend(note);
    file.resize(CODE as usize, 0);
    file.extend(code);
    let kernel = directory.join("kernel");
    std::fs::write(&kernel, file).unwrap();
    VmConfig {
        memory: MemoryConfig {
            size: MEMORY,
            ..Default::default()
        },
        boot: BootConfig {
            kernel,
            ..Default::default()
        },
        transport: Transport::Mmio,
        ..Default::default()
    }
}

/// Waits at `path` for a machine like that of [`Served::start`] without a change, on a thread of its own. It breaks
/// off as soon as it has heard `until`, where that is said.
pub fn receive(path: &Path, until: Option<Phase>) -> std::thread::JoinHandle<nacelle_vmm::Result<Started>> {
    struct Until(Option<Phase>);
    impl Watch for Until {
        fn phase(&mut self, phase: Phase) {
            // The connection ends with this thread.
            assert_ne!(Some(phase), self.0, "as it was told");
        }
    }
    let cancel = Cancel::new();
    let at = Address::Unix(path.to_owned());
    let listener = Listener::bind(&at, || unreachable!(), cancel.clone()).unwrap();
    std::thread::spawn(move || {
        let home = tempfile::tempdir().unwrap();
        let config = guest(home.path(), COUNTER);
        let mut watch = Until(until);
        driver::receive(
            config,
            Options::default(),
            move || listener.accept(),
            &cancel,
            &mut watch,
        )
    })
}

/// Whether somebody else has a lock on the file.
pub fn is_locked(file: &std::fs::File) -> bool {
    let lock = rustix::fs::fcntl_lock(file, rustix::fs::FlockOperation::NonBlockingLockExclusive);
    let _ = rustix::fs::fcntl_lock(file, rustix::fs::FlockOperation::Unlock);
    lock.is_err()
}

/// What a guest agent that is in order answers to a command.
pub fn answer_as_agent(name: &str, arguments: &Value, frozen: &mut bool) -> Vec<u8> {
    let answer = match name {
        "guest-sync-delimited" => json!({"return": arguments["id"]}),
        "guest-info" => {
            json!({"return": {"version": "7.2.22", "supported_commands": [{"name": "guest-ping", "enabled": true}]}})
        }
        "guest-get-osinfo" => {
            json!({"return": {"id": "debian", "name": "Debian", "pretty-name": "Debian 12"}})
        }
        "guest-get-host-name" => json!({"return": {"host-name": "ledger"}}),
        "guest-get-timezone" => json!({"return": {"zone": "UTC", "offset": 0}}),
        "guest-network-get-interfaces" => json!({"return": [
            {"name": "lo", "hardware-address": "00:00:00:00:00:00", "ip-addresses": [{"ip-address": "127.0.0.1", "prefix": 8}]},
            {"name": "eth0", "hardware-address": "02:00:00:00:00:01", "ip-addresses": [{"ip-address": "10.0.2.2", "prefix": 24}]}]}),
        "guest-get-users" => json!({"return": [{"user": "root", "login-time": 1}]}),
        "guest-get-fsinfo" => json!({"return": [{"name": "vda", "mountpoint": "/", "type": "ext4",
            "disk": [{"serial": "S1", "bus-type": "virtio"}]}]}),
        "guest-fsfreeze-status" => json!({"return": if *frozen { "frozen" } else { "thawed" }}),
        "guest-fsfreeze-freeze" => {
            *frozen = true;
            json!({"return": 1})
        }
        "guest-fsfreeze-thaw" => {
            *frozen = false;
            json!({"return": 1})
        }
        // The number of a program that ends is its status.
        "guest-exec" => {
            let pid = match arguments["path"].as_str() {
                Some("true") => 0,
                Some("false") => 1,
                _ => 2,
            };
            json!({"return": {"pid": pid}})
        }
        "guest-exec-status" if arguments["pid"] == 2 => json!({"return": {"exited": false}}),
        "guest-exec-status" => json!({"return": {"exited": true, "exitcode": arguments["pid"]}}),
        "guest-ping" => json!({"return": {}}),
        other => json!({"error": {"class": "CommandNotFound", "desc": format!("no {other} here")}}),
    };
    let begin = if name == "guest-sync-delimited" {
        &b"\xff"[..]
    } else {
        b""
    };
    [begin, format!("{answer}\n").as_bytes()].concat()
}

/// The port of such an agent, which answers on a thread of its own.
pub fn guest_agent() -> UnixStream {
    let (port, mut guest) = UnixStream::pair().unwrap();
    std::thread::spawn(move || {
        let mut frozen = false;
        let lines = BufReader::new(guest.try_clone().unwrap())
            .split(b'\n')
            .map_while(Result::ok);
        for line in lines {
            let begin = usize::from(line.first() == Some(&0xff));
            let request: Value = serde_json::from_slice(&line[begin..]).unwrap();
            let name = request["execute"].as_str().unwrap();
            let _ = guest.write_all(&answer_as_agent(name, &request["arguments"], &mut frozen));
        }
    });
    port
}

/// A machine that is served at its socket, in a directory of its own.
pub struct Served {
    /// Where the socket is.
    pub directory: PathBuf,
    /// Ends with the machine.
    pub end: JoinHandle<End>,
    /// A client of it.
    pub client: Client,
    _home: tempfile::TempDir,
}

impl Served {
    /// Starts `code` as the machine `ledger`, with what else `change` gives it.
    pub fn start(code: &[u8], change: impl FnOnce(&mut VmConfig)) -> Served {
        Served::with_agent(code, change, None)
    }

    /// The same with a guest agent at that port.
    pub fn with_agent(code: &[u8], change: impl FnOnce(&mut VmConfig), port: Option<UnixStream>) -> Served {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("nacelle");
        let endpoint = Endpoint::bind(&directory, "ledger").unwrap();
        let mut config = guest(home.path(), code);
        change(&mut config);
        let started = driver::start(config, Options::default()).unwrap();
        let (console, _) = Console::start(started.console, None).unwrap();
        let agent = Agent::start(port, &started.driver).unwrap();
        let machine = Machine {
            driver: started.driver,
            console,
            agent,
            vcpus: 1,
            memory: MEMORY,
            volumes: None,
            estate: None,
            departures: Some(std::sync::Arc::default()),
            grace_period: Duration::from_secs(3600),
            started: Instant::now(),
            origin: Origin::default(),
        };
        let end = tokio::spawn(async move {
            http::serve(http::Listener::Unix(endpoint), "ledger".into(), machine)
                .await
                .unwrap();
            started.ended.await.unwrap()
        });
        Served {
            client: Client::new(&directory, "ledger").unwrap(),
            directory,
            end,
            _home: home,
        }
    }
}
