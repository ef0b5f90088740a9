//! What only the running controller knows, told to whom it concerns: its authority to the API server (webhooks and
//! APIServices), address and authority to launchers.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::certificates::Material;
use crate::settings::Settings;

/// The webhook configurations, mutating and validating.
const WEBHOOKS: &str = "nacelle-controller";
/// The versions of the aggregated API.
const SERVICES: [&str; 2] = ["v1.subresources.kubevirt.io", "v1alpha3.subresources.kubevirt.io"];
/// The one that is CDI's where that is installed.
const UPLOADS: &str = "v1beta1.upload.cdi.kubevirt.io";

/// `report.json` of `docs/pod.md`.
///
/// # Errors
/// The controller's Service is not there.
pub async fn report(client: &Client, settings: &Settings, material: &Material) -> Result<Arc<str>> {
    let services: Api<Service> = Api::namespaced(client.clone(), &settings.namespace);
    let service = services
        .get(&settings.service)
        .await
        .context("reading the controller's Service")?;
    let address = service
        .spec
        .as_ref()
        .and_then(|spec| spec.cluster_ip.clone())
        .context("the Service has no address")?;
    let host = if address.contains(':') {
        format!("[{address}]")
    } else {
        address
    };
    let mut report = json!({
        "url": format!("https://{host}:443"),
        "serverName": settings.server_name(),
        "ca": material.authorities,
    });
    if let (Some(_), Some(fields)) = (&settings.otlp_endpoint, report.as_object_mut()) {
        fields.insert("start".to_owned(), true.into());
    }
    Ok(report.to_string().into())
}

/// Tells the API server whom to trust. What says so already is left alone.
///
/// # Errors
/// It cannot be told; what is not installed is not missed.
pub async fn trust(client: &Client, settings: &Settings, material: &Material) -> Result<()> {
    let bundle = STANDARD.encode(&material.authorities);
    let params = PatchParams::default();
    let services: Api<APIService> = Api::all(client.clone());
    let ours = |service: &APIService| {
        let to = service.spec.as_ref().and_then(|spec| spec.service.as_ref());
        to.is_some_and(|to| {
            to.name.as_ref() == Some(&settings.service) && to.namespace.as_ref() == Some(&settings.namespace)
        })
    };
    for name in SERVICES.into_iter().chain([UPLOADS]) {
        let found = services.get_opt(name).await?;
        let Some(service) = found.filter(|service| name != UPLOADS || ours(service)) else {
            if name != UPLOADS {
                log::warn!("APIService {name} is not installed");
            }
            continue;
        };
        let value = serde_json::to_value(&service)?;
        if value.pointer("/spec/caBundle").and_then(Value::as_str) != Some(&bundle) {
            let patch = Patch::Merge(json!({"spec": {"caBundle": bundle, "insecureSkipTLSVerify": false}}));
            services
                .patch(name, &params, &patch)
                .await
                .with_context(|| format!("APIService {name}"))?;
        }
    }
    let mutating: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    if let Some(patch) = mutating
        .get_opt(WEBHOOKS)
        .await?
        .and_then(|found| trusted(&found, &bundle))
    {
        mutating
            .patch(WEBHOOKS, &params, &Patch::<Value>::Json(patch))
            .await
            .context("mutating webhooks")?;
    }
    let validating: Api<ValidatingWebhookConfiguration> = Api::all(client.clone());
    if let Some(patch) = validating
        .get_opt(WEBHOOKS)
        .await?
        .and_then(|found| trusted(&found, &bundle))
    {
        validating
            .patch(WEBHOOKS, &params, &Patch::<Value>::Json(patch))
            .await
            .context("validating webhooks")?;
    }
    Ok(())
}

/// The change that gives every webhook of a configuration the bundle, if one lacks it.
fn trusted(configuration: &impl serde::Serialize, bundle: &str) -> Option<json_patch::Patch> {
    let old = serde_json::to_value(configuration).ok()?;
    let mut new = old.clone();
    for webhook in new.get_mut("webhooks")?.as_array_mut()? {
        let config = webhook.get_mut("clientConfig")?.as_object_mut()?;
        config.insert("caBundle".to_owned(), json!(bundle));
    }
    (old != new).then(|| json_patch::diff(&old, &new))
}
