//! The firmware of Nacelle's machines: a program for the bare machine, entered by PVH, that finds a kernel on a disk
//! and starts it. What it reads of disks is the library's; here are the machine, its disks, and the order of things.
#![no_std]
#![no_main]

extern crate alloc;

mod load;
mod machine;
mod menu;
mod virtio;

use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::arch::global_asm;
use core::panic::PanicInfo;

use machine::pvh::StartInfo;
use machine::serial::say;
use machine::stages::Stages;
use machine::{acpi, paging, ports, pvh, ring0};
use nacelle_firmware::boot::choose::{self, Wishes};
use nacelle_firmware::boot::find::{self, Found};
use nacelle_firmware::io::{Cached, ReadAt, Source};
use virtio::blk::{self, Disk};

global_asm!(include_str!("machine/entry.s"));

/// Where entry.s leads to, in ring 3.
#[unsafe(no_mangle)]
extern "C" fn start() -> ! {
    paging::map_memory();
    let mut stages = Stages::begin();
    let Some(info) = pvh::start_info() else {
        give_up("the monitor did not say what the machine is (PVH start_info)");
    };
    let wishes = Wishes::parse(&info.cmdline);
    let disks = blk::find(&acpi::places(info.rsdp));
    stages.end("disks");
    let mut tried = Vec::new();
    for number in wishes.order(disks.len()) {
        if let Some(disk) = disks.get(number) {
            let source: Source = Rc::new(Cached::new(Rc::clone(disk) as Source));
            let found = find::look(&source, disk.block_size);
            stages.end("menus");
            if wishes.verbose {
                let (mib, volumes) = (disk.len() >> 20, found.volumes.len());
                say!("nacelle: disk {number}: {mib} MiB, {volumes} file systems");
            }
            let failed = boot(number, &found, &info, &wishes, &disks, &mut stages);
            tried.push((number, found, failed));
        }
    }
    report(&tried, disks.len());
    give_up("nothing boots");
}

/// Boots one of the entries of a disk; comes back, with the reasons, only when none of them can be.
fn boot(
    number: usize,
    found: &Found,
    info: &StartInfo,
    wishes: &Wishes,
    disks: &[Rc<Disk>],
    stages: &mut Stages,
) -> Vec<String> {
    let mut entries = choose::order(&found.menus, &wishes.entry);
    if wishes.wait > 0 && !entries.is_empty() {
        menu::show(&mut entries, wishes.wait);
    }
    let mut failed = Vec::new();
    for entry in entries {
        match load::load(entry, &found.volumes, info, stages) {
            Ok(loaded) => {
                let volume = found
                    .volumes
                    .get(entry.kernel.volume)
                    .map_or("", |volume| &volume.name);
                say!(
                    "nacelle: disk {number}: {} ({} of {volume})",
                    entry.title,
                    entry.kind
                );
                if wishes.verbose {
                    say!("nacelle: {}", loaded.cmdline);
                    say!("nacelle: cycles: {stages}");
                }
                if !loaded.serial_console {
                    say!(
                        "nacelle: its command line names no console=ttyS0, so this line may say nothing more"
                    );
                }
                for disk in disks {
                    disk.stop();
                }
                loaded.enter()
            }
            Err(error) => {
                let reason = alloc::format!("{} ({}): {error}", entry.title, entry.kind);
                say!("nacelle: disk {number}: {reason}");
                failed.push(reason);
            }
        }
    }
    failed
}

/// Says what was found and what is missing.
fn report(tried: &[(usize, Found, Vec<String>)], disks: usize) {
    say!("\nnacelle: no operating system was found.");
    if disks == 0 {
        say!("  The machine has no virtio disk.");
    }
    for (number, found, failed) in tried {
        say!("  Disk {number}:");
        if found.volumes.is_empty() {
            say!("    no file system that is known (ext4, vfat, xfs, btrfs)");
        }
        for volume in &found.volumes {
            let fs = &volume.fs;
            say!("    {}: {} {} {}", volume.name, fs.kind(), fs.uuid(), fs.label());
        }
        for name in &found.unknown {
            say!("    {name}: no file system that is known");
        }
        if found.menus.is_empty() && !found.volumes.is_empty() {
            say!("    no EFI/Linux/*.efi, loader/entries/*.conf, grub.cfg or extlinux.conf on any of them");
        }
        for note in found.notes.iter().chain(failed) {
            say!("    {note}");
        }
    }
    say!(
        "  Give the machine a disk with an operating system, or name a kernel (spec.domain.firmware.kernelBoot)."
    );
}

fn give_up(why: &str) -> ! {
    say!("nacelle: {why}; the machine stands still.");
    ports::give_notice();
    ring0::stop()
}

/// An exception of the processor ends here.
#[unsafe(no_mangle)]
extern "C" fn on_exception() -> ! {
    let [vector, code, at, address] = ring0::exception();
    say!(
        "\nnacelle: a bug of the firmware: exception {vector}, code {code:#x}, at {at:#x}, address {address:#x}"
    );
    give_up("it cannot go on")
}

/// A bug ends here. What `info` says is left out, as the files and lines of all places that could panic, and what
/// makes text of numbers for them, would be a seventh of the firmware: it says where it has come from instead.
#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    say!("\nnacelle: a bug of the firmware: it has panicked; its stack has the addresses");
    for address in ring0::callers().take(16) {
        say!("  {address:#x}");
    }
    give_up("it cannot go on")
}

/// The prebuilt `core` and `alloc` name them; nothing unwinds here.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    ring0::stop()
}
