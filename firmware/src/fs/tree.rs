//! Paths and symbolic links, for file systems that have them.

use alloc::string::String;
use alloc::vec::Vec;

use crate::{Error, Result};

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link.
    Link,
    /// Something else.
    Other,
}

impl Kind {
    /// By the mode of an inode, as in Unix.
    pub fn of_mode(mode: u16) -> Kind {
        match mode >> 12 {
            4 => Kind::Directory,
            8 => Kind::File,
            10 => Kind::Link,
            _ => Kind::Other,
        }
    }
}

/// A file system of directories and inodes.
pub trait Tree {
    /// An inode.
    type Node;

    /// The root directory.
    fn root(&self) -> Result<Self::Node>;

    /// What it is.
    fn kind(&self, node: &Self::Node) -> Kind;

    /// What a directory has under a name.
    fn lookup(&self, directory: &Self::Node, name: &str) -> Result<Option<Self::Node>>;

    /// Where a symbolic link leads.
    fn target(&self, link: &Self::Node) -> Result<String>;
}

/// Most links followed for one path, as in Linux.
const MAX_LINKS: u32 = 40;
/// The longest path, as in Linux.
const MAX_PATH: usize = 4096;

/// The node at `path`.
pub fn find<T: Tree>(tree: &T, path: &str) -> Result<T::Node> {
    let not_there = || Error::not_found(path);
    let mut todo: Vec<String> = parts(path);
    // From the root to where we are.
    let mut here = alloc::vec![tree.root()?];
    let mut links = 0;
    while let Some(name) = todo.pop() {
        if name == ".." {
            if here.len() > 1 {
                here.pop();
            }
            continue;
        }
        let directory = here.last().ok_or_else(not_there)?;
        if tree.kind(directory) != Kind::Directory {
            return Err(not_there());
        }
        let node = tree.lookup(directory, &name)?.ok_or_else(not_there)?;
        if tree.kind(&node) != Kind::Link {
            here.push(node);
            continue;
        }
        let target = tree.target(&node)?;
        links += 1;
        if links > MAX_LINKS || target.len() > MAX_PATH {
            return Err(Error::damaged(format_args!(
                "{path} leads through too many links"
            )));
        }
        if target.starts_with('/') {
            here.truncate(1);
        }
        todo.extend(parts(&target));
    }
    here.pop().ok_or_else(not_there)
}

/// The parts of a path, the first one last.
fn parts(path: &str) -> Vec<String> {
    let parts = path.split('/').filter(|part| !part.is_empty() && *part != ".");
    parts.rev().map(String::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `/a/file`, `/a/up` → `../a/file`, `/abs` → `/a`, `/loop` → `loop`.
    struct Small;

    impl Tree for Small {
        type Node = &'static str;

        fn root(&self) -> Result<&'static str> {
            Ok("/")
        }

        fn kind(&self, node: &&'static str) -> Kind {
            match *node {
                "/" | "a" => Kind::Directory,
                "file" => Kind::File,
                _ => Kind::Link,
            }
        }

        fn lookup(&self, directory: &&'static str, name: &str) -> Result<Option<&'static str>> {
            Ok(match (*directory, name) {
                ("/", "a") => Some("a"),
                ("/", "abs") => Some("abs"),
                ("/", "loop") => Some("loop"),
                ("a", "file") => Some("file"),
                ("a", "up") => Some("up"),
                _ => None,
            })
        }

        fn target(&self, link: &&'static str) -> Result<String> {
            Ok(match *link {
                "up" => "../a/file",
                "abs" => "/a",
                _ => "loop",
            }
            .into())
        }
    }

    #[test]
    fn paths_are_walked_as_unix_walks_them() {
        for path in [
            "/a/file",
            "a//file",
            "/a/up",
            "/abs/up",
            "/../abs/./file",
            "/a/../a/file",
        ] {
            assert_eq!(find(&Small, path), Ok("file"), "{path}");
        }
        assert_eq!(find(&Small, "/"), Ok("/"));
        for path in ["/b", "/a/file/x", "/file"] {
            assert_eq!(find(&Small, path), Err(Error::not_found(path)), "{path}");
        }
        assert!(find(&Small, "/loop").is_err_and(|error| !error.is_not_found()));
    }
}
