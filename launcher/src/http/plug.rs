//! Disks that come to the machine and leave it.

use std::time::Duration;

use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use nacelle_api::disk::Disk;
use nacelle_api::volume::{PersistentVolumeClaimVolume, Volume};
use nacelle_api::{FieldPath, support_disk, validate_disk};
use serde::Deserialize;
use serde_json::Value;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use super::api::{Attach, Code, Detach, Failure};
use super::route::{Context, Reply, body};
use crate::exit::Chain;
use crate::storage::plug::{From, plug};
use crate::{convert, node};

/// How long who has a volume may take to say so to the node agent, and how often it is looked.
const OFFER: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(20);

impl Context {
    /// Plugs a disk in; answered when the guest has been told.
    pub(super) async fn attach(&self, request: &mut Request<Incoming>) -> Result<Reply, Failure> {
        let example = r#"send {"disk": {"name": "data"}, "file": "/srv/data.img"}"#;
        let asked: Attach = body(request)
            .await?
            .ok_or_else(|| invalid("the body is empty", example))?;
        let disk = disk(&asked.disk)?;
        let there = self.machine.driver.status().plugged;
        if there
            .iter()
            .any(|there| there.name == disk.name && !there.leaving)
        {
            return Ok(self.status(StatusCode::OK));
        }
        let from = match (asked.file, asked.handover, &self.machine.volumes) {
            (Some(file), None, _) if file.is_absolute() => From::Path(file, asked.format),
            (Some(file), None, _) => {
                let message = format!("{} is not an absolute path", file.display());
                return Err(invalid(message, "begin it with /"));
            }
            (None, Some(word), Some(agent)) => {
                let until = Instant::now() + OFFER;
                loop {
                    let (agent, word) = (agent.clone(), word.clone());
                    let got = spawn_blocking(move || node::volumes::want(&agent, &word)).await;
                    match got
                        .map_err(|error| failed(&error))?
                        .map_err(|error| failed(&error))?
                    {
                        Some(Ok(file)) => break From::Opened(file),
                        Some(Err(reason)) => return Err(failed(&std::io::Error::other(reason))),
                        None if Instant::now() < until => sleep(LOOK).await,
                        None => {
                            return Err(failed(&std::io::Error::other(
                                "nobody offers this volume to the node agent",
                            )));
                        }
                    }
                }
            }
            (None, Some(_), None) => {
                return Err(invalid("only in a pod a volume is handed over", example));
            }
            _ => {
                return Err(invalid(
                    "either file or handover says what is behind the disk",
                    example,
                ));
            }
        };
        let disk = convert::of_claim(&disk);
        let plugged = spawn_blocking(move || plug(&disk, from)).await;
        let plugged = plugged.map_err(|error| failed(&error))?;
        let plugged = plugged.map_err(|error| invalid(Chain(&error).to_string(), "see that it is there"))?;
        self.machine.driver.attach(plugged).await?;
        Ok(self.status(StatusCode::OK))
    }

    /// Asks the guest to let go of a disk; answered when it has been asked.
    pub(super) async fn detach(&self, request: &mut Request<Incoming>) -> Result<Reply, Failure> {
        let needed = || invalid("the body is empty", r#"send {"disk": "data"}"#);
        let asked: Detach = body(request).await?.ok_or_else(needed)?;
        self.machine.driver.detach(asked.disk).await?;
        Ok(self.status(StatusCode::ACCEPTED))
    }
}

/// The disk that is asked for, held against the rules for all disks.
fn disk(given: &Value) -> Result<Disk, Failure> {
    let hint = "write it as a disk of domain.devices.disks";
    let disk = Disk::deserialize(given).map_err(|error| invalid(format!("disk: {error}"), hint))?;
    let known = serde_json::to_value(&disk).unwrap_or_default();
    if let Some(field) = unknown(given, &known) {
        return Err(invalid(format!("disk: there is no field {field}"), hint));
    }
    let claim = PersistentVolumeClaimVolume {
        claim_name: disk.name.clone(),
        ..PersistentVolumeClaimVolume::default()
    };
    let volume = Volume {
        name: disk.name.clone(),
        persistent_volume_claim: Some(claim),
        ..Volume::default()
    };
    let path = FieldPath::new("disk");
    let mut causes = validate_disk(&disk, &volume, &path);
    causes.extend(support_disk(&disk, &path).unsupported);
    if disk.name.is_empty() {
        return Err(invalid("disk: it has no name", hint));
    }
    match causes.first() {
        Some(cause) => Err(invalid(cause.message.clone(), hint)),
        None => Ok(disk),
    }
}

/// The first field of `given` that `known`, which was read from it, has not.
fn unknown(given: &Value, known: &Value) -> Option<String> {
    let fields = given.as_object()?.iter().filter(|(_, value)| !value.is_null());
    for (name, value) in fields {
        let Some(known) = known.get(name) else {
            return Some(name.clone());
        };
        if let Some(inner) = unknown(value, known) {
            return Some(format!("{name}.{inner}"));
        }
    }
    None
}

fn invalid(message: impl Into<String>, hint: &str) -> Failure {
    Failure::new(Code::Invalid, message, hint)
}

fn failed(error: &(dyn std::error::Error + 'static)) -> Failure {
    Failure {
        code: Code::Failed,
        message: Chain(error).to_string(),
        hint: None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_disk_that_is_attached_obeys_the_rules_of_all_disks() {
        let good = json!({"name": "data", "serial": "S1", "cache": "writeback", "disk": {"readonly": true}});
        assert_eq!(disk(&good).map(|disk| disk.name), Ok("data".into()));
        for (given, words) in [
            (json!({"name": "data", "cach": "none"}), "there is no field cach"),
            (
                json!({"name": "data", "disk": {"buss": "virtio"}}),
                "there is no field disk.buss",
            ),
            (json!({"serial": "S1"}), "missing field `name`"),
            (json!({"name": ""}), "it has no name"),
            (json!({"name": "data", "cache": "fast"}), "disk.cache"),
            (
                json!({"name": "data", "disk": {"bus": "sata"}}),
                "disk.disk.bus 'sata' is not supported",
            ),
            (json!({"name": "data", "lun": {}}), "disk.lun is not supported"),
        ] {
            let failure = disk(&given).unwrap_err();
            assert_eq!(failure.code, Code::Invalid);
            assert!(failure.message.contains(words), "{words}: {}", failure.message);
        }
    }
}
