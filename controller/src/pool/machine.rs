//! The machines of a pool, made of its template. Pure.

use std::collections::BTreeMap;

use kube::api::ObjectMeta;
use kube::{Resource, ResourceExt};
use nacelle_api::firmware::Firmware;
use nacelle_api::volume::{CloudInit, Volume};
use nacelle_api::{VirtualMachine, VirtualMachinePool, VirtualMachineSpec};

/// Label of machines and instances: the revision of the pool that they are made of.
pub const REVISION: &str = "kubevirt.io/vm-pool-revision-name";

/// Name of the machine with a number.
pub fn name(pool: &VirtualMachinePool, index: u32) -> String {
    format!("{}-{index}", pool.name_any())
}

/// The number of a machine: what its name ends in.
pub fn index(vm: &VirtualMachine) -> Option<u32> {
    vm.metadata.name.as_ref()?.rsplit('-').next()?.parse().ok()
}

/// A new machine.
pub fn machine(pool: &VirtualMachinePool, index: u32, revision: &str) -> VirtualMachine {
    let template = pool.spec.virtual_machine_template.metadata.clone();
    let template = template.unwrap_or_default();
    let mut labels = template.labels.unwrap_or_default();
    labels.insert(REVISION.to_owned(), revision.to_owned());
    let mut spec = spec(pool, index);
    let metadata = spec.template.metadata.get_or_insert_default();
    let of_instances = metadata.labels.get_or_insert_default();
    of_instances.insert(REVISION.to_owned(), revision.to_owned());
    VirtualMachine {
        metadata: ObjectMeta {
            name: Some(name(pool, index)),
            namespace: pool.namespace(),
            labels: Some(labels),
            annotations: template.annotations,
            owner_references: pool.controller_owner_ref(&()).map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        spec,
        status: None,
    }
}

/// A machine as it is, with the template of now. It stays who it is for its guest.
pub fn updated(vm: &VirtualMachine, pool: &VirtualMachinePool, index: u32, revision: &str) -> VirtualMachine {
    let new = machine(pool, index, revision);
    let mut out = vm.clone();
    out.metadata.labels = new.metadata.labels;
    out.metadata.annotations = new.metadata.annotations;
    out.spec = new.spec;
    if let Some(Firmware { uuid, serial, .. }) = &vm.spec.template.spec.domain.firmware {
        let firmware = out
            .spec
            .template
            .spec
            .domain
            .firmware
            .get_or_insert_with(Firmware::default);
        firmware.uuid = uuid.clone().or(firmware.uuid.take());
        firmware.serial = serial.clone().or(firmware.serial.take());
    }
    out
}

/// The template with the number in the names of what each machine has for itself.
fn spec(pool: &VirtualMachinePool, index: u32) -> VirtualMachineSpec {
    let mut spec = pool.spec.virtual_machine_template.spec.clone();
    let numbered = |name: &str| format!("{name}-{index}");
    let mut volumes_of_its_own = BTreeMap::new();
    for template in &mut spec.data_volume_templates {
        if let Some(name) = &mut template.metadata.name {
            let new = numbered(name);
            volumes_of_its_own.insert(std::mem::replace(name, new.clone()), new);
        }
    }
    let generation = pool.spec.name_generation.clone().unwrap_or_default();
    let config_maps = generation.append_index_to_config_map_refs == Some(true);
    let secrets = generation.append_index_to_secret_refs == Some(true);
    for volume in &mut spec.template.spec.volumes {
        let Volume {
            persistent_volume_claim,
            data_volume,
            config_map,
            secret,
            cloud_init_no_cloud,
            cloud_init_config_drive,
            sysprep,
            ..
        } = volume;
        let claim = persistent_volume_claim
            .as_mut()
            .map(|claim| &mut claim.claim_name);
        let data_volume = data_volume.as_mut().map(|volume| &mut volume.name);
        for name in claim.into_iter().chain(data_volume) {
            if let Some(new) = volumes_of_its_own.get(name.as_str()) {
                name.clone_from(new);
            }
        }
        let mut names: Vec<&mut String> = Vec::new();
        let (answers, secret_answers) = match sysprep {
            Some(sysprep) => (sysprep.config_map.as_mut(), sysprep.secret.as_mut()),
            None => (None, None),
        };
        if config_maps {
            names.extend(config_map.as_mut().and_then(|map| map.name.as_mut()));
            names.extend(answers.map(|reference| &mut reference.name));
        }
        if secrets {
            names.extend(secret.as_mut().and_then(|secret| secret.secret_name.as_mut()));
            names.extend(secret_answers.map(|reference| &mut reference.name));
            let seeds = cloud_init_no_cloud.iter_mut().chain(cloud_init_config_drive);
            for CloudInit {
                secret_ref,
                network_data_secret_ref,
                ..
            } in seeds
            {
                let references = secret_ref.iter_mut().chain(network_data_secret_ref);
                names.extend(references.map(|reference| &mut reference.name));
            }
        }
        for name in names {
            *name = numbered(name);
        }
    }
    spec
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(yaml: &str) -> VirtualMachinePool {
        let mut pool = VirtualMachinePool::new("web", serde_saphyr::from_str(yaml).unwrap());
        pool.metadata.uid = Some("u".into());
        pool.metadata.namespace = Some("n".into());
        pool
    }

    const POOL: &str = "
selector: {matchLabels: {app: web}}
nameGeneration: {appendIndexToSecretRefs: true}
virtualMachineTemplate:
  metadata: {labels: {app: web}, annotations: {why: not}}
  spec:
    runStrategy: Always
    dataVolumeTemplates: [{metadata: {name: root}, spec: {}}]
    template:
      spec:
        domain: {devices: {}}
        volumes:
        - {name: root, dataVolume: {name: root}}
        - {name: shared, persistentVolumeClaim: {claimName: data}}
        - {name: seed, cloudInitNoCloud: {secretRef: {name: seed}}}
        - {name: keys, secret: {secretName: keys}}
        - {name: settings, configMap: {name: settings}}
";

    #[test]
    fn each_machine_has_its_number_in_its_name_and_in_the_names_of_what_is_its_own() {
        let pool = pool(POOL);
        let vm = machine(&pool, 4, "web-7");
        assert_eq!((vm.name_any().as_str(), index(&vm)), ("web-4", Some(4)));
        assert_eq!(vm.labels()[REVISION], "web-7");
        assert_eq!(vm.labels()["app"], "web");
        assert_eq!(vm.annotations()["why"], "not");
        let owner = &vm.owner_references()[0];
        assert_eq!(
            (owner.api_version.as_str(), owner.kind.as_str()),
            ("pool.kubevirt.io/v1beta1", "VirtualMachinePool")
        );
        let instance = vm.spec.template.metadata.as_ref().unwrap();
        assert_eq!(instance.labels.as_ref().unwrap()[REVISION], "web-7");
        let made = serde_json::to_value(&vm.spec).unwrap();
        assert_eq!(made["dataVolumeTemplates"][0]["metadata"]["name"], "root-4");
        let volumes = &made["template"]["spec"]["volumes"];
        assert_eq!(volumes[0]["dataVolume"]["name"], "root-4");
        assert_eq!(volumes[1]["persistentVolumeClaim"]["claimName"], "data");
        assert_eq!(volumes[2]["cloudInitNoCloud"]["secretRef"]["name"], "seed-4");
        assert_eq!(volumes[3]["secret"]["secretName"], "keys-4");
        assert_eq!(
            volumes[4]["configMap"]["name"], "settings",
            "not asked to be numbered"
        );
    }

    #[test]
    fn a_machine_that_is_updated_stays_who_it_is_for_its_guest() {
        let pool = pool(POOL);
        let mut vm = machine(&pool, 0, "web-1");
        vm.metadata.resource_version = Some("9".into());
        let firmware = vm.spec.template.spec.domain.firmware.get_or_insert_default();
        firmware.uuid = Some("own".into());
        let new = updated(&vm, &pool, 0, "web-2");
        assert_eq!(new.labels()[REVISION], "web-2");
        assert_eq!(new.metadata.resource_version.as_deref(), Some("9"));
        let firmware = new.spec.template.spec.domain.firmware.as_ref().unwrap();
        assert_eq!(firmware.uuid.as_deref(), Some("own"));
    }
}
