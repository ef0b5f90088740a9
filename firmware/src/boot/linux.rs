//! Linux's boot protocol, 64-bit (Documentation/arch/x86/boot.rst): what a bzImage says of itself, and the zero page
//! that it is given.

use alloc::vec;
use alloc::vec::Vec;

use crate::bytes::Bytes;
use crate::io::ReadAt;
use crate::memory::{Range, Wish};
use crate::{Error, Result};

/// The setup header's place in a bzImage and in the zero page.
const HEADER: usize = 0x1f1;
/// The longest setup header that fits below what follows it in the zero page.
const HEADER_END: usize = 0x290;
const ZERO_PAGE: usize = 4096;
/// The entry in long mode lies this far into the protected-mode part.
pub const ENTRY_64: u64 = 0x200;
/// "The kernel has an entry in long mode."
const XLF_KERNEL_64: u16 = 1;
const LOADER_UNDEFINED: u8 = 0xff;
/// Protocol 2.12, which has `xloadflags`: Linux 3.8.
const OLDEST: u16 = 0x20c;
/// Most ranges of memory in the zero page.
const MAX_RANGES: usize = 128;

/// A bzImage's setup header.
#[derive(Clone, Debug)]
pub struct Kernel {
    header: Vec<u8>,
    /// Where the protected-mode part begins in the file.
    pub start: u64,
    /// Its length.
    pub len: u64,
    /// What it says of its place.
    pub wish: Wish,
    /// Longest command line, without the zero at its end.
    pub cmdline_max: usize,
}

impl Kernel {
    /// Reads the header of the bzImage in `file`.
    ///
    /// # Errors
    /// When it is none, or one of another kind.
    pub fn read(file: &dyn ReadAt) -> Result<Kernel> {
        let mut head = vec![0; HEADER_END];
        if file.len() < head.len() as u64 {
            return Err(Error::unsupported(format_args!("a kernel of a few bytes")));
        }
        file.read_at(0, &mut head)?;
        let bytes = Bytes(&head);
        if bytes.slice(0x202, 4)? != b"HdrS" {
            let what = match bytes.slice(0, 4)? {
                b"\x7fELF" => "a kernel that is an ELF file; a bzImage",
                [0x1f, 0x8b, ..] => "a compressed kernel; a bzImage",
                _ => "a kernel that is no bzImage; a bzImage",
            };
            return Err(Error::unsupported(format_args!(
                "{what} (what distributions call vmlinuz) is, but this"
            )));
        }
        let version = bytes.u16(0x206)?;
        if version < OLDEST || bytes.u16(0x236)? & XLF_KERNEL_64 == 0 {
            return Err(Error::unsupported(format_args!(
                "a kernel without an entry in 64-bit mode"
            )));
        }
        let sectors = match bytes.u8(0x1f1)? {
            0 => 4,
            sectors => u64::from(sectors),
        };
        let start = (sectors + 1) * 512;
        let len = file
            .len()
            .checked_sub(start)
            .ok_or_else(|| Error::damaged(format_args!("the kernel ends in its header")))?;
        // The header's end is where the jump at its beginning leads to.
        let end = 0x202 + usize::from(bytes.u8(0x201)?);
        Ok(Kernel {
            header: bytes
                .slice(HEADER, end.min(HEADER_END).saturating_sub(HEADER))?
                .to_vec(),
            start,
            len,
            wish: Wish {
                preferred: bytes.u64(0x258)?,
                relocatable: bytes.u8(0x234)? != 0,
                alignment: u64::from(bytes.u32(0x230)?).next_power_of_two().min(1 << 30),
                size: u64::from(bytes.u32(0x260)?).max(len),
                initrd_max: bytes.u32(0x22c)?.into(),
            },
            cmdline_max: bytes.u32(0x238)? as usize,
        })
    }

    /// The zero page. Addresses are below 4 GiB, where the kernel is placed.
    pub fn zero_page(&self, map: &[Range], rsdp: u64, cmdline: u64, initrd: (u64, u64)) -> Vec<u8> {
        let mut page = vec![0; ZERO_PAGE];
        let mut put = |at: usize, bytes: &[u8]| {
            let place = page.get_mut(at..at + bytes.len());
            place.into_iter().for_each(|place| place.copy_from_slice(bytes));
        };
        put(HEADER, &self.header);
        put(0x210, &[LOADER_UNDEFINED]);
        put(0x218, &(initrd.0 as u32).to_le_bytes());
        put(0x21c, &(initrd.1 as u32).to_le_bytes());
        put(0x228, &(cmdline as u32).to_le_bytes());
        put(0x070, &rsdp.to_le_bytes());
        let map = map.iter().take(MAX_RANGES);
        put(0x1e8, &[map.len() as u8]);
        for (i, range) in map.enumerate() {
            let at = 0x2d0 + 20 * i;
            put(at, &range.start.to_le_bytes());
            put(at + 8, &range.len.to_le_bytes());
            put(at + 16, &u32::from(range.kind).to_le_bytes());
        }
        page
    }
}

/// The consoles that a command line names on a serial line; Linux speaks on no other that a machine here has.
pub fn serial_console(options: &str) -> Option<&str> {
    let console = |word: &&str| word.starts_with("console=ttyS") || word.starts_with("console=hvc");
    options.split_whitespace().rev().find(console)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::RangeKind;

    /// As small as a bzImage gets.
    fn image() -> Vec<u8> {
        let mut image = vec![0; 5 * 512 + 100];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x1f1, &[4]);
        put(0x200, &[0xeb, 0x66]);
        put(0x202, b"HdrS");
        put(0x206, &0x20fu16.to_le_bytes());
        put(0x22c, &0x7fff_ffffu32.to_le_bytes());
        put(0x230, &0x20_0000u32.to_le_bytes());
        put(0x234, &[1]);
        put(0x236, &0x3fu16.to_le_bytes());
        put(0x238, &2047u32.to_le_bytes());
        put(0x258, &0x100_0000u64.to_le_bytes());
        put(0x260, &0x300_0000u32.to_le_bytes());
        image
    }

    #[test]
    fn a_kernel_says_where_it_wants_to_be() {
        let kernel = Kernel::read(&image()).unwrap();
        assert_eq!((kernel.start, kernel.len, kernel.cmdline_max), (2560, 100, 2047));
        let wish = Wish {
            preferred: 0x100_0000,
            relocatable: true,
            alignment: 0x20_0000,
            size: 0x300_0000,
            initrd_max: 0x7fff_ffff,
        };
        assert_eq!(kernel.wish, wish);
    }

    #[test]
    fn the_zero_page_has_what_linux_looks_for() {
        let kernel = Kernel::read(&image()).unwrap();
        let range = Range {
            start: 0x10_0000,
            len: 0x700_0000,
            kind: RangeKind::Ram,
        };
        let page = kernel.zero_page(&[range], 0xe_0000, 0x1_1000, (0x400_0000, 1234));
        let bytes = Bytes(&page);
        assert_eq!(bytes.slice(0x202, 4).unwrap(), b"HdrS");
        assert_eq!(
            (bytes.u8(0x210).unwrap(), bytes.u64(0x70).unwrap()),
            (0xff, 0xe_0000)
        );
        assert_eq!(
            (bytes.u32(0x218).unwrap(), bytes.u32(0x21c).unwrap()),
            (0x400_0000, 1234)
        );
        assert_eq!(bytes.u32(0x228).unwrap(), 0x1_1000);
        assert_eq!(
            (bytes.u8(0x1e8).unwrap(), bytes.u64(0x2d0).unwrap()),
            (1, 0x10_0000)
        );
        assert_eq!(bytes.u32(0x2e0).unwrap(), 1);
        // Nothing beyond the header's own end is taken over.
        assert_eq!(bytes.slice(0x268, 0x20).unwrap(), [0; 0x20]);
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        for (change, words) in [(0x202, "no bzImage"), (0x236, "64-bit"), (0x206, "64-bit")] {
            let mut image = image();
            image[change] = 0;
            image[change + 1] = 0;
            use alloc::string::ToString;
            let error = Kernel::read(&image).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        assert!(Kernel::read(&vec![0; 20]).is_err());
        image()[0x1f1] = 200;
    }

    #[test]
    fn the_serial_console_of_a_command_line_is_the_last_one() {
        assert_eq!(
            serial_console("ro console=ttyS1 console=ttyS0,115200n8 quiet"),
            Some("console=ttyS0,115200n8")
        );
        assert_eq!(serial_console("ro console=tty0 quiet"), None);
    }
}
