//! Variables, and the environment block, `grubenv`: what GRUB remembers of them from one boot to the next.

use alloc::string::String;
use alloc::vec::Vec;

const SIGNATURE: &str = "# GRUB Environment Block\n";

/// Longest value of a variable, and most variables; more are not set.
const MAX_VALUE: usize = 16 << 10;
const MAX_VARIABLES: usize = 1000;

/// Names and values.
#[derive(Clone, Debug, Default)]
pub struct Variables(Vec<(String, String)>);

impl Variables {
    /// The value of a variable, where it is set.
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(other, _)| other == name);
        found.map(|(_, value)| value.as_str())
    }

    /// Sets a variable.
    pub fn set(&mut self, name: &str, value: &str) {
        if value.len() > MAX_VALUE {
            return;
        }
        let room = self.0.len() < MAX_VARIABLES;
        match self.0.iter_mut().find(|(other, _)| other == name) {
            Some((_, old)) => *old = value.into(),
            None if room => self.0.push((name.into(), value.into())),
            None => {}
        }
    }

    /// Forgets a variable.
    pub fn unset(&mut self, name: &str) {
        self.0.retain(|(other, _)| other != name);
    }
}

/// Names and values of a block; none where it is no such block.
pub fn block(text: &str) -> Vec<(String, String)> {
    let Some(lines) = text.strip_prefix(SIGNATURE) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    let mut rest = lines;
    while let Some((name, after)) = rest.split_once('=') {
        // Comments, and what fills the block up.
        let name = name.rsplit('\n').next().unwrap_or(name);
        let mut value = String::new();
        let mut chars = after.chars();
        loop {
            match chars.next() {
                Some('\\') => value.extend(chars.next()),
                Some('\n') | None => break,
                Some(c) => value.push(c),
            }
        }
        if !name.starts_with('#') {
            found.push((name.into(), value));
        }
        rest = chars.as_str();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_values_are_read_up_to_what_fills_the_block() {
        let text = "# GRUB Environment Block\n# WARNING: Do not edit=this\nsaved_entry=a\\\\b>c\nkernelopts=root=UUID=1 ro\nempty=\n##########";
        let pair = |name: &str, value: &str| (name.into(), value.into());
        assert_eq!(
            block(text),
            [
                pair("saved_entry", "a\\b>c"),
                pair("kernelopts", "root=UUID=1 ro"),
                pair("empty", "")
            ]
        );
        assert_eq!(block("saved_entry=1\n"), []);
    }
}
