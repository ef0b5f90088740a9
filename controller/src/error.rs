//! What can go wrong in a reconciler, and how soon to try again.

use std::time::Duration;

/// Why an object could not be brought to what is wanted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server could not be asked, or said no.
    #[error("{doing}: {source}")]
    Api {
        /// What was being done.
        doing: &'static str,
        /// What it said.
        source: Box<kube::Error>,
    },
    /// Something that we made cannot be written as JSON.
    #[error("cannot write {0} as JSON")]
    Json(&'static str, #[source] serde_json::Error),
    /// The object lacks what the API server always gives.
    #[error("the object has no {0}")]
    Incomplete(&'static str),
    /// A launcher could not be asked, or said no.
    #[error("{0}: {1}")]
    Launcher(&'static str, String),
    /// The instance type or the preference that a machine names is not there, or does not go with it.
    #[error("{0}")]
    Types(String),
}

/// Result of a reconciler.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Whether somebody else was faster: the object is looked at again at once.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Error::Api { source, .. } if is(source, 409))
    }

    /// Whether the API server will not have it: a person has to change something.
    pub fn is_refusal(&self) -> bool {
        let refused =
            |error: &kube::Error| matches!(error, kube::Error::Api(said) if (400..500).contains(&said.code));
        matches!(self, Error::Api { source, .. } if refused(source) && !is(source, 409) && !is(source, 429))
    }

    /// When to try again.
    pub fn retry_after(&self) -> Duration {
        if self.is_conflict() {
            Duration::from_millis(200)
        } else {
            Duration::from_secs(5)
        }
    }
}

/// Says what was being done when the API server said no.
pub trait Doing<T> {
    /// Adds what was being done.
    fn doing(self, doing: &'static str) -> Result<T>;
}

impl<T> Doing<T> for std::result::Result<T, kube::Error> {
    fn doing(self, doing: &'static str) -> Result<T> {
        self.map_err(|source| Error::Api {
            doing,
            source: Box::new(source),
        })
    }
}

/// Whether the API server answered with this status.
pub fn is(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}

/// What is not there is nothing to complain about.
pub fn absent_is_done<T>(
    result: std::result::Result<T, kube::Error>,
) -> std::result::Result<(), kube::Error> {
    match result {
        Err(error) if !is(&error, 404) => Err(error),
        _ => Ok(()),
    }
}
