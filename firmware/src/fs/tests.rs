//! Every kind of file system, made by its own tools, gives back what was put on it.

use alloc::collections::BTreeSet;
use alloc::format;

use super::*;
use crate::testing::{Bed, MKFS_XFS, noise, source};

const MANY: usize = 400;

fn kernel() -> Vec<u8> {
    noise((3 << 20) + 1234, 7)
}

/// Files as a system has them: a large one, text, links, a directory of many names.
fn bed(links: bool) -> Bed {
    let bed = Bed::new();
    bed.file("/boot/vmlinuz-6.1.0-13-amd64", kernel());
    bed.file("/boot/grub/grub.cfg", "set default=0\n");
    bed.file("/empty", "");
    // It compresses well, and is longer than one compressed extent.
    bed.file("/boot/text", "all work and no play\n".repeat(20_000));
    for i in 0..MANY {
        bed.file(
            &format!("/many/a-rather-long-name-of-a-file-{i:04}"),
            format!("{i}"),
        );
    }
    if links {
        bed.link("/vmlinuz", "boot/vmlinuz-6.1.0-13-amd64");
        bed.link("/boot/here", "/boot");
        bed.link("/long", &format!("/{}boot/grub/grub.cfg", "./".repeat(300)));
    }
    bed
}

fn check(image: Vec<u8>, kind: &str, links: bool) {
    let fs = open(&source(image)).unwrap().unwrap();
    assert_eq!(fs.kind(), kind);
    let read = |path: &str| {
        let file = fs.open(path).unwrap_or_else(|error| panic!("{path}: {error}"));
        file.bytes(0, file.len() as usize).unwrap()
    };
    assert!(read("/boot/vmlinuz-6.1.0-13-amd64") == kernel());
    // In pieces, too, as they are wanted.
    let file = fs.open("/boot/vmlinuz-6.1.0-13-amd64").unwrap();
    for (at, len) in [
        (0, 1),
        (4095, 2),
        (1 << 20, 70_000),
        (kernel().len() - 5, 5),
        (123, 456),
    ] {
        assert_eq!(file.bytes(at as u64, len).unwrap(), kernel()[at..at + len]);
    }
    assert!(file.bytes(kernel().len() as u64 - 5, 6).is_err());
    assert_eq!(fs.text("/boot/grub/grub.cfg").unwrap(), "set default=0\n");
    assert_eq!(
        read("/boot/text"),
        "all work and no play\n".repeat(20_000).into_bytes()
    );
    assert_eq!(read("/empty"), []);
    let names: BTreeSet<String> = fs.list("/many").unwrap().into_iter().collect();
    assert_eq!(names.len(), MANY);
    assert!(names.contains("a-rather-long-name-of-a-file-0399"), "{names:?}");
    assert_eq!(read("/many/a-rather-long-name-of-a-file-0233"), b"233");
    for missing in ["/boot/none", "/none/x", "/empty/x"] {
        assert!(
            fs.open(missing).is_err_and(|error| error.is_not_found()),
            "{missing}"
        );
    }
    assert!(fs.open("/boot").is_err() && fs.list("/none").is_err_and(|error| error.is_not_found()));
    if links {
        assert!(read("/vmlinuz") == kernel());
        assert_eq!(read("/boot/here/here/grub/grub.cfg"), b"set default=0\n");
        assert_eq!(read("/long"), b"set default=0\n");
    }
}

#[test]
fn ext2_ext3_and_ext4_are_read() {
    let bed = bed(true);
    for kind in ["ext2", "ext3", "ext4", "ext4 -O ^64bit,^metadata_csum -b 1024"] {
        check(
            bed.image(24, &format!("mkfs.{kind} -q -d $root $image")),
            "ext4",
            true,
        );
    }
}

#[test]
fn an_ext4_has_its_uuid_and_label() {
    let uuid = "6e616365-6c6c-4065-8000-000000000001";
    let image = Bed::new().image(8, &format!("mkfs.ext4 -q -U {uuid} -L cloudimg-rootfs $image"));
    let fs = open(&source(image)).unwrap().unwrap();
    assert_eq!((fs.uuid(), fs.label()), (uuid, "cloudimg-rootfs"));
}

#[test]
fn fat_of_every_width_is_read() {
    let bed = bed(false);
    for (mib, width) in [(16, 12), (32, 16), (64, 32)] {
        let cluster = if width == 32 { "-s 1" } else { "" };
        let make = format!(
            "mkfs.vfat -F {width} {cluster} -i 1234abcd -n EFI $image >/dev/null; MTOOLS_SKIP_CHECK=1 mcopy -s -i $image $root/* ::/"
        );
        let image = bed.image(mib, &make);
        let fs = open(&source(image.clone())).unwrap().unwrap();
        assert_eq!((fs.uuid(), fs.label()), ("1234-ABCD", "EFI"));
        // Names are the same in any letters.
        assert_eq!(fs.text("/BOOT/Grub/GRUB.CFG").unwrap(), "set default=0\n");
        check(image, "vfat", false);
    }
}

#[test]
fn xfs_of_both_versions_is_read() {
    let bed = bed(true);
    for options in [
        "",
        "-m crc=0",
        "-b size=1024",
        "-n size=8192",
        "-i sparse=0 -m bigtime=0,inobtcount=0",
    ] {
        check(
            bed.image(320, &format!("{MKFS_XFS}; mkfs_xfs $root {options} $image")),
            "xfs",
            true,
        );
    }
}

#[test]
fn btrfs_is_read_compressed_too() {
    let bed = bed(true);
    check(
        bed.image(160, "mkfs.btrfs -q --rootdir $root $image"),
        "btrfs",
        true,
    );
    check(
        bed.image(
            160,
            "mkfs.btrfs -q --mixed --nodesize 4096 --rootdir $root $image",
        ),
        "btrfs",
        true,
    );
    // What compresses is the mounted file system. It is mounted in a name space of its own: another's copy of ours
    // would keep it mounted, and unwritten.
    for method in ["zlib", "lzo", "zstd"] {
        let make = format!(
            "mkfs.btrfs -q $image; mkdir -p $image.mount
             unshare --mount bash -euc 'mount -o loop,compress-force={method} $image $image.mount
                cp -a $root/. $image.mount/; umount $image.mount'"
        );
        check(bed.image(160, &make), "btrfs", true);
    }
}

#[test]
fn paths_of_btrfs_begin_in_its_default_subvolume_and_then_at_the_top() {
    let image = Bed::new().image(
        160,
        "mkfs.btrfs -q -L fedora $image; mkdir -p $image.mount
         unshare --mount bash -euc 'mount -o loop $image $image.mount; cd $image.mount
            btrfs -q subvolume create @; btrfs -q subvolume create @/boot; btrfs -q subvolume set-default @
            echo inside >@/boot/file; echo top >top; echo both >@/top; echo only >only; cd /; umount $image.mount'",
    );
    let fs = open(&source(image)).unwrap().unwrap();
    assert_eq!(fs.label(), "fedora");
    for (path, text) in [
        ("/boot/file", "inside\n"),
        ("/@/boot/file", "inside\n"),
        ("/top", "both\n"),
        ("/only", "only\n"),
    ] {
        assert_eq!(fs.text(path).unwrap(), text, "{path}");
    }
}

#[test]
fn what_is_no_file_system_is_none() {
    assert!(open(&source(noise(1 << 20, 1))).unwrap().is_none());
    assert!(open(&source(alloc::vec![0; 1 << 20])).unwrap().is_none());
    assert!(open(&source(Vec::new())).unwrap().is_none());
}

#[test]
fn a_damaged_file_system_is_an_error_and_no_more() {
    let bed = bed(true);
    for make in [
        "mkfs.ext4 -q -d $root $image",
        "mkfs.btrfs -q --rootdir $root $image",
        "mkfs.vfat -F 16 $image >/dev/null; mcopy -s -i $image $root/boot ::/",
    ] {
        let image = bed.image(160, make);
        for seed in 0..40u64 {
            let mut image = image.clone();
            // Some bytes of where its structures are.
            for (at, byte) in noise(64, seed).chunks(2).zip(noise(32, seed + 1000)) {
                let at = (usize::from(at[0]) << 8 | usize::from(at[1])) * (seed as usize % 7 + 1);
                image[at] ^= byte;
            }
            let Ok(Some(fs)) = open(&source(image)) else {
                continue;
            };
            let _ = fs.list("/many");
            if let Ok(file) = fs.open("/boot/vmlinuz-6.1.0-13-amd64") {
                let _ = file.bytes(0, file.len().min(8 << 20) as usize);
            }
        }
    }
}
