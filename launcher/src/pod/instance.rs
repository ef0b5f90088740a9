//! The machine that the controller wants: `vmi.json`, a VirtualMachineInstance that has its defaults and was admitted.

use std::fs;
use std::path::Path;

use nacelle_api::vmi::VirtualMachineInstance;
use nacelle_api::{FieldPath, support};

use crate::convert::{self, NO_FREE_PAGE_REPORTING, Names, Plan};
use crate::logging;
use crate::{Error, Result};

/// Reads it and plans the machine.
pub(super) fn read(file: &Path) -> Result<Plan> {
    let text = fs::read_to_string(file).map_err(Error::file("read the instance", file))?;
    let wrong = |reason: String| Error::Document {
        path: file.to_owned(),
        reason,
    };
    let instance: VirtualMachineInstance =
        serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    let metadata = instance.metadata;
    let names = Names {
        name: metadata
            .name
            .ok_or_else(|| wrong("it has no metadata.name".into()))?,
        namespace: metadata
            .namespace
            .ok_or_else(|| wrong("it has no metadata.namespace".into()))?,
        uid: metadata.uid.unwrap_or_default(),
    };
    logging::instance(names.clone());
    let found = support(&instance.spec, &FieldPath::new("spec"));
    if !found.unsupported.is_empty() {
        return Err(Error::Refused {
            manifest: format!("{}/{}", names.namespace, names.name),
            causes: found.unsupported,
        });
    }
    let reporting = metadata
        .annotations
        .and_then(|annotations| annotations.get(NO_FREE_PAGE_REPORTING).cloned())
        .is_none_or(|value| value != "true");
    convert::plan(names, &instance.spec, None, reporting, 0)
}
