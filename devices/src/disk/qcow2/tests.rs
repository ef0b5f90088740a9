use super::*;

/// A header as `qemu-img create -f qcow2 disk 1G` writes it, with fields of 4 or 8 bytes changed.
fn header(changes: &[(usize, u64, usize)]) -> Vec<u8> {
    let mut header = vec![0; HEADER];
    let fields = [
        (0, u64::from(u32::from_be_bytes(MAGIC)), 4),
        (4, 3, 4),
        (20, 16, 4),
        (24, 1 << 30, 8),
        (36, 2, 4),
    ];
    for &(at, value, len) in fields.iter().chain(changes) {
        header[at..at + len].copy_from_slice(&value.to_be_bytes()[8 - len..]);
    }
    header
}

#[test]
fn a_header_is_checked_before_the_library_acts_on_it() {
    type Changes = &'static [(usize, u64, usize)];
    let table: &[(Changes, bool, Option<&str>)] = &[
        (&[], false, None),
        (&[(4, 2, 4)], false, None),
        (&[(0, 0, 4)], false, Some("not a qcow2 image")),
        (&[(4, 1, 4)], false, Some("qcow2 version 1, not 2 or 3")),
        (&[(20, 8, 4)], false, Some("clusters of 2^8 bytes")),
        (&[(20, 22, 4)], false, Some("clusters of 2^22 bytes")),
        (
            &[(20, u32::MAX as u64, 4)],
            false,
            Some("clusters of 2^4294967295 bytes"),
        ),
        (&[(32, 2, 4)], false, Some("it is encrypted")),
        (
            &[(8, 104, 8)],
            false,
            Some("it has a backing file, which is not allowed here"),
        ),
        (&[(8, 104, 8)], true, None),
        (
            &[(72, 4, 8)],
            true,
            Some("its data are in another file, which is not allowed"),
        ),
        // Large, and what large disks are made with; and what would fill the host's memory.
        (&[(24, 1 << 44, 8), (36, 1 << 15, 4)], false, None),
        (&[(20, 21, 4), (24, 1 << 44, 8), (36, 32, 4)], false, None),
        (
            &[(20, 21, 4), (24, 1 << 60, 8), (36, u32::MAX as u64, 4)],
            false,
            Some("1152921504606846976 bytes in clusters of 2097152 need too much memory"),
        ),
        (&[(36, 1, 4)], false, Some("its table of tables is too short")),
    ];
    for (row, (changes, backing, expected)) in table.iter().enumerate() {
        let refused = check_header(&header(changes), *backing).err();
        assert_eq!(refused.as_deref(), *expected, "row {row}");
    }
    for len in [0, 3, 71] {
        assert!(check_header(&header(&[])[..len], false).is_err(), "{len}");
    }
}

#[test]
fn tables_lie_in_the_file_and_count_all_of_it() {
    type Changes = &'static [(usize, u64, usize)];
    const MIB: u64 = 1 << 20;
    // A table of tables of 2 entries at 192 KiB, one cluster of reference counts at 64 KiB, 16 bits each.
    const USUAL: Changes = &[(40, 0x3_0000, 8), (48, 0x1_0000, 8), (56, 1, 4), (96, 4, 4)];
    let blocks = |blocks| {
        Ok(Tables {
            counts: 0x1_0000,
            blocks,
        })
    };
    let table: &[(Changes, u64, std::result::Result<Tables, &str>)] = &[
        (&[], 0x4_0000, blocks(1)),
        (&[], 2048 * MIB, blocks(1)),
        (&[], 2048 * MIB + 1, blocks(2)),
        (&[(4, 2, 4), (96, 99, 4)], 2048 * MIB + 1, blocks(2)),
        (&[(96, 6, 4)], 2048 * MIB + 1, blocks(5)),
        (&[(96, 7, 4)], 0x4_0000, Err("its reference counts have 2^7 bits")),
        (
            &[(40, u64::MAX, 8)],
            0x4_0000,
            Err("its table of tables of 16 bytes is too large or not in the file"),
        ),
        (
            &[],
            0x3_000f,
            Err("its table of tables of 16 bytes is too large or not in the file"),
        ),
        (
            &[(36, 1 << 24, 4)],
            1 << 40,
            Err("its table of tables of 134217728 bytes is too large or not in the file"),
        ),
        (
            &[(56, u32::MAX as u64, 4)],
            1 << 62,
            Err("its table of reference counts of 281474976645120 bytes is too large or not in the file"),
        ),
        (
            &[(56, 0, 4)],
            0x4_0000,
            Err("its table of reference counts is too short"),
        ),
    ];
    for (row, (changes, len, expected)) in table.iter().enumerate() {
        let header = header(&[USUAL, changes].concat());
        let found = check_tables(&header, *len);
        assert_eq!(
            found.as_ref().map_err(String::as_str),
            expected.as_ref().map_err(|e| *e),
            "row {row}"
        );
    }
}

/// Found by fuzzing: the library wrote over the header of such an image, or called itself without end.
#[test]
fn an_image_that_does_not_count_its_clusters_is_only_read() {
    let image = vmm_sys_util::tempfile::TempFile::new().unwrap();
    let path = image.as_path().to_str().unwrap();
    let made = std::process::Command::new("qemu-img")
        .args([
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            "cluster_size=512",
            path,
            "64K",
        ])
        .status();
    assert!(made.expect("qemu-img is installed").success());
    let open = |read_only: bool| {
        let file = OpenOptions::new()
            .read(true)
            .write(!read_only)
            .open(path)
            .unwrap();
        Qcow2::new("image".into(), file, None, read_only, false, Lock::Never, false).map(|_| ())
    };
    open(false).unwrap();
    // The only entry of the table of reference counts.
    let table = number(&read_at(image.as_file(), 0, HEADER).unwrap(), 48, 8);
    image.as_file().write_all_at(&[0; 8], table).unwrap();

    let refused = open(false).unwrap_err().to_string();

    assert_eq!(
        refused,
        "disk image: parts of it have no reference counts; it can only be read"
    );
    open(true).unwrap();
}
