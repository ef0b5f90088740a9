//! The program `nft` (nft(8)): one atomic change from a script, and which tables of ours there are.

use std::io::{self, Write};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use super::error::Cause;
use super::tap::PREFIX;

/// The set in each table of ours that names the interfaces whose forwarding the machine needs on.
pub(super) const LENT: &str = "lent";

/// A table of ours, this machine's or another's.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Table {
    /// Its name, which is its tap's.
    pub name: String,
    /// Interfaces whose forwarding was turned on for it, or before it for another that lives no longer than it.
    pub lent: Vec<String>,
}

/// Runs a script: all of it, or nothing.
pub(super) fn apply(script: &str) -> Result<(), Cause> {
    run(&["-f", "-"], script).map(drop)
}

/// The tables of ours in this network namespace.
pub(super) fn tables() -> Result<Vec<Table>, Cause> {
    let output = run(&["-j", "list", "sets", "ip"], "")?;
    let json: Value = serde_json::from_slice(&output.stdout).map_err(Cause::NftOutput)?;
    Ok(parse(&json))
}

/// A chain of the host's own firewall that drops what no rule of it accepts; a rule of ours cannot help that.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Dropping {
    /// Address family, table and name, as `nft` wants them.
    pub chain: String,
    /// What it is asked about: `forward` or `input`.
    pub hook: String,
}

impl Dropping {
    /// Commands that let through what guests need: DHCP, and the way out and back.
    pub fn remedy(&self) -> String {
        let matches = match self.hook.as_str() {
            "input" => vec![format!("iifname '{PREFIX}*' udp dport 67")],
            _ => vec![format!("iifname '{PREFIX}*'"), format!("oifname '{PREFIX}*'")],
        };
        let command = |what: &String| format!("nft insert rule {} {what} accept", self.chain);
        matches.iter().map(command).collect::<Vec<_>>().join(" && ")
    }
}

/// The chains of this network namespace that drop what a guest may send.
pub(super) fn dropping() -> Result<Vec<Dropping>, Cause> {
    let output = run(&["-j", "list", "chains"], "")?;
    let json: Value = serde_json::from_slice(&output.stdout).map_err(Cause::NftOutput)?;
    Ok(parse_chains(&json))
}

fn parse_chains(json: &Value) -> Vec<Dropping> {
    let chains = objects(json, "chain").filter(|chain| text(chain, "policy") == Some("drop"));
    chains
        .filter_map(|chain| {
            let family = text(chain, "family").filter(|family| ["ip", "inet"].contains(family))?;
            let hook = text(chain, "hook").filter(|hook| ["forward", "input"].contains(hook))?;
            Some(Dropping {
                chain: format!("{family} {} {}", text(chain, "table")?, text(chain, "name")?),
                hook: hook.to_owned(),
            })
        })
        .collect()
}

/// The objects of this kind in what `nft -j` tells (libnftables-json(5)).
fn objects<'a>(json: &'a Value, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    let objects = json.get("nftables").and_then(Value::as_array);
    objects
        .into_iter()
        .flatten()
        .filter_map(move |object| object.get(kind))
}

fn text<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object.get(key).and_then(Value::as_str)
}

fn parse(json: &Value) -> Vec<Table> {
    let sets = objects(json, "set").filter(|set| text(set, "name") == Some(LENT));
    sets.filter_map(|set| {
        let name = text(set, "table").filter(|name| is_ours(name))?;
        let elements = set.get("elem").and_then(Value::as_array).into_iter().flatten();
        Some(Table {
            name: name.to_owned(),
            lent: elements.filter_map(Value::as_str).map(str::to_owned).collect(),
        })
    })
    .collect()
}

fn is_ours(name: &str) -> bool {
    let number = name.strip_prefix(PREFIX).unwrap_or_default();
    !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
}

fn run(arguments: &[&str], input: &str) -> Result<Output, Cause> {
    let output = match spawn("nft", arguments, input) {
        // Not every user's PATH has it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => spawn("/usr/sbin/nft", arguments, input),
        other => other,
    };
    let output = output.map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => Cause::NoNft,
        _ => Cause::io("run nft")(source),
    })?;
    if output.status.success() {
        Ok(output)
    } else {
        Err(Cause::Nft(
            String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        ))
    }
}

fn spawn(program: &str, arguments: &[&str], input: &str) -> io::Result<Output> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // It reads all before it answers; one that ends early says why.
        let _ = stdin.write_all(input.as_bytes());
    }
    child.wait_with_output()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tables_of_ours_are_seen() {
        let json = serde_json::json!({"nftables": [
            {"metainfo": {"version": "1.0.6"}},
            {"set": {"family": "ip", "name": "lent", "table": "nacelle0", "type": "ifname", "elem": ["lo", "eth0"]}},
            {"set": {"family": "ip", "name": "lent", "table": "nacelle12", "type": "ifname"}},
            {"set": {"family": "ip", "name": "lent", "table": "nacelles", "type": "ifname"}},
            {"set": {"family": "ip", "name": "other", "table": "nacelle1", "type": "ifname"}},
        ]});
        let table = |name: &str, lent: &[&str]| Table {
            name: name.into(),
            lent: lent.iter().map(|&name| name.to_owned()).collect(),
        };
        assert_eq!(
            parse(&json),
            [table("nacelle0", &["lo", "eth0"]), table("nacelle12", &[])]
        );
    }

    #[test]
    fn chains_that_drop_are_found() {
        let json = serde_json::json!({"nftables": [
            {"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "hook": "forward", "policy": "drop"}},
            {"chain": {"family": "inet", "table": "fw", "name": "in", "hook": "input", "policy": "drop"}},
            {"chain": {"family": "ip6", "table": "filter", "name": "FORWARD", "hook": "forward", "policy": "drop"}},
            {"chain": {"family": "ip", "table": "filter", "name": "OUTPUT", "hook": "output", "policy": "drop"}},
            {"chain": {"family": "ip", "table": "filter", "name": "INPUT", "hook": "input", "policy": "accept"}},
            {"chain": {"family": "ip", "table": "filter", "name": "DOCKER"}},
        ]});
        let dropping = |chain: &str, hook: &str| Dropping {
            chain: chain.into(),
            hook: hook.into(),
        };
        assert_eq!(
            parse_chains(&json),
            [
                dropping("ip filter FORWARD", "forward"),
                dropping("inet fw in", "input")
            ]
        );
    }
}
