//! The keys of tokens, in a Secret that all replicas read every minute. Each is known to all long before it signs, and long
//! after: a token that one replica gives is good at every other.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::Client;

use crate::secret::{self, Shared};

/// The Secret.
const NAME: &str = "nacelle-upload-keys";
/// How long a key signs.
const LIFE: SignedDuration = SignedDuration::from_hours(24);
/// Bytes of a key.
const LEN: usize = 32;

/// The key that signs, the one before and the one after it.
#[derive(Clone, PartialEq, Eq)]
pub struct Keys {
    previous: Vec<u8>,
    current: Vec<u8>,
    next: Vec<u8>,
    /// Since when the current one signs.
    since: Timestamp,
}

impl Keys {
    /// The key that signs.
    pub fn current(&self) -> &[u8] {
        &self.current
    }

    /// All that are good.
    pub fn all(&self) -> impl Iterator<Item = &[u8]> {
        [&self.current, &self.previous, &self.next]
            .into_iter()
            .map(Vec::as_slice)
    }

    /// New keys.
    fn new(now: Timestamp) -> Result<Keys> {
        Ok(Keys {
            previous: key()?,
            current: key()?,
            next: key()?,
            since: now,
        })
    }

    /// What follows, when it is time.
    fn rotated(&self, now: Timestamp) -> Result<Option<Keys>> {
        if now.duration_since(self.since) < LIFE {
            return Ok(None);
        }
        Ok(Some(Keys {
            previous: self.current.clone(),
            current: self.next.clone(),
            next: key()?,
            since: now,
        }))
    }

    fn read(secret: &Secret) -> Option<Keys> {
        let data = secret.data.as_ref()?;
        let key = |name: &str| {
            data.get(name)
                .map(|key| key.0.clone())
                .filter(|key| key.len() == LEN)
        };
        let since = std::str::from_utf8(&data.get("since")?.0).ok()?;
        Some(Keys {
            previous: key("previous")?,
            current: key("current")?,
            next: key("next")?,
            since: since.parse().ok()?,
        })
    }

    fn data(&self) -> BTreeMap<String, ByteString> {
        let keys = [
            ("previous", &self.previous),
            ("current", &self.current),
            ("next", &self.next),
        ];
        let keys = keys.map(|(name, key)| (name.to_owned(), ByteString(key.clone())));
        let since = (
            "since".to_owned(),
            ByteString(self.since.to_string().into_bytes()),
        );
        keys.into_iter().chain([since]).collect()
    }
}

fn key() -> Result<Vec<u8>> {
    let mut key = vec![0; LEN];
    getrandom::fill(&mut key).context("making a key")?;
    Ok(key)
}

/// Reads the Secret, changes the keys when it is time, and gives those that are there then.
///
/// # Errors
/// The API server cannot be asked, or refuses.
pub async fn ensure(client: &Client, namespace: &str) -> Result<Keys> {
    let look = |secret: Option<&Secret>| {
        let now = Timestamp::now();
        let new = match secret.and_then(Keys::read) {
            Some(keys) => match keys.rotated(now)? {
                Some(new) => new,
                None => {
                    return Ok(Shared {
                        value: keys,
                        data: None,
                    });
                }
            },
            None => Keys::new(now)?,
        };
        let data = Some(new.data());
        Ok(Shared { value: new, data })
    };
    secret::ensure(client, namespace, (NAME, "the Secret of upload tokens"), look).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_known_before_it_signs_and_after() {
        let start = Timestamp::from_second(1_800_000_000).unwrap();
        let first = Keys::new(start).unwrap();
        assert!(first.rotated(start + LIFE / 2).unwrap().is_none());
        let second = first.rotated(start + LIFE).unwrap().unwrap();
        // Who has not heard of the change yet, and who has, take each other's tokens.
        assert!(first.all().any(|key| key == second.current()));
        assert!(second.all().any(|key| key == first.current()));
        let third = second.rotated(start + LIFE * 2).unwrap().unwrap();
        assert!(!third.all().any(|key| key == first.current()));
        assert!(second.rotated(start + LIFE + LIFE / 2).unwrap().is_none());
    }

    #[test]
    fn they_are_read_as_they_were_written_and_made_anew_where_that_is_not_so() {
        let keys = Keys::new(Timestamp::from_second(1_800_000_000).unwrap()).unwrap();
        let mut secret = Secret {
            data: Some(keys.data()),
            ..Secret::default()
        };
        assert!(Keys::read(&secret).unwrap() == keys);
        secret
            .data
            .as_mut()
            .unwrap()
            .insert("current".into(), ByteString(vec![1]));
        assert!(Keys::read(&secret).is_none());
        assert!(Keys::read(&Secret::default()).is_none());
    }
}
