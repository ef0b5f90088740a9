//! A disk (§5.2): reads of many sectors, straight to where they are wanted.

use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;

use nacelle_firmware::io::ReadAt;
use nacelle_firmware::{Error, Result};

use super::queue::{Buffer, Queue};
use super::{BLOCK, Registers, mmio, pci};
use crate::machine::acpi::Places;
use crate::machine::heap;
use crate::machine::window::Window;

/// A sector, as virtio counts them.
const SECTOR: u64 = 512;
/// "The device has a largest segment", "it has a block size".
const SIZE_MAX: u64 = 1 << 1;
const BLK_SIZE: u64 = 1 << 6;
/// A request to read.
const IN: u32 = 0;
/// Most bytes of a request.
const LARGEST: u64 = 4 << 20;
/// What is not a whole number of sectors goes through a buffer of this size.
const BOUNCE: u64 = 4096;

/// A disk that was found and started.
pub struct Disk {
    device: Box<dyn Registers>,
    /// Bytes of a block: what partition tables count in.
    pub block_size: u32,
    sectors: u64,
    segment: u64,
    request: RefCell<Request>,
}

struct Request {
    queue: Queue,
    /// Header (16 bytes), status (at 16), and a sector or some from [`BOUNCE`] on.
    page: Window,
}

/// Finds all disks, in the order in which the guest's operating system numbers them, and starts them.
pub fn find(places: &Places) -> Vec<Rc<Disk>> {
    let mut devices: Vec<Box<dyn Registers>> = Vec::new();
    for function in places.ecam.map(|ecam| pci::find(ecam, BLOCK)).unwrap_or_default() {
        devices.push(Box::new(function));
    }
    for page in mmio::find(&places.mmio, BLOCK) {
        devices.push(Box::new(page));
    }
    devices.into_iter().filter_map(Disk::start).map(Rc::new).collect()
}

impl Disk {
    fn start(device: Box<dyn Registers>) -> Option<Disk> {
        let (features, queue) = super::start(&*device, SIZE_MAX | BLK_SIZE)?;
        let segment = match features & SIZE_MAX {
            0 => LARGEST,
            _ => u64::from(device.config(8)) & !(SECTOR - 1),
        };
        let block_size = match features & BLK_SIZE {
            0 => SECTOR as u32,
            _ => device.config(20),
        };
        Some(Disk {
            sectors: u64::from(device.config(0)) | u64::from(device.config(4)) << 32,
            segment: segment.clamp(SECTOR, LARGEST),
            block_size,
            device,
            request: RefCell::new(Request {
                queue,
                page: heap::take_pages(2),
            }),
        })
    }

    /// Resets the device: a kernel is about to use it.
    pub fn stop(&self) {
        super::stop(&*self.device);
    }

    /// Reads whole sectors to `address`.
    fn read_sectors(&self, request: &mut Request, sector: u64, address: u64, len: u64) -> Result<()> {
        let page = request.page;
        page.set(0, IN);
        page.set(4, 0u32);
        page.set(8, sector);
        page.set(16, 0xffu8);
        let buffer = |address, len: u64, writable| Buffer {
            address,
            len: len as u32,
            writable,
        };
        let chain = [
            buffer(page.address(), 16, false),
            buffer(address, len, true),
            buffer(page.address() + 16, 1, true),
        ];
        request.queue.ask(&chain, || self.device.notify());
        match page.get::<u8>(16) {
            0 => Ok(()),
            status => Err(Error::read(sector * SECTOR, len, status)),
        }
    }
}

impl ReadAt for Disk {
    fn len(&self) -> u64 {
        self.sectors.saturating_mul(SECTOR)
    }

    fn read_at(&self, mut at: u64, mut into: &mut [u8]) -> Result<()> {
        self.check(at, into.len())?;
        let mut request = self.request.borrow_mut();
        while !into.is_empty() {
            let skip = at % SECTOR;
            let whole = into.len() as u64 & !(SECTOR - 1);
            let done = if skip == 0 && whole > 0 {
                let len = whole.min(self.segment);
                self.read_sectors(&mut request, at / SECTOR, into.as_ptr() as u64, len)?;
                len
            } else {
                let bounce = request.page.part(BOUNCE, SECTOR);
                self.read_sectors(&mut request, at / SECTOR, bounce.address(), SECTOR)?;
                let len = (SECTOR - skip).min(into.len() as u64);
                let bytes = bounce.part(skip, len).to_vec();
                into.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
                len
            };
            into = into.get_mut(done as usize..).unwrap_or_default();
            at += done;
        }
        Ok(())
    }
}
