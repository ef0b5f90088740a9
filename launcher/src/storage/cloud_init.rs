//! What cloud-init finds when the guest starts: an ISO 9660 image with its data.
//!
//! NoCloud: volume `cidata` with `meta-data`, `user-data`, `network-config`. OpenStack's configuration drive:
//! volume `config-2` with the same as JSON and text under `openstack/latest`. As KubeVirt makes them.

use serde_json::{Map, Value, json};

use super::iso9660;
use crate::convert::{Seed, SeedKind};

/// The data of a seed, read.
#[derive(Clone, Debug, Default)]
pub struct Data {
    /// User data.
    pub user: Option<Vec<u8>>,
    /// Network configuration.
    pub network: Option<Vec<u8>>,
    /// SSH public keys.
    pub keys: Vec<String>,
}

/// The SSH public keys in the files of a Secret, one a line, as `authorized_keys` has them (sshd(8)).
pub fn keys(files: &[(String, Vec<u8>)]) -> Vec<String> {
    let texts = files.iter().map(|(_, content)| String::from_utf8_lossy(content));
    let mut keys = Vec::new();
    for text in texts {
        let lines = text.lines().map(str::trim);
        keys.extend(
            lines
                .filter(|line| !line.is_empty() && !line.starts_with('#'))
                .map(str::to_owned),
        );
    }
    keys
}

/// The image for `seed` with its `data`.
///
/// # Errors
/// A sentence when the data does not fit an image.
pub fn image(seed: &Seed, data: &Data) -> Result<Vec<u8>, String> {
    let (label, files) = files(seed, data);
    let files: Vec<_> = files
        .iter()
        .map(|(path, content)| (*path, content.as_slice()))
        .collect();
    iso9660::image(label, &files).map_err(|error| error.to_string())
}

/// Volume label and files.
fn files(seed: &Seed, data: &Data) -> (&'static str, Vec<(&'static str, Vec<u8>)>) {
    let Seed {
        kind,
        instance_id,
        hostname,
        user_data: _,
        network_data: _,
        keys: _,
    } = seed;
    // cloud-init wants the file even where there is nothing to say.
    let user_data = data.user.clone().unwrap_or_default();
    let network_data = &data.network;
    match kind {
        SeedKind::NoCloud => {
            let mut meta_data = json!({ "instance-id": instance_id, "local-hostname": hostname });
            add_keys(&mut meta_data, "public-keys", json!(data.keys));
            let mut files = vec![
                // JSON is YAML, and needs no quoting of our own.
                ("meta-data", meta_data.to_string().into_bytes()),
                ("user-data", user_data),
            ];
            files.extend(network_data.clone().map(|data| ("network-config", data)));
            ("cidata", files)
        }
        SeedKind::ConfigDrive => {
            let mut meta_data = json!({
                "instance_id": instance_id,
                "hostname": hostname,
                "local_hostname": hostname,
                "uuid": instance_id,
            });
            let names = (0..).map(|index: u32| index.to_string());
            let keys: Map<_, _> = names.zip(data.keys.iter().map(|key| json!(key))).collect();
            add_keys(&mut meta_data, "public_keys", keys.into());
            let mut files = vec![
                (
                    "openstack/latest/meta_data.json",
                    meta_data.to_string().into_bytes(),
                ),
                ("openstack/latest/user_data", user_data),
            ];
            files.extend(
                network_data
                    .clone()
                    .map(|data| ("openstack/latest/network_data.json", data)),
            );
            ("config-2", files)
        }
    }
}

/// Adds `keys` to meta-data, where there are any.
fn add_keys(meta_data: &mut Value, name: &str, keys: Value) {
    let none = keys.as_array().is_some_and(Vec::is_empty) || keys.as_object().is_some_and(Map::is_empty);
    if let (false, Some(fields)) = (none, meta_data.as_object_mut()) {
        fields.insert(name.to_owned(), keys);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::SeedData;

    fn seed(kind: SeedKind) -> Seed {
        Seed {
            kind,
            instance_id: "web.default".into(),
            hostname: "web".into(),
            user_data: Some(SeedData::Given(USER_DATA.to_vec())),
            network_data: None,
            keys: Vec::new(),
        }
    }

    const USER_DATA: &[u8] = b"#cloud-config\n";

    fn data() -> Data {
        Data {
            user: Some(USER_DATA.to_vec()),
            network: None,
            keys: Vec::new(),
        }
    }

    #[test]
    fn keys_are_in_the_meta_data_of_either_kind() {
        let file = b"ssh-ed25519 A\n# none\nssh-ed25519 B\n".to_vec();
        let data = Data {
            keys: keys(&[("all".into(), file)]),
            ..data()
        };
        let meta = |kind| -> serde_json::Value {
            serde_json::from_slice(&files(&seed(kind), &data).1[0].1).unwrap()
        };
        assert_eq!(
            meta(SeedKind::NoCloud)["public-keys"],
            json!(["ssh-ed25519 A", "ssh-ed25519 B"])
        );
        assert_eq!(
            meta(SeedKind::ConfigDrive)["public_keys"],
            json!({"0": "ssh-ed25519 A", "1": "ssh-ed25519 B"})
        );
    }

    #[test]
    fn no_cloud_has_its_three_files() {
        let seed = seed(SeedKind::NoCloud);
        let (label, without) = files(&seed, &data());
        assert_eq!(label, "cidata");
        let names: Vec<_> = without.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["meta-data", "user-data"]);
        assert_eq!(
            without[0].1,
            br#"{"instance-id":"web.default","local-hostname":"web"}"#
        );
        assert_eq!(without[1].1, USER_DATA);
        let network = Some(b"version: 2\n".to_vec());
        let (_, with) = files(&seed, &Data { network, ..data() });
        assert_eq!(with[2], ("network-config", b"version: 2\n".to_vec()));
    }

    #[test]
    fn a_configuration_drive_is_openstacks() {
        let (label, files) = files(&seed(SeedKind::ConfigDrive), &data());
        assert_eq!(label, "config-2");
        let meta: serde_json::Value = serde_json::from_slice(&files[0].1).unwrap();
        assert_eq!(files[0].0, "openstack/latest/meta_data.json");
        assert_eq!(
            (&meta["instance_id"], &meta["hostname"]),
            (&json!("web.default"), &json!("web"))
        );
        assert_eq!(files[1].0, "openstack/latest/user_data");
    }
}
