//! Users of the guest have the keys and passwords that Secrets have for them: the guest agent brings them, whenever it
//! comes and whenever the kubelet brings a Secret that was changed.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::pending;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::watch;
use tokio::time::sleep;

use super::storage::Mounts;
use crate::Result;
use crate::agent::Agent;
use crate::convert::{Credential, CredentialKind};
use crate::exit::Chain;
use crate::storage::cloud_init::keys;
use crate::storage::supply::Supply;

/// How often the Secrets are looked at, and what failed is tried again.
const LOOK: Duration = Duration::from_secs(10);

/// Whether the guest has them, as the controller is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Synchronized {
    synchronized: bool,
    /// Why not.
    message: String,
}

/// What users of the guest are to have.
#[derive(Clone, Default, PartialEq, Eq)]
struct Wanted {
    keys: BTreeMap<String, Vec<String>>,
    passwords: BTreeMap<String, Vec<u8>>,
}

impl Wanted {
    /// What is in the Secrets, of which `read` gives one.
    fn read(
        credentials: &[Credential],
        read: impl Fn(&str) -> Result<Vec<(String, Vec<u8>)>>,
    ) -> Result<Wanted> {
        let mut wanted = Wanted::default();
        for credential in credentials {
            let files = read(&credential.secret)?;
            match &credential.kind {
                CredentialKind::Keys { users } => {
                    for user in users {
                        let keys = keys(&files);
                        wanted.keys.entry(user.clone()).or_default().extend(keys);
                    }
                }
                CredentialKind::Passwords => wanted.passwords.extend(files),
            }
        }
        Ok(wanted)
    }

    /// Has the agent bring it.
    async fn set(&self, agent: &Agent) -> Result<(), crate::agent::Refused> {
        for (user, keys) in &self.keys {
            agent.authorize(user, keys).await?;
        }
        for (user, password) in &self.passwords {
            agent.set_password(user, password).await?;
        }
        Ok(())
    }
}

/// Keeps the guest's `credentials` as the Secrets in `mounts` have them, and tells how that goes.
pub(super) async fn keep(
    credentials: &[Credential],
    mounts: &Mounts,
    agent: &Agent,
    tell: watch::Sender<Option<Synchronized>>,
) -> Infallible {
    if credentials.is_empty() {
        return pending().await;
    }
    let mut said = agent.changes();
    // What the agent that is connected has set.
    let mut set: Option<Wanted> = None;
    loop {
        if said.borrow_and_update().connected {
            let message = match Wanted::read(credentials, |secret| mounts.credential(secret)) {
                Ok(wanted) if set.as_ref() == Some(&wanted) => None,
                Ok(wanted) => match wanted.set(agent).await {
                    Ok(()) => {
                        set = Some(wanted);
                        Some(String::new())
                    }
                    Err(refused) => Some(Chain(&refused).to_string()),
                },
                Err(error) => Some(Chain(&error).to_string()),
            };
            if let Some(message) = message {
                let synchronized = message.is_empty();
                tell.send_replace(Some(Synchronized {
                    synchronized,
                    message,
                }));
            }
        } else {
            set = None;
        }
        tokio::select! {
            () = sleep(LOOK) => {}
            () = appears(&mut said, set.is_some()) => {}
        }
    }
}

/// Returns when an agent comes, or one that was there has gone.
async fn appears(said: &mut watch::Receiver<crate::agent::Said>, was_there: bool) {
    if said.wait_for(|said| said.connected != was_there).await.is_err() {
        // The machine has ended.
        pending().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_the_keys_of_all_secrets_that_name_it() {
        let keys = |secret: &str, users: &[&str]| Credential {
            secret: secret.into(),
            kind: CredentialKind::Keys {
                users: users.iter().map(|user| user.to_string()).collect(),
            },
        };
        let credentials = [
            keys("team", &["ann", "bob"]),
            keys("ann", &["ann"]),
            Credential {
                secret: "passwords".into(),
                kind: CredentialKind::Passwords,
            },
        ];
        let read = |secret: &str| {
            Ok(match secret {
                "team" => vec![
                    (
                        "one".into(),
                        b"# ours\nssh-ed25519 A team\n\nssh-ed25519 B team\n".to_vec(),
                    ),
                    ("two".into(), b"ssh-ed25519 C".to_vec()),
                ],
                "ann" => vec![("key".into(), b"ssh-rsa D ann\r\n".to_vec())],
                _ => vec![("bob".into(), b"geheim".to_vec())],
            })
        };
        let wanted = Wanted::read(&credentials, read).unwrap();
        let team = ["ssh-ed25519 A team", "ssh-ed25519 B team", "ssh-ed25519 C"];
        assert_eq!(wanted.keys["bob"], team);
        assert_eq!(wanted.keys["ann"], [&team[..], &["ssh-rsa D ann"]].concat());
        assert_eq!(wanted.passwords["bob"], b"geheim");
    }
}
