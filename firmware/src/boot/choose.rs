//! Which entry boots (pure): the order in which entries are tried, and what the firmware is told on its command line.

use alloc::string::String;
use alloc::vec::Vec;

use super::{Entry, Menu};

/// What the firmware is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// Disks to look at, by their number, in this order; all of them where this is empty.
    pub disks: Vec<usize>,
    /// Seconds for which a menu waits; no menu where it is 0.
    pub wait: u32,
    /// The entry to be booted: its id or its title.
    pub entry: String,
    /// Say more.
    pub verbose: bool,
}

impl Wishes {
    /// Reads the words `disks=0,2 wait=5 entry=ID verbose`; an id's blanks are written `%20`.
    pub fn parse(cmdline: &str) -> Wishes {
        let mut wishes = Wishes::default();
        for word in cmdline.split_whitespace() {
            match word.split_once('=') {
                Some(("disks", list)) => {
                    wishes.disks = list.split(',').filter_map(|n| n.parse().ok()).collect()
                }
                Some(("wait", seconds)) => wishes.wait = seconds.parse().unwrap_or(0),
                Some(("entry", id)) => wishes.entry = id.split("%20").collect::<Vec<_>>().join(" "),
                None if word == "verbose" => wishes.verbose = true,
                _ => {}
            }
        }
        wishes
    }

    /// Numbers of the disks to look at, of `count` that there are.
    pub fn order(&self, count: usize) -> Vec<usize> {
        match self.disks.is_empty() {
            true => (0..count).collect(),
            false => self.disks.iter().copied().filter(|disk| *disk < count).collect(),
        }
    }
}

/// The entries of a disk in the order in which they are tried: the one wanted, then of each menu its default and the
/// others as they stand there. Menus come in the order in which they were found.
pub fn order<'a>(menus: &'a [Menu], wanted: &str) -> Vec<&'a Entry> {
    let mut order: Vec<&Entry> = Vec::new();
    let all = || menus.iter().flat_map(|menu| &menu.entries);
    if !wanted.is_empty() {
        order.extend(
            all()
                .find(|entry| entry.id == wanted)
                .or_else(|| all().find(|entry| entry.title == wanted)),
        );
    }
    for menu in menus {
        let default = menu.entries.get(menu.default);
        for entry in default.into_iter().chain(&menu.entries) {
            if !order.iter().any(|other| core::ptr::eq(*other, entry)) {
                order.push(entry);
            }
        }
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::{File, Kind};

    fn menu(names: &[&str], default: usize) -> Menu {
        let entry = |name: &&str| Entry {
            title: alloc::format!("Title of {name}"),
            id: (*name).into(),
            kind: Kind::Grub,
            kernel: File {
                volume: 0,
                path: "/k".into(),
            },
            initrds: Vec::new(),
            options: String::new(),
        };
        Menu {
            entries: names.iter().map(entry).collect(),
            default,
        }
    }

    #[test]
    fn a_menus_default_is_tried_first_then_the_others_then_the_next_menu() {
        let menus = [menu(&["a", "b", "c"], 1), menu(&["d", "a"], 0)];
        let ids = |wanted| -> Vec<&str> {
            order(&menus, wanted)
                .into_iter()
                .map(|entry| entry.id.as_str())
                .collect()
        };
        assert_eq!(ids(""), ["b", "a", "c", "d", "a"]);
        assert_eq!(ids("c"), ["c", "b", "a", "d", "a"]);
        assert_eq!(ids("Title of d"), ["d", "b", "a", "c", "a"]);
        assert_eq!(ids("none"), ["b", "a", "c", "d", "a"]);
        assert_eq!(order(&[menu(&["x"], 9)], "").len(), 1);
    }

    #[test]
    fn wishes_are_words() {
        let wishes = Wishes::parse("disks=2,0 wait=5 entry=Debian%20GNU/Linux verbose other=1");
        let expected = Wishes {
            disks: alloc::vec![2, 0],
            wait: 5,
            entry: "Debian GNU/Linux".into(),
            verbose: true,
        };
        assert_eq!(wishes, expected);
        assert_eq!(wishes.order(2), [0]);
        assert_eq!(Wishes::parse("").order(3), [0, 1, 2]);
    }
}
