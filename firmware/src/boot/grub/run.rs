//! Runs a configuration: variables, conditions, functions, and the commands that find a volume or make an entry.

use alloc::format;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::env::{self, Variables};
use super::menu;
use super::parse::{Command, Piece, Word, parse};
use super::test::{self, Files};
use crate::boot::{Entry, File, Kind, Volume};
use crate::{Error, Result};

/// Commands that are run of one configuration, so that none runs for ever.
const MAX_STEPS: u32 = 50_000;
/// How deep functions and files may call each other.
const MAX_DEPTH: u32 = 24;
/// Most functions.
const MAX_FUNCTIONS: usize = 1000;
const MAX_ITEMS: usize = 1000;

/// Something in a menu.
#[derive(Clone, Debug)]
pub struct Item {
    pub title: String,
    pub id: String,
    pub content: Content,
}

/// What is behind it.
#[derive(Clone, Debug)]
pub enum Content {
    Entry(Entry),
    Menu(Vec<Item>),
    /// It boots no kernel: the firmware's setup, another boot loader.
    Nothing,
}

/// What an entry's commands said so far.
#[derive(Default)]
struct Loading {
    kernel: Option<File>,
    options: String,
    initrds: Vec<File>,
}

/// GRUB, as far as a configuration sees it.
pub struct Grub<'a> {
    pub volumes: &'a [Volume],
    pub variables: Variables,
    functions: Vec<(String, Rc<Vec<Command>>)>,
    /// The menu that is being made.
    pub items: Vec<Item>,
    loading: Option<Loading>,
    pub notes: Vec<String>,
    steps: u32,
    depth: u32,
}

impl<'a> Grub<'a> {
    /// Starts with a configuration that lies in `prefix` of volume `root`.
    pub fn new(volumes: &'a [Volume], root: usize, prefix: &str) -> Grub<'a> {
        let name = volumes
            .get(root)
            .map(|volume| volume.name.clone())
            .unwrap_or_default();
        let prefix = format!("({name}){prefix}");
        let mut variables = Variables::default();
        for (name, value) in [
            ("prefix", prefix.as_str()),
            ("config_directory", &prefix),
            ("root", &name),
            ("grub_platform", "pc"),
            ("grub_cpu", "i386"),
            ("feature_menuentry_id", "y"),
            ("feature_platform_search_hint", "y"),
            ("feature_timeout_style", "y"),
            ("feature_default_font_path", "y"),
            ("feature_all_video_module", "y"),
            ("feature_200_final", "y"),
            ("feature_nativedisk_cmd", "n"),
        ] {
            variables.set(name, value);
        }
        Grub {
            volumes,
            variables,
            functions: Vec::new(),
            items: Vec::new(),
            loading: None,
            notes: Vec::new(),
            steps: MAX_STEPS,
            depth: MAX_DEPTH,
        }
    }

    pub fn get(&self, name: &str) -> &str {
        self.variables.get(name).unwrap_or_default()
    }

    pub fn set(&mut self, name: &str, value: &str) {
        self.variables.set(name, value);
    }

    /// The volume that a device's name stands for: `hd0,gpt1`, `hd0,msdos1`, or just `hd0,1`.
    fn device(&self, name: &str) -> Option<usize> {
        let plain = |name: &str| {
            let (disk, partition) = name.split_once(',').unwrap_or((name, ""));
            let number = partition.trim_start_matches(|c: char| c.is_ascii_lowercase());
            (String::from(disk), String::from(number))
        };
        let name = plain(name);
        self.volumes.iter().position(|volume| plain(&volume.name) == name)
    }

    /// The file that a path stands for: `(hd0,gpt1)/path`, or `/path` on `$root`.
    pub fn file(&self, path: &str) -> Option<File> {
        let (device, path) = match path.strip_prefix('(') {
            Some(rest) => rest.split_once(')')?,
            None => (self.get("root"), path),
        };
        let volume = self.device(device)?;
        let path = path.into();
        Some(File { volume, path })
    }

    fn text(&self, path: &str) -> Result<String> {
        let not_there = || Error::not_found(path);
        let file = self.file(path).ok_or_else(not_there)?;
        self.volumes
            .get(file.volume)
            .ok_or_else(not_there)?
            .fs
            .text(&file.path)
    }

    /// Runs the configuration at `path`.
    pub fn source(&mut self, path: &str) -> Result<bool> {
        let commands = parse(&self.text(path)?)?;
        self.run(&commands)
    }

    /// Runs commands; gives whether the last one succeeded.
    pub fn run(&mut self, commands: &[Command]) -> Result<bool> {
        self.depth = self
            .depth
            .checked_sub(1)
            .ok_or_else(|| Error::damaged(format_args!("it calls itself for ever")))?;
        let mut success = true;
        for command in commands {
            let left = self.steps.checked_sub(1);
            self.steps =
                left.ok_or_else(|| Error::damaged(format_args!("it runs more than {MAX_STEPS} commands")))?;
            success = self.command(command)?;
        }
        self.depth += 1;
        Ok(success)
    }

    fn command(&mut self, command: &Command) -> Result<bool> {
        match command {
            Command::Simple(words, block) => {
                let words = self.expand(words);
                let words: Vec<&str> = words.iter().map(String::as_str).collect();
                match (words.as_slice(), block) {
                    ([], _) => Ok(true),
                    ([name, arguments @ ..], None) => self.simple(name, arguments),
                    ([name, arguments @ ..], Some(block)) => self.item(name, arguments, block),
                }
            }
            Command::If(branches, otherwise) => {
                for (condition, then) in branches {
                    if self.run(condition)? {
                        return self.run(then);
                    }
                }
                self.run(otherwise)
            }
            Command::Function(name, body) => {
                self.functions.retain(|(other, _)| other != name);
                if self.functions.len() >= MAX_FUNCTIONS {
                    return Err(Error::unsupported(format_args!(
                        "more than {MAX_FUNCTIONS} functions"
                    )));
                }
                self.functions.push((name.clone(), Rc::new(body.clone())));
                Ok(true)
            }
            Command::For(name, words, body) => {
                let mut success = true;
                for value in self.expand(words) {
                    self.set(name, &value);
                    success = self.run(body)?;
                }
                Ok(success)
            }
        }
    }

    /// Puts values for variables; what is in no quotes falls into words at its blanks.
    fn expand(&self, words: &[Word]) -> Vec<String> {
        let mut out = Vec::new();
        for word in words {
            let mut current: Option<String> = None;
            for piece in word {
                match piece {
                    Piece::Text(text) => current.get_or_insert_default().push_str(text),
                    Piece::Variable { name, quoted: true } => {
                        current.get_or_insert_default().push_str(self.get(name))
                    }
                    Piece::Variable { name, .. } => {
                        let value = self.get(name);
                        let mut parts = value.split_whitespace();
                        if let Some(first) = parts.next() {
                            if value.starts_with(char::is_whitespace) {
                                out.extend(current.take());
                            }
                            current.get_or_insert_default().push_str(first);
                        }
                        for part in parts {
                            out.extend(current.replace(part.into()));
                        }
                    }
                }
            }
            out.extend(current);
        }
        out
    }

    fn simple(&mut self, name: &str, arguments: &[&str]) -> Result<bool> {
        let function = self.functions.iter().find(|(other, _)| other == name);
        if let Some(function) = function.map(|(_, body)| Rc::clone(body)) {
            // What `$1` and the others were comes back.
            let mut before = Vec::new();
            for (i, argument) in (1..).zip(arguments) {
                let name = i.to_string();
                before.push((self.variables.get(&name).map(String::from), name));
                self.set(&i.to_string(), argument);
            }
            let success = self.run(&function)?;
            for (value, name) in before {
                match value {
                    Some(value) => self.set(&name, &value),
                    None => self.variables.unset(&name),
                }
            }
            return Ok(success);
        }
        match name {
            "set" => {
                for pair in arguments {
                    if let Some((name, value)) = pair.split_once('=') {
                        self.set(name, value);
                    }
                }
            }
            "unset" => arguments.iter().for_each(|name| self.variables.unset(name)),
            "[" => return Ok(self.test(arguments.strip_suffix(&["]"]).unwrap_or(arguments))),
            "test" => return Ok(self.test(arguments)),
            "false" => return Ok(false),
            "load_env" => return Ok(self.load_env(arguments)),
            "search" | "search.fs_uuid" | "search.fs_label" | "search.file" => {
                return Ok(self.search(name, arguments));
            }
            "probe" => return Ok(self.probe(arguments)),
            "source" | "." | "configfile" | "normal" => {
                return match arguments {
                    [path] => match self.source(path) {
                        Err(error) if error.is_not_found() => Ok(false),
                        other => other,
                    },
                    _ => Ok(false),
                };
            }
            "blscfg" => return Ok(menu::specified(self)),
            "linux" | "linux16" | "linuxefi" => return Ok(self.linux(arguments)),
            "initrd" | "initrd16" | "initrdefi" => return Ok(self.initrd(arguments)),
            // What changes nothing here: modules are there, nothing is drawn, nothing is written.
            "true" | "insmod" | "export" | "echo" | "terminal_input" | "terminal_output" | "serial"
            | "save_env" | "loadfont" | "gfxmode" | "clear" | "sleep" | "play" => {}
            assignment if assignment.contains('=') => {
                let (name, value) = assignment.split_once('=').unwrap_or_default();
                self.set(name, value);
            }
            // As for a command of a module that is not there.
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn test(&self, words: &[&str]) -> bool {
        test::holds(words, self)
    }

    fn load_env(&mut self, arguments: &[&str]) -> bool {
        let mut path = format!("{}/grubenv", self.get("prefix"));
        let mut wanted = Vec::new();
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            match *argument {
                "-f" | "--file" => path = arguments.next().map(ToString::to_string).unwrap_or_default(),
                option if option.starts_with("--file=") => path = option.get(7..).unwrap_or_default().into(),
                option if option.starts_with('-') => {}
                name => wanted.push(name),
            }
        }
        let Ok(text) = self.text(&path) else {
            return false;
        };
        for (name, value) in env::block(&text) {
            if !wanted.is_empty() && !wanted.contains(&name.as_str()) {
                continue;
            }
            if name == "next_entry" && !value.is_empty() {
                self.notes.push(format!(
                    "next_entry={value} is not followed: the firmware could not take it back for the boot after"
                ));
                continue;
            }
            self.set(&name, &value);
        }
        true
    }

    fn search(&mut self, command: &str, arguments: &[&str]) -> bool {
        let (mut by, mut variable, mut name) =
            (command.strip_prefix("search.").unwrap_or("file"), "root", None);
        let mut arguments = arguments.iter().copied();
        while let Some(argument) = arguments.next() {
            match argument {
                "-u" | "--fs-uuid" => by = "fs_uuid",
                "-l" | "--label" | "--fs-label" => by = "fs_label",
                "-f" | "--file" => by = "file",
                "-s" => variable = arguments.next().unwrap_or("root"),
                "--set" => variable = "root",
                "--hint" => drop(arguments.next()),
                option if option.starts_with("--set=") => variable = option.get(6..).unwrap_or("root"),
                option if option.starts_with('-') => {}
                word if name.is_none() => name = Some(word),
                // `search.fs_uuid UUID VARIABLE HINT...`
                word if command.contains('.') && !word.contains(',') => variable = word,
                _ => {}
            }
        }
        let Some(name) = name else {
            return false;
        };
        let wanted = |volume: &Volume| match by {
            "fs_uuid" => volume.fs.uuid().eq_ignore_ascii_case(name),
            "fs_label" => volume.fs.label() == name,
            _ => volume.fs.open(name).is_ok(),
        };
        match self.volumes.iter().find(|volume| wanted(volume)) {
            Some(volume) => {
                self.set(variable, &volume.name);
                true
            }
            None => {
                self.notes
                    .push(format!("no file system of this disk has the {by} {name}"));
                false
            }
        }
    }

    fn probe(&mut self, arguments: &[&str]) -> bool {
        let (mut what, mut variable, mut device) = ("", None, None);
        let mut arguments = arguments.iter().copied();
        while let Some(argument) = arguments.next() {
            match argument {
                "-s" | "--set" => variable = arguments.next(),
                option if option.starts_with("--set=") => variable = option.get(6..),
                option if option.starts_with('-') => what = option,
                word => device = Some(word.trim_matches(['(', ')'])),
            }
        }
        let volume = device
            .and_then(|name| self.device(name))
            .and_then(|index| self.volumes.get(index));
        let (Some(volume), Some(variable)) = (volume, variable) else {
            return false;
        };
        let value = match what {
            "-u" | "--fs-uuid" => volume.fs.uuid().to_string(),
            "-l" | "--label" => volume.fs.label().to_string(),
            "-f" | "--fs" => volume.fs.kind().to_string(),
            "--part-uuid" => volume.partition_uuid.clone(),
            _ => return false,
        };
        self.set(variable, &value);
        true
    }

    fn linux(&mut self, arguments: &[&str]) -> bool {
        let [path, options @ ..] = arguments else {
            return false;
        };
        let file = self.file(path);
        let (Some(loading), Some(file)) = (&mut self.loading, file) else {
            return false;
        };
        loading.kernel = Some(file);
        loading.options = options.join(" ");
        true
    }

    fn initrd(&mut self, paths: &[&str]) -> bool {
        let files: Vec<File> = paths.iter().filter_map(|path| self.file(path)).collect();
        match &mut self.loading {
            Some(loading) => loading.initrds.extend(files),
            None => return false,
        }
        true
    }

    /// `menuentry` or `submenu`: what its block does is seen now, with the variables as they are.
    fn item(&mut self, command: &str, arguments: &[&str], block: &[Command]) -> Result<bool> {
        if command != "menuentry" && command != "submenu" {
            return Ok(false);
        }
        let (mut title, mut id) = (String::new(), None);
        let mut words = arguments.iter().copied();
        while let Some(word) = words.next() {
            match word {
                "--id" => id = words.next().map(String::from),
                "--class" | "--users" | "--hotkey" => drop(words.next()),
                option if option.starts_with("--id=") => id = option.get(5..).map(String::from),
                option if option.starts_with("--") => {}
                word if title.is_empty() => title = word.into(),
                _ => {}
            }
        }
        let before = self.variables.clone();
        self.set("chosen", &title);
        let content = match command {
            "submenu" => {
                let outer = core::mem::take(&mut self.items);
                self.run(block)?;
                Content::Menu(core::mem::replace(&mut self.items, outer))
            }
            _ => {
                self.loading = Some(Loading::default());
                self.run(block)?;
                let loading = self.loading.take().unwrap_or_default();
                match loading.kernel {
                    Some(kernel) => Content::Entry(Entry {
                        title: title.clone(),
                        id: id.clone().unwrap_or_else(|| title.clone()),
                        kind: Kind::Grub,
                        kernel,
                        initrds: loading.initrds,
                        options: loading.options,
                    }),
                    None => Content::Nothing,
                }
            }
        };
        self.variables = before;
        if self.items.len() >= MAX_ITEMS {
            return Err(Error::unsupported(format_args!(
                "a menu of more than {MAX_ITEMS} entries"
            )));
        }
        let id = id.unwrap_or_else(|| title.clone());
        self.items.push(Item { title, id, content });
        Ok(true)
    }
}

impl Files for Grub<'_> {
    fn file(&self, path: &str) -> Option<bool> {
        let file = Grub::file(self, path)?;
        let found = self.volumes.get(file.volume)?.fs.open(&file.path).ok()?;
        Some(found.is_empty())
    }

    fn directory(&self, path: &str) -> bool {
        let file = Grub::file(self, path);
        let volume = file.and_then(|file| Some((self.volumes.get(file.volume)?, file.path)));
        volume.is_some_and(|(volume, path)| volume.fs.list(&path).is_ok())
    }
}
