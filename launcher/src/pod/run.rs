//! `pod run`: the machine of a pod, from its instance to its end.

use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{env, fs};

use nacelle_vmm::config::{HypervisorConfig, Transport, VsockHost};
use nacelle_vmm::sandbox;
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio::time::sleep_until;

use super::arrival::{self, Waiting};
use super::credentials::{self, Synchronized};
use super::departure::Departures;
use super::report::{self, Last, Report, Reporter, Way};
use super::start::{self, Spans, Start};
use super::storage::Mounts;
use super::{Root, instance, last_words, metrics, net, runtime};
use crate::admit::Command;
use crate::agent::Agent;
use crate::convert::{HostConfig, Plan};
use crate::driver::{self, Driver, End};
use crate::exit::Chain;
use crate::http::console::Console;
use crate::http::{self, Listener, Machine};
use crate::net::pod::{self as pod_net, API_PORT, Interface};
use crate::origin::Origin;
use crate::storage::{self, Storage};
use crate::{Error, Result, Status, memory};

/// How long a machine that has ended waits for the container that logs what it said, which may have started later.
const LOGGER: Duration = Duration::from_secs(10);
/// How often a guest can have its agent reported on.
const PACE: Duration = Duration::from_secs(5);
/// Where the host's kernel has its side of sockets to guests.
const VHOST_VSOCK: &str = "/dev/vhost-vsock";

/// Runs the machine until it ends; what it says on its serial line is `logged`.
pub(super) fn run(root: &Root, logged: bool) -> Result<Status> {
    let spans = Spans::begin();
    // Nobody is answered: who is connected when it is closed, by whatever end, knows enough.
    let _alive = listen(&root.machine())?;
    let plan = instance::read(&root.instance())?;
    let interfaces = match plan.nets.is_empty() {
        true => Vec::new(),
        false => net::read(&root.net())?,
    };
    runtime()?.block_on(async {
        let way = Way {
            document: root.report(),
            token: root.token(),
            own_ports: interfaces.iter().any(Interface::shares_address),
            namespace: plan.names.namespace.clone(),
            name: plan.names.name.clone(),
        };
        let wanted = way.wants_start();
        let reporter = Reporter::start(way);
        let known = report::interfaces(&plan.nets, &interfaces, &pod_addresses());
        let spans = (spans, wanted);
        let end = machine(root, logged, &plan, interfaces, &reporter, &known, spans).await;
        let last = Last::of(&end);
        last_words(&root.termination_log(), &last.message);
        reporter.finish(last.report(known)).await;
        match end? {
            End::PoweredOff | End::Reset | End::Saved | End::Moved | End::HandedOn => Ok(Status::Done),
            end @ (End::Killed | End::GraceExpired | End::Watchdog) => {
                log::warn!("{}: {end}", plan.names.name);
                Ok(Status::Killed)
            }
            End::Failed(source) => Err(Error::Machine {
                name: plan.names.name.clone(),
                source,
            }),
        }
    })
}

/// Confines this process; what it is denied after that is also what the kubelet reads.
fn confine(root: &Root) -> Result<()> {
    if let Ok(file) = fs::OpenOptions::new().append(true).open(root.termination_log()) {
        sandbox::tell_violations_to(file.into());
    }
    crate::run::confine()
}

/// The pod's addresses, by the downward API.
fn pod_addresses() -> Vec<String> {
    let addresses = env::var("POD_IPS").unwrap_or_default();
    let addresses = addresses.split(',').filter(|address| !address.is_empty());
    addresses.map(str::to_owned).collect()
}

/// Builds and starts the machine and serves it until it has ended.
async fn machine(
    root: &Root,
    logged: bool,
    plan: &Plan,
    interfaces: Vec<Interface>,
    reporter: &Reporter,
    known: &[report::Interface],
    (mut spans, wanted): (Spans, bool),
) -> Result<End> {
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::io("handle signals"))?;
    confine(root)?;
    spans.end("instance");
    let mounts = tokio::select! {
        mounts = Mounts::with_images(&root.root, plan) => mounts?,
        _ = terminate.recv() => return Ok(End::Killed),
    };
    spans.end("images");
    // Held until the machine has ended, as the others.
    let Storage {
        boot,
        disks,
        held: _files,
    } = storage::prepare(plan, &mounts)?;
    spans.end("disks");
    let (nets, _served) = pod_net::take(&interfaces, &plan.hostname)?;
    let api = TcpListener::bind((Ipv4Addr::LOCALHOST, API_PORT)).await;
    let api = api.map_err(Error::io("listen on port 22480 of the pod's loopback address"))?;
    let log = listen(&root.console_log())?;
    let log = log
        .set_nonblocking(true)
        .and_then(|()| UnixListener::from_std(log));
    let log = log.map_err(Error::io("listen for the log of the console"))?;
    spans.end("network");
    let host = HostConfig {
        transport: Transport::Pci,
        scratch: storage::supply::Supply::scratch(&mounts).to_owned(),
        vsock: vsock(&root.shared()),
        hypervisor: HypervisorConfig::Kvm("/dev/kvm".into()),
    };
    let options = driver::Options::from(plan);
    let config = plan.config(boot, disks, nets, host);
    let mut first_line = None;
    let (started, told) = match arrival::expected(&root.migration())? {
        None => {
            let started = driver::start(config, options).map_err(|source| Error::Machine {
                name: plan.names.name.clone(),
                source,
            })?;
            spans.end("machine");
            log::info!("{} is started: {spans}", plan.names.name);
            first_line = wanted.then_some(spans);
            (started, false)
        }
        Some(expected) => {
            let address = pod_addresses().first().and_then(|address| address.parse().ok());
            let address =
                address.ok_or_else(|| Error::Usage("the pod has no address to listen at".into()))?;
            let waiting = Waiting::listen(&expected, address)?;
            reporter.tell(Report::awaited(waiting.arrival.clone()));
            log::info!("waiting for {} at {}", plan.names.name, waiting.arrival.address);
            let arrived = waiting.arrive(config, options, &mut terminate).await?;
            log::info!("{} has come and runs here", plan.names.name);
            arrived
        }
    };
    let departures = Arc::new(Departures::default());

    let console = Console::start(started.console, logged.then_some(LOGGER));
    let (console, said) = console.map_err(Error::io("serve the console"))?;
    let begun = start::told(first_line, console.clone());
    let logger = tokio::spawn(log_console(log, console.clone()));
    let agent = Agent::start(started.agent, &started.driver);
    let agent = agent.map_err(Error::io("use the port of the guest agent"))?;
    let served = tokio::spawn(http::serve(
        Listener::Loopback(api),
        plan.names.name.clone(),
        Machine {
            driver: started.driver.clone(),
            console,
            agent: agent.clone(),
            vcpus: plan.cpus.count().unwrap_or(1),
            memory: plan.memory.size,
            grace_period: Duration::from_secs(plan.grace_period),
            started: Instant::now(),
            origin: Origin {
                name: plan.names.name.clone(),
                manifest: fs::read_to_string(root.instance())
                    .map_err(Error::file("read the instance", root.instance()))?,
                ..Origin::default()
            },
            volumes: Some(root.volumes()),
            estate: None,
            departures: Some(Arc::clone(&departures)),
        },
    ));
    let (kept, synchronized) = watch::channel(None);
    let keeping = credentials::keep(&plan.credentials, &mounts, &agent, kept);
    let telling = tell(
        &started.driver,
        &agent,
        synchronized,
        &departures,
        begun,
        reporter,
        known,
    );
    let whose = metrics::Whose {
        names: plan.names.clone(),
        driver: started.driver.clone(),
        agent: agent.clone(),
    };
    let asked = root.metrics();
    let counted = metrics::serve(&asked, &whose);
    tokio::pin!(keeping, telling, counted);
    memory::give_back();
    let end = tokio::select! {
        end = attend(plan, &started.driver, started.ended, &mut terminate, told) => end,
        never = &mut telling => match never {},
        never = &mut keeping => match never {},
        never = &mut counted => match never {},
    };
    if let Ok(Err(error)) = served.await {
        log::warn!("{}", Chain(&error));
    }
    // The log has the guest's last words.
    let _ = said.await;
    logger.abort();
    Ok(end)
}

/// Waits for the machine's end; SIGTERM is the power button, a second one pulls the plug. It may have been `told` already.
async fn attend(
    plan: &Plan,
    driver: &Driver,
    mut ended: oneshot::Receiver<End>,
    terminate: &mut Signal,
    mut told: bool,
) -> End {
    let mut command = Command::Stop {
        grace: Duration::from_secs(plan.grace_period),
    };
    loop {
        tokio::select! {
            end = &mut ended => return end.unwrap_or(End::Killed),
            () = async { if !told { let _ = terminate.recv().await; } } => {
                told = false;
                log::info!("told to end: the guest has {} s to power off", plan.grace_period);
                let driver = driver.clone();
                tokio::spawn(async move {
                    if let Err(refused) = driver.ask(command).await {
                        log::debug!("{refused}");
                    }
                });
                command = Command::Kill;
            }
        }
    }
}

/// Reports each state that the machine comes into, what its agent says, and how long its start took.
async fn tell(
    driver: &Driver,
    agent: &Agent,
    mut credentials: watch::Receiver<Option<Synchronized>>,
    departures: &Departures,
    begun: impl Future<Output = Start>,
    reporter: &Reporter,
    interfaces: &[report::Interface],
) -> std::convert::Infallible {
    tokio::pin!(begun);
    let (mut start, mut started) = (None, false);
    let (mut changes, mut said) = (driver.changes(), agent.changes());
    let mut leaving = departures.changes();
    let mut calm = tokio::time::Instant::now();
    loop {
        let status = changes.borrow_and_update().clone();
        let departure = leaving.borrow_and_update().clone();
        let report = Report::of(&status, &said.borrow_and_update(), interfaces, departure);
        let synchronized = credentials.borrow_and_update().clone();
        if let Some(report) = report {
            reporter.tell(Report {
                credentials: synchronized,
                start: start.take(),
                ..report
            });
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() {
                // The last report is not ours to make.
                std::future::pending().await
            },
            Ok(()) = credentials.changed() => {}
            Ok(()) = leaving.changed() => {}
            begun = &mut begun, if !started => (start, started) = (Some(begun), true),
            // The conversation ends with the machine.
            Ok(()) = async { sleep_until(calm).await; said.changed().await } => {
                calm = tokio::time::Instant::now() + PACE;
            }
        }
    }
}

/// Gives what the guest says to whoever logs it.
async fn log_console(listener: UnixListener, console: Console) {
    while let Ok((logger, _)) = listener.accept().await {
        if !console.log(Box::new(logger)).await {
            return;
        }
    }
}

fn listen(socket: &Path) -> Result<std::os::unix::net::UnixListener> {
    // Left by a container that was killed.
    let _ = fs::remove_file(socket);
    let listener = std::os::unix::net::UnixListener::bind(socket).map_err(Error::file("make", socket))?;
    fs::set_permissions(socket, fs::Permissions::from_mode(0o600))
        .map_err(Error::file("set the mode of", socket))?;
    Ok(listener)
}

/// What is on the host's side of the machine's sockets.
fn vsock(shared: &Path) -> VsockHost {
    match Path::new(VHOST_VSOCK).exists() {
        true => VsockHost::Vhost,
        false => VsockHost::Unix(shared.join("vsock")),
    }
}
