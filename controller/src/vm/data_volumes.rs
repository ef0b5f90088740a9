//! The DataVolumes of a machine: made of its templates, and looked at before it starts.

use std::collections::BTreeSet;

use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Resource, ResourceExt};
use nacelle_api::VirtualMachine;
use nacelle_api::conditions;
use nacelle_api::datavolume::{DataVolume, DataVolumeTemplate};

use crate::context::Context;
use crate::error::{Doing, Result, is};

/// How the DataVolumes of a machine are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Volumes {
    /// One of them, that cannot be filled, and why.
    pub failed: Option<String>,
    /// One is being filled.
    pub filling: bool,
    /// One has a claim that waits for its volume.
    pub unbound: bool,
    /// Those that are not filled.
    pub unfilled: Vec<String>,
}

impl Volumes {
    /// Whether the machine may start. One that waits for its first consumer waits for just that.
    pub fn ready(&self) -> bool {
        self.failed.is_none() && !self.filling
    }

    /// What holds the machine up and what to do about it, if something does.
    pub fn hindrance(&self) -> Option<String> {
        if let Some(failed) = &self.failed {
            return Some(format!(
                "{failed}; kubectl describe dv says more, and it is tried again"
            ));
        }
        self.filling.then(|| {
            let names = self.unfilled.join(", ");
            format!("not filled yet: DataVolume {names}; kubectl get dv says how far they are")
        })
    }

    /// Adds one to the picture. Pure.
    fn see(&mut self, volume: &DataVolume) {
        let status = volume.status.clone().unwrap_or_default();
        let name = volume.name_any();
        match status.phase.as_deref() {
            Some("Succeeded") => return,
            Some("WaitForFirstConsumer" | "PendingPopulation") => {}
            Some("Failed") => {
                self.failed
                    .get_or_insert(format!("DataVolume {name} is in Failed phase"));
            }
            _ => self.filling = true,
        }
        self.unfilled.push(name.clone());
        if !conditions::is_true(&status.conditions, "Bound") {
            self.unbound = true;
        }
        let stopped = conditions::find(&status.conditions, "Running")
            .filter(|running| running.status == "False" && running.reason.as_deref() == Some("Error"));
        if let Some(stopped) = stopped {
            let why = stopped.message.clone().unwrap_or_default();
            self.failed.get_or_insert(format!(
                "DataVolume {name} importer has stopped running due to an error: {why}"
            ));
        }
    }
}

/// Makes what the templates say and is not there yet; how all of the machine's DataVolumes are.
///
/// # Errors
/// The API server cannot be asked, or refuses.
pub async fn ensure(vm: &VirtualMachine, context: &Context) -> Result<Volumes> {
    let mut found = Volumes::default();
    let templates = &vm.spec.data_volume_templates;
    let of_template = templates
        .iter()
        .filter_map(|template| template.metadata.name.as_deref());
    let volumes = vm.spec.template.spec.volumes.iter();
    let named = volumes.filter_map(|volume| Some(volume.data_volume.as_ref()?.name.as_str()));
    let names: BTreeSet<_> = of_template.chain(named).collect();
    if names.is_empty() {
        return Ok(found);
    }
    let api: Api<DataVolume> = Api::namespaced(context.client.clone(), &vm.namespace().unwrap_or_default());
    for name in names {
        // A cluster that serves no DataVolumes has none, which matters to templates alone.
        let there = api.get_opt(name).await.doing("reading a DataVolume")?;
        let template = templates
            .iter()
            .find(|template| template.metadata.name.as_deref() == Some(name));
        match (there, template) {
            (Some(there), _) => found.see(&there),
            (None, Some(template)) => {
                make(vm, template, &api, context).await?;
                found.filling = true;
                found.unbound = true;
                found.unfilled.push(name.to_owned());
            }
            // Its claim may be there alone.
            (None, None) => {}
        }
    }
    Ok(found)
}

async fn make(
    vm: &VirtualMachine,
    template: &DataVolumeTemplate,
    api: &Api<DataVolume>,
    context: &Context,
) -> Result<()> {
    let volume = volume(vm, template);
    let message = match api.create(&PostParams::default(), &volume).await {
        Ok(made) => format!("Created DataVolume {}", made.name_any()),
        Err(error) if is(&error, 409) => return Ok(()),
        Err(error) => return Err(error).doing("making a DataVolume of dataVolumeTemplates"),
    };
    context
        .event(&vm.object_ref(&()), false, "SuccessfulDataVolumeCreate", &message)
        .await;
    Ok(())
}

/// The DataVolume of a template; it goes with the machine. Pure.
fn volume(vm: &VirtualMachine, template: &DataVolumeTemplate) -> DataVolume {
    let mut labels = template.metadata.labels.clone().unwrap_or_default();
    labels.insert("kubevirt.io/created-by".to_owned(), vm.uid().unwrap_or_default());
    DataVolume {
        metadata: ObjectMeta {
            name: template.metadata.name.clone(),
            namespace: vm.namespace(),
            labels: Some(labels),
            annotations: template.metadata.annotations.clone(),
            owner_references: vm.controller_owner_ref(&()).map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;
    use nacelle_api::datavolume::DataVolumeStatus;

    use super::*;

    fn seen(phase: &str, conditions: &[(&str, bool, &str)]) -> Volumes {
        let mut status = DataVolumeStatus {
            phase: Some(phase.to_owned()),
            ..DataVolumeStatus::default()
        };
        for (type_, is, reason) in conditions {
            conditions::set(
                &mut status.conditions,
                type_,
                *is,
                reason,
                "why",
                Timestamp::UNIX_EPOCH,
            );
        }
        let mut volume = DataVolume::new("d", Default::default());
        volume.status = Some(status);
        let mut found = Volumes::default();
        found.see(&volume);
        found
    }

    #[test]
    fn a_machine_waits_until_its_disks_are_filled_or_wait_for_it() {
        let bound = ("Bound", true, "Bound");
        assert!(seen("Succeeded", &[bound]).ready());
        assert!(!seen("", &[]).ready());
        assert!(!seen("ImportInProgress", &[bound]).ready());
        let waits = seen("WaitForFirstConsumer", &[]);
        assert!(waits.ready() && waits.unbound);
        let failed = seen("ImportInProgress", &[bound, ("Running", false, "Error")]);
        let why = "DataVolume d importer has stopped running due to an error: why";
        assert_eq!(failed.failed.as_deref(), Some(why));
        assert!(!failed.ready() && !failed.unbound);
        assert!(!seen("Failed", &[]).ready());
        let hindrance = seen("ImportInProgress", &[bound]).hindrance();
        assert!(hindrance.is_some_and(|why| why.starts_with("not filled yet: DataVolume d; kubectl get dv")));
        assert_eq!(waits.hindrance(), None, "it is to be its first consumer");
    }
}
