//! Configurations of boot loaders from anybody: GRUB's, with its environment, extlinux's, entries of the boot loader
//! specification. The first line is the environment, the rest is in turn each of the others.
#![no_main]

use std::rc::Rc;

use libfuzzer_sys::fuzz_target;
use nacelle_firmware::boot::{Volume, bls, extlinux, grub};
use nacelle_firmware::fs::FileSystem;
use nacelle_firmware::io::Source;
use nacelle_firmware::partitions::Purpose;
use nacelle_firmware::{Error, Result};

struct Files {
    config: String,
    env: String,
}

impl FileSystem for Files {
    fn kind(&self) -> &'static str {
        "ext4"
    }

    fn uuid(&self) -> &str {
        "6e616365-6c6c-4065-8000-000000000001"
    }

    fn label(&self) -> &str {
        "root"
    }

    fn list(&self, directory: &str) -> Result<Vec<String>> {
        match directory {
            "/loader/entries" => Ok(vec!["a.conf".into(), "b+3-1.conf".into()]),
            other => Err(Error::not_found(other)),
        }
    }

    fn open(&self, path: &str) -> Result<Source> {
        match path {
            "/boot/grub/grubenv" => Ok(Rc::new(self.env.clone().into_bytes())),
            path if path.ends_with("/grub.cfg") || path.ends_with(".conf") => {
                Ok(Rc::new(self.config.clone().into_bytes()))
            }
            other => Err(Error::not_found(other)),
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let text = String::from_utf8_lossy(input);
    let (env, config) = text.split_once('\n').unwrap_or_default();
    let volume = Volume {
        name: "hd0,gpt1".into(),
        purpose: Purpose::Other,
        partition_uuid: String::new(),
        fs: Box::new(Files {
            config: config.into(),
            env: format!("# GRUB Environment Block\n{}", env.replace(';', "\n")),
        }),
    };
    let _ = grub::read(&[volume], 0, "/boot/grub/grub.cfg");
    let menu = extlinux::parse(config, 0, "/extlinux");
    assert!(menu.default == 0 || menu.default < menu.entries.len());
    let entry = bls::parse("a+1-2.conf", config, 0, |name| Some(name.to_owned()));
    assert!(entry.is_none_or(|entry| entry.entry.id == "a"));
});
