use super::*;

fn none(_: &str) -> Option<String> {
    None
}

#[test]
fn an_entry_of_kernel_install_is_read() {
    // As Debian's kernel-install writes it.
    let text = "# Boot Loader Specification type#1 entry\n# File created by /usr/lib/kernel/install.d/90-loaderentry.install\n\
        title      Debian GNU/Linux 12 (bookworm)\nversion    6.1.0-13-amd64\nmachine-id 0123ABCD\nsort-key   debian\n\
        options    root=UUID=1 ro console=ttyS0\n\
        linux      /debian/6.1.0-13-amd64/linux\ninitrd     /debian/6.1.0-13-amd64/initrd.img-6.1.0-13-amd64\n";
    let found = parse("0123abcd-6.1.0-13-amd64+2-1.conf", text, 3, none).unwrap();
    let file = |path: &str| File {
        volume: 3,
        path: path.into(),
    };
    assert_eq!(found.entry.id, "0123abcd-6.1.0-13-amd64");
    assert_eq!(found.entry.title, "Debian GNU/Linux 12 (bookworm)");
    assert_eq!(found.entry.kernel, file("/debian/6.1.0-13-amd64/linux"));
    assert_eq!(
        found.entry.initrds,
        [file("/debian/6.1.0-13-amd64/initrd.img-6.1.0-13-amd64")]
    );
    assert_eq!(found.entry.options, "root=UUID=1 ro console=ttyS0");
    assert_eq!((found.machine.as_str(), found.exhausted), ("0123abcd", false));
}

#[test]
fn an_entry_of_fedora_has_variables_of_grub() {
    let text = "title Red Hat Enterprise Linux (4.18.0) 8.0\nversion 4.18.0-80.el8.x86_64\nlinux /vmlinuz-4.18\n\
        initrd /initramfs-4.18.img $tuned_initrd\noptions $kernelopts ${tuned_params}quiet\ngrub_users $grub_users\n";
    let value = |name: &str| (name == "kernelopts").then(|| "root=/dev/vda2 ro".into());
    let found = parse("a.conf", text, 0, value).unwrap();
    assert_eq!(found.entry.options, "root=/dev/vda2 ro quiet");
    assert_eq!(found.entry.initrds.len(), 1);
}

#[test]
fn entries_for_others_are_left_out() {
    assert!(
        parse(
            "a.conf",
            "title Windows\nefi /EFI/Microsoft/bootmgfw.efi\n",
            0,
            none
        )
        .is_none()
    );
    assert!(parse("a.conf", "linux /k\narchitecture aa64\n", 0, none).is_none());
    assert!(parse("a.txt", "linux /k\n", 0, none).is_none());
    assert!(parse("a.conf", "linux /k\narchitecture x64\n", 0, none).is_some());
}

#[test]
fn the_newest_comes_first_and_one_without_attempts_left_last() {
    let entry = |name: &str, key: &str, version: &str| {
        let text = format!("linux /k\n{key}\nversion {version}\n");
        parse(name, &text, 0, none).unwrap()
    };
    let mut entries = [
        entry("old-6.1.0-9.conf", "", "6.1.0-9"),
        entry("keyed-b.conf", "sort-key b", "9"),
        entry("keyed-9.conf", "sort-key a", "6.1.0-9"),
        entry("keyed-10.conf", "sort-key a", "6.1.0-10"),
        entry("bad+0-3.conf", "sort-key a", "7"),
        entry("old-6.1.0-10.conf", "", "6.1.0-10"),
        entry("old-0-rescue.conf", "", "0-rescue"),
    ];
    entries.sort_by(order);
    let ids: Vec<&str> = entries.iter().map(|entry| entry.entry.id.as_str()).collect();
    let expected = [
        "keyed-10",
        "keyed-9",
        "keyed-b",
        "old-6.1.0-10",
        "old-6.1.0-9",
        "old-0-rescue",
        "bad",
    ];
    assert_eq!(ids, expected);
}

#[test]
fn counters_of_attempts_are_no_part_of_the_id() {
    for (id, expected) in [
        ("a+3", ("a", false)),
        ("a+0", ("a", true)),
        ("a+00-4", ("a", true)),
        ("a+1-2", ("a", false)),
        ("a+b", ("a+b", false)),
        ("a+", ("a+", false)),
        ("a", ("a", false)),
    ] {
        assert_eq!(attempts(id), expected, "{id}");
    }
}

#[test]
fn loaders_default_is_a_pattern() {
    assert_eq!(
        loader_default("timeout 3\n#default x\ndefault  debian-*\n"),
        Some("debian-*")
    );
    assert_eq!(loader_default("defaults x\n"), None);
    for (pattern, text, expected) in [
        ("debian-*", "debian-6.1", true),
        ("*6.1*", "debian-6.1.0", true),
        ("a?c", "abc", true),
        ("a*b*c", "axxbyyc", true),
        ("a*b*c", "axxbyy", false),
        ("", "", true),
        ("*", "", true),
        ("a", "ab", false),
    ] {
        assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
    }
}
