//! The new process's side.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nacelle_vmm::config::{BootConfig, HypervisorConfig, Opened, TapConfig};
use nacelle_vmm::migrate::{Cancel, Stream};
use nacelle_vmm::sandbox;
use tokio::io::AsyncReadExt;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::{Bundle, Estate, Handover, Interface, Role, VERSION, descriptors};
use crate::convert::{HostConfig, Plan};
use crate::driver;
use crate::http::console::Console;
use crate::http::socket::{self, Endpoint};
use crate::live::{self, Live, Signals};
use crate::net::HostNet;
use crate::storage::{self, paths};
use crate::{Error, Result, Status, run};

/// How often a stream that waits looks whether it still should.
const MOMENT: Duration = Duration::from_millis(100);
/// How long the last words of the old process may take.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Goes on with the machine of the process that started this one, which is at the other end of standard input.
///
/// # Errors
/// When it does not come, which leaves it where it is, or fails.
pub fn take_over() -> Result<Status> {
    let odd = |source| Error::Io {
        what: "take a machine over: nacelle upgrade starts this",
        source,
    };
    sandbox::succeed().map_err(Error::io("confine this process"))?;
    let stream = io::stdin().as_fd().try_clone_to_owned().map_err(odd)?;
    let stream = UnixStream::from(stream);
    let (document, descriptors) = descriptors::receive(&stream).map_err(odd)?;
    let handover: Handover = serde_json::from_slice(&document).map_err(|error| odd(error.into()))?;
    if handover.version != VERSION || handover.roles.len() != descriptors.len() {
        return Err(Error::Usage(format!(
            "the machine's process speaks version {} of a handover, this program {VERSION}",
            handover.version
        )));
    }
    let origin = &handover.origin;
    std::env::set_current_dir(&origin.directory).map_err(Error::file("go to", &origin.directory))?;
    let plan = run::read(&origin.name, &origin.manifest, &origin.arguments)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(Error::io("start the event loop"))?;
    let bundle = Bundle {
        roles: handover.roles.clone(),
        descriptors,
    };
    let end = runtime.block_on(go_on(&plan, &handover, bundle, stream))?;
    live::status(&plan.names.name, end, true)
}

/// What came, by what it is for.
struct Inherited {
    opened: Opened,
    boot: BootConfig,
    taps: BTreeMap<usize, Vec<OwnedFd>>,
    socket: Option<UnixListener>,
    terminal: Option<OwnedFd>,
    /// Files that are named by their descriptors.
    held: Vec<OwnedFd>,
}

impl Inherited {
    fn sort(bundle: Bundle, cmdline: String) -> Inherited {
        let mut inherited = Inherited {
            opened: Opened::default(),
            boot: BootConfig {
                cmdline,
                ..BootConfig::default()
            },
            taps: BTreeMap::new(),
            socket: None,
            terminal: None,
            held: Vec::new(),
        };
        let opened = &mut inherited.opened;
        for (role, descriptor) in bundle.roles.into_iter().zip(bundle.descriptors) {
            let mut hold = |descriptor: OwnedFd| {
                let path = PathBuf::from(format!("/proc/self/fd/{}", descriptor.as_raw_fd()));
                inherited.held.push(descriptor);
                path
            };
            match role {
                Role::Memory => opened.memory = Some(File::from(descriptor)),
                Role::Kernel => inherited.boot.kernel = hold(descriptor),
                Role::Initrd => inherited.boot.initrd = Some(hold(descriptor)),
                Role::Disk(id) => opened.disks.entry(id).or_default().push(File::from(descriptor)),
                Role::Tap(number) => inherited.taps.entry(number).or_default().push(descriptor),
                Role::Vsock => opened.vsock = Some(UnixListener::from(descriptor)),
                Role::Socket => inherited.socket = Some(UnixListener::from(descriptor)),
                Role::Terminal => inherited.terminal = Some(descriptor),
            }
        }
        inherited
    }
}

async fn go_on(plan: &Plan, handover: &Handover, bundle: Bundle, stream: UnixStream) -> Result<driver::End> {
    let mut signals = Signals::catch()?;
    let mut inherited = Inherited::sort(bundle, handover.cmdline.clone());
    let disks = plan.disks.iter().zip(handover.disks.clone());
    let disks: Vec<_> = disks.map(|(disk, behind)| storage::disk(disk, behind)).collect();
    let mut nets = Vec::new();
    let mut interfaces = Vec::new();
    for (number, (net, network)) in plan.nets.iter().zip(&handover.nets).enumerate() {
        let mut host = HostNet {
            tap: TapConfig::Fds(inherited.taps.remove(&number).unwrap_or_default()),
            mac: network.mac,
            mtu: network.mtu,
            guest: None,
        };
        interfaces.push(Interface::keep(&mut host, net.queue_pairs)?);
        nets.push(host);
    }
    let arguments = &handover.origin.arguments;
    let host = HostConfig {
        transport: arguments.transport.into(),
        scratch: paths::data()?.join("scratch"),
        vsock: run::vsock(plan, &plan.names.name),
        hypervisor: HypervisorConfig::Kvm(arguments.kvm.clone()),
    };
    let options = driver::Options::from(plan);
    let boot = inherited.boot.clone();
    let behind = handover.disks.clone();
    let mut config = plan.config(inherited.boot, disks, nets, host);
    config.opened = inherited.opened;

    let ours = stream
        .set_read_timeout(Some(MOMENT))
        .and_then(|()| stream.set_write_timeout(Some(MOMENT)))
        .and_then(|()| stream.try_clone())
        .map_err(Error::io("set up the socket of the handover"))?;
    let mut once = Some(ours);
    let accept = move || match once.take() {
        Some(stream) => Ok(Box::new(stream) as Box<dyn Stream>),
        None => Err(io::ErrorKind::NotConnected.into()),
    };
    let arrival = spawn_blocking(move || driver::receive(config, options, accept, &Cancel::new(), &mut ()));
    let started = arrival
        .await
        .map_err(|error| Error::io("wait for a machine")(io::Error::other(error)))?
        .map_err(Error::NotReceived)?;
    log::info!("{} runs in process {} now", plan.names.name, std::process::id());
    last_words(stream).await;

    let listener = inherited
        .socket
        .ok_or_else(|| Error::Usage("the machine's socket did not come along".into()))?;
    let endpoint = Endpoint::inherit(&socket::directory(), &plan.names.name, listener)?;
    let (console, said) = Console::start(started.console, None).map_err(Error::io("serve the console"))?;
    if let Some(terminal) = &inherited.terminal {
        let terminal = terminal
            .try_clone()
            .map_err(Error::io("duplicate the terminal"))?;
        let terminal = tokio::net::UnixStream::from_std(terminal.into());
        console
            .attach(Box::new(terminal.map_err(Error::io("use the terminal"))?))
            .await;
    }
    let uptime = Duration::from_millis(handover.uptime);
    let estate = Estate {
        origin: handover.origin.clone(),
        disks: behind,
        boot,
        nets: interfaces,
        terminal: inherited.terminal,
        socket: endpoint.deed()?,
        console: console.clone(),
        started: Instant::now().checked_sub(uptime).unwrap_or_else(Instant::now),
        first: false,
        successor: Mutex::new(None),
    };
    let live = Live {
        plan,
        driver: started.driver,
        ended: started.ended,
        agent: started.agent,
        endpoint,
        said,
        estate: Arc::new(estate),
    };
    let end = live.attend(&mut None, &mut signals).await?;
    drop(inherited.held);
    Ok(end)
}

/// Waits until the old process has let go of the terminal: what the guest said there comes first.
async fn last_words(stream: UnixStream) {
    let ended = async {
        stream.set_nonblocking(true)?;
        let mut stream = tokio::net::UnixStream::from_std(stream)?;
        let mut byte = [0];
        stream.read(&mut byte).await
    };
    match timeout(LAST_WORDS, ended).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => log::debug!("the old process: {error}"),
        Err(_) => log::warn!("the old process holds on to the terminal"),
    }
}
