//! `nacelle node`: the agent of a node, which tells the kubelet of `/dev/kvm` and its like, so that a pod can ask for
//! them as resources and needs no privilege to use them.
//!
//! A device here is a right to open a file; many machines have it at once. The kubelet forgets its plugins when it is
//! restarted, and removes their sockets: a plugin that misses its socket presents itself again.
//!
//! It also brings together who has a volume and who wants it ([`volumes`]), and asks the node's machines for their figures,
//! for Prometheus ([`metrics`]).

mod api;
mod families;
mod health;
pub(crate) mod metrics;
mod plugin;
pub mod sockets;
pub mod volumes;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use self::plugin::Plugin;
use crate::{Error, Result};

const EXAMPLES: &str = "\
Examples:
  nacelle node
      on the node itself
  nacelle node --dev /host/dev --max-devices 200
      in a pod that has the node's /dev there, for at most 200 machines";

/// What the agent is told.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct NodeArgs {
    /// How many machines of this node may have each device
    #[arg(long, value_name = "N", default_value_t = 1000)]
    max_devices: u32,
    /// The node's device files
    #[arg(long, value_name = "DIR", default_value = "/dev")]
    dev: PathBuf,
    /// Where the kubelet and its plugins have their sockets
    #[arg(long, value_name = "DIR", default_value = "/var/lib/kubelet/device-plugins")]
    plugins: PathBuf,
    /// Where Prometheus is answered
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:22482")]
    metrics: SocketAddr,
    /// The node's name
    #[arg(long, value_name = "NAME", default_value = "")]
    node_name: String,
}

/// The devices, by the last part of `devices.kubevirt.io/NAME`, and their file. The first are those without which no
/// machine runs. `volumes` is what a pod has that hands a volume to a machine.
const DEVICES: [(&str, Option<&str>); 5] = [
    (KVM, Some("kvm")),
    ("tun", Some("net/tun")),
    ("vhost-net", Some("vhost-net")),
    ("vhost-vsock", Some("vhost-vsock")),
    (VOLUMES, None),
];
const KVM: &str = "kvm";
const VOLUMES: &str = "volumes";
const NEEDED: usize = 2;

/// Which of [`DEVICES`] the kubelet knows.
#[derive(Debug, Default)]
struct Known([AtomicBool; DEVICES.len()]);

impl Known {
    fn set(&self, device: usize, known: bool) {
        if let Some(flag) = self.0.get(device) {
            flag.store(known, Ordering::Relaxed);
        }
    }

    /// The first needed device that the kubelet does not know.
    fn missing(&self) -> Option<&'static str> {
        let flags = self.0.iter().zip(DEVICES).take(NEEDED);
        let mut missing = flags.filter(|(flag, _)| !flag.load(Ordering::Relaxed));
        missing.next().map(|(_, (name, _))| name)
    }
}

/// Serves until SIGTERM.
///
/// # Errors
/// When the agent cannot do its work at all.
pub fn run(args: &NodeArgs) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(Error::io("start the event loop"))?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).map_err(Error::io("handle signals"))?;
        let known = Arc::new(Known::default());
        let listener = health::listen().await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(health::serve(listener, Arc::clone(&known)));
        let volumes = volumes::listen(&args.plugins)?;
        tasks.spawn(volumes::serve(volumes, 2 * args.max_devices as usize));
        let machines = metrics::Machines::new(2 * args.max_devices as usize);
        tasks.spawn(machines.clone().meet(metrics::listen(&args.plugins)?));
        let listener = metrics::bind(args.metrics).await?;
        tasks.spawn(metrics::serve(listener, machines, args.node_name.clone()));
        for (index, (name, file)) in DEVICES.into_iter().enumerate() {
            let known = Arc::clone(&known);
            let plugin = Plugin {
                name,
                file,
                // Who has a volume, and who wants one.
                sockets: [KVM, VOLUMES].contains(&name),
                dev: args.dev.clone(),
                plugins: args.plugins.clone(),
                count: args.max_devices,
            };
            tasks.spawn(async move { plugin.serve(|is_known| known.set(index, is_known)).await });
        }
        terminate.recv().await;
        Ok(())
    })
}

#[cfg(test)]
mod tests;
