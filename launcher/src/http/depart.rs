//! A pod's machine that leaves for another pod: what is said of it, as JSON, part of `openapi.json` as [`super::api`] is, and
//! what is done.

use nacelle_api::cpu::Processor;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use serde::{Deserialize, Serialize};

use super::api::{Code, Failure, Migrate};
use super::route::{Context, Reply, body, json};
use crate::admit::State;
use crate::exit::Chain;
use crate::pod::departure::{Departure, Departures};
use crate::processor;

/// Asks for the certificate by which a pod's machine leaves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Prepare {
    /// The UID of the migration.
    pub migration: String,
}

/// That certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Prepared {
    /// In PEM; its key stays in the process.
    pub certificate: String,
    /// What the guest is shown of the processor, which the other node must have; absent where no model is as small.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processor: Option<Processor>,
}

/// Asks a pod's machine to leave for another pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Depart {
    /// The UID of the migration: one is begun once.
    pub migration: String,
    /// The certificate of that pod, in PEM.
    pub certificate: String,
    /// Where to, and what is wanted.
    pub migrate: Migrate,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Departing {
    /// What the machine is doing.
    pub state: State,
    /// The last departure that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub departure: Option<Departure>,
}

impl Context {
    /// Makes the key by which the machine leaves, and answers with its certificate.
    pub(super) async fn prepare(&self, request: &mut Request<Incoming>) -> Result<Reply, Failure> {
        let hint = r#"send {"migration": "UID"}"#;
        let asked: Option<Prepare> = body(request).await?;
        let asked = asked.ok_or_else(|| Failure::new(Code::Invalid, "the body is empty", hint))?;
        let pair = self.departures()?.prepare(&asked.migration);
        let pair = pair.map_err(|error| Failure::new(Code::Failed, Chain(&error).to_string(), hint))?;
        let certificate = pair.certificate().to_owned();
        let processor = processor::shown(&self.machine.driver.profile);
        Ok(json(
            StatusCode::OK,
            &Prepared {
                certificate,
                processor,
            },
        ))
    }

    /// Has the machine leave for another pod; answered at once.
    pub(super) async fn depart(&self, request: &mut Request<Incoming>) -> Result<Reply, Failure> {
        let hint = "openapi.json shows what it may be";
        let asked: Option<Depart> = body(request).await?;
        let asked = asked.ok_or_else(|| Failure::new(Code::Invalid, "the body is empty", hint))?;
        let begun = self.departures()?.begin(&self.machine.driver, &asked);
        begun.map_err(|reason| Failure::new(Code::Invalid, reason, hint))?;
        Ok(self.status(StatusCode::ACCEPTED))
    }

    pub(super) fn departure(&self) -> Result<Reply, Failure> {
        Ok(json(
            StatusCode::OK,
            &Departing {
                state: self.machine.driver.status().state,
                departure: self.departures()?.last(),
            },
        ))
    }

    fn departures(&self) -> Result<&Arc<Departures>, Failure> {
        let elsewhere = || Failure::new(Code::Invalid, "this machine is no pod's", "use nacelle migrate");
        self.machine.departures.as_ref().ok_or_else(elsewhere)
    }
}
