//! `nacelle run`: from a manifest to a machine whose end is the command's end.

use std::fs;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use nacelle_api::{
    Cause, CauseKind, FieldPath, Manifest, VirtualMachineSpec, defaults, parse, support, validate_vm,
    validate_vmi,
};
use nacelle_vmm::VmConfig;
use nacelle_vmm::config::{HypervisorConfig, VsockHost};
use nacelle_vmm::migrate::Cancel;
use nacelle_vmm::sandbox::{Role, Sandbox};
use nacelle_vmm::snapshot::Snapshot;
use tokio::task::spawn_blocking;

use crate::cli::{ReceiveArgs, RestoreArgs, RunArgs};
use crate::convert::{self, HostConfig, KernelFiles, NO_FREE_PAGE_REPORTING, Names, Plan};
use crate::driver::{self, End, Started};
use crate::http::console::Console;
use crate::http::socket::{self, Endpoint};
use crate::live::{self, Live, Signals};
use crate::migrate::stream::Listener;
use crate::net::Prepared;
use crate::origin::Origin;
use crate::storage::pull::Puller;
use crate::storage::{self, Places, Storage, paths};
use crate::terminal::Terminal;
use crate::upgrade::{Behind, Estate, Interface, stand_in};
use crate::{Error, Result, Status, net};

/// A manifest is no longer than the API server would take it; more is not even read.
const MAX_MANIFEST: u64 = 2 << 20;
/// Where the host's kernel has its side of sockets to guests.
const VHOST_VSOCK: &str = "/dev/vhost-vsock";

/// Runs the machine of a manifest until it ends.
///
/// # Errors
/// When it cannot be started, or fails.
pub fn run(args: &RunArgs) -> Result<Status> {
    machine(&Origin::of(args)?, Begin::Manifest)
}

/// Fetches and unpacks what the machine of a manifest needs.
///
/// # Errors
/// Everything that is wrong with the manifest, and what is not there.
pub fn prepare(args: &RunArgs) -> Result<()> {
    let plan = plan(&Origin::of(args)?)?;
    storage::prepare(&plan, &places(args)?).map(drop)
}

/// Waits for the machine of a manifest to come from elsewhere, and runs it until it ends.
///
/// # Errors
/// When it does not come, or fails.
pub fn receive(args: &ReceiveArgs) -> Result<Status> {
    machine(&Origin::of(&args.run)?, Begin::Elsewhere(args))
}

/// Goes on with the machine of a snapshot until it ends.
///
/// # Errors
/// When it cannot be restored, or fails.
pub fn restore(args: &RestoreArgs) -> Result<Status> {
    let directory = std::path::absolute(&args.directory).map_err(Error::file("find", &args.directory))?;
    let mut origin = Origin::read(&directory)?;
    origin.arguments.name = args.name.clone().or(origin.arguments.name);
    let there = origin.directory.clone();
    std::env::set_current_dir(&there).map_err(Error::file("go to", &there))?;
    let snapshot = Snapshot::open(&directory).map_err(|source| Error::Machine {
        name: directory.display().to_string(),
        source,
    })?;
    machine(&origin, Begin::Snapshot(&snapshot, args.paused))
}

/// Where a machine begins.
#[derive(Clone, Copy)]
enum Begin<'a> {
    /// At its power-on.
    Manifest,
    /// Where another nacelle sends it.
    Elsewhere(&'a ReceiveArgs),
    /// Where its snapshot was taken; it may wait there.
    Snapshot(&'a Snapshot, bool),
}

impl Origin {
    /// What `args` name.
    fn of(args: &RunArgs) -> Result<Origin> {
        let name = if args.file == Path::new("-") {
            "standard input".into()
        } else {
            args.file.display().to_string()
        };
        Ok(Origin {
            name,
            manifest: text(&args.file)?,
            arguments: args.clone(),
            directory: std::env::current_dir().map_err(Error::io("find the working directory"))?,
        })
    }
}

fn machine(origin: &Origin, begin: Begin) -> Result<Status> {
    let plan = plan(origin)?;
    let places = places(&origin.arguments)?;
    let storage = storage::prepare(&plan, &places)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(Error::io("start the event loop"))?;
    runtime.block_on(drive(&plan, storage, origin, begin, places.scratch))
}

fn plan(origin: &Origin) -> Result<Plan> {
    read(&origin.name, &origin.manifest, &origin.arguments)
}

/// Where this host keeps things.
fn places(args: &RunArgs) -> Result<Places> {
    Ok(Places {
        images: paths::images(args.images.as_deref())?,
        cache: paths::cache()?,
        scratch: paths::data()?.join("scratch"),
        puller: Puller::Program(std::env::current_exe().map_err(Error::io("find this program's file"))?),
        volumes: args.volumes.clone(),
    })
}

fn text(file: &Path) -> Result<String> {
    let mut text = String::new();
    let read = |from: &mut dyn Read, text: &mut String| from.take(MAX_MANIFEST).read_to_string(text);
    let result = if file == Path::new("-") {
        read(&mut io::stdin(), &mut text)
    } else {
        fs::File::open(file).and_then(|mut file| read(&mut file, &mut text))
    };
    result.map_err(Error::file("read the manifest", file))?;
    Ok(text)
}

/// Instance types and preferences are objects of a cluster: a machine without them would be another one.
fn needs_cluster(spec: &VirtualMachineSpec) -> Vec<Cause> {
    let fields = [
        ("spec.instancetype", spec.instancetype.is_some()),
        ("spec.preference", spec.preference.is_some()),
    ];
    let named = fields.into_iter().filter(|(_, named)| *named);
    let cause = |(field, _)| Cause {
        kind: CauseKind::FieldValueNotSupported,
        message: format!(
            "{field} is an object of a cluster: run what `kubectl get --raw .../virtualmachines/NAME/expand-spec` says"
        ),
        field: FieldPath::new(field),
    };
    named.map(cause).collect()
}

/// Parses, completes, checks and plans, in KubeVirt's order.
///
/// # Errors
/// Everything that is wrong with the manifest.
pub fn read(manifest: &str, text: &str, args: &RunArgs) -> Result<Plan> {
    let parsed = parse(text).map_err(|source| Error::Parse {
        manifest: manifest.to_owned(),
        source,
    })?;
    let (metadata, annotations, spec, causes, prefix) = match parsed {
        Manifest::VirtualMachine(mut vm) => {
            defaults::apply(&mut vm.spec.template.spec);
            let mut causes = needs_cluster(&vm.spec);
            causes.extend(validate_vm(&vm));
            let template = vm.spec.template;
            let annotations = template.metadata.and_then(|metadata| metadata.annotations);
            (
                vm.metadata,
                annotations,
                template.spec,
                causes,
                "spec.template.spec",
            )
        }
        Manifest::VirtualMachineInstance(mut vmi) => {
            defaults::apply(&mut vmi.spec);
            let causes = validate_vmi(&vmi);
            let annotations = vmi.metadata.annotations.clone();
            (vmi.metadata, annotations, vmi.spec, causes, "spec")
        }
    };
    let found = support(&spec, &FieldPath::new(prefix));
    let causes: Vec<_> = causes
        .into_iter()
        .chain(found.unsupported.iter().cloned())
        .collect();
    if !causes.is_empty() {
        return Err(Error::Refused {
            manifest: manifest.to_owned(),
            causes,
        });
    }
    for warning in &found.warnings {
        log::warn!("{warning}");
    }
    if let Some(note) = found.note() {
        log::info!("{note}");
    }
    let names =
        Names {
            name: args.name.clone().or(metadata.name).ok_or_else(|| {
                Error::Usage(format!("{manifest} has no metadata.name; give one by --name"))
            })?,
            namespace: metadata.namespace.unwrap_or_else(|| "default".into()),
            uid: String::new(),
        };
    let kernel = args.kernel.as_ref().map(|kernel| KernelFiles {
        kernel: kernel.clone(),
        initrd: args.initrd.clone(),
        cmdline: args.cmdline.clone(),
    });
    let reporting = annotations
        .and_then(|annotations| annotations.get(NO_FREE_PAGE_REPORTING).cloned())
        .is_none_or(|value| value != "true");
    let mut plan = convert::plan(names, &spec, kernel, reporting, args.boot_menu)?;
    plan.memory.shared |= args.shared_memory;
    Ok(plan)
}

/// Builds and starts the machine, then waits for its end, giving it the console and the signals of this process.
async fn drive(
    plan: &Plan,
    storage: Storage,
    origin: &Origin,
    begin: Begin<'_>,
    scratch: PathBuf,
) -> Result<Status> {
    let args = &origin.arguments;
    let options = net::Options {
        taps: args.taps.clone(),
        bridge: args.bridge.clone(),
        machine: plan.names.name.clone(),
        hostname: plan.hostname.clone(),
    };
    let mut signals = Signals::catch()?;
    // One that comes from this host has the name until then.
    let endpoint = match begin {
        Begin::Elsewhere(_) => None,
        Begin::Manifest | Begin::Snapshot(..) => {
            Some(Endpoint::bind(&socket::directory(), &plan.names.name)?)
        }
    };
    // Both are held until the machine has ended.
    let Prepared { mut nets, held: _net } = net::prepare(&plan.nets, &options).await?;
    let kept = nets.iter_mut().zip(&plan.nets);
    let kept = kept.map(|(host, net)| Interface::keep(host, net.queue_pairs));
    let kept: Vec<_> = kept.collect::<Result<_>>()?;
    let Storage {
        boot,
        disks,
        held: _files,
    } = storage;
    let host = HostConfig {
        transport: args.transport.into(),
        scratch,
        vsock: match begin {
            // One that comes from this host has its own until then.
            Begin::Elsewhere(_) => vsock(plan, &format!("{}.{}", plan.names.name, std::process::id())),
            Begin::Manifest | Begin::Snapshot(..) => vsock(plan, &plan.names.name),
        },
        hypervisor: HypervisorConfig::Kvm(args.kvm.clone()),
    };
    confine()?;
    let options = driver::Options::from(plan);
    let behind = disks.iter().map(Behind::from).collect();
    let booted = boot.clone();
    let config = plan.config(boot, disks, nets, host);
    let failed = |source| Error::Machine {
        name: plan.names.name.clone(),
        source,
    };
    let started = match begin {
        Begin::Manifest => driver::start(config, options).map_err(failed)?,
        Begin::Snapshot(snapshot, paused) => {
            let options = driver::Options { paused, ..options };
            driver::restore(config, options, snapshot).map_err(failed)?
        }
        Begin::Elsewhere(args) => arrive(plan, config, options, args, &mut signals).await?,
    };
    let endpoint = match endpoint {
        Some(endpoint) => endpoint,
        None => Endpoint::succeed(&socket::directory(), &plan.names.name).await?,
    };
    let (console, said) = Console::start(started.console, None).map_err(Error::io("serve the console"))?;
    let (socket, terminal) = Terminal::open()?.attach();
    let mut terminal = Some(terminal);
    let mut own = None;
    if plan.serial_console {
        let duplicate = socket.as_fd().try_clone_to_owned();
        own = Some(duplicate.map_err(Error::io("duplicate the terminal"))?);
        console.attach(Box::new(socket)).await;
    }
    let estate = Arc::new(Estate {
        origin: origin.clone(),
        disks: behind,
        boot: booted,
        nets: kept,
        terminal: own,
        socket: endpoint.deed()?,
        console,
        started: Instant::now(),
        first: true,
        successor: Mutex::new(None),
    });
    let live = Live {
        plan,
        driver: started.driver,
        ended: started.ended,
        agent: started.agent,
        endpoint,
        said,
        estate: Arc::clone(&estate),
    };
    let end = live.attend(&mut terminal, &mut signals).await?;
    let ended = match (&end, estate.take_successor()) {
        (End::HandedOn, Some(successor)) => stand_in(successor, &mut terminal, &mut signals).await,
        _ => live::status(&plan.names.name, end, false),
    };
    // Nobody else has its socket.
    drop(estate);
    if let Some(terminal) = terminal {
        terminal.finish().await;
    }
    ended
}

/// From here on this process, and what it starts, has only the system calls and privileges that a machine needs.
///
/// # Errors
/// When the kernel does not let it.
pub(crate) fn confine() -> Result<()> {
    let confined = Sandbox::default().enter(Role::Process);
    confined.map_err(Error::io("confine this process"))
}

/// Waits for a machine that comes from elsewhere, unless this process is told to end.
async fn arrive(
    plan: &Plan,
    config: VmConfig,
    options: driver::Options,
    args: &ReceiveArgs,
    signals: &mut Signals,
) -> Result<Started> {
    let cancel = Cancel::new();
    let listener = Listener::bind(&args.listen, || args.tls.files()?.server(), cancel.clone())?;
    log::info!("waiting for {} at {}", plan.names.name, listener.address());
    let wish = cancel.clone();
    let arrival =
        spawn_blocking(move || driver::receive(config, options, move || listener.accept(), &wish, &mut ()));
    tokio::pin!(arrival);
    let arrived = loop {
        tokio::select! {
            arrived = &mut arrival => break arrived,
            () = signals.next() => cancel.cancel(),
        }
    };
    let started = arrived
        .map_err(|error| Error::io("wait for a machine")(io::Error::other(error)))?
        .map_err(Error::NotReceived)?;
    log::info!("{} has come and runs here", plan.names.name);
    Ok(started)
}

/// What is on the host's side of the machine's sockets: the host's kernel where it does that, else unix sockets
/// beside the machine's own.
pub(crate) fn vsock(plan: &Plan, name: &str) -> VsockHost {
    if Path::new(VHOST_VSOCK).exists() {
        return VsockHost::Vhost;
    }
    let path = socket::directory().join(format!("{name}.vsock"));
    if plan.vsock.is_some() {
        log::info!(
            "the guest's sockets are unix sockets: {} to connect to it, ..._PORT to be connected to",
            path.display()
        );
    }
    VsockHost::Unix(path)
}

#[cfg(test)]
mod tests {
    use nacelle_api::vm::InstancetypeMatcher;

    use super::*;

    #[test]
    fn what_only_a_cluster_has_is_not_passed_over() {
        let mut spec = VirtualMachineSpec::default();
        assert_eq!(needs_cluster(&spec), []);
        spec.preference = Some(InstancetypeMatcher::default());
        let causes = needs_cluster(&spec);
        assert_eq!(causes.len(), 1);
        assert!(
            causes[0]
                .message
                .starts_with("spec.preference is an object of a cluster: run what")
        );
    }
}
