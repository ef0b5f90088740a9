//! What is asked of the launcher that has the machine (`docs/pod.md`).

use kube::ResourceExt;
use nacelle_api::VirtualMachineInstance;
use nacelle_api::cpu::Processor;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::context::Context;
use crate::error::Error;
use crate::subresource::{Refusal, launcher};
use crate::vmi::moving::{Departure, Stage, in_charge};

/// What it says of a departure.
#[derive(Debug, Deserialize)]
pub struct Departing {
    #[serde(default)]
    departure: Option<Departure>,
}

impl Departing {
    /// How the departure of this migration stands, if the launcher knows of it.
    pub fn of(&self, migration: &str) -> Option<&Departure> {
        self.departure
            .as_ref()
            .filter(|departure| departure.migration == migration)
    }

    /// Whether the machine stands still for a migration of which nothing was heard.
    pub fn unconfirmed(&self, migration: &str) -> bool {
        self.of(migration)
            .is_some_and(|departure| departure.state == Stage::Unconfirmed)
    }
}

fn failed(doing: &'static str) -> impl Fn(Refusal) -> Error {
    move |refusal| Error::Launcher(doing, refusal.to_string())
}

/// What the source says of a machine that is to leave.
#[derive(Debug, Deserialize)]
pub struct Prepared {
    /// The certificate by which it will, in PEM.
    pub certificate: String,
    /// What the guest is shown of the processor; a launcher of before does not say.
    #[serde(default)]
    pub processor: Option<Processor>,
}

/// Has the source make ready.
///
/// # Errors
/// The launcher cannot be asked, or refuses.
pub async fn prepare(
    context: &Context,
    vmi: &VirtualMachineInstance,
    migration: &str,
) -> Result<Prepared, Error> {
    let body = json!({"migration": migration});
    let said = ask(context, vmi, "depart/prepare", Some(body)).await;
    let said = said.map_err(failed("asking the source for its certificate"))?;
    serde_json::from_value(said).map_err(|error| Error::Json("the source's certificate", error))
}

/// Has the machine leave.
///
/// # Errors
/// The launcher cannot be asked, or refuses.
pub async fn depart(context: &Context, vmi: &VirtualMachineInstance, body: Value) -> Result<(), Error> {
    let done = ask(context, vmi, "depart", Some(body)).await;
    done.map(drop).map_err(failed("asking the source to send"))
}

/// What became of it.
///
/// # Errors
/// The launcher cannot be asked.
pub async fn departure(context: &Context, vmi: &VirtualMachineInstance) -> Result<Departing, Error> {
    departure_of(context, vmi, &in_charge(vmi)).await
}

/// The same of a pod that may not be in charge any more.
///
/// # Errors
/// The launcher cannot be asked.
pub async fn departure_of(
    context: &Context,
    vmi: &VirtualMachineInstance,
    pod: &str,
) -> Result<Departing, Error> {
    let namespace = vmi.namespace().unwrap_or_default();
    let said = launcher::ask_pod(context, &namespace, pod, "departure", None).await;
    let said = said.map_err(failed("asking the source what it does"))?;
    serde_json::from_value(said).map_err(|error| Error::Json("what the source does", error))
}

async fn ask(
    context: &Context,
    vmi: &VirtualMachineInstance,
    what: &str,
    body: Option<Value>,
) -> Result<Value, Refusal> {
    launcher::ask_pod(
        context,
        &vmi.namespace().unwrap_or_default(),
        &in_charge(vmi),
        what,
        body,
    )
    .await
}

/// Asks for an end of it, which comes or not: what the source does then is asked next.
pub async fn cancel(context: &Context, vmi: &VirtualMachineInstance) {
    if let Err(refusal) = launcher::put(context, vmi, "migrate-cancel", None).await {
        log::debug!("the source does not cancel: {refusal}");
    }
}

/// Has the machine go on at the source, as the target never will.
///
/// # Errors
/// The launcher cannot be asked, or refuses.
pub async fn take_back(context: &Context, vmi: &VirtualMachineInstance) -> Result<(), Error> {
    let done = launcher::put(context, vmi, "migrate-recover", None).await;
    done.map_err(failed("taking the machine back"))
}
