//! `accessCredentials`: keys and passwords that are put into the guest.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;

use crate::Empty;

/// Exactly one of its members.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AccessCredential {
    /// SSH public keys.
    pub ssh_public_key: Option<SshPublicKey>,
    /// Passwords of users.
    pub user_password: Option<UserPassword>,
}

/// SSH public keys and the way they take.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SshPublicKey {
    /// Where they are kept.
    pub source: CredentialSource,
    /// How they get into the guest.
    pub propagation_method: SshPropagation,
}

/// Passwords and the way they take.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UserPassword {
    /// Where they are kept.
    pub source: CredentialSource,
    /// How they get into the guest.
    pub propagation_method: PasswordPropagation,
}

/// Where credentials are kept.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CredentialSource {
    /// In a Secret.
    pub secret: Option<CredentialSecret>,
}

/// A Secret with credentials.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CredentialSecret {
    /// Its name.
    pub secret_name: String,
}

/// How SSH keys get into the guest; exactly one of its members.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SshPropagation {
    /// In cloud-init's config drive.
    pub config_drive: Option<Empty>,
    /// In NoCloud's meta-data.
    pub no_cloud: Option<Empty>,
    /// By the guest agent.
    pub qemu_guest_agent: Option<AgentUsers>,
}

/// How passwords get into the guest.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PasswordPropagation {
    /// By the guest agent.
    pub qemu_guest_agent: Option<Empty>,
}

/// The users that get the keys.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AgentUsers {
    /// Names in the guest.
    pub users: Vec<String>,
}
