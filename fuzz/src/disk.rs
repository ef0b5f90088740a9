//! A disk in memory that answers at once.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};

use nacelle_devices::Result;
use nacelle_devices::disk::{Completion, Disk, DiskOp, DiskQueue, SECTOR, Topology};
use nacelle_devices::memory::GuestBuffer;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Its length.
pub const SECTORS: u64 = 64;

type Content = Arc<Mutex<Vec<u8>>>;

/// The disk; whoever asks it for what is not there ends the run.
#[derive(Default)]
pub struct MemoryDisk(Content);

impl MemoryDisk {
    /// A disk of zeroes.
    pub fn new() -> Self {
        MemoryDisk(Arc::new(Mutex::new(vec![0; (SECTORS * SECTOR) as usize])))
    }
}

impl Disk for MemoryDisk {
    fn name(&self) -> &str {
        "memory"
    }
    fn len(&self) -> u64 {
        SECTORS * SECTOR
    }
    fn read_only(&self) -> bool {
        false
    }
    fn topology(&self) -> Topology {
        Topology {
            physical: 512,
            alignment: 0,
            minimum: 0,
            optimal: 0,
        }
    }
    fn open_queue(&self, _depth: u16) -> Result<Box<dyn DiskQueue>> {
        Ok(Box::new(MemoryQueue {
            content: Arc::clone(&self.0),
            done: VecDeque::new(),
            completion: EventFd::new(EFD_NONBLOCK).unwrap(),
        }))
    }
    fn resize(&self, _len: Option<u64>) -> Result<u64> {
        Ok(self.len())
    }
    fn lock(&self) -> Result<()> {
        Ok(())
    }
    fn unlock(&self) -> Result<()> {
        Ok(())
    }
    fn files(&self) -> Result<Vec<std::fs::File>> {
        Ok(Vec::new())
    }
    fn hand_over(&self) -> Result<()> {
        Ok(())
    }
}

struct MemoryQueue {
    content: Content,
    done: VecDeque<Completion>,
    completion: EventFd,
}

fn execute(content: &mut [u8], op: DiskOp, buffer: &GuestBuffer) -> u32 {
    let range = |offset: u64, len: u64| offset as usize..(offset + len) as usize;
    let len = buffer.len() as u64;
    match op {
        DiskOp::Read { offset } => buffer.write(&content[range(offset, len)]).unwrap() as u32,
        DiskOp::Write { offset, .. } => buffer.read(&mut content[range(offset, len)]).unwrap() as u32,
        DiskOp::Flush => 0,
        DiskOp::Discard { offset, len } | DiskOp::WriteZeroes { offset, len, .. } => {
            content[range(offset, len)].fill(0);
            0
        }
    }
}

impl DiskQueue for MemoryQueue {
    fn submit(&mut self, tag: u16, op: DiskOp, buffer: GuestBuffer) -> io::Result<()> {
        let moved = execute(&mut self.content.lock().unwrap(), op, &buffer);
        self.done.push_back(Completion {
            tag,
            buffer,
            result: Ok(moved),
        });
        Ok(())
    }
    fn commit(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn reap(&mut self) -> Option<Completion> {
        self.done.pop_front()
    }
    fn completion(&self) -> &EventFd {
        &self.completion
    }
}
