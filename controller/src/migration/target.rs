//! The target pod is made, or the quota says why not.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::PostParams;
use kube::{Api, Resource, ResourceExt};
use nacelle_api::{VirtualMachineInstance, conditions};
use serde_json::json;

use super::plan::World;
use super::report::{QUOTA, WAITING, patch};
use super::{source, stop};
use crate::context::Context;
use crate::error::{Error, Result, is};
use crate::vmi::build::{Installation, Target, target};
use crate::vmi::{dereference, validate};
use crate::{NODE_NAME, TARGET_NODE_NAME, processor};

/// How soon a quota is tried again.
const QUOTA_AGAIN: Duration = Duration::from_secs(10);

/// The instance as it was when its first pod was made: without the labels that say where it is.
fn as_made(vmi: &VirtualMachineInstance) -> VirtualMachineInstance {
    let mut made = vmi.clone();
    made.labels_mut()
        .retain(|label, _| label != NODE_NAME && label != TARGET_NODE_NAME);
    made
}

/// Makes the target pod.
pub(super) async fn create(
    world: &World<'_>,
    vmi: &VirtualMachineInstance,
    context: &Context,
) -> Result<Duration> {
    let migration = world.migration;
    let uid = migration.uid().unwrap_or_default();
    let prepared = source::prepare(context, vmi, &uid).await?;
    let found = dereference::References {
        claims: dereference::claims(vmi, context).await?,
        ..dereference::References::default()
    };
    let wanted = Target {
        migration: &migration.name_any(),
        uid: &uid,
        certificate: &prepared.certificate,
        processor: prepared.processor.as_ref(),
        added_node_selector: &migration.spec.added_node_selector,
    };
    let mut made = as_made(vmi);
    if let Some(processor) = &prepared.processor {
        processor::settle(made.spec.domain.cpu.get_or_insert_default(), processor);
    }
    let pod = validate::validate(&made, &found)
        .map_err(|invalid| invalid.message)
        .and_then(|valid| target(&valid, &Installation::of(context), &wanted));
    let pod = match pod {
        Ok(pod) => pod,
        Err(why) => return stop(world, vmi, &why, context).await,
    };
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), &vmi.namespace().unwrap_or_default());
    match pods.create(&PostParams::default(), &pod).await {
        Ok(pod) => {
            let message = format!("Created migration target pod {}", pod.name_any());
            context
                .event(&migration.object_ref(&()), false, "SuccessfulCreate", &message)
                .await;
            Ok(Duration::ZERO)
        }
        Err(error) if is(&error, 409) => Ok(Duration::ZERO),
        Err(kube::Error::Api(said)) if said.code == 403 && said.message.contains("exceeded quota") => {
            quota(world, &said.message, context).await?;
            Ok(QUOTA_AGAIN)
        }
        Err(kube::Error::Api(said)) if (400..500).contains(&said.code) && said.code != 429 => {
            stop(
                world,
                vmi,
                &format!("failed to create the target pod: {}", said.message),
                context,
            )
            .await
        }
        Err(error) => Err(Error::Api {
            doing: "creating the target pod",
            source: Box::new(error),
        }),
    }
}

/// Says that the quota has no room; it is tried again.
async fn quota(world: &World<'_>, message: &str, context: &Context) -> Result<()> {
    let mut status = world.migration.status.clone().unwrap_or_default();
    let before = status.conditions.clone();
    conditions::set(
        &mut status.conditions,
        QUOTA,
        true,
        "RejectedByQuota",
        message,
        world.now,
    );
    conditions::set(&mut status.conditions, WAITING, true, "Quota", message, world.now);
    if status.conditions == before {
        return Ok(());
    }
    context
        .event(&world.migration.object_ref(&()), true, "FailedCreate", message)
        .await;
    patch(
        world.migration,
        json!({"conditions": status.conditions, "phase": "Pending"}),
        context,
    )
    .await
}
