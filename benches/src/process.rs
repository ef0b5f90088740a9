//! One run of a monitor: started, listened to, ended. Whatever happens, nothing of it is left running.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::peer::{Found, Launch, Machine};
use crate::stamp;

/// A line of the guest that is longer is cut: no guest makes us hold more.
const LONGEST_LINE: usize = 1024;
/// Of the console's last words, this many lines are kept for whoever asks why.
const LAST_WORDS: usize = 12;

/// What the serial line carried.
#[derive(Debug, PartialEq)]
enum Heard {
    /// The kernel is entered.
    Kernel,
    /// Init is.
    Init,
    /// The guest runs.
    Tick,
    /// A line.
    Line(String),
}

/// A result that the guest's program says: `@NAME KEY=VALUE...`.
#[derive(Clone, Debug, PartialEq)]
pub struct Said {
    words: Vec<String>,
}

impl Said {
    fn parse(line: &str) -> Option<Said> {
        // The kernel may have begun a line of its own.
        let (_, said) = line.split_once('@')?;
        let words: Vec<String> = said.split_whitespace().map(str::to_owned).collect();
        (!words.is_empty()).then_some(Said { words })
    }

    /// What it is about.
    pub fn name(&self) -> &str {
        self.words.first().map_or("", String::as_str)
    }

    /// The words after the name.
    pub fn rest(&self) -> String {
        self.words.get(1..).unwrap_or_default().join(" ")
    }

    /// The value of a key.
    ///
    /// # Errors
    /// When it has none.
    pub fn text(&self, key: &str) -> Result<&str> {
        let found = self
            .words
            .iter()
            .find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        found.ok_or_else(|| Error::Misheard(format!("@{} has no {key}", self.words.join(" "))))
    }

    /// The same as a number.
    ///
    /// # Errors
    /// When it is none.
    pub fn number(&self, key: &str) -> Result<f64> {
        let text = self.text(key)?;
        text.parse()
            .map_err(|_| Error::Misheard(format!("{key}={text} is no number")))
    }
}

/// Has the process of `command` get `signal` when we end, however that is.
pub fn ends_with_us(command: &mut Command, signal: libc::c_int) {
    // SAFETY: between fork and exec it does one system call that takes numbers only.
    unsafe {
        command.pre_exec(move || match libc::prctl(libc::PR_SET_PDEATHSIG, signal) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
}

/// A monitor that runs.
pub struct Running {
    child: Child,
    heard: Receiver<(Instant, Heard)>,
    started: Instant,
    limit: Duration,
    said: VecDeque<String>,
    errors: PathBuf,
}

impl Running {
    /// Starts `machine` on a monitor; it has `limit` for all that it is then asked to do.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn start(found: &Found, machine: &Machine, limit: Duration) -> Result<Running> {
        Running::launch(found, &(found.peer.launch)(machine), machine, limit)
    }

    /// The same, started in another way.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn launch(found: &Found, launch: &Launch, machine: &Machine, limit: Duration) -> Result<Running> {
        for (name, content) in &launch.files {
            let path = machine.directory.join(name);
            fs::write(&path, content).map_err(Error::io(format!("write {}", path.display())))?;
        }
        let errors = machine.directory.join("stderr");
        let stderr = File::create(&errors).map_err(Error::io(format!("write {}", errors.display())))?;
        let mut command = Command::new(&found.program);
        command
            .args(&launch.arguments)
            .envs(launch.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(&machine.directory)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr);
        ends_with_us(&mut command, libc::SIGKILL);
        let started = Instant::now();
        let mut child = command
            .spawn()
            .map_err(Error::io(format!("start {}", found.program.display())))?;
        let (sender, heard) = channel();
        if let Some(stdout) = child.stdout.take() {
            std::thread::spawn(move || listen(stdout, &sender));
        }
        Ok(Running {
            child,
            heard,
            started,
            limit,
            said: VecDeque::new(),
            errors,
        })
    }

    /// When its program was started.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// When the guest's kernel was entered.
    ///
    /// # Errors
    /// When it is not.
    pub fn kernel(&mut self) -> Result<Instant> {
        self.wait("the kernel's first instruction", |heard| {
            (*heard == Heard::Kernel).then_some(())
        })
        .map(|(at, ())| at)
    }

    /// When the guest's init was entered.
    ///
    /// # Errors
    /// When it is not.
    pub fn init(&mut self) -> Result<Instant> {
        self.wait("init's first instruction", |heard| {
            (*heard == Heard::Init).then_some(())
        })
        .map(|(at, ())| at)
    }

    /// The next result of this name, and when it came.
    ///
    /// # Errors
    /// When it does not come, or the guest says that it failed.
    pub fn said(&mut self, name: &str) -> Result<(Instant, Said)> {
        self.said_any(&[name])
    }

    /// The next result of one of these names.
    ///
    /// # Errors
    /// As [`Running::said`].
    pub fn said_any(&mut self, names: &[&str]) -> Result<(Instant, Said)> {
        let awaited = format!("the guest's @{}", names.join(" or @"));
        let (at, said) = self.wait(&awaited, |heard| match heard {
            Heard::Line(line) => {
                Said::parse(line).filter(|said| said.name() == "failed" || names.contains(&said.name()))
            }
            _ => None,
        })?;
        if said.name() == "failed" {
            return Err(Error::Guest(said.rest()));
        }
        Ok((at, said))
    }

    /// When the guest said next that it runs.
    ///
    /// # Errors
    /// When it does not.
    pub fn tick(&mut self) -> Result<Instant> {
        self.wait("a sign that the guest runs", |heard| {
            (*heard == Heard::Tick).then_some(())
        })
        .map(|(at, ())| at)
    }

    /// When it has said so since it was asked last.
    pub fn ticks(&mut self) -> Vec<Instant> {
        let heard = self.heard.try_iter();
        heard
            .filter(|(_, heard)| *heard == Heard::Tick)
            .map(|(at, _)| at)
            .collect()
    }

    fn wait<T>(&mut self, awaited: &str, wanted: impl Fn(&Heard) -> Option<T>) -> Result<(Instant, T)> {
        loop {
            let left = self.limit.saturating_sub(self.started.elapsed());
            match self.heard.recv_timeout(left) {
                Ok((at, heard)) => {
                    if let Some(found) = wanted(&heard) {
                        return Ok((at, found));
                    }
                    if let Heard::Line(line) = heard {
                        self.said.push_back(line);
                        while self.said.len() > LAST_WORDS {
                            self.said.pop_front();
                        }
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    return Err(Error::Late {
                        awaited: awaited.to_owned(),
                        limit: self.limit,
                        said: self.last_words(),
                    });
                }
                // It closed its end; a moment later its status is to be had.
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.end();
                    return Err(Error::Ended {
                        status,
                        awaited: awaited.to_owned(),
                        said: self.last_words(),
                    });
                }
            }
        }
    }

    /// Gives a monitor that closes its output a moment to end by itself, so that its status is its own.
    fn end(&mut self) -> String {
        let until = Instant::now() + Duration::from_secs(2);
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return status.to_string(),
                Ok(None) if Instant::now() < until => std::thread::sleep(Duration::from_millis(10)),
                _ => return "its output is closed, it runs on".to_owned(),
            }
        }
    }

    /// What guest and monitor said last, for an error's end.
    pub fn last_words(&self) -> String {
        let errors = fs::read(&self.errors).unwrap_or_default();
        let errors = String::from_utf8_lossy(&errors).into_owned();
        let skip = errors.lines().count().saturating_sub(LAST_WORDS);
        let told = |who: &str, lines: &mut dyn Iterator<Item = &str>| {
            let lines: Vec<&str> = lines.filter(|line| !line.trim().is_empty()).collect();
            match lines.is_empty() {
                true => String::new(),
                false => format!("\n  {who}:\n    {}", lines.join("\n    ")),
            }
        };
        told("the guest said", &mut self.said.iter().map(String::as_str))
            + &told("the monitor said", &mut errors.lines().skip(skip))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let (Ok(group), Ok(None)) = (i32::try_from(self.child.id()), self.child.try_wait()) {
            // SAFETY: it takes numbers only; the group is that of our child, which we have not waited for.
            unsafe { libc::kill(-group, libc::SIGKILL) };
        }
        let _ = self.child.wait();
    }
}

/// Hears the serial line, with the time of each piece as it came.
fn listen(mut stdout: impl Read, sender: &Sender<(Instant, Heard)>) {
    let mut bytes = [0; 4096];
    let mut line = Vec::new();
    while let Ok(n @ 1..) = stdout.read(&mut bytes) {
        let at = Instant::now();
        for heard in bytes
            .get(..n)
            .unwrap_or_default()
            .iter()
            .filter_map(|byte| hear(*byte, &mut line))
        {
            if sender.send((at, heard)).is_err() {
                return;
            }
        }
    }
}

fn hear(byte: u8, line: &mut Vec<u8>) -> Option<Heard> {
    match byte {
        stamp::KERNEL => return Some(Heard::Kernel),
        stamp::INIT => return Some(Heard::Init),
        stamp::TICK => return Some(Heard::Tick),
        b'\n' => {
            let text = String::from_utf8_lossy(line).trim_end().to_owned();
            line.clear();
            return Some(Heard::Line(text));
        }
        _ if line.len() < LONGEST_LINE => line.push(byte),
        _ => {}
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_are_heard_wherever_they_fall_in_a_line() {
        let mut line = Vec::new();
        let heard: Vec<_> = b"\x02[0.1] hal\x03lo\r\n@exit name=cpuid median_ps=12\n"
            .iter()
            .filter_map(|byte| hear(*byte, &mut line))
            .collect();
        assert_eq!(heard.len(), 4);
        assert_eq!(
            heard[..3],
            [Heard::Kernel, Heard::Init, Heard::Line("[0.1] hallo".into())]
        );
    }

    #[test]
    fn results_are_read_and_what_is_missing_is_said() {
        let said = Said::parse("@blk disk=vda p50=36120").unwrap();
        assert_eq!((said.name(), said.text("disk").unwrap()), ("blk", "vda"));
        assert_eq!(said.number("p50").unwrap(), 36120.0);
        assert!(
            said.number("disk")
                .unwrap_err()
                .to_string()
                .contains("disk=vda is no number")
        );
        assert!(said.number("p99").unwrap_err().to_string().contains("has no p99"));
        assert_eq!(Said::parse("[    0.000000] Linux version"), None);
    }

    #[test]
    fn an_endless_line_is_not_kept() {
        let mut line = Vec::new();
        for _ in 0..1 << 20 {
            hear(b'x', &mut line);
        }
        assert_eq!(line.len(), LONGEST_LINE);
    }
}
