//! The commands that look after running machines: each is a request or two to a machine's socket.

pub mod client;
pub mod console;
mod migrate;
mod plug;
mod show;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use nacelle_api::k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use nacelle_api::quantity;
use serde::Serialize;
use tokio::runtime::Runtime;
use tokio::time::timeout;

use self::client::Client;
use crate::agent::Said;
use crate::driver::Then;
use crate::exit::{Error, Result};
use crate::http::api::{Balloon, Freeze, Machine, Migrate, Migrated, Saved, Snapshot, Stats, Stop, Upgrade};
use crate::http::socket;
use crate::migrate::Wanted;
use crate::migrate::address::Address;
use crate::migrate::tls::TlsArgs;

/// Time for a machine to say what it is doing, when all are asked.
const LIST: Duration = Duration::from_secs(5);

/// What is done with running machines.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// List the machines that run
    #[command(
        visible_alias = "list",
        after_help = "\
Examples:
  nacelle ls
  nacelle ls --output json | jq -r '.[].name'"
    )]
    Ls(Show),
    /// Show what a machine is doing
    #[command(after_help = "\
Examples:
  nacelle status ledger
  nacelle status ledger --output json | jq -r .state")]
    Status {
        /// Which one.
        #[command(flatten)]
        machine: Named,
        /// How it is shown.
        #[command(flatten)]
        show: Show,
    },
    /// Hold a machine still: for its guest no time passes until it is resumed
    #[command(after_help = "\
Examples:
  nacelle pause ledger && nacelle resume ledger")]
    Pause(Named),
    /// Let a paused machine go on
    #[command(after_help = "\
Examples:
  nacelle resume ledger")]
    Resume(Named),
    /// Ask the guest to power off, kill it when it does not, and wait until it has ended
    #[command(after_help = "\
Examples:
  nacelle stop ledger
  nacelle stop ledger --grace-period 5    it has 5 seconds
  nacelle stop ledger --no-wait")]
    Stop {
        /// Which one.
        #[command(flatten)]
        machine: Named,
        /// Seconds that the guest has to power off [default: as in its manifest]
        #[arg(long, value_name = "SECONDS")]
        grace_period: Option<u32>,
        /// Do not wait for the end
        #[arg(long)]
        no_wait: bool,
    },
    /// End a machine at once, without asking its guest
    #[command(after_help = "\
Examples:
  nacelle kill ledger")]
    Kill(Named),
    /// Switch a machine off and on again, without asking its guest
    #[command(after_help = "\
Examples:
  nacelle reset ledger")]
    Reset(Named),
    /// Ask a machine's guest to power off, and switch it on again
    #[command(after_help = "\
Examples:
  nacelle reboot ledger")]
    Reboot(Named),
    /// Have a machine's guest begin anew: by its agent, or where it has none as reboot does
    #[command(after_help = "\
Examples:
  nacelle soft-reboot ledger")]
    SoftReboot(Named),
    /// Have the guest's agent write all that is to be written and freeze the guest's file systems, for a copy of its disks
    #[command(after_help = "\
Examples:
  nacelle freeze ledger && cp ledger.img copy.img && nacelle unfreeze ledger
  nacelle freeze ledger --unfreeze-timeout 30s    they are thawed after 30 seconds if nobody does it
  nacelle freeze ledger --unfreeze-timeout 0s     they stay frozen until somebody thaws them")]
    Freeze {
        /// Which one.
        #[command(flatten)]
        machine: Named,
        /// When they are thawed at the latest
        #[arg(long, value_name = "TIME", default_value = "5m")]
        unfreeze_timeout: String,
    },
    /// Have the guest's agent thaw its file systems
    #[command(after_help = "\
Examples:
  nacelle unfreeze ledger")]
    Unfreeze(Named),
    /// Show a machine's counters
    #[command(after_help = "\
Examples:
  nacelle stats ledger
  nacelle stats ledger --output json | jq .resident")]
    Stats {
        /// Which one.
        #[command(flatten)]
        machine: Named,
        /// How it is shown.
        #[command(flatten)]
        show: Show,
    },
    /// Ask the guest to leave memory to the host, or to take it back
    #[command(after_help = "\
Examples:
  nacelle balloon ledger 256Mi    the guest goes on with 256 MiB less
  nacelle balloon ledger 0        it has all of its memory again")]
    Balloon {
        /// Which one.
        #[command(flatten)]
        machine: Named,
        /// How much, as Kubernetes writes it: 256Mi, 1Gi, 500M
        #[arg(value_name = "SIZE", value_parser = size)]
        size: u64,
    },
    /// Plug a disk into a running machine
    #[command(after_help = "\
Examples:
  nacelle attach ledger data /srv/data.img
  nacelle attach ledger data /dev/vg0/data --serial D1 --cache none
      the guest finds it by its serial number, in /dev/disk/by-id
A disk that is attached is not in the manifest: while it is there the machine is not moved, saved or upgraded.")]
    Attach {
        /// Which one.
        #[command(flatten)]
        machine: Named,
        /// The disk.
        #[command(flatten)]
        disk: plug::DiskArgs,
    },
    /// Have the guest let go of a disk that was attached, and wait until it has
    #[command(after_help = "\
Examples:
  nacelle detach ledger data
  nacelle detach ledger data --no-wait
A guest may take its time, or never do it. A reset takes the disk, too.")]
    Detach {
        /// Which one.
        #[command(flatten)]
        machine: Named,
        /// The disk, as nacelle status names it
        #[arg(value_name = "DISK")]
        disk: String,
        /// Do not wait until it has left
        #[arg(long)]
        no_wait: bool,
    },
    /// Move a running machine to another nacelle, which waits for it with nacelle receive
    #[command(after_help = "\
Examples:
  nacelle migrate ledger --to unix:/run/nacelle/in
  nacelle migrate ledger --to host2.example:4000 --bandwidth 100Mi --downtime 20ms
  nacelle migrate ledger --to host2.example:4000 --timeout 2min --on-timeout finish
It returns when the guest runs there; on any failure it goes on here. Ctrl-C leaves the migration alone:
nacelle migrate-cancel stops it.")]
    Migrate {
        /// Which one.
        #[command(flatten)]
        machine: Named,
        /// Where to: HOST:PORT, by TLS, or unix:PATH
        #[arg(long, value_name = "ADDRESS")]
        to: Address,
        /// Certificates.
        #[command(flatten)]
        tls: TlsArgs,
        /// How.
        #[command(flatten)]
        wanted: Wanted,
        /// How progress is shown.
        #[command(flatten)]
        show: Show,
    },
    /// Stop moving a machine; it goes on here
    #[command(after_help = "\
Examples:
  nacelle migrate-cancel ledger")]
    MigrateCancel(Named),
    /// Write a snapshot of a running machine, to go on from with nacelle restore; its disks are not part of it
    #[command(after_help = "\
Examples:
  nacelle snapshot ledger /srv/snapshots/ledger --then stop
      to go on later: the disks stay as the snapshot knows them
  nacelle snapshot ledger /srv/snapshots/1 --track && nacelle snapshot ledger /srv/snapshots/2 --incremental
      the second one holds only what was written since the first, and needs it")]
    Snapshot {
        /// Which one.
        #[command(flatten)]
        machine: Named,
        /// Directory for it, which must not be there or be empty
        #[arg(value_name = "DIR")]
        directory: PathBuf,
        /// Only what was written since the last snapshot, which must have been made with --track
        #[arg(long)]
        incremental: bool,
        /// Keep account of what is written from now on, for --incremental
        #[arg(long)]
        track: bool,
        /// What follows
        #[arg(long, value_enum, default_value_t, value_name = "WHAT")]
        then: Then,
        /// How it is shown.
        #[command(flatten)]
        show: Show,
    },
    /// Have another program run a machine, which goes on in it: the guest stands still for some milliseconds
    #[command(after_help = "\
Examples:
  nacelle upgrade ledger --binary /usr/bin/nacelle
      the new version, installed over the one that the machine was started with
When the new program fails, the machine goes on in the old one. A machine of nacelle run --shared-memory is passed
on with its memory; the memory of others is copied, and the host has it twice meanwhile.")]
    Upgrade {
        /// Which one.
        #[command(flatten)]
        machine: Named,
        /// The program
        #[arg(long, value_name = "PATH")]
        binary: PathBuf,
        /// How the end is shown.
        #[command(flatten)]
        show: Show,
    },
    /// Go on here with a machine that was handed over and does not run there
    #[command(after_help = "\
Examples:
  nacelle status ledger             HandedOver: the other side has not confirmed that it runs
  nacelle migrate-recover ledger    it was looked there, and it does not")]
    MigrateRecover(Named),
}

/// Which machine.
#[derive(Args, Clone, Debug)]
pub struct Named {
    /// The machine, as nacelle ls names it
    #[arg(value_name = "NAME")]
    pub name: String,
}

/// How something is shown.
#[derive(Args, Clone, Copy, Debug)]
pub struct Show {
    /// How to show it
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
}

/// `--output`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    #[default]
    Table,
    /// For programs, as the machine's socket says it
    Json,
}

fn size(text: &str) -> Result<u64, String> {
    quantity::whole(&Quantity(text.into())).map_err(|error| error.to_string())
}

impl Command {
    /// Does it, with the machines of this user, and writes what there is to show to `out`.
    ///
    /// # Errors
    /// When the machine does not run, or refuses.
    pub fn run(self, out: &mut dyn Write) -> Result<()> {
        runtime()?.block_on(self.act(&socket::directory(), out))
    }

    /// Does it with the machines whose sockets are in `directory`.
    pub(crate) async fn act(self, directory: &Path, out: &mut dyn Write) -> Result<()> {
        let client = |machine: &Named| Client::new(directory, &machine.name);
        let text = match self {
            Command::Ls(show) => list(directory, show.output).await?,
            Command::Status { machine, show } => {
                let client = client(&machine)?;
                let machine: Machine = client.get("/v1/machine").await?;
                match show.output {
                    Format::Json => json(&machine)?,
                    Format::Table => {
                        // The program of an older machine does not know of agents.
                        let said: Said = client.get("/v1/machine/agent").await.unwrap_or_default();
                        show::machine(&machine, &said)
                    }
                }
            }
            Command::SoftReboot(machine) => {
                let machine: Machine = client(&machine)?
                    .long("/v1/machine/softreboot", None::<&()>)
                    .await?;
                show::state(&machine)
            }
            Command::Freeze {
                machine,
                unfreeze_timeout,
            } => {
                let body = Freeze {
                    unfreeze_timeout: Some(unfreeze_timeout),
                };
                let machine: Machine = client(&machine)?
                    .long("/v1/machine/agent/freeze", Some(&body))
                    .await?;
                format!("{}: its file systems are frozen\n", machine.name)
            }
            Command::Unfreeze(machine) => {
                let machine: Machine = client(&machine)?
                    .long("/v1/machine/agent/unfreeze", None::<&()>)
                    .await?;
                format!("{}: its file systems take writes\n", machine.name)
            }
            Command::Stats { machine, show } => {
                let stats: Stats = client(&machine)?.get("/v1/machine/stats").await?;
                match show.output {
                    Format::Json => json(&stats)?,
                    Format::Table => show::stats(&stats),
                }
            }
            Command::Pause(machine) => put(&client(&machine)?, "pause").await?,
            Command::Resume(machine) => put(&client(&machine)?, "resume").await?,
            Command::Reset(machine) => put(&client(&machine)?, "reset").await?,
            Command::Reboot(machine) => put(&client(&machine)?, "reboot").await?,
            Command::Kill(machine) => put(&client(&machine)?, "kill").await?,
            Command::MigrateCancel(machine) => put(&client(&machine)?, "migrate-cancel").await?,
            Command::MigrateRecover(machine) => put(&client(&machine)?, "migrate-recover").await?,
            Command::Snapshot {
                machine,
                directory,
                incremental,
                track,
                then,
                show,
            } => {
                let directory = std::path::absolute(&directory).map_err(Error::file("find", directory))?;
                let asked = Snapshot {
                    directory,
                    incremental,
                    track,
                    then,
                };
                let saved: Saved = client(&machine)?
                    .long("/v1/machine/snapshot", Some(&asked))
                    .await?;
                match show.output {
                    Format::Json => json(&saved)?,
                    Format::Table => show::saved(&machine.name, &asked.directory, &saved),
                }
            }
            Command::Attach { machine, disk } => {
                let machine: Machine = client(&machine)?
                    .long("/v1/machine/attach", Some(&disk.asked()?))
                    .await?;
                format!("{}: disk {} is attached\n", machine.name, disk.disk)
            }
            Command::Detach {
                machine,
                disk,
                no_wait,
            } => plug::detach(&client(&machine)?, disk, no_wait).await?,
            Command::Migrate {
                machine,
                to,
                tls,
                wanted,
                show,
            } => {
                let files = match to {
                    Address::Unix(_) => None,
                    Address::Tcp { .. } => Some(tls.files()?),
                };
                let asked = Migrate::new(&to, files.as_ref(), &wanted);
                migrate::run(&client(&machine)?, &machine.name, &asked, show.output).await?
            }
            Command::Upgrade {
                machine,
                binary,
                show,
            } => {
                let binary = std::path::absolute(&binary).map_err(Error::file("find", binary))?;
                let asked = Upgrade { binary };
                let moved: Migrated = client(&machine)?
                    .long("/v1/machine/upgrade", Some(&asked))
                    .await?;
                match show.output {
                    Format::Json => json(&moved)?,
                    Format::Table => {
                        migrate::words(&machine.name, &asked.binary.display().to_string(), &moved)
                    }
                }
            }
            Command::Stop {
                machine,
                grace_period: grace_period_seconds,
                no_wait,
            } => {
                let client = client(&machine)?;
                let body = Stop { grace_period_seconds };
                let machine: Machine = client.put_body("/v1/machine/stop", &body).await?;
                if !no_wait {
                    client.ended().await;
                }
                match no_wait {
                    true => show::state(&machine),
                    false => format!("{} has ended\n", machine.name),
                }
            }
            Command::Balloon { machine, size: bytes } => {
                let client = client(&machine)?;
                let _: Machine = client.put_body("/v1/machine/balloon", &Balloon { bytes }).await?;
                String::new()
            }
        };
        out.write_all(text.as_bytes()).map_err(Error::io("print"))
    }
}

fn runtime() -> Result<Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::io("start the event loop"))
}

async fn put(client: &Client, action: &str) -> Result<String> {
    let machine: Machine = client.put(&format!("/v1/machine/{action}")).await?;
    Ok(show::state(&machine))
}

async fn list(directory: &Path, format: Format) -> Result<String> {
    let mut machines = Vec::new();
    for name in socket::names(directory)? {
        let client = Client::new(directory, &name)?;
        let asked: Result<Machine> = match timeout(LIST, client.get("/v1/machine")).await {
            Ok(asked) => asked,
            Err(_) => {
                log::warn!("machine {name} does not answer");
                continue;
            }
        };
        match asked {
            Ok(machine) => machines.push(machine),
            // It ended meanwhile.
            Err(Error::NotRunning { .. }) => {}
            Err(error) => log::warn!("{error}"),
        }
    }
    match format {
        Format::Json => json(&machines),
        Format::Table => Ok(show::machines(&machines)),
    }
}

fn json(value: &impl Serialize) -> Result<String> {
    let text = serde_json::to_string_pretty(value);
    text.map(|text| text + "\n")
        .map_err(|error| Error::io("print")(error.into()))
}

#[cfg(test)]
mod tests;
