//! `explain`: a machine, its instance, the pod and the monitor in it, with what each waits for, since when, and what to do.
//!
//! `fetch` reads the cluster, [`findings::explain`] judges what it found (pure), `print` says it to people.

mod fetch;
mod findings;
mod print;

use std::collections::BTreeMap;
use std::io::{self, Write};

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use k8s_openapi::api::core::v1::{Event, PersistentVolumeClaim, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use nacelle_api::datavolume::DataVolume;
use nacelle_api::{VirtualMachine, VirtualMachineInstance, VirtualMachineInstanceMigration};
use serde::Serialize;

pub use findings::explain;

const EXAMPLES: &str = "\
Examples:
  nacelle explain web
      the machine of the namespace that kubectl uses
  nacelle explain shop/web --output json | jq -r '.chain[].findings[] | .reason'";

/// What `explain` is told.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// The machine; an instance that no machine made has its own name
    #[arg(value_name = "[NAMESPACE/]NAME")]
    pub machine: String,
    /// How it is shown
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

/// How an explanation is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// What there is of a machine in the cluster.
#[derive(Debug, Default)]
pub struct World {
    /// The machine.
    pub vm: Option<VirtualMachine>,
    /// Its instance.
    pub vmi: Option<VirtualMachineInstance>,
    /// The pod that the guest is in, or begins in.
    pub pod: Option<Pod>,
    /// What was said of the pod.
    pub events: Vec<Event>,
    /// The claims that its volumes name.
    pub claims: BTreeMap<String, Claim>,
    /// The DataVolumes of its volumes that are there.
    pub volumes: BTreeMap<String, DataVolume>,
    /// Migrations of the instance that are not over.
    pub migrations: Vec<VirtualMachineInstanceMigration>,
    /// What could not be looked at, and why.
    pub unseen: Vec<String>,
}

/// A claim, and what was said of it.
#[derive(Debug, Default)]
pub struct Claim {
    /// The claim, if it is there.
    pub claim: Option<PersistentVolumeClaim>,
    /// What was said of it.
    pub events: Vec<Event>,
}

/// A machine explained.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// `namespace/name`.
    pub machine: String,
    /// One word, as `kubectl get vm` has it.
    pub status: String,
    /// From what a person asked for to what runs.
    pub chain: Vec<Link>,
    /// What could not be looked at, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unseen: Vec<String>,
}

/// One of the chain.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Link {
    /// `VirtualMachine`, `VirtualMachineInstance`, `Pod` or `monitor`.
    pub kind: &'static str,
    /// Its name; the monitor is a container.
    pub name: String,
    /// How it is.
    pub state: String,
    /// Since when.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// What there is to say of it.
    pub findings: Vec<Finding>,
}

/// What there is to say of one of the chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub weight: Weight,
    /// One word.
    pub reason: String,
    /// What it waits for, or why it does not work.
    pub message: String,
    /// Since when.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// What a person can do; nothing where it goes on by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Weight {
    /// Good to know.
    Note,
    /// It goes on by itself.
    Waits,
    /// Somebody has to do something.
    Stuck,
}

/// Explains a machine on standard output.
///
/// # Errors
/// There is no such machine, or the cluster cannot be asked.
pub async fn run(arguments: &Arguments) -> Result<()> {
    let client = Client::try_default().await.context("no way to the API server")?;
    let (namespace, name) = match arguments.machine.split_once('/') {
        Some(parts) => parts,
        None => (client.default_namespace(), arguments.machine.as_str()),
    };
    let world = fetch::fetch(&client, namespace, name).await?;
    let explanation = explain(&world, namespace, name);
    let text = match arguments.output {
        Output::Text => print::text(&explanation, Timestamp::now()),
        Output::Json => format!("{}\n", serde_json::to_string_pretty(&explanation)?),
    };
    // A reader who has seen enough is no failure.
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context("printing"),
        _ => Ok(()),
    }
}
