//! A qcow2 image from anybody: opened, read, written, flushed.
#![no_main]

use std::io::Write;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use nacelle_devices::disk::{Disk, DiskOp, DiskOptions, DiskQueue, Format, Lock, Pool, Source, open};
use nacelle_devices::memory::GuestBuffer;
use nacelle_fuzz::guest::{DATA, memory};
use vm_memory::{GuestAddress, GuestAddressSpace};
use vmm_sys_util::tempfile::TempFile;

static POOL: LazyLock<Pool> = LazyLock::new(Pool::new);
static FILE: LazyLock<TempFile> = LazyLock::new(|| TempFile::new_in("/dev/shm".as_ref()).unwrap());

/// One operation, done when this returns.
fn execute(queue: &mut dyn DiskQueue, op: DiskOp, len: usize) {
    let ranges = match len {
        0 => Vec::new(),
        len => vec![(GuestAddress(DATA), len)],
    };
    let buffer = GuestBuffer::new(memory().memory().into_inner(), ranges).unwrap();
    queue.submit(0, op, buffer).unwrap();
    queue.commit().unwrap();
    while queue.reap().is_none() {
        std::thread::yield_now();
    }
}

fn use_it(disk: &dyn Disk) {
    let mut queue = disk.open_queue(1).unwrap();
    let end = disk.len();
    for offset in [0, 512, end / 2 / 512 * 512, end.saturating_sub(4096)] {
        let len = end.saturating_sub(offset).min(4096);
        if len > 0 {
            execute(&mut *queue, DiskOp::Read { offset }, len as usize);
            execute(
                &mut *queue,
                DiskOp::Write {
                    offset,
                    durable: false,
                },
                len as usize,
            );
            execute(&mut *queue, DiskOp::Discard { offset, len }, 0);
            let zeroes = DiskOp::WriteZeroes {
                offset,
                len,
                unmap: true,
                durable: false,
            };
            execute(&mut *queue, zeroes, 0);
        }
    }
    execute(&mut *queue, DiskOp::Flush, 0);
}

/// A panic of the library is answered as an error of the disk; every other ends the run.
static HOOK: LazyLock<()> = LazyLock::new(|| {
    let end = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let library = panic.location().is_some_and(|at| at.file().contains("/imago-"));
        if !library {
            end(panic);
        }
    }));
});

fuzz_target!(|image: &[u8]| {
    LazyLock::force(&HOOK);
    let mut file = FILE.as_file().try_clone().unwrap();
    file.set_len(0).unwrap();
    std::io::Seek::rewind(&mut file).unwrap();
    file.write_all(image).unwrap();
    let disk = open(DiskOptions {
        source: Source::File {
            name: "image".into(),
            file,
        },
        format: Format::Qcow2 { backing: false },
        lock: Lock::Never,
        pool: POOL.clone(),
        ..DiskOptions::raw("")
    });
    if let Ok(disk) = disk {
        use_it(&*disk);
    }
});
