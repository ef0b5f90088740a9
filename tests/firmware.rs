//! The firmware on this machine's KVM: it boots disks of several kinds to the small kernel, over either transport, shows
//! its menu, and says why nothing boots.

mod support;

use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;

use nacelle_firmware::Result;
use nacelle_firmware::boot::File;
use nacelle_firmware::boot::choose::order;
use nacelle_firmware::boot::find::look;
use nacelle_firmware::boot::linux::Kernel;
use nacelle_firmware::io::{ReadAt, Source};
use nacelle_vmm::config::{BootConfig, DeviceConfig, MemoryConfig, Transport};
use nacelle_vmm::{VmConfig, VmEvent};
use support::{Guest, artefact, config, device, disk};
use vmm_sys_util::tempdir::TempDir;

/// The firmware's file, as `nacelle` carries it.
fn firmware(directory: &TempDir) -> PathBuf {
    let file = directory.as_path().join("firmware");
    std::fs::write(&file, nacelle_launcher::storage::FIRMWARE).unwrap();
    file
}

fn shell(command: &str, variables: &[(&str, &Path)]) {
    let status = Command::new("bash")
        .args(["-euo", "pipefail", "-c", command])
        .env(
            "PATH",
            format!("{}:/sbin:/usr/sbin", std::env::var("PATH").unwrap()),
        )
        .envs(variables.iter().copied())
        .status()
        .unwrap();
    assert!(status.success(), "{command}");
}

/// Makes `disk.img` in `directory` by a shell command, with the small kernel, its root as initial RAM disk, and the
/// kernel's command line.
fn image(directory: &TempDir, make: &str) -> PathBuf {
    let here = directory.as_path();
    std::fs::write(here.join("cmdline"), config().boot.cmdline).unwrap();
    shell(
        &format!("mkdir $here/root; cd $here; cmdline=$(<cmdline)\n{make}"),
        &[
            ("here", here),
            ("kernel", &artefact("LINUX_SMALL_BZIMAGE")),
            ("initrd", &artefact("LINUX_SMALL_INITRD")),
        ],
    );
    here.join("disk.img")
}

/// As Debian's cloud images have it: GPT, ext4, a grub.cfg.
const GRUB: &str = r#"
    mkdir -p root/boot/grub; cp $kernel root/boot/vmlinuz-6.1; cp $initrd root/boot/initrd.img-6.1
    uuid=6e616365-6c6c-4065-8000-000000000001
    cat >root/boot/grub/grub.cfg <<END
set default=0
menuentry 'Small' {
    search --no-floppy --fs-uuid --set=root $uuid
    linux /boot/vmlinuz-6.1 $cmdline
    initrd /boot/initrd.img-6.1
}
END
    truncate -s 100M disk.img
    sgdisk >/dev/null -n 14:2048:+3M -t 14:ef02 -n 15:0:+30M -t 15:ef00 -n 1:0:0 disk.img
    truncate -s 64M ext4; mkfs.ext4 -q -d root -U $uuid ext4
    dd if=ext4 of=disk.img bs=1M seek=34 conv=notrunc,sparse status=none"#;

/// As an installation with a unified kernel image has it: the image, of systemd's stub, on the system partition.
const UNIFIED: &str = r#"
    echo 'PRETTY_NAME="Small Linux"' >os-release
    objcopy --add-section .osrel=os-release --change-section-vma .osrel=0x20000 \
        --add-section .cmdline=cmdline --change-section-vma .cmdline=0x30000 \
        --add-section .linux=$kernel --change-section-vma .linux=0x2000000 \
        --add-section .initrd=$initrd --change-section-vma .initrd=0x3000000 \
        /usr/lib/systemd/boot/efi/linuxx64.efi.stub small.efi
    truncate -s 64M esp; mkfs.vfat -F 32 esp >/dev/null; mmd -i esp ::/EFI ::/EFI/Linux; mcopy -i esp small.efi ::/EFI/Linux/
    truncate -s 70M disk.img; sgdisk >/dev/null -n 1:2048:+64M -t 1:ef00 disk.img
    dd if=esp of=disk.img bs=1M seek=1 conv=notrunc,sparse status=none"#;

/// As Alpine has it: MBR, ext4, an extlinux.conf; here with two labels.
const EXTLINUX: &str = r#"
    mkdir root/boot; cp $kernel root/boot/vmlinuz-virt; cp $initrd root/boot/initramfs-virt
    for label in virt other; do
        printf 'LABEL %s\n  MENU LABEL Linux %s\n  LINUX vmlinuz-virt\n  INITRD initramfs-virt\n  APPEND %s chosen=%s\n' \
            $label $label "$cmdline" $label
    done >root/boot/extlinux.conf
    truncate -s 66M disk.img; echo '2048,131072,83,*' | sfdisk -q disk.img
    truncate -s 64M ext4; mkfs.ext4 -q -d root ext4
    dd if=ext4 of=disk.img bs=1M seek=1 conv=notrunc,sparse status=none"#;

/// A machine whose firmware is told `words`.
fn machine(directory: &TempDir, transport: Transport, words: &str, devices: Vec<DeviceConfig>) -> VmConfig {
    VmConfig {
        transport,
        memory: MemoryConfig {
            size: 192 << 20,
            ..Default::default()
        },
        boot: BootConfig {
            kernel: firmware(directory),
            initrd: None,
            cmdline: words.into(),
        },
        devices,
        ..Default::default()
    }
}

fn empty(directory: &TempDir) -> DeviceConfig {
    let file = directory.as_path().join("empty");
    std::fs::File::create(&file).unwrap().set_len(1 << 20).unwrap();
    device("empty", disk(file))
}

/// Boots a machine whose second disk is made so; the firmware says `chosen`.
fn boots(transport: Transport, make: &str, chosen: &str) {
    let directory = TempDir::new().unwrap();
    let root = device("root", disk(image(&directory, make)));
    let disks = vec![empty(&directory), root];
    let guest = Guest::boot(machine(&directory, transport, "disks=0,1 verbose", disks));
    let said = guest.said.text();
    assert!(said.contains(&format!("nacelle: disk 1: {chosen}\r\n")), "{said}");
    assert_eq!(guest.run("nproc"), "1");
    // How long each stage took (docs/firmware.md).
    let stages = said.lines().find(|line| line.starts_with("nacelle: cycles: "));
    println!("{}", stages.unwrap());
}

#[test]
fn a_disk_image_with_grub_boots_over_virtio_pci() {
    boots(Transport::Pci, GRUB, "Small (grub.cfg of hd0,gpt1)");
}

#[test]
fn a_unified_kernel_image_boots_over_virtio_mmio() {
    let chosen = "Small Linux (unified kernel image of hd0,gpt1)";
    boots(Transport::Mmio, UNIFIED, chosen);
}

#[test]
fn the_menu_waits_for_a_key_and_boots_what_it_names() {
    let directory = TempDir::new().unwrap();
    let root = device("root", disk(image(&directory, EXTLINUX)));
    let guest = Guest::start(machine(&directory, Transport::Pci, "wait=600", vec![root]));
    guest.said.wait(0, "the menu", |text| {
        let menu = "  1  Linux virt (extlinux.conf)\r\n  2  Linux other (extlinux.conf)\r\n\
            nacelle: 1 to 2 boots one of them, Enter the first, which boots in 600 s\r\n";
        text.contains(menu).then_some(())
    });
    (&guest.console).write_all(b"2").unwrap();
    guest.wait_for_shell(0);
    let cmdline = guest.run("cat /proc/cmdline");
    assert!(cmdline.ends_with("chosen=other"), "{cmdline}");
}

#[test]
fn where_nothing_boots_the_reasons_are_said_and_the_machine_stands_still() {
    let directory = TempDir::new().unwrap();
    let unbootable = r#"
        mkdir -p root/boot/grub
        printf 'menuentry Gone {\n linux /boot/vmlinuz-gone ro\n}\n' >root/boot/grub/grub.cfg
        truncate -s 40M disk.img; sgdisk >/dev/null -n 1:2048:+16M -n 2:0:+8M disk.img
        truncate -s 16M ext4; mkfs.ext4 -q -d root -L data -U 6e616365-6c6c-4065-8000-000000000002 ext4
        dd if=ext4 of=disk.img bs=1M seek=1 conv=notrunc,sparse status=none"#;
    let data = device("data", disk(image(&directory, unbootable)));
    let disks = vec![empty(&directory), data];
    let mut guest = Guest::start(machine(&directory, Transport::Pci, "", disks));
    let event = guest.event();
    assert!(matches!(event, VmEvent::Panicked), "{event:?}");
    let report = "nacelle: no operating system was found.
  Disk 0:
    no file system that is known (ext4, vfat, xfs, btrfs)
    hd0: no file system that is known
  Disk 1:
    hd0,gpt1: ext4 6e616365-6c6c-4065-8000-000000000002 data
    hd0,gpt2: no file system that is known
    Gone (grub.cfg): /boot/vmlinuz-gone is not there
  Give the machine a disk with an operating system, or name a kernel (spec.domain.firmware.kernelBoot).
nacelle: nothing boots; the machine stands still.";
    let said = guest.said.wait(0, "its last word", |text| {
        text.contains("stands still").then(|| text.replace('\r', ""))
    });
    assert!(said.contains(report), "{said}");
}

/// A disk image that is read where it lies.
struct Image(std::fs::File);

impl ReadAt for Image {
    fn len(&self) -> u64 {
        self.0.metadata().unwrap().len()
    }

    fn read_at(&self, at: u64, into: &mut [u8]) -> Result<()> {
        self.0.read_exact_at(into, at).unwrap();
        Ok(())
    }
}

/// What the firmware finds on the image of Debian that `tests/guest/cloud` makes: for each entry, in the order in which
/// they are tried, its title and kind, its kernel and initial RAM disk, which are there, and its command line.
fn entries_of_debian(loader: &str) -> Vec<[String; 4]> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/guest/cloud");
    let output = Command::new(script).arg(loader).output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let directory = String::from_utf8(output.stdout).unwrap();
    let file = std::fs::File::open(Path::new(directory.trim_end()).join("disk.img")).unwrap();
    let found = look(&(Rc::new(Image(file)) as Source), 512);
    assert!(found.notes.is_empty(), "{:?}", found.notes);
    let place = |file: &File| {
        let volume = &found.volumes[file.volume];
        assert!(!volume.fs.open(&file.path).unwrap().is_empty());
        let version = file
            .path
            .split('/')
            .find_map(|part| part.find("6.1.0-").map(|at| &part[at..]));
        format!(
            "({}){}",
            volume.name,
            file.path.replace(version.unwrap(), "VERSION")
        )
    };
    let entries = order(&found.menus, "").into_iter().map(|entry| {
        let kernel = &found.volumes[entry.kernel.volume]
            .fs
            .open(&entry.kernel.path)
            .unwrap();
        Kernel::read(&**kernel).unwrap();
        [
            format!("{} ({})", entry.title, entry.kind),
            place(&entry.kernel),
            place(&entry.initrds[0]),
            entry.options.clone(),
        ]
    });
    entries.collect()
}

#[test]
fn the_menu_that_grub_mkconfig_makes_is_read() {
    let entries = entries_of_debian("grub");
    let [title, kernel, initrd, options] = &entries[0];
    assert_eq!(title, "Debian GNU/Linux (grub.cfg)");
    assert_eq!(kernel, "(hd0,gpt1)/boot/vmlinuz-VERSION");
    assert_eq!(initrd, "(hd0,gpt1)/boot/initrd.img-VERSION");
    assert!(
        options.starts_with("root=UUID=") && options.ends_with(" ro console=ttyS0,115200 quiet"),
        "{options}"
    );
    // Those of its submenu, of which the last one is for repairs.
    assert_eq!(entries.len(), 3);
    assert!(entries[2][3].contains(" single "), "{entries:?}");
}

#[test]
fn the_entry_that_kernel_install_writes_for_systemd_boot_is_read() {
    let expected = [
        "Debian GNU/Linux 12 (bookworm) (boot loader entry)",
        "(hd0,gpt15)/debian/VERSION/linux",
        "(hd0,gpt15)/debian/VERSION/initrd.img-VERSION",
        "root=LABEL=cloudimg-rootfs ro console=ttyS0,115200",
    ];
    assert_eq!(entries_of_debian("systemd-boot"), [expected.map(String::from)]);
}

#[test]
fn the_firmware_has_less_than_256_kib() {
    let size = nacelle_launcher::storage::FIRMWARE.len();
    assert!(size < 256 << 10, "{size} bytes");
}
