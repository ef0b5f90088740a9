//! A pod's machine leaves for another pod, because the controller asks. It asks again when it was killed meanwhile: what is
//! told of a migration is the same, and nothing is begun twice.
//!
//! ```text
//! prepare ──► a key for this migration, and its certificate ──► the controller makes the other pod
//! depart  ──► Moving ──► the machine ends here: it runs there
//!                   ├──► Failed: it runs on here
//!                   └──► Unconfirmed: it stands still here, and may run there ── taken back ──► Failed
//! ```

use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::driver::{Driver, Refused};
use crate::exit::Chain;
use crate::http::depart::Depart;
use crate::migrate::Credentials;
use crate::migrate::pair::Pair;

/// How a departure stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// It is under way.
    Moving,
    /// It came to nothing: the machine runs on here.
    Failed,
    /// The other side was told to run the machine, and nothing was heard of it since.
    Unconfirmed,
}

/// The last departure that was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Departure {
    /// The UID of the migration.
    pub migration: String,
    /// How it stands.
    pub state: Stage,
    /// Why it failed.
    pub message: String,
}

/// The departures of a machine, one at a time.
pub struct Departures {
    /// The key of the migration that was prepared last.
    own: Mutex<Option<(String, Arc<Pair>)>>,
    last: watch::Sender<Option<Departure>>,
}

impl Default for Departures {
    fn default() -> Self {
        Departures {
            own: Mutex::new(None),
            last: watch::Sender::new(None),
        }
    }
}

impl Departures {
    /// The last one.
    pub fn last(&self) -> Option<Departure> {
        self.last.borrow().clone()
    }

    /// Hears of every change.
    pub fn changes(&self) -> watch::Receiver<Option<Departure>> {
        self.last.subscribe()
    }

    /// The key of `migration`, which is made where it is another than the last one.
    ///
    /// # Errors
    /// When none can be made.
    pub fn prepare(&self, migration: &str) -> crate::Result<Arc<Pair>> {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, pair)) = &*own
            && of == migration
        {
            return Ok(Arc::clone(pair));
        }
        let pair = Arc::new(Pair::new(migration, None)?);
        *own = Some((migration.to_owned(), Arc::clone(&pair)));
        Ok(pair)
    }

    /// Has the machine leave, unless this migration was begun before.
    ///
    /// # Errors
    /// What is wrong with what is asked, in words.
    pub fn begin(self: &Arc<Self>, driver: &Driver, asked: &Depart) -> Result<(), String> {
        let pair = self
            .prepare(&asked.migration)
            .map_err(|error| Chain(&error).to_string())?;
        let mut plan = asked.migrate.plan()?;
        plan.tls = Some(Credentials::Pair(pair, asked.certificate.clone()));
        let begins = self.last.send_if_modified(|last| {
            let known = last
                .as_ref()
                .is_some_and(|last| last.migration == asked.migration);
            if !known {
                *last = Some(Departure {
                    migration: asked.migration.clone(),
                    state: Stage::Moving,
                    message: String::new(),
                });
            }
            !known
        });
        if begins {
            let (departures, driver, migration) = (Arc::clone(self), driver.clone(), asked.migration.clone());
            tokio::spawn(async move {
                if let Err(refused) = driver.migrate(plan).await {
                    departures.ended(&migration, &refused);
                }
            });
        }
        Ok(())
    }

    fn ended(&self, migration: &str, refused: &Refused) {
        let unconfirmed = matches!(refused, Refused::Failed(nacelle_vmm::Error::Unconfirmed { .. }));
        self.last.send_replace(Some(Departure {
            migration: migration.to_owned(),
            state: if unconfirmed {
                Stage::Unconfirmed
            } else {
                Stage::Failed
            },
            message: match refused {
                Refused::Failed(error) => Chain(error).to_string(),
                Refused::Denied(denied) => denied.to_string(),
            },
        }));
    }

    /// The machine was taken back.
    pub fn taken_back(&self) {
        self.last.send_if_modified(|last| match last {
            Some(last) if last.state == Stage::Unconfirmed => {
                last.state = Stage::Failed;
                true
            }
            _ => false,
        });
    }
}
