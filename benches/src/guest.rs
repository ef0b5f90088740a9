//! The guest, the same for every monitor: the small kernel of `tests/guest`, stamped, and the program of `guest/`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::{host, stamp};

/// What the kernel is told on a KVM that emulates it in software (docs/testing.md).
const SOFTWARE_KVM: &str = " noreplace-smp rodata=off no_timer_check noxsave \
    clearcpuid=smap,smep,popcnt,erms,fsrm,fsgsbase,invpcid,umip,cx16,rdpid,pku";

/// The clock that moves with a machine everywhere. A guest of a KVM in software sees the host's TSC whatever that is told, and
/// its kernel, by that clock, was seen to sleep for a minute after a move.
pub const KVM_CLOCK: &str = " clocksource=kvm-clock";

/// Files of the guest.
#[derive(Clone, Debug)]
pub struct Guest {
    /// Its kernel.
    pub kernel: PathBuf,
    /// Its initial RAM disk.
    pub initrd: PathBuf,
    /// fio is in it.
    pub fio: bool,
}

impl Guest {
    /// The files that were named, else those of this source tree, `debian`'s or the small kernel's, which are built where they
    /// are not there yet.
    ///
    /// # Errors
    /// When they are not there or cannot be built.
    pub fn find(debian: bool, kernel: Option<&Path>, initrd: Option<&Path>) -> Result<Guest> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let made = match debian {
            true => Some(PathBuf::from(script(&root.join("guest/debian"))?)),
            false => None,
        };
        let of_debian = |name: &str| made.as_ref().map(|made| made.join(name));
        let kernel = kernel.map(Path::to_owned).or_else(|| of_debian("vmlinux"));
        let initrd = initrd.map(Path::to_owned).or_else(|| of_debian("initrd"));
        let kernel = match kernel {
            Some(kernel) => kernel,
            None => match std::env::var_os("LINUX_SMALL_VMLINUX") {
                Some(kernel) => kernel.into(),
                None => Path::new(&script(&root.join("../tests/guest/linux"))?).join("vmlinux"),
            },
        };
        let initrd = match initrd {
            Some(initrd) => initrd,
            None => Path::new(&script(&root.join("guest/build"))?).join("initrd"),
        };
        fs::metadata(&initrd).map_err(Error::io(format!("find {}", initrd.display())))?;
        Ok(Guest {
            kernel,
            initrd,
            fio: false,
        })
    }

    /// The same with a kernel that says when it is entered, with fio if there is one, and all of it in `directory`.
    ///
    /// # Errors
    /// When the kernel is not one that can be used, or fio cannot be read.
    pub fn stamped(&self, directory: &Path, fio: Option<&Path>) -> Result<Guest> {
        let read = |path: &Path| fs::read(path).map_err(Error::io(format!("read {}", path.display())));
        let write = |name: &str, bytes: &[u8]| {
            let path = directory.join(name);
            fs::write(&path, bytes).map_err(Error::io(format!("write {}", path.display())))?;
            Ok(path)
        };
        let mut initrd = read(&self.initrd)?;
        if let Some(fio) = fio {
            initrd.extend(archive("fio", &read(fio)?));
        }
        Ok(Guest {
            kernel: write("vmlinux", &stamp::stamped(&read(&self.kernel)?)?)?,
            initrd: write("initrd", &initrd)?,
            fio: fio.is_some(),
        })
    }

    /// The kernel's arguments for these tasks of the guest's program.
    pub fn cmdline(tasks: &str) -> String {
        let words = if host::has_hardware_kvm() {
            ""
        } else {
            SOFTWARE_KVM
        };
        format!(
            "console=ttyS0 quiet reboot=k panic=-1 mitigations=off random.trust_cpu=on{words} nacelle_bench={tasks}"
        )
    }
}

/// Ticks of the processor's counter in a millisecond; a guest sees the same.
pub fn ticks() -> u64 {
    // SAFETY: every processor with 64 bits has it, and Linux lets programs read it.
    let counter = || unsafe { core::arch::x86_64::_rdtsc() };
    let (begun, first) = (Instant::now(), counter());
    std::thread::sleep(Duration::from_millis(100));
    let (ticks, time) = (counter().wrapping_sub(first), begun.elapsed());
    (ticks as f64 / time.as_secs_f64() / 1000.0) as u64
}

/// A program as an initramfs of its own: the kernel unpacks several, one after the other (cpio's format "newc").
fn archive(name: &str, program: &[u8]) -> Vec<u8> {
    const PROGRAM: usize = 0o100_755;
    let mut bytes = Vec::new();
    for (name, mode, content) in [(name, PROGRAM, program), ("TRAILER!!!", 0, &[])] {
        let size = content.len();
        // Number, mode, owner, group, links, time, size, devices, length of the name, sum.
        let fields = [0, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name.len() + 1, 0];
        let fields: String = fields.iter().map(|field| format!("{field:08x}")).collect();
        bytes.extend(format!("070701{fields}{name}\0").bytes());
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes.extend(content);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

/// What a script prints: where it put what it made.
fn script(path: &Path) -> Result<String> {
    let output = Command::new(path).stderr(Stdio::inherit()).output();
    let output = output.map_err(Error::io(format!("run {}", path.display())))?;
    if !output.status.success() {
        return Err(Error::Tool {
            command: path.display().to_string(),
            said: format!("it ended with {}, its words are above", output.status),
        });
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn an_archive_of_one_program_is_one_that_cpio_reads() {
        let mut cpio = Command::new("cpio")
            .args(["-i", "--quiet", "--to-stdout", "fio"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let archive = archive("fio", b"a program");
        cpio.stdin.take().unwrap().write_all(&archive).unwrap();
        let output = cpio.wait_with_output().unwrap();
        assert!(output.status.success());
        assert_eq!(output.stdout, b"a program");
    }
}
