//! `nacelle node`: the agent of a node, which tells the kubelet of `/dev/kvm` and its like, so that a pod can ask for
//! them as resources and needs no privilege to use them.
//!
//! A device here is a right to open a file; many machines have it at once. The kubelet forgets its plugins when it is
//! restarted, and removes their sockets: a plugin that misses its socket presents itself again.

mod api;
mod health;
mod plugin;

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
}

/// The devices, by the last part of `devices.kubevirt.io/NAME` and their file. The first are those without which no
/// machine runs.
const DEVICES: [(&str, &str); 4] = [
    ("kvm", "kvm"),
    ("tun", "net/tun"),
    ("vhost-net", "vhost-net"),
    ("vhost-vsock", "vhost-vsock"),
];
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
        for (index, (name, file)) in DEVICES.into_iter().enumerate() {
            let known = Arc::clone(&known);
            let plugin = Plugin {
                name,
                file,
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
