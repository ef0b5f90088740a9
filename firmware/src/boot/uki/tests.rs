use alloc::vec;

use super::*;
use crate::boot::linux::Kernel;
use crate::testing::{Bed, noise, source};

/// As kernel-install and dracut join it where there is no ukify: systemd's stub with sections added.
fn image(bed: &Bed) -> Vec<u8> {
    bed.image(
        1,
        "objcopy --add-section .osrel=$root/osrel --change-section-vma .osrel=0x20000 \
           --add-section .cmdline=$root/cmdline --change-section-vma .cmdline=0x30000 \
           --add-section .uname=$root/uname --change-section-vma .uname=0x38000 \
           --add-section .linux=$root/linux --change-section-vma .linux=0x2000000 \
           --add-section .initrd=$root/initrd --change-section-vma .initrd=0x3000000 \
           /usr/lib/systemd/boot/efi/linuxx64.efi.stub $image",
    )
}

#[test]
fn a_unified_kernel_image_is_taken_apart() {
    let bed = Bed::new();
    bed.file(
        "osrel",
        "ID=debian\nPRETTY_NAME=\"Debian GNU/Linux 12\"\nNAME=Debian\n",
    );
    bed.file("cmdline", "root=UUID=1 ro console=ttyS0\n");
    bed.file("uname", "6.1.0-13-amd64");
    bed.file("linux", noise(70_001, 3));
    bed.file("initrd", noise(50_003, 4));
    let unified = Unified::read(&source(image(&bed))).unwrap();
    assert_eq!(unified.title, "Debian GNU/Linux 12");
    assert_eq!(unified.version, "6.1.0-13-amd64");
    assert_eq!(unified.options, "root=UUID=1 ro console=ttyS0");
    assert!(unified.kernel.bytes(0, 70_001).unwrap() == noise(70_001, 3));
    let [initrd] = unified.initrds.as_slice() else {
        panic!("{} initrds", unified.initrds.len());
    };
    assert_eq!(initrd.len(), 50_003);
    assert!(initrd.bytes(0, 50_003).unwrap() == noise(50_003, 4));
    assert!(Kernel::read(&*unified.kernel).is_err());
}

#[test]
fn a_program_without_a_kernel_is_none() {
    let stub = Bed::new().image(1, "cp /usr/lib/systemd/boot/efi/systemd-bootx64.efi $image");
    let error = Unified::read(&source(stub)).err().unwrap();
    assert_eq!(
        error,
        Error::unsupported(format_args!("an EFI program without a kernel in it"))
    );
    for other in [&b"MZ"[..], b"\x7fELF", b"", &[b'M'; 100]] {
        assert!(Unified::read(&source(other.to_vec())).is_err());
    }
    let mut headless = vec![0; 4096];
    headless[..2].copy_from_slice(b"MZ");
    headless[0x3c..0x40].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(Unified::read(&source(headless)).is_err());
}
