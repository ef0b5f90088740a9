//! What guests of this host can be shown of its processor, and what one is shown, by the names of manifests and of nodes'
//! labels.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use nacelle_api::cpu::{Host, Processor, models_in};
use nacelle_vmm::hypervisor::Hypervisor;
use nacelle_vmm::hypervisor::kvm::KvmHypervisor;
use nacelle_vmm::vcpu::cpuid::vendor;
use nacelle_vmm::vcpu::profile::Profile;

use crate::convert::cpu::in_manifest;
use crate::{Error, Result};

/// This host's processor, as KVM supports it.
///
/// # Errors
/// When KVM does not say.
pub fn host() -> Result<Host> {
    let leaves = KvmHypervisor::open(Path::new("/dev/kvm")).and_then(|kvm| kvm.supported_cpuid());
    let leaves = leaves.map_err(|source| Error::Processor { source })?;
    Ok(Host {
        vendor: maker(),
        features: named(&Profile::of(leaves.as_slice())),
    })
}

/// What a guest with this profile is shown.
pub fn shown(profile: &Profile) -> Option<Processor> {
    Processor::of(&maker(), &named(profile), |_| true)
}

fn maker() -> String {
    vendor().unwrap_or_default().to_owned()
}

fn named(profile: &Profile) -> BTreeSet<String> {
    profile
        .names()
        .filter_map(in_manifest)
        .map(str::to_owned)
        .collect()
}

/// The same for people.
pub fn text(host: &Host) -> String {
    let list = |names: Vec<&str>| names.join(" ");
    let model = Processor::of(&host.vendor, &host.features, |_| true);
    let model = model.map_or_else(String::new, |processor| {
        let beyond = processor.features.iter().map(|name| format!(" +{name}"));
        format!("{}{}", processor.model, beyond.collect::<String>())
    });
    format!(
        "vendor: {}\nhost-model: {model}\nmodels: {}\nfeatures: {}\n",
        host.vendor,
        list(models_in(&host.features).collect()),
        list(host.features.iter().map(String::as_str).collect())
    )
}

/// Writes it where the controller reads it.
///
/// # Errors
/// When KVM does not say, or the file cannot be written.
pub fn report(file: &Path) -> Result<()> {
    let json = serde_json::to_vec(&host()?).unwrap_or_default();
    fs::write(file, json).map_err(Error::io("write what the processor has"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_read_which_models_a_host_has() {
        let mut features: BTreeSet<String> = nacelle_api::cpu::model("x86-64-v2")
            .into_iter()
            .flatten()
            .map(str::to_owned)
            .collect();
        features.insert("aes".to_owned());
        let host = Host {
            vendor: "AMD".to_owned(),
            features,
        };
        let text = text(&host);
        assert!(
            text.starts_with(
                "vendor: AMD\nhost-model: x86-64-v2 +aes\nmodels: x86-64-v1 x86-64-v2 Nehalem\n"
            ),
            "{text}"
        );
        assert!(text.contains(" sse4.2 "), "{text}");
    }

    #[test]
    fn what_a_guest_is_shown_is_told_by_the_names_of_manifests() {
        let names = nacelle_api::cpu::model("x86-64-v1").into_iter().flatten();
        let profile: Profile = names.chain(["sse4_1", "7.1.eax.26"]).collect();
        let shown = shown(&profile).unwrap();
        assert_eq!(shown.model, "x86-64-v1");
        assert_eq!(shown.features.iter().collect::<Vec<_>>(), ["sse4.1"]);
    }
}
