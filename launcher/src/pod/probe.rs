//! `pod probe`: what the kubelet runs to ask the guest's agent how the guest is.

use clap::Args;

use crate::http::api::{Exec, Machine};
use crate::manage::client::Client;
use crate::net::pod::API_PORT;
use crate::{Result, Status};

/// What is asked.
#[derive(Clone, Debug, Args)]
pub struct Probe {
    /// Seconds that the command may take
    #[arg(long, value_name = "SECONDS", default_value_t = 1)]
    timeout: u32,
    /// Ask only whether the agent answers
    #[arg(long, conflicts_with = "command")]
    ping: bool,
    /// The command that shall run in the guest, and end with status 0
    #[arg(
        last = true,
        value_name = "COMMAND",
        required_unless_present = "ping",
        num_args = 1..
    )]
    command: Vec<String>,
}

/// Asks the machine of this pod.
pub(super) fn run(probe: &Probe) -> Result<Status> {
    let machine = Client::loopback(API_PORT);
    super::runtime()?.block_on(async {
        let _: Machine = match probe.ping {
            true => machine.put("/v1/machine/agent/ping").await?,
            false => {
                let asked = Exec {
                    command: probe.command.clone(),
                    timeout_seconds: probe.timeout,
                };
                machine.put_body("/v1/machine/agent/exec", &asked).await?
            }
        };
        Ok(Status::Done)
    })
}
