//! CDIConfig `config`, where tools look for the proxy of uploads.

use std::sync::Arc;

use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::controller::{Action as Requeue, Controller};
use kube::runtime::watcher::Config;
use kube::{Api, ResourceExt};
use nacelle_api::cdiconfig::{CDIConfig, CdiConfigSpec, CdiConfigStatus, FilesystemOverhead};
use serde_json::json;

use super::claim::OVERHEAD;
use crate::context::Context;
use crate::error::{Doing, Result, absent_is_done, is};
use crate::run::{Patience, drain, retry};

/// The one that counts.
const NAME: &str = "config";

/// Says what is so for as long as this replica leads.
pub async fn run(context: &Arc<Context>) {
    if let Err(error) = ensure(context).await {
        log::warn!("{error}");
    }
    let configs = Api::<CDIConfig>::all(context.client.clone());
    let configs = Controller::new(configs, Config::default())
        .trigger_backoff(Patience::new())
        .run(reconcile, |_, error, _| retry(error), context.clone());
    drain(configs).await;
}

/// Makes it where there is none.
async fn ensure(context: &Context) -> Result<()> {
    let api = Api::<CDIConfig>::all(context.client.clone());
    let config = CDIConfig::new(NAME, CdiConfigSpec::default());
    match api.create(&PostParams::default(), &config).await {
        Err(error) if !is(&error, 409) => Err(error).doing("making the CDIConfig"),
        _ => Ok(()),
    }
}

async fn reconcile(config: Arc<CDIConfig>, context: Arc<Context>) -> Result<Requeue> {
    let status = status(&config.spec);
    if config.name_any() == NAME && config.status.as_ref() != Some(&status) {
        let api = Api::<CDIConfig>::all(context.client.clone());
        // Fields that are not there are taken away.
        let patch = json!({"status": {"uploadProxyURL": status.upload_proxy_url,
            "filesystemOverhead": status.filesystem_overhead}});
        let done = api
            .patch_status(NAME, &PatchParams::default(), &Patch::Merge(patch))
            .await;
        absent_is_done(done).doing("reporting the CDIConfig's status")?;
    }
    Ok(Requeue::await_change())
}

fn status(spec: &CdiConfigSpec) -> CdiConfigStatus {
    let said = spec.upload_proxy_url_override.clone();
    CdiConfigStatus {
        upload_proxy_url: said.filter(|url| !url.is_empty()),
        filesystem_overhead: Some(FilesystemOverhead {
            global: Some(format!("0.{OVERHEAD:02}")),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_proxy_is_where_the_administrator_says() {
        for (said, told) in [
            (Some("a.example.org"), Some("a.example.org")),
            (Some(""), None),
            (None, None),
        ] {
            let status = status(&CdiConfigSpec {
                upload_proxy_url_override: said.map(str::to_owned),
            });
            assert_eq!(status.upload_proxy_url.as_deref(), told);
            assert_eq!(
                status.filesystem_overhead.unwrap().global.as_deref(),
                Some("0.06")
            );
        }
    }
}
