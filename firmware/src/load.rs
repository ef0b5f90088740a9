//! Brings a kernel into memory and enters it.

use alloc::string::String;
use alloc::vec::Vec;

use nacelle_firmware::boot::linux::{ENTRY_64, Kernel, serial_console};
use nacelle_firmware::boot::uki::Unified;
use nacelle_firmware::boot::{Entry, File, Kind, Volume};
use nacelle_firmware::io::Source;
use nacelle_firmware::memory::place;
use nacelle_firmware::{Error, Result};

use crate::machine::heap;
use crate::machine::pvh::StartInfo;
use crate::machine::ring0;
use crate::machine::stages::Stages;
use crate::machine::window::Window;

/// A kernel in memory, with all that it is given.
pub struct Loaded {
    /// Its command line.
    pub cmdline: String,
    /// Whether that names a serial console.
    pub serial_console: bool,
    entry: u64,
    zero_page: &'static [u8],
}

impl Loaded {
    /// Enters it.
    pub fn enter(self) -> ! {
        // SAFETY: `load` put a kernel there, and made its zero page.
        unsafe { ring0::enter(self.entry, self.zero_page.as_ptr() as u64) }
    }
}

/// Brings what `entry` names into memory.
pub fn load(entry: &Entry, volumes: &[Volume], info: &StartInfo, stages: &mut Stages) -> Result<Loaded> {
    let open = |file: &File| -> Result<Source> {
        let volume = volumes
            .get(file.volume)
            .ok_or_else(|| Error::not_found(&file.path))?;
        volume.fs.open(&file.path)
    };
    let mut file = open(&entry.kernel)?;
    let mut initrds = entry.initrds.iter().map(open).collect::<Result<Vec<Source>>>()?;
    if entry.kind == Kind::Unified {
        let image = Unified::read(&file)?;
        file = image.kernel;
        initrds = image.initrds;
    }
    let kernel = Kernel::read(&*file)?;
    let cmdline = entry.options.clone();
    if cmdline.len() > kernel.cmdline_max {
        let (is, most) = (cmdline.len(), kernel.cmdline_max);
        return Err(Error::does_not_fit(format_args!(
            "its command line has {is} bytes, the kernel reads {most}"
        )));
    }

    // Each RAM disk begins on four bytes.
    let initrd_len = initrds
        .iter()
        .map(|initrd| initrd.len().saturating_add(3) & !3)
        .fold(0, u64::saturating_add);
    let placed = place(&info.memory, heap::END as u64, &kernel.wish, initrd_len)?;
    stages.end("opening");
    file.read_at(kernel.start, memory(placed.kernel, kernel.len))?;
    let mut rest = memory(placed.initrd, initrd_len);
    for initrd in &initrds {
        let (piece, after) = rest.split_at_mut(initrd.len() as usize);
        initrd.read_at(0, piece)?;
        let (gap, after) = after.split_at_mut((initrd.len().wrapping_neg() & 3) as usize);
        gap.fill(0);
        rest = after;
    }
    stages.end("reading");

    let mut text = cmdline.clone().into_bytes();
    text.push(0);
    let text = text.leak().as_ptr() as u64;
    let initrd = if initrds.is_empty() {
        (0, 0)
    } else {
        (placed.initrd, initrd_len)
    };
    let zero_page = kernel.zero_page(&info.memory, info.rsdp, text, initrd).leak();
    stages.end("handing over");
    Ok(Loaded {
        serial_console: serial_console(&cmdline).is_some(),
        cmdline,
        entry: placed.kernel + ENTRY_64,
        zero_page,
    })
}

/// Memory that `place` gave to a kernel.
fn memory(start: u64, len: u64) -> &'static mut [u8] {
    // SAFETY: it is RAM by the monitor's map, from the heap's end on, where nothing of the firmware lies; and a load
    // that fails has ended with its slices before the next begins.
    unsafe { Window::new(start, len).into_slice() }
}
