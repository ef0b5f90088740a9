//! The image read by the tools that people read such images with.

use std::fs;
use std::process::Command;

use super::*;

const FILES: [(&str, &[u8]); 4] = [
    ("meta-data", b"instance-id: a\n"),
    ("user-data", b"#cloud-config\n"),
    ("openstack/latest/meta_data.json", b"{}"),
    ("openstack/latest/user_data", b""),
];

fn isoinfo(arguments: &[&str]) -> String {
    let image = image("cidata", &FILES).unwrap();
    let path = std::env::temp_dir().join(format!(
        "iso-{}-{}.iso",
        std::process::id(),
        arguments.concat().replace('/', "_")
    ));
    fs::write(&path, image).unwrap();
    let output = Command::new("isoinfo")
        .arg("-i")
        .arg(&path)
        .args(arguments)
        .output();
    fs::remove_file(&path).unwrap();
    let output = output.expect("isoinfo, of Debian's package genisoimage");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_label_is_what_cloud_init_looks_for() {
    let text = isoinfo(&["-d"]);
    assert!(text.contains("Volume id: cidata"), "{text}");
    assert!(text.contains("Joliet with UCS level 3 found"), "{text}");
    assert!(text.contains("Rock Ridge signatures version 1 found"), "{text}");
}

#[test]
fn names_are_whole_by_rock_ridge_and_by_joliet() {
    for how in ["-R", "-J"] {
        let list = isoinfo(&["-f", how]);
        let mut names: Vec<_> = list.lines().map(|line| line.trim_end_matches(";1")).collect();
        names.sort_unstable();
        let expected = [
            "/meta-data",
            "/openstack",
            "/openstack/latest",
            "/openstack/latest/meta_data.json",
            "/openstack/latest/user_data",
            "/user-data",
        ];
        assert_eq!(names, expected, "{how}");
    }
}

#[test]
fn content_comes_back() {
    for how in ["-R", "-J"] {
        for (path, content) in FILES {
            assert_eq!(
                isoinfo(&[how, "-x", &format!("/{path}")]).as_bytes(),
                content,
                "{how} {path}"
            );
        }
    }
}

#[test]
fn many_files_fill_more_than_a_sector() {
    let names: Vec<String> = (0..100)
        .map(|index| format!("directory/a-file-with-a-long-name-{index:03}"))
        .collect();
    let files: Vec<(&str, &[u8])> = names
        .iter()
        .map(|name| (name.as_str(), name.as_bytes()))
        .collect();
    let path = std::env::temp_dir().join(format!("iso-many-{}.iso", std::process::id()));
    fs::write(&path, image("many", &files).unwrap()).unwrap();
    let output = Command::new("isoinfo")
        .arg("-R")
        .arg("-f")
        .arg("-i")
        .arg(&path)
        .output()
        .unwrap();
    fs::remove_file(&path).unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), 101);
}

#[test]
fn what_does_not_fit_is_refused() {
    let long = "x".repeat(65);
    for name in ["", "a//b", "ä", long.as_str()] {
        image("x", &[(name, b"")]).unwrap_err();
    }
    image("x", &[("big", &vec![0; MAX_CONTENT + 1])]).unwrap_err();
}
