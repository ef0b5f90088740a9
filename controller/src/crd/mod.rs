//! The CustomResourceDefinitions, from one table of kinds (`kinds`) and the schemas of `nacelle-api` (`schema`).

mod cdi;
mod kinds;
mod schema;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceColumnDefinition, CustomResourceDefinition, CustomResourceDefinitionNames,
    CustomResourceDefinitionSpec, CustomResourceDefinitionVersion, CustomResourceSubresourceScale,
    CustomResourceSubresourceStatus, CustomResourceSubresources, CustomResourceValidation, JSONSchemaProps,
};
use kube::api::{ApiResource, ObjectMeta};
use kube::core::GroupVersionKind;
use serde_json::json;

pub use cdi::{CDI, SERVED_BY};
pub use kinds::{KINDS, Kind, Scope, Served};

/// All of them, in the order of [`KINDS`].
///
/// # Errors
/// A schema that the API server would not take: a defect of ours, which a test finds.
pub fn all() -> Result<Vec<CustomResourceDefinition>, serde_json::Error> {
    KINDS.iter().map(definition).collect()
}

/// CDI's kinds that are served where CDI is not installed, marked as ours.
///
/// # Errors
/// As of [`all`].
pub fn cdi() -> Result<Vec<CustomResourceDefinition>, serde_json::Error> {
    let ours = |kind| {
        let mut crd = definition(kind)?;
        let (key, value) = SERVED_BY;
        crd.metadata.labels = Some([(key.to_owned(), value.to_owned())].into());
        Ok(crd)
    };
    CDI.iter().map(ours).collect()
}

impl Kind {
    /// How the API server is asked for objects that are not typed here.
    pub fn resource(&self) -> ApiResource {
        let gvk = GroupVersionKind::gvk(self.group, self.storage, self.name);
        ApiResource::from_gvk_with_plural(&gvk, self.plural)
    }
}

fn definition(kind: &Kind) -> Result<CustomResourceDefinition, serde_json::Error> {
    let schema: JSONSchemaProps = serde_json::from_value(schema::of(&kind.schema))?;
    let version = |version: &str| CustomResourceDefinitionVersion {
        name: version.to_owned(),
        served: true,
        storage: version == kind.storage,
        deprecated: kind.deprecated.contains(&version).then_some(true),
        deprecation_warning: kind.deprecated.contains(&version).then(|| {
            format!(
                "{}/{version} is now deprecated and will be removed in a future release.",
                kind.group
            )
        }),
        schema: Some(CustomResourceValidation {
            open_api_v3_schema: Some(schema.clone()),
        }),
        subresources: subresources(kind),
        additional_printer_columns: Some(kind.columns.iter().map(column).collect()),
        ..CustomResourceDefinitionVersion::default()
    };
    Ok(CustomResourceDefinition {
        metadata: ObjectMeta {
            name: Some(format!("{}.{}", kind.plural, kind.group)),
            ..ObjectMeta::default()
        },
        spec: CustomResourceDefinitionSpec {
            group: kind.group.to_owned(),
            scope: match kind.scope {
                Scope::Namespaced => "Namespaced",
                Scope::Cluster => "Cluster",
            }
            .to_owned(),
            names: CustomResourceDefinitionNames {
                kind: kind.name.to_owned(),
                list_kind: Some(format!("{}List", kind.name)),
                plural: kind.plural.to_owned(),
                singular: Some(kind.name.to_lowercase()),
                short_names: Some(kind.short.iter().map(ToString::to_string).collect()),
                categories: Some(vec!["all".to_owned()]),
            },
            versions: kind.versions.iter().map(|name| version(name)).collect(),
            ..CustomResourceDefinitionSpec::default()
        },
        status: None,
    })
}

fn subresources(kind: &Kind) -> Option<CustomResourceSubresources> {
    let status = kind.status.then(|| CustomResourceSubresourceStatus(json!({})));
    let scale = kind.scale.then(|| CustomResourceSubresourceScale {
        label_selector_path: Some(".status.labelSelector".to_owned()),
        spec_replicas_path: ".spec.replicas".to_owned(),
        status_replicas_path: ".status.replicas".to_owned(),
    });
    (kind.status || kind.scale).then_some(CustomResourceSubresources { scale, status })
}

fn column(column: &kinds::Column) -> CustomResourceColumnDefinition {
    CustomResourceColumnDefinition {
        name: column.name.to_owned(),
        json_path: column.path.to_owned(),
        type_: column.type_.to_owned(),
        priority: column.wide.then_some(1),
        ..CustomResourceColumnDefinition::default()
    }
}

#[cfg(test)]
mod tests;
