//! From a device's configuration to the device.

use std::fs::File;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nacelle_devices::disk::{Changes, DiskOptions, Engine, Format, Mirror, OverlayFile, Source, open};
use nacelle_devices::net::backend::NetBackend;
use nacelle_devices::net::tap::Tap;
use nacelle_devices::ratelimit::{Limits, Rate, RateLimiter};
use nacelle_devices::vhost::net::{VhostNet, VhostNetConfig};
use nacelle_devices::vhost::vsock::VhostVsock;
use nacelle_devices::virtio::VirtioDevice;
use nacelle_devices::virtio::balloon::{self, Balloon, BalloonControl};
use nacelle_devices::virtio::blk::{Blk, BlkConfig, BlkControl, Cache};
use nacelle_devices::virtio::console::{self, Console, PortConfig};
use nacelle_devices::virtio::net::{self, Net, NetControl};
use nacelle_devices::virtio::rng::Rng;
use nacelle_devices::virtio::vsock::{self, Vsock, VsockControl};
use nacelle_devices::worker::Worker;

use super::{Host, device_error};
use crate::config::{
    BalloonConfig, CacheMode, ConsoleConfig, DeviceKind, DiskConfig, DiskFormat, DiskIo, NetConfig, Opened,
    RateLimit, TapConfig, VsockConfig, VsockHost,
};
use crate::{Error, Result, VmEvent};

/// The kernel's data path for network devices.
const VHOST_NET: &str = "/dev/vhost-net";

/// A device, and what its owner keeps of it.
pub(super) struct Created {
    pub device: Box<dyn VirtioDevice>,
    pub control: Control,
    /// Host's ends of its ports.
    pub consoles: Vec<UnixStream>,
    /// Why it cannot move to another monitor.
    pub stays: Option<&'static str>,
    /// The host's kernel writes guest memory for it.
    pub in_kernel: bool,
}

/// The host's side of a device.
pub(super) enum Control {
    None,
    Disk(BlkControl, Own),
    Net(NetControl),
    Balloon(BalloonControl),
    Vsock(VsockControl),
}

/// What is kept of a disk beside its device.
pub(super) struct Own {
    /// Its content is nowhere else, and goes along.
    pub local: bool,
    /// What is changed on it, while it goes.
    pub changes: Changes,
}

impl Created {
    fn new(device: impl VirtioDevice + 'static, control: Control) -> Self {
        Created {
            device: Box::new(device),
            control,
            consoles: Vec::new(),
            stays: None,
            in_kernel: false,
        }
    }
}

/// The device `id`.
pub(super) fn device(host: &Host, id: &str, kind: DeviceKind, opened: &mut Opened) -> Result<Created> {
    match kind {
        DeviceKind::Rng => Ok(Created::new(Rng::new(worker(host)?), Control::None)),
        DeviceKind::Disk(config) => disk(host, id, config, opened.disks.remove(id).unwrap_or_default()),
        DeviceKind::Net(config) => interface(host, id, config),
        DeviceKind::Balloon(config) => memory_balloon(host, id, config),
        DeviceKind::Console(config) => ports(host, id, config),
        DeviceKind::Vsock(config) => socket(host, id, config, opened.vsock.take()),
    }
}

pub(super) fn worker(host: &Host) -> Result<Worker> {
    host.workers
        .first()
        .cloned()
        .ok_or_else(|| Error::ThreadEnded("I/O".into()))
}

/// A tenth of a second's worth may be saved up, so that a limit is felt as a rate and not as stutter.
fn limits(limit: Option<RateLimit>) -> Limits {
    let rate = |per_second: u64| {
        (per_second > 0).then(|| Rate {
            per_second,
            burst: (per_second / 10).max(1),
        })
    };
    let limit = limit.unwrap_or_default();
    Limits {
        bytes: rate(limit.bytes),
        operations: rate(limit.operations),
    }
}

fn disk(host: &Host, id: &str, config: DiskConfig, opened: Vec<File>) -> Result<Created> {
    let stays = config.ephemeral;
    let local = config.local || config.ephemeral;
    let mut opened = opened.into_iter();
    let source = match opened.next() {
        Some(file) => Source::File {
            name: config.path.display().to_string(),
            file,
        },
        None => Source::Path(config.path),
    };
    let layer = match opened.next() {
        Some(file) => OverlayFile::Open(Arc::new(file)),
        None => OverlayFile::Temporary(host.scratch.clone()),
    };
    let disk = open(DiskOptions {
        source,
        format: match config.format {
            DiskFormat::Raw => Format::Raw,
            DiskFormat::Qcow2 => Format::Qcow2 { backing: false },
        },
        read_only: config.read_only,
        overlay: config.ephemeral.then_some(layer),
        direct: config.cache == CacheMode::None,
        lock: host.lock,
        shared: config.shared,
        engine: match config.io {
            DiskIo::Native => Engine::Auto,
            DiskIo::Threads => Engine::Pool,
        },
        pool: host.pool.clone(),
    })
    .map_err(device_error(id))?;
    let (disk, changes) = Mirror::over(disk);
    let blk = BlkConfig {
        serial: config.serial,
        queues: config.queues,
        read_only: config.read_only,
        cache: match config.cache {
            CacheMode::None | CacheMode::WriteBack => Cache::WriteBack,
            CacheMode::WriteThrough => Cache::WriteThrough,
        },
        block_size: config.block_size,
        discard_granularity: config.discard_granularity,
        limits: limits(config.limit),
        on_error: config.on_error,
        tell_failure: Box::new({
            let (power, id) = (Arc::clone(&host.power), id.to_owned());
            move |error| {
                let id = id.clone();
                power.tell(VmEvent::DiskFailed { id, error });
            }
        }),
        disk,
    };
    let (device, control) = Blk::new(blk, host.workers.clone()).map_err(device_error(id))?;
    Ok(Created {
        stays: stays.then_some("what its guest wrote is kept with this machine and ends with it (ephemeral)"),
        ..Created::new(device, Control::Disk(control, Own { local, changes }))
    })
}

fn interface(host: &Host, id: &str, config: NetConfig) -> Result<Created> {
    let pairs = usize::from(config.queue_pairs);
    let taps = match config.tap {
        TapConfig::Name(name) => Tap::open(&name, pairs),
        TapConfig::Fds(fds) => fds.into_iter().map(Tap::from_fd).collect(),
    }
    .map_err(device_error(id))?;
    let (mac, mtu) = (config.mac, config.mtu);
    if config.vhost && config.limit.is_none() && Path::new(VHOST_NET).exists() {
        log::info!("{id}: the host's kernel moves the packets ({VHOST_NET})");
        let config = VhostNetConfig { taps, mac, mtu };
        let (device, control) = VhostNet::new(config, worker(host)?).map_err(device_error(id))?;
        return Ok(Created {
            in_kernel: true,
            ..Created::new(device, Control::Net(control))
        });
    }
    let limiter = || config.limit.map(|limit| RateLimiter::new(limits(Some(limit))));
    let (device, control) = Net::new(
        net::NetConfig {
            backends: taps
                .into_iter()
                .map(|tap| Box::new(tap) as Box<dyn NetBackend>)
                .collect(),
            mac,
            mtu,
            queue_size: net::QUEUE_SIZE,
            rx_limiter: limiter(),
            tx_limiter: limiter(),
        },
        host.workers.clone(),
    )
    .map_err(device_error(id))?;
    Ok(Created::new(device, Control::Net(control)))
}

fn socket(host: &Host, id: &str, config: VsockConfig, opened: Option<UnixListener>) -> Result<Created> {
    let guest_cid = u64::from(config.cid);
    let worker = worker(host)?;
    let device = match config.host {
        VsockHost::Unix(uds_path) => {
            let config = vsock::VsockConfig { guest_cid, uds_path };
            let device = match opened {
                Some(listener) => Vsock::succeed(config, listener, worker),
                None => Vsock::new(config, worker),
            };
            device.map(|device| {
                let control = Control::Vsock(device.control());
                Created::new(device, control)
            })
        }
        VsockHost::Vhost => VhostVsock::new(guest_cid, worker).map(|device| Created {
            in_kernel: true,
            ..Created::new(device, Control::None)
        }),
    };
    device.map_err(device_error(id))
}

fn memory_balloon(host: &Host, id: &str, config: BalloonConfig) -> Result<Created> {
    let features = balloon::BalloonConfig {
        deflate_on_oom: config.deflate_on_oom,
        free_page_reporting: config.free_page_reporting,
    };
    let (device, control) = Balloon::new(features, worker(host)?).map_err(device_error(id))?;
    let interval = Duration::from_secs(config.statistics_interval.into());
    control.set_interval(interval).map_err(device_error(id))?;
    Ok(Created::new(device, Control::Balloon(control)))
}

fn ports(host: &Host, id: &str, config: ConsoleConfig) -> Result<Created> {
    let (mut ports, mut consoles) = (Vec::new(), Vec::new());
    for port in config.ports {
        let (ours, theirs) = UnixStream::pair().map_err(Error::io("make a socket for a console port"))?;
        ports.push(PortConfig {
            name: port.name,
            console: port.console,
            host: ours,
        });
        consoles.push(theirs);
    }
    let device = Console::new(console::ConsoleConfig { ports }, worker(host)?).map_err(device_error(id))?;
    Ok(Created {
        consoles,
        ..Created::new(device, Control::None)
    })
}
