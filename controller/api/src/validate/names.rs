//! The forms that names and addresses must have.

/// What is wrong with a DNS label, if anything (RFC 1123).
pub(super) fn dns_label(name: &str) -> Result<(), String> {
    if name.len() > 63 {
        return Err("must be no more than 63 characters".to_owned());
    }
    if is_label(name) {
        return Ok(());
    }
    Err(
        "only lower-case letters, digits and '-' are possible, with a letter or digit at both ends"
            .to_owned(),
    )
}

/// What is wrong with a DNS subdomain, if anything: labels joined by dots.
pub(super) fn dns_subdomain(name: &str) -> Result<(), String> {
    if name.len() > 253 {
        return Err("must be no more than 253 characters".to_owned());
    }
    if name.split('.').all(is_label) {
        return Ok(());
    }
    Err("only lower-case letters, digits, '-' and '.' are possible, with a letter or digit at both ends of each part"
        .to_owned())
}

fn is_label(name: &str) -> bool {
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    !name.is_empty() && name.bytes().all(inner) && !name.starts_with('-') && !name.ends_with('-')
}

/// Whether a name is one that a service port may have (IANA, RFC 6335).
pub(super) fn is_port_name(name: &str) -> bool {
    name.len() <= 15 && is_label(name) && name.bytes().any(|c| c.is_ascii_lowercase()) && !name.contains("--")
}

/// Whether a text is a PCI address such as `0000:81:01.0`: domain, bus, slot, function.
pub(super) fn is_pci_address(text: &str) -> bool {
    let hex = |part: &str, digits: usize| part.len() == digits && part.bytes().all(|c| c.is_ascii_hexdigit());
    let mut parts = text.splitn(3, ':');
    let (Some(domain), Some(bus), Some(rest)) = (parts.next(), parts.next(), parts.next()) else {
        return false;
    };
    let Some((slot, function)) = rest.split_once('.') else {
        return false;
    };
    hex(domain, 4)
        && hex(bus, 2)
        && hex(slot, 2)
        && u8::from_str_radix(slot, 16).is_ok_and(|slot| slot < 32)
        && matches!(function.as_bytes(), [b'0'..=b'7'])
}

/// The octets of a MAC address, written with colons or dashes; `None` where it is not one.
pub(super) fn mac_address(text: &str) -> Option<[u8; 6]> {
    let separator = if text.contains('-') { '-' } else { ':' };
    let mut octets = [0; 6];
    let mut parts = text.split(separator);
    for octet in &mut octets {
        let part = parts
            .next()
            .filter(|part| part.len() == 2 && part.bytes().all(|c| c.is_ascii_hexdigit()))?;
        *octet = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(octets)
}
