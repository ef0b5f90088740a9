//! Unified kernel images (UAPI.5): a PE file with a kernel, its initial RAM disk and its command line as sections.

use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;

use crate::bytes::Bytes;
use crate::io::{Part, Source, text};
use crate::{Error, Result};

/// Most bytes of a PE file's headers.
const MAX_HEADERS: u64 = 16 << 10;
const MACHINE_X86_64: u16 = 0x8664;
const SECTION: usize = 40;

/// What a unified kernel image is made of.
pub struct Unified {
    /// The kernel, a bzImage.
    pub kernel: Source,
    /// The processor's microcode, then the initial RAM disk, as far as they are there.
    pub initrds: Vec<Source>,
    /// The command line.
    pub options: String,
    /// What `os-release` calls the system.
    pub title: String,
    /// The kernel's version.
    pub version: String,
}

impl Unified {
    /// Takes a file apart.
    ///
    /// # Errors
    /// When it is no PE file for x86-64, or has no kernel.
    pub fn read(file: &Source) -> Result<Unified> {
        let sections = Sections::read(file)?;
        let no_kernel = || Error::unsupported(format_args!("an EFI program without a kernel in it"));
        let words = |name: &str| -> Result<String> {
            match sections.find(name)? {
                Some(section) => Ok(text(&*section)?.trim_end_matches(['\0', '\n', ' ']).into()),
                None => Ok(String::new()),
            }
        };
        let initrds = [sections.find(".ucode")?, sections.find(".initrd")?];
        Ok(Unified {
            kernel: sections.find(".linux")?.ok_or_else(no_kernel)?,
            initrds: initrds.into_iter().flatten().collect(),
            options: words(".cmdline")?.replace('\n', " "),
            title: os_release(&words(".osrel")?),
            version: words(".uname")?,
        })
    }
}

/// The name that `os-release` gives, for people.
fn os_release(text: &str) -> String {
    let value = |key: &str| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.map(|value| value.trim_matches(['"', '\'']).into())
    };
    value("PRETTY_NAME").or_else(|| value("NAME")).unwrap_or_default()
}

/// The sections of a PE file.
struct Sections<'a> {
    file: &'a Source,
    /// Name, start, length.
    table: Vec<(String, u64, u64)>,
}

impl Sections<'_> {
    fn read(file: &Source) -> Result<Sections<'_>> {
        let head = file.bytes(0, file.len().min(MAX_HEADERS) as usize)?;
        let head = Bytes(&head);
        let other = || Error::unsupported(format_args!("a file that is no EFI program for x86-64"));
        if head.slice(0, 2)? != b"MZ" {
            return Err(other());
        }
        let pe = head.from(head.u32(0x3c)? as usize)?;
        if pe.slice(0, 4)? != b"PE\0\0" || pe.u16(4)? != MACHINE_X86_64 {
            return Err(other());
        }
        let (count, optional) = (pe.u16(6)?, usize::from(pe.u16(20)?));
        let mut table = Vec::new();
        for i in 0..usize::from(count) {
            let section = pe.from(24 + optional + SECTION * i)?;
            // What is loaded is as long as it is in memory, without what fills it up in the file.
            let len = section.u32(8)?.min(section.u32(16)?);
            table.push((section.text(0, 8)?, section.u32(20)?.into(), len.into()));
        }
        Ok(Sections { file, table })
    }

    fn find(&self, name: &str) -> Result<Option<Source>> {
        let section = self.table.iter().find(|(found, ..)| found == name);
        let part = |(_, start, len): &(String, u64, u64)| -> Result<Source> {
            let part = Part::new(self.file, *start, *len);
            Ok(Rc::new(part.map_err(|error| {
                Error::damaged(format_args!("the section {name}: {error}"))
            })?))
        };
        section.map(part).transpose()
    }
}

#[cfg(test)]
#[path = "uki/tests.rs"]
mod tests;
