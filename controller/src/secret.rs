//! What all replicas share in a Secret, and whichever comes first brings up to date: certificates, keys.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};

use crate::error::is;

/// What a Secret says, and how it is written when that is new.
pub struct Shared<T> {
    /// What it says.
    pub value: T,
    /// What is to be written, if something is.
    pub data: Option<BTreeMap<String, ByteString>>,
}

/// Reads the Secret `name`, writes what `look` says is new, and gives what is there then; `what` names it in errors.
///
/// # Errors
/// The API server cannot be asked, or refuses; or `look` fails.
pub async fn ensure<T>(
    client: &Client,
    namespace: &str,
    (name, what): (&str, &str),
    look: impl Fn(Option<&Secret>) -> Result<Shared<T>>,
) -> Result<T> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    loop {
        let secret = api.get_opt(name).await;
        let secret = secret.with_context(|| format!("reading {what}"))?;
        let shared = look(secret.as_ref())?;
        let Some(data) = shared.data else {
            return Ok(shared.value);
        };
        let named = || ObjectMeta {
            name: Some(name.to_owned()),
            ..ObjectMeta::default()
        };
        let object = Secret {
            metadata: secret
                .as_ref()
                .map_or_else(named, |secret| secret.metadata.clone()),
            data: Some(data),
            ..Secret::default()
        };
        let written = match secret {
            None => api.create(&PostParams::default(), &object).await,
            Some(_) => api.replace(name, &PostParams::default(), &object).await,
        };
        match written {
            Ok(_) => return Ok(shared.value),
            // Another replica was first.
            Err(error) if is(&error, 409) => {}
            Err(error) => return Err(error).with_context(|| format!("writing {what}")),
        }
    }
}
