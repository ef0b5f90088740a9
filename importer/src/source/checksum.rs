//! `algorithm:hash`, as a DataVolume has it.

use std::str::FromStr;

use sha2::{Digest, Sha256, Sha512};

use crate::{Error, Result};

/// A checksum that is wanted, and what was seen so far.
#[derive(Clone)]
pub struct Checksum {
    wanted: String,
    state: State,
}

#[derive(Clone)]
enum State {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl FromStr for Checksum {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (algorithm, hash) = text.split_once(':').ok_or("a checksum is ALGORITHM:HASH")?;
        let (state, len) = match algorithm {
            "sha256" => (State::Sha256(Sha256::new()), 64),
            "sha512" => (State::Sha512(Sha512::new()), 128),
            other => {
                return Err(format!(
                    "checksums of {other} are not supported; sha256 and sha512 are"
                ));
            }
        };
        if hash.len() != len || !hash.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(format!(
                "{hash} is no {algorithm}: that has {len} hexadecimal digits"
            ));
        }
        Ok(Checksum {
            wanted: text.to_ascii_lowercase(),
            state,
        })
    }
}

impl Checksum {
    pub(super) fn update(&mut self, bytes: &[u8]) {
        match &mut self.state {
            State::Sha256(state) => state.update(bytes),
            State::Sha512(state) => state.update(bytes),
        }
    }

    pub(super) fn check(self) -> Result<()> {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let found = match self.state {
            State::Sha256(state) => format!("sha256:{}", hex(&state.finalize())),
            State::Sha512(state) => format!("sha512:{}", hex(&state.finalize())),
        };
        if found == self.wanted {
            return Ok(());
        }
        Err(Error::Checksum {
            wanted: self.wanted,
            found,
        })
    }
}
