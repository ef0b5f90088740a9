//! Per-interface settings of the kernel that translation needs, above all forwarding: it is turned on for the
//! taps and for the interfaces that answers come in by, never for the whole host, and turned off again when the
//! last machine that needs it ends.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::PathBuf;

use super::error::Cause;
use super::nft::Table;

fn path(family: &str, interface: &str, key: &str) -> PathBuf {
    PathBuf::from("/proc/sys/net")
        .join(family)
        .join("conf")
        .join(interface)
        .join(key)
}

fn write(family: &str, interface: &str, key: &str, value: &str) -> Result<(), Cause> {
    let path = path(family, interface, key);
    fs::write(&path, value).map_err(Cause::io(format!("write {value} to {}", path.display())))
}

/// Whether packets that come in by `interface` are forwarded.
pub(super) fn is_on(interface: &str) -> Result<bool, Cause> {
    let path = path("ipv4", interface, "forwarding");
    let text = fs::read_to_string(&path).map_err(Cause::io(format!("read {}", path.display())))?;
    Ok(text.trim() != "0")
}

/// Has packets that come in by `interface` forwarded.
pub(super) fn turn_on(interface: &str) -> Result<(), Cause> {
    write("ipv4", interface, "forwarding", "1")
}

/// Lets connections from this host's 127.0.0.0/8 go out by `interface`, and their answers come back.
pub(super) fn route_loopback(interface: &str) -> Result<(), Cause> {
    write("ipv4", interface, "route_localnet", "1")
}

/// Has the kernel speak no IPv6 on `interface`: a guest could otherwise make itself this host's router.
pub(super) fn without_ipv6(interface: &str) -> Result<(), Cause> {
    match write("ipv6", interface, "disable_ipv6", "1") {
        // This kernel has no IPv6 at all.
        Err(Cause::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Which of `interfaces` a machine must have turned on, or that another of `tables` had turned on: those that
/// must not be left on for ever.
pub(super) fn to_lend(interfaces: &[String], tables: &[Table]) -> Result<Vec<String>, Cause> {
    let mut lent = Vec::new();
    for interface in interfaces {
        if tables.iter().any(|table| table.lent.contains(interface)) || !is_on(interface)? {
            lent.push(interface.clone());
        }
    }
    Ok(lent)
}

/// Turns off what only tables that are `gone` had turned on.
pub(super) fn give_back(gone: &[Table], left: &[Table]) {
    for interface in no_longer_lent(gone, left) {
        if let Err(error) = write("ipv4", interface, "forwarding", "0") {
            log::warn!("forwarding stays on for {interface}: {error}");
        }
    }
}

fn no_longer_lent<'a>(gone: &'a [Table], left: &'a [Table]) -> BTreeSet<&'a str> {
    let lent = |tables: &'a [Table]| tables.iter().flat_map(|table| &table.lent).map(String::as_str);
    let still: BTreeSet<&str> = lent(left).collect();
    lent(gone)
        .filter(|interface| !still.contains(interface))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_machine_turns_forwarding_off() {
        let table = |lent: &[&str]| Table {
            name: "nacelle0".into(),
            lent: lent.iter().map(|&name| name.to_owned()).collect(),
        };
        let first = [table(&["eth0", "wg0"])];
        assert_eq!(
            Vec::from_iter(no_longer_lent(&first, &[table(&["eth0"])])),
            ["wg0"]
        );
        assert_eq!(Vec::from_iter(no_longer_lent(&first, &[])), ["eth0", "wg0"]);
        assert!(no_longer_lent(&[], &first).is_empty());
    }
}
