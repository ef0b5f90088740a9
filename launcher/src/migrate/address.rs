//! Where a machine goes, or comes from.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// One end of a migration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A unix socket of this host: who may open it may have the machine.
    Unix(PathBuf),
    /// A port of a host, reached by TLS.
    Tcp {
        /// Its name or address; what its certificate must name.
        host: String,
        /// The port.
        port: u16,
    },
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return match path.is_empty() {
                true => Err("unix: needs a path, as unix:/run/nacelle/in".into()),
                false => Ok(Address::Unix(path.into())),
            };
        }
        let wrong = || format!("{text:?} is neither HOST:PORT nor unix:PATH");
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse().map_err(|_| wrong())?;
        // IPv6 addresses have colons of their own: [::1]:4000.
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        match bracketed.unwrap_or(host) {
            "" => Err(wrong()),
            plain if plain.contains(':') && bracketed.is_none() => Err(format!(
                "write [{plain}]:{port}: an IPv6 address goes in brackets"
            )),
            plain => Ok(Address::Tcp {
                host: plain.into(),
                port,
            }),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
            Address::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Address::Tcp { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_written() {
        for text in ["unix:/run/in", "host.example:4000", "10.0.0.1:4000", "[::1]:4000"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "host",
            "host:",
            ":4000",
            "host:65536",
            "unix:",
            "::1:4000",
            "host:port",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }
}
