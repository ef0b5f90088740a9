use super::*;
use crate::testing::{Bed, source};

fn table(command: &str) -> Vec<Partition> {
    let image = Bed::new().image(64, command);
    partitions(&source(image), 512).unwrap()
}

fn brief(partitions: &[Partition]) -> Vec<(u32, u64, u64, Purpose)> {
    let mib = |bytes: u64| bytes >> 20;
    let brief = |p: &Partition| (p.number, mib(p.start), mib(p.len), p.purpose);
    partitions.iter().map(brief).collect()
}

const GPT: &str = "sgdisk >/dev/null -n 1:2048:+8M -t 1:ef00 -u 1:01234567-89AB-CDEF-0123-456789ABCDEF -n 3:0:+16M \
                   -t 3:ea00 -n 2:0:+4M $image";

#[test]
fn partitions_that_sgdisk_made_are_found() {
    let found = table(GPT);
    let expected = [
        (1, 1, 8, Purpose::Esp),
        (2, 25, 4, Purpose::Other),
        (3, 9, 16, Purpose::Xbootldr),
    ];
    assert_eq!(brief(&found), expected);
    assert_eq!(found[0].uuid, "01234567-89ab-cdef-0123-456789abcdef");
    assert_eq!(found[0].table, "gpt");
}

#[test]
fn the_second_header_serves_where_the_first_is_damaged() {
    assert_eq!(
        brief(&table(&format!(
            "{GPT}; dd if=/dev/zero of=$image bs=512 seek=1 count=1 conv=notrunc status=none"
        )))
        .len(),
        3
    );
    let both = Bed::new().image(
        64,
        &format!("{GPT}; dd if=/dev/zero of=$image bs=512 seek=1 count=1 conv=notrunc status=none"),
    );
    let mut both = both;
    let last = both.len() - 512;
    both[last + 20] ^= 1;
    let error = partitions(&source(both), 512).unwrap_err().to_string();
    assert!(error.contains("neither header"), "{error}");
}

#[test]
fn partitions_of_an_mbr_are_found_logical_ones_too() {
    let script = "label: dos\nlabel-id: 0x12345678\n\
        start=2048, size=8192, type=ef\nstart=10240, size=20480, type=83, bootable\nsize=2048, type=82\nsize=40000, type=5\n\
        size=8192, type=83\nsize=8192, type=83\n";
    let found = table(&format!("sfdisk -q $image <<'END'\n{script}END"));
    let brief = brief(&found);
    assert_eq!(brief.iter().map(|p| p.0).collect::<Vec<_>>(), [1, 2, 3, 5, 6]);
    assert_eq!((brief[0].3, brief[1].1, brief[3].2), (Purpose::Esp, 5, 4));
    assert_eq!((found[1].uuid.as_str(), found[1].table), ("12345678-02", "msdos"));
}

#[test]
fn a_file_system_without_a_table_has_no_partitions() {
    for command in ["mkfs.vfat -F 16 $image >/dev/null", "mkfs.ext4 -q $image", ":"] {
        assert_eq!(table(command), [], "{command}");
    }
    assert_eq!(partitions(&source(Vec::new()), 512), Ok(Vec::new()));
}

#[test]
fn a_hostile_table_ends() {
    let mut sector = vec![0; 4096];
    sector[510..512].copy_from_slice(&[0x55, 0xaa]);
    // An extended partition whose tables name each other.
    sector[446 + 4] = 5;
    sector[446 + 16 + 4] = 5;
    sector[446 + 12] = 1;
    assert!(partitions(&source(sector.clone()), 512).unwrap().len() <= 4 * 64);
    sector[446 + 4] = 0xee;
    assert!(partitions(&source(sector), 512).is_err());
}
