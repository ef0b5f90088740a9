//! `[ ... ]` and `test` (GRUB manual, "test").

use crate::boot::version;

/// What files are there, for `-f` and the like.
pub trait Files {
    /// Whether there is a file at this path, and whether it is empty.
    fn file(&self, path: &str) -> Option<bool>;
    /// Whether there is a directory at this path.
    fn directory(&self, path: &str) -> bool;
}

/// Whether an expression holds; one that is none does not.
pub fn holds(words: &[&str], files: &dyn Files) -> bool {
    // "or" binds least, then "and", then "not".
    if let Some(at) = words.iter().position(|word| *word == "-o") {
        let (left, right) = words.split_at(at);
        return holds(left, files) || holds(right.get(1..).unwrap_or_default(), files);
    }
    if let Some(at) = words.iter().position(|word| *word == "-a") {
        let (left, right) = words.split_at(at);
        return holds(left, files) && holds(right.get(1..).unwrap_or_default(), files);
    }
    match words {
        [] => false,
        ["!", rest @ ..] => !holds(rest, files),
        ["(", inside @ .., ")"] => holds(inside, files),
        [word] => !word.is_empty(),
        ["-n", word] => !word.is_empty(),
        ["-z", word] => word.is_empty(),
        ["-e", path] => files.file(path).is_some() || files.directory(path),
        ["-f", path] => files.file(path).is_some(),
        ["-s", path] => files.file(path) == Some(false),
        ["-d", path] => files.directory(path),
        [a, "=" | "==", b] => a == b,
        [a, "!=", b] => a != b,
        [a, "<", b] => a < b,
        [a, ">", b] => a > b,
        [a, "-eq", b] => number(a) == number(b),
        [a, "-ne", b] => number(a) != number(b),
        [a, "-lt", b] => number(a) < number(b),
        [a, "-le", b] => number(a) <= number(b),
        [a, "-gt", b] => number(a) > number(b),
        [a, "-ge", b] => number(a) >= number(b),
        [a, "-pgt", b] => version::compare(a, b).is_gt(),
        [a, "-plt", b] => version::compare(a, b).is_lt(),
        _ => false,
    }
}

fn number(text: &str) -> i64 {
    text.trim().parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Some_;

    impl Files for Some_ {
        fn file(&self, path: &str) -> Option<bool> {
            match path {
                "/full" => Some(false),
                "/empty" => Some(true),
                _ => None,
            }
        }

        fn directory(&self, path: &str) -> bool {
            path == "/dir"
        }
    }

    #[test]
    fn expressions_of_grub_mkconfig_hold_or_do_not() {
        for (text, expected) in [
            ("-s /full", true),
            ("-s /empty", false),
            ("-f /empty", true),
            ("-d /dir", true),
            ("-e /dir", true),
            ("! -e /no", true),
            ("xy = xy", true),
            ("xy != xy", false),
            ("a = b -o -f /full", true),
            ("a = a -a -f /no", false),
            ("2 -lt 10", true),
            ("-n a -a -z b", false),
            ("( a = a )", true),
            ("x", true),
        ] {
            let words: alloc::vec::Vec<&str> = text.split(' ').collect();
            assert_eq!(holds(&words, &Some_), expected, "{text}");
        }
        assert!(!holds(&[""], &Some_) && !holds(&[], &Some_) && holds(&["-z", ""], &Some_));
    }
}
