use super::*;
use crate::boot::Entry;
use crate::partitions::Purpose;
use crate::testing::{Bed, source};

const UUID: &str = "6e616365-6c6c-4065-8000-000000000001";

/// A disk with one ext4 that has these files.
fn volume(files: &[(&str, &str)]) -> Volume {
    let bed = Bed::new();
    for (path, text) in files {
        bed.file(path, text);
    }
    let image = bed.image(8, &format!("mkfs.ext4 -q -U {UUID} -d $root $image"));
    Volume {
        name: "hd0,gpt1".into(),
        purpose: Purpose::Other,
        partition_uuid: "part".into(),
        fs: crate::fs::open(&source(image)).unwrap().unwrap(),
    }
}

fn menu(files: &[(&str, &str)]) -> (Menu, Vec<String>) {
    read(&[volume(files)], 0, "/boot/grub/grub.cfg").unwrap()
}

fn default_of(files: &[(&str, &str)]) -> Entry {
    let (menu, _) = menu(files);
    menu.entries[menu.default].clone()
}

/// What grub-mkconfig of Debian 12 writes, without what only draws.
const DEBIAN: &str = include_str!("debian.cfg");

#[test]
fn debians_configuration_is_run() {
    let (menu, notes) = menu(&[
        ("/boot/grub/grub.cfg", DEBIAN),
        ("/boot/vmlinuz-6.1.0-13-amd64", "x"),
    ]);
    let titles: Vec<&str> = menu.entries.iter().map(|entry| entry.title.as_str()).collect();
    let name = "Debian GNU/Linux, with Linux 6.1.0-13-amd64";
    assert_eq!(
        titles,
        ["Debian GNU/Linux", name, &format!("{name} (recovery mode)")]
    );
    let first = &menu.entries[0];
    assert_eq!(
        (menu.default, first.kernel.path.as_str()),
        (0, "/boot/vmlinuz-6.1.0-13-amd64")
    );
    assert_eq!(first.initrds[0].path, "/boot/initrd.img-6.1.0-13-amd64");
    assert_eq!(
        first.options,
        format!("root=UUID={UUID} ro console=ttyS0,115200 quiet")
    );
    assert_eq!(notes, Vec::<String>::new());
}

#[test]
fn a_saved_entry_is_the_default_by_id_title_or_number_and_in_submenus() {
    let name = "gnulinux-6.1.0-13-amd64-recovery";
    for saved in [
        format!("gnulinux-advanced>{name}"),
        "1>1".into(),
        "Advanced options for Debian GNU/Linux>Debian GNU/Linux, with Linux 6.1.0-13-amd64 (recovery mode)"
            .into(),
    ] {
        let env = format!("# GRUB Environment Block\nsaved_entry={saved}\n########");
        let config = DEBIAN.replace("set default=\"0\"", "set default=\"${saved_entry}\"");
        let entry = default_of(&[("/boot/grub/grub.cfg", &config), ("/boot/grub/grubenv", &env)]);
        assert!(
            entry.title.ends_with("(recovery mode)"),
            "{saved}: {}",
            entry.title
        );
    }
}

#[test]
fn what_grub_reboot_asked_for_once_is_not_followed_for_ever() {
    let env = "# GRUB Environment Block\nnext_entry=other\n";
    let (menu, notes) = menu(&[("/boot/grub/grub.cfg", DEBIAN), ("/boot/grub/grubenv", env)]);
    assert_eq!(menu.default, 0);
    assert!(notes[0].contains("next_entry=other is not followed"), "{notes:?}");
}

#[test]
fn fedoras_configuration_takes_the_entries_of_the_specification() {
    let config = "set default=\"${saved_entry}\"\nif [ -f ${config_directory}/grubenv ]; then\n load_env -f ${config_directory}/grubenv\n\
        elif [ -s $prefix/grubenv ]; then\n load_env\nfi\nset default=\"${saved_entry}\"\ninsmod blscfg\nblscfg\n\
        if [ -z \"${kernelopts}\" ]; then set kernelopts=x; fi\n";
    let entry = |version: &str| {
        format!(
            "title Fedora ({version})\nversion {version}\nlinux /vmlinuz-{version}\noptions root=UUID=1 ro\n"
        )
    };
    let entry = default_of(&[
        ("/boot/grub/grub.cfg", config),
        (
            "/boot/grub/grubenv",
            "# GRUB Environment Block\nsaved_entry=m-6.5\n",
        ),
        ("/loader/entries/m-6.5.conf", &entry("6.5")),
        ("/loader/entries/m-6.10.conf", &entry("6.10")),
    ]);
    assert_eq!(
        (entry.title.as_str(), entry.kernel.path.as_str()),
        ("Fedora (6.5)", "/vmlinuz-6.5")
    );
}

#[test]
fn a_stub_leads_to_the_configuration() {
    let stub = format!(
        "search.fs_uuid {UUID} root hd0,gpt1 \nset prefix=($root)'/boot/grub'\nconfigfile $prefix/grub.cfg\n"
    );
    let volumes = [volume(&[
        ("/EFI/debian/grub.cfg", &stub),
        ("/boot/grub/grub.cfg", DEBIAN),
    ])];
    let (menu, _) = read(&volumes, 0, "/EFI/debian/grub.cfg").unwrap();
    assert_eq!(menu.entries.len(), 3);
}

#[test]
fn functions_loops_and_words_without_quotes_do_what_they_do_in_grub() {
    let config = "function f { set all=\"$all$1\"; }\nfor i in a b; do f $i; done\nset words='ro  quiet'\n\
        if [ \"$all\" = ab -a ! -e /none ]; then set r=/k; else set r=/wrong; fi\n\
        probe --set=u --fs-uuid ($root)\n\
        menuentry \"one\" --class x { linux $r root=$u $words \"a b\" $nothing end\n initrd /a /b\n }\n";
    let entry = default_of(&[("/boot/grub/grub.cfg", config)]);
    assert_eq!(entry.kernel.path, "/k");
    assert_eq!(entry.options, format!("root={UUID} ro quiet a b end"));
    assert_eq!(entry.initrds.len(), 2);
}

#[test]
fn a_configuration_that_never_ends_is_ended() {
    for config in [
        "function f { f; }\nf\n",
        "configfile /boot/grub/grub.cfg\n",
        "function d { set x=\"$x$x$x$x\"; }\nset x=aaaaaaaaaa\nfor i in 1 2 3 4 5 6 7 8 9; do d; d; d; d; done\nfor a in $x; do for b in $x; do true; done; done",
        "set a=1\nfunction b { for i in 1 2 3 4 5 6 7 8 9 0; do $1 $2; done; }\nfunction c { b b true; }\nfunction d { b c; }\n\
         function e { b d; }\nfunction g { b e; }\nb g; b g; b g",
    ] {
        let volumes = [volume(&[("/boot/grub/grub.cfg", config)])];
        // Either way, it comes back.
        let _ = read(&volumes, 0, "/boot/grub/grub.cfg");
    }
}
