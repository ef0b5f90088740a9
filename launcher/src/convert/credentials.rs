//! Secrets with keys and passwords for users of the guest.

use nacelle_api::vmi::VirtualMachineInstanceSpec;

use super::SeedKind;

/// A Secret whose content the guest agent brings into the guest, and keeps as the Secret has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// Its name.
    pub secret: String,
    /// What is in it.
    pub kind: CredentialKind,
}

/// What is in a Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CredentialKind {
    /// SSH public keys for these users.
    Keys {
        /// Their names.
        users: Vec<String>,
    },
    /// Passwords, by the names of the users.
    Passwords,
}

/// Those that the agent brings.
pub(super) fn by_agent(spec: &VirtualMachineInstanceSpec) -> Vec<Credential> {
    let credentials = spec.access_credentials.iter().filter_map(|credential| {
        if let Some(key) = &credential.ssh_public_key {
            let users = key.propagation_method.qemu_guest_agent.as_ref()?.users.clone();
            Some(Credential {
                secret: key.source.secret.as_ref()?.secret_name.clone(),
                kind: CredentialKind::Keys { users },
            })
        } else {
            let password = credential.user_password.as_ref()?;
            password.propagation_method.qemu_guest_agent.as_ref()?;
            Some(Credential {
                secret: password.source.secret.as_ref()?.secret_name.clone(),
                kind: CredentialKind::Passwords,
            })
        }
    });
    credentials.collect()
}

/// Secrets with SSH public keys that cloud-init finds in a seed of this kind.
pub(super) fn in_seed(spec: &VirtualMachineInstanceSpec, kind: SeedKind) -> Vec<String> {
    let secrets = spec.access_credentials.iter().filter_map(|credential| {
        let key = credential.ssh_public_key.as_ref()?;
        let way = &key.propagation_method;
        match kind {
            SeedKind::NoCloud => way.no_cloud.as_ref()?,
            SeedKind::ConfigDrive => way.config_drive.as_ref()?,
        };
        Some(key.source.secret.as_ref()?.secret_name.clone())
    });
    secrets.collect()
}
