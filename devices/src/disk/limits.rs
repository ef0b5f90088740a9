//! What the kernel says of a file or block device: its size, its blocks, what O_DIRECT asks for.
#![expect(unsafe_code, reason = "statx and the ioctls of block devices")]

use std::ffi::{c_int, c_uint, c_ulong};
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;

use super::Topology;

/// Of linux/fs.h.
const BLKSSZGET: c_ulong = 0x1268;
const BLKIOMIN: c_ulong = 0x1278;
const BLKIOOPT: c_ulong = 0x1279;
const BLKALIGNOFF: c_ulong = 0x127a;
const BLKPBSZGET: c_ulong = 0x127b;

/// What O_DIRECT asks for, in bytes, powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Alignment {
    /// Of each piece of memory, its address and length.
    pub memory: usize,
    /// Of the offset in the file and the whole length.
    pub offset: u64,
}

/// The result of a system call that gives nothing else.
pub(super) fn check(result: c_int) -> io::Result<()> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Size in bytes, of a block device too (its inode has none).
pub(super) fn size(file: &File) -> io::Result<u64> {
    let mut file = file;
    file.seek(SeekFrom::End(0))
}

/// Whether the file is in memory alone: of tmpfs, which also a memfd is of.
pub(super) fn is_in_memory(file: &File) -> bool {
    // SAFETY: statfs is plain numbers, for which zero is a value.
    let mut answer: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: `answer` lives as long as the call.
    let asked = check(unsafe { libc::fstatfs(file.as_raw_fd(), &mut answer) });
    asked.is_ok() && answer.f_type == libc::TMPFS_MAGIC
}

/// Logical block size of a block device.
pub(super) fn logical_block(file: &File) -> u32 {
    device_limit(file, BLKSSZGET).unwrap_or(512).max(512)
}

/// What O_DIRECT on this file asks for: what the kernel says (statx(2), STATX_DIOALIGN), else the safe side.
pub(super) fn direct_alignment(file: &File, device_block: Option<u64>, most: u64) -> Alignment {
    // SAFETY: statx is plain numbers, for which zero is a value.
    let mut answer: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the path is empty and terminated, `answer` lives as long as the call.
    let asked = check(unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            &mut answer,
        )
    });
    let (memory, offset) = (answer.stx_dio_mem_align, answer.stx_dio_offset_align);
    let known = asked.is_ok()
        && answer.stx_mask & libc::STATX_DIOALIGN != 0
        && memory.is_power_of_two()
        && offset.is_power_of_two()
        && u64::from(offset) <= most;
    if known {
        Alignment {
            memory: memory as usize,
            offset: u64::from(offset),
        }
    } else {
        Alignment {
            memory: 4096,
            offset: device_block.unwrap_or(4096).min(most),
        }
    }
}

/// What a file system's block size says.
pub(super) fn file_topology(block: u64) -> Topology {
    let physical = u32::try_from(block).ok().filter(|b| b.is_power_of_two());
    Topology {
        physical: physical.unwrap_or(4096).clamp(512, 65536),
        alignment: 0,
        minimum: 0,
        optimal: 0,
    }
}

/// What the kernel says of a block device with logical blocks of `block` bytes.
pub(super) fn device_topology(file: &File, block: u32) -> Topology {
    let physical = device_limit(file, BLKPBSZGET).filter(|p| p.is_power_of_two());
    Topology {
        physical: physical.unwrap_or(block).max(512),
        // Negative when the kernel does not know.
        alignment: device_limit(file, BLKALIGNOFF)
            .filter(|a| *a < 1 << 31)
            .unwrap_or(0),
        minimum: device_limit(file, BLKIOMIN).unwrap_or(0),
        optimal: device_limit(file, BLKIOOPT).unwrap_or(0),
    }
}

fn device_limit(file: &File, request: c_ulong) -> Option<u32> {
    let mut value: c_uint = 0;
    // SAFETY: each of these requests writes one 32-bit number, `value`.
    check(unsafe { libc::ioctl(file.as_raw_fd(), request, &mut value) })
        .ok()
        .map(|()| value)
}
