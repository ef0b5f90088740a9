use alloc::borrow::ToOwned;

use super::*;
use crate::boot::choose;
use crate::testing::{Bed, MKFS_XFS, shell, source};

/// An entry of the specification.
fn entry(version: &str) -> String {
    format!("title Linux {version}\nversion {version}\nlinux /vmlinuz-{version}\noptions ro\n")
}

/// The titles that would be tried, in their order.
fn titles(image: Vec<u8>) -> Vec<String> {
    let found = look(&source(image), 512);
    assert_eq!(found.notes, Vec::<String>::new());
    choose::order(&found.menus, "")
        .iter()
        .map(|entry| format!("{} ({})", entry.title, entry.kind))
        .collect()
}

/// A disk with a system partition of the files in `$root/esp`, an extended one of those in `$root/xbootldr` made by
/// `mkfs` on `$part`, and a root file system with those in `$root/system`.
fn disk(bed: &Bed, mkfs: &str) -> Vec<u8> {
    let make = format!(
        "sgdisk >/dev/null -n 1:2048:+40M -t 1:ef00 -n 2:0:+320M -t 2:ea00 -n 3:0:+20M $image
         mkdir -p $root/esp $root/xbootldr $root/system
         part=$image.part; files=$root/esp; truncate -s 40M $part
         mkfs.vfat -F 32 $part >/dev/null; MTOOLS_SKIP_CHECK=1 mcopy -s -i $part $files/* ::/ 2>/dev/null || :
         dd if=$part of=$image bs=1M seek=1 conv=notrunc,sparse status=none; rm $part
         files=$root/xbootldr; truncate -s 320M $part; {mkfs}
         dd if=$part of=$image bs=1M seek=41 conv=notrunc,sparse status=none; rm $part
         truncate -s 20M $part; mkfs.ext4 -q -d $root/system $part
         dd if=$part of=$image bs=1M seek=361 conv=notrunc,sparse status=none"
    );
    bed.image(400, &make)
}

const EXT4: &str = "mkfs.ext4 -q -d $files $part";

/// Has kernel-install put a kernel of this version on what becomes the extended partition.
fn kernel_install(bed: &Bed, version: &str) {
    bed.file("/kernel", version);
    bed.file("/initrd", version);
    bed.file("/etc/cmdline", "root=UUID=1 ro console=ttyS0\n");
    bed.file("/etc/install.conf", "layout=bls\n");
    bed.file("/etc/entry-token", "fedora\n");
    let install = format!(
        "mkdir -p $root/boot $root/xbootldr
         unshare --mount bash -euc 'mount -t tmpfs boot $root/boot; mkdir -p $root/boot/loader/entries
            BOOT_ROOT=$root/boot KERNEL_INSTALL_CONF_ROOT=$root/etc MACHINE_ID=0123456789abcdef0123456789abcdef \\
            kernel-install add {version} $root/kernel $root/initrd; cp -a $root/boot/. $root/xbootldr/'"
    );
    shell(&install, &[("root", &bed.root())]);
}

#[test]
fn fedoras_layout_boots_the_newest_kernel_whatever_the_file_system_of_boot() {
    for mkfs in [
        EXT4.to_owned(),
        format!("{MKFS_XFS}; mkfs_xfs $files $part"),
        "mkfs.btrfs -q --rootdir $files $part".to_owned(),
    ] {
        let bed = Bed::new();
        bed.file(
            "/esp/EFI/fedora/grub.cfg",
            "search --no-floppy --fs-uuid --set=dev none\n",
        );
        let versions = ["6.10.1-100.fc40", "6.5.6-300.fc39", "6.5.6-200.fc39"];
        versions
            .iter()
            .rev()
            .for_each(|version| kernel_install(&bed, version));
        let found = look(&source(disk(&bed, &mkfs)), 512);
        let order = choose::order(&found.menus, "");
        for (entry, version) in order.iter().zip(versions) {
            assert_eq!(entry.id, format!("fedora-{version}"), "{mkfs}");
            assert_eq!(entry.options, "root=UUID=1 ro console=ttyS0");
            let boot = &found.volumes[entry.kernel.volume];
            assert_eq!(boot.name, "hd0,gpt2");
            assert_eq!(boot.fs.text(&entry.kernel.path).unwrap(), version);
            assert_eq!(boot.fs.text(&entry.initrds[0].path).unwrap(), version);
        }
        assert_eq!(order.len(), versions.len());
    }
}

#[test]
fn kinds_are_tried_in_their_order_and_a_loaders_default_comes_first() {
    let bed = Bed::new();
    bed.file("/esp/loader/entries/a-1.conf", entry("1"));
    bed.file("/esp/loader/entries/a-2.conf", entry("2"));
    bed.file("/xbootldr/grub/grub.cfg", "menuentry three { linux /k\n }\n");
    bed.file("/system/extlinux/extlinux.conf", "label four\nlinux /k\n");
    bed.file("/system/boot/loader/entries/b.conf", entry("0"));
    let kinds = [
        "Linux 2 (boot loader entry)",
        "Linux 1 (boot loader entry)",
        "Linux 0 (boot loader entry)",
        "three (grub.cfg)",
        "four (extlinux.conf)",
    ];
    assert_eq!(titles(disk(&bed, EXT4)), kinds);
    bed.file("/esp/loader/loader.conf", "timeout 3\ndefault a-1*\n");
    assert_eq!(titles(disk(&bed, EXT4))[0], "Linux 1 (boot loader entry)");
}

#[test]
fn entries_on_a_root_file_system_name_kernels_below_its_boot() {
    let bed = Bed::new();
    bed.file("/boot/loader/entries/m.conf", entry("6.5"));
    bed.file("/boot/vmlinuz-6.5", "x");
    let found = look(&source(bed.image(8, "mkfs.ext4 -q -d $root $image")), 512);
    assert_eq!(found.menus[0].entries[0].kernel.path, "/boot/vmlinuz-6.5");
    assert_eq!(found.volumes[0].name, "hd0");
}

#[test]
fn a_disk_with_nothing_has_nothing() {
    let found = look(&source(alloc::vec![0; 1 << 20]), 512);
    assert!(found.menus.is_empty() && found.volumes.is_empty());
    assert_eq!(found.unknown, ["hd0"]);
    let found = look(&source(Bed::new().image(8, "mkfs.ext4 -q $image")), 512);
    assert!(found.menus.is_empty() && found.notes.is_empty() && found.volumes.len() == 1);
}
