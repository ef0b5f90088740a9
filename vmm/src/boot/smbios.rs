//! SMBIOS: the machine's identity for the guest (DMTF DSP0134, version 3.2 entry point).

use crate::config::Identity;

/// The entry point and the structures after it, for address `at`.
pub fn tables(identity: &Identity, at: u64) -> Vec<u8> {
    let mut structures = Vec::new();
    // Type 0: firmware. Characteristics say "virtual machine" (extension byte 2, bit 4).
    let mut firmware = vec![1, 2, 0, 0, 3, 0];
    firmware.extend((1u64 << 3).to_le_bytes());
    firmware.extend([0, 0x1c, 0, 0, 0xff, 0xff]);
    put(&mut structures, 0, 0, &firmware, &["Nacelle", "0", "01/01/2026"]);
    // Type 1: system. The first three fields of the UUID are stored little-endian.
    let mut system = vec![1, 2, 3, if identity.serial.is_empty() { 0 } else { 4 }];
    let uuid = identity.uuid;
    let order = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
    system.extend(order.iter().filter_map(|&i: &usize| uuid.get(i)));
    let sku = match (identity.sku.is_empty(), identity.serial.is_empty()) {
        (true, _) => 0,
        (false, true) => 4,
        (false, false) => 5,
    };
    system.extend([6, sku, 0]);
    let strings = ["KubeVirt", "None", "Nacelle", &identity.serial, &identity.sku];
    let strings: Vec<&str> = strings.into_iter().filter(|text| !text.is_empty()).collect();
    put(&mut structures, 1, 1, &system, &strings);
    put(&mut structures, 127, 2, &[], &[]);

    let mut entry = b"_SM3_".to_vec();
    entry.extend([0, 24, 3, 2, 0, 1, 0]);
    entry.extend((structures.len() as u32).to_le_bytes());
    entry.extend((at + 32).to_le_bytes());
    let sum = entry.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    if let Some(checksum) = entry.get_mut(5) {
        *checksum = sum.wrapping_neg();
    }
    entry.resize(32, 0);
    entry.extend(structures);
    entry
}

/// One structure: header, fields, its strings each ended by a zero, one more zero.
fn put(out: &mut Vec<u8>, kind: u8, handle: u16, fields: &[u8], strings: &[&str]) {
    out.extend([kind, (fields.len() + 4) as u8]);
    out.extend(handle.to_le_bytes());
    out.extend(fields);
    for text in strings {
        out.extend(text.bytes().filter(|byte| *byte != 0).take(64));
        out.push(0);
    }
    if strings.is_empty() {
        out.push(0);
    }
    out.push(0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_entry_point_adds_up_and_the_identity_is_there() {
        let identity = Identity {
            uuid: *b"0123456789abcdef",
            serial: "S-1".into(),
            sku: String::new(),
        };
        let bytes = tables(&identity, 0xf_0000);
        assert_eq!(
            bytes[..24].iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)),
            0
        );
        assert_eq!(
            u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize,
            bytes.len() - 32
        );
        let text = |needle: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
        assert!(text(b"S-1\0") && text(b"3210547689abcdef"));
    }
}
