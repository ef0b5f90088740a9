//! Why a request on a machine's socket was not done, as JSON; part of `openapi.json` as [`super::api`] is.

use serde::{Deserialize, Serialize};

use crate::admit::Denied;
use crate::agent;
use crate::driver::Refused;

/// Why a request was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// For programs.
    pub code: Code,
    /// For people: what is wrong.
    pub message: String,
    /// For people: what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// Kinds of failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Code {
    /// There is nothing at this path, or the machine has no such device.
    NotFound,
    /// The path does not take this method.
    MethodNotAllowed,
    /// The body is not what the path takes.
    Invalid,
    /// The body is longer than any that makes sense.
    TooLarge,
    /// The console is a stream: the request must ask for an upgrade.
    UpgradeRequired,
    /// The machine's state does not allow it.
    Denied,
    /// There is no machine any more.
    Ended,
    /// It took too long.
    Timeout,
    /// The machine could not do it.
    Failed,
}

impl Code {
    /// The HTTP status that goes with it.
    pub fn status(self) -> u16 {
        match self {
            Code::Invalid => 400,
            Code::NotFound => 404,
            Code::MethodNotAllowed => 405,
            Code::Denied => 409,
            Code::Ended => 410,
            Code::TooLarge => 413,
            Code::UpgradeRequired => 426,
            Code::Failed => 500,
            Code::Timeout => 504,
        }
    }
}

impl Failure {
    /// A failure with a hint.
    pub fn new(code: Code, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Failure {
            code,
            message: message.into(),
            hint: Some(hint.into()),
        }
    }
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Denied(denied @ Denied::Ended) => {
                Failure::new(Code::Ended, denied.to_string(), denied.hint())
            }
            Refused::Denied(denied) => Failure::new(Code::Denied, denied.to_string(), denied.hint()),
            Refused::Failed(error) => Failure {
                code: match error {
                    nacelle_vmm::Error::NotFound(_) => Code::NotFound,
                    _ => Code::Failed,
                },
                message: with_causes(&error),
                hint: None,
            },
        }
    }
}

impl From<agent::Refused> for Failure {
    fn from(refused: agent::Refused) -> Self {
        use agent::Refused::{Declined, Nonsense, NotConnected, Reset, Silent};
        let (code, hint) = match refused {
            agent::Refused::Denied(denied) => return Refused::from(denied).into(),
            NotConnected => (
                Code::Denied,
                "install qemu-guest-agent in the guest, and see that it runs",
            ),
            Reset => (Code::Denied, "try again when the guest has booted"),
            Silent(_) => (
                Code::Timeout,
                "it may still do it: nacelle status shows whether it answers again",
            ),
            Declined { .. } | Nonsense(_) => (Code::Failed, "see what the agent logs in the guest"),
        };
        Failure::new(code, refused.to_string(), hint)
    }
}

/// An error and its causes in one line.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        message = format!("{message}: {error}");
        cause = error.source();
    }
    message
}
