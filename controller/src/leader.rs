//! One replica reconciles: the holder of a Lease. All of them serve.
//!
//! `decide` is pure. The holder that cannot renew its lease in time ends its reconcilers, with whatever was going on in
//! them, before another replica may begin.

use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use tokio::time::sleep;

use crate::error::is;

/// Name of the lease.
const NAME: &str = "nacelle-controller";
/// A holder that has been silent for so long has lost it.
const DURATION: Duration = Duration::from_secs(15);
/// A holder renews it so often.
const RENEW: Duration = Duration::from_secs(5);
/// Who waits looks so often.
const RETRY: Duration = Duration::from_secs(2);

/// What to do about a lease.
#[derive(Debug, PartialEq, Eq)]
enum Decision {
    /// It is another's.
    Wait,
    /// It is ours, or free: write our name and the time.
    Take { transitions: i32 },
}

fn decide(spec: Option<&LeaseSpec>, me: &str, now: Timestamp) -> Decision {
    let Some(spec) = spec else {
        return Decision::Take { transitions: 0 };
    };
    let transitions = spec.lease_transitions.unwrap_or(0);
    let holder = spec.holder_identity.as_deref().unwrap_or_default();
    let lasts = SignedDuration::from_secs(spec.lease_duration_seconds.unwrap_or(0).into());
    let over = spec
        .renew_time
        .as_ref()
        .is_none_or(|renewed| now.duration_since(renewed.0) > lasts);
    match holder {
        _ if holder == me => Decision::Take { transitions },
        "" => Decision::Take {
            transitions: transitions + 1,
        },
        _ if over => Decision::Take {
            transitions: transitions + 1,
        },
        _ => Decision::Wait,
    }
}

/// A lease to be held.
pub struct Leadership {
    api: Api<Lease>,
    me: String,
}

impl Leadership {
    /// Of the replica `me`.
    pub fn new(client: Client, namespace: &str, me: &str) -> Self {
        Leadership {
            api: Api::namespaced(client, namespace),
            me: me.to_owned(),
        }
    }

    /// Waits until this replica leads.
    pub async fn acquire(&self) {
        loop {
            match self.attempt().await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => log::warn!("cannot become the leader yet: {error:#}"),
            }
            sleep(RETRY).await;
        }
    }

    /// Keeps it; returns when it is lost, and why.
    pub async fn keep(&self) -> anyhow::Error {
        let mut last = Timestamp::now();
        loop {
            sleep(RENEW).await;
            match self.attempt().await {
                Ok(true) => last = Timestamp::now(),
                Ok(false) => return anyhow!("another replica leads now"),
                Err(error) => log::warn!("cannot renew the lease: {error:#}"),
            }
            // Some time before the others think so.
            if Timestamp::now().duration_since(last) > SignedDuration::from_secs(12) {
                return anyhow!("the lease could not be renewed in time");
            }
        }
    }

    /// Gives it up, so that another need not wait.
    pub async fn release(&self) -> Result<()> {
        let mut lease = self.api.get(NAME).await?;
        let held = lease
            .spec
            .as_ref()
            .and_then(|spec| spec.holder_identity.as_deref());
        if held == Some(self.me.as_str()) {
            lease.spec.get_or_insert_default().holder_identity = None;
            self.api.replace(NAME, &PostParams::default(), &lease).await?;
        }
        Ok(())
    }

    async fn attempt(&self) -> Result<bool> {
        let now = Timestamp::now();
        let held = self.api.get_opt(NAME).await.context("reading the lease")?;
        let Decision::Take { transitions } =
            decide(held.as_ref().and_then(|lease| lease.spec.as_ref()), &self.me, now)
        else {
            return Ok(false);
        };
        let spec = LeaseSpec {
            holder_identity: Some(self.me.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            renew_time: Some(MicroTime(now)),
            lease_transitions: Some(transitions),
            ..held
                .as_ref()
                .and_then(|lease| lease.spec.clone())
                .unwrap_or_default()
        };
        // Its version goes along: who writes second is refused.
        let lease = Lease {
            metadata: held.as_ref().map_or_else(
                || ObjectMeta {
                    name: Some(NAME.to_owned()),
                    ..ObjectMeta::default()
                },
                |lease| lease.metadata.clone(),
            ),
            spec: Some(spec),
        };
        let written = match held {
            None => self.api.create(&PostParams::default(), &lease).await,
            Some(_) => self.api.replace(NAME, &PostParams::default(), &lease).await,
        };
        match written {
            Ok(_) => Ok(true),
            Err(error) if is(&error, 409) => Ok(false),
            Err(error) => Err(error).context("writing the lease"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_taken_when_it_is_free_ours_or_over() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let lease = |holder: &str, age: i64| LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: Some(15),
            renew_time: Some(MicroTime(Timestamp::from_second(1_000_000 - age).unwrap())),
            lease_transitions: Some(4),
            ..LeaseSpec::default()
        };
        let take = |transitions| Decision::Take { transitions };
        assert_eq!(decide(None, "me", now), take(0));
        assert_eq!(decide(Some(&lease("me", 3)), "me", now), take(4));
        assert_eq!(decide(Some(&lease("me", 300)), "me", now), take(4));
        assert_eq!(decide(Some(&lease("other", 3)), "me", now), Decision::Wait);
        assert_eq!(decide(Some(&lease("other", 15)), "me", now), Decision::Wait);
        assert_eq!(decide(Some(&lease("other", 16)), "me", now), take(5));
        assert_eq!(decide(Some(&lease("", 0)), "me", now), take(5));
    }
}
