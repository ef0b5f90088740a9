//! From text to commands (GRUB manual, "Shell-like scripting").

use alloc::string::String;
use alloc::vec::Vec;

use crate::{Error, Result};

/// A word: pieces that become text when it is run.
pub type Word = Vec<Piece>;

/// A piece of a word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Text as it is.
    Text(String),
    /// A variable's value; not in quotes it is split where it has blanks.
    Variable {
        /// Its name.
        name: String,
        /// Whether it is in quotes.
        quoted: bool,
    },
}

/// A command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Its name and arguments; `menuentry` and `submenu` have a block.
    Simple(Vec<Word>, Option<Vec<Command>>),
    /// Conditions with what is done when they hold, and what is done when none does.
    If(Vec<(Vec<Command>, Vec<Command>)>, Vec<Command>),
    /// `function NAME { ... }`
    Function(String, Vec<Command>),
    /// `for NAME in WORD...; do ...; done`
    For(String, Vec<Word>, Vec<Command>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(Word),
    /// The end of a command: a line's end or `;`.
    End,
}

/// Deepest nesting that is read.
const MAX_DEPTH: u32 = 32;

/// Reads a whole configuration.
///
/// # Errors
/// When it is not in this language; the line is named.
pub fn parse(text: &str) -> Result<Vec<Command>> {
    let tokens = tokens(text)?;
    let mut parser = Parser {
        tokens: &tokens,
        at: 0,
        depth: 0,
    };
    let commands = parser.commands(&[])?;
    match parser.peek() {
        None => Ok(commands),
        Some(_) => Err(parser.wrong("something is closed that was not opened")),
    }
}

struct Parser<'a> {
    /// Tokens, each with its line.
    tokens: &'a [(Token, u32)],
    at: usize,
    depth: u32,
}

impl Parser<'_> {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at).map(|(token, _)| token)
    }

    /// The next word where it is plain text: only those can be words of the language.
    fn keyword(&self) -> Option<&str> {
        match self.peek() {
            Some(Token::Word(word)) => match word.as_slice() {
                [Piece::Text(text)] => Some(text),
                _ => None,
            },
            _ => None,
        }
    }

    fn wrong(&self, why: &str) -> Error {
        let line = self
            .tokens
            .get(self.at)
            .or(self.tokens.last())
            .map_or(0, |(_, line)| *line);
        Error::damaged(format_args!("line {line}: {why}"))
    }

    fn skip_ends(&mut self) {
        while self.peek() == Some(&Token::End) {
            self.at += 1;
        }
    }

    fn expect(&mut self, word: &str) -> Result<()> {
        self.skip_ends();
        match self.keyword() == Some(word) {
            true => {
                self.at += 1;
                Ok(())
            }
            false => Err(self.wrong(&alloc::format!("'{word}' is missing"))),
        }
    }

    /// Commands up to one of the words `until`, or to the end.
    fn commands(&mut self, until: &[&str]) -> Result<Vec<Command>> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(self.wrong("too much is nested"));
        }
        let mut commands = Vec::new();
        loop {
            self.skip_ends();
            let keyword = self.keyword();
            let ended = keyword.is_some_and(|word| until.contains(&word) || word == "}");
            if self.peek().is_none() || ended {
                break;
            }
            let command = match keyword {
                Some("if") => self.condition()?,
                Some("function") => self.function()?,
                Some("for") => self.each()?,
                Some("while" | "until" | "select") => {
                    return Err(self.wrong("this kind of loop is not known"));
                }
                _ => self.simple()?,
            };
            commands.push(command);
        }
        self.depth -= 1;
        Ok(commands)
    }

    fn condition(&mut self) -> Result<Command> {
        let mut branches = Vec::new();
        let mut otherwise = Vec::new();
        self.at += 1;
        loop {
            let condition = self.commands(&["then"])?;
            self.expect("then")?;
            branches.push((condition, self.commands(&["elif", "else", "fi"])?));
            match self.keyword() {
                Some("elif") => self.at += 1,
                Some("else") => {
                    self.at += 1;
                    otherwise = self.commands(&["fi"])?;
                    break;
                }
                _ => break,
            }
        }
        self.expect("fi")?;
        Ok(Command::If(branches, otherwise))
    }

    fn function(&mut self) -> Result<Command> {
        self.at += 1;
        let name = self.keyword().map(String::from);
        let name = name.ok_or_else(|| self.wrong("a function without a name"))?;
        self.at += 1;
        Ok(Command::Function(name, self.block()?))
    }

    fn each(&mut self) -> Result<Command> {
        self.at += 1;
        let name = self.keyword().map(String::from);
        let name = name.ok_or_else(|| self.wrong("'for' without a name"))?;
        self.at += 1;
        self.expect("in")?;
        let mut words = Vec::new();
        while let Some(Token::Word(word)) = self.peek() {
            words.push(word.clone());
            self.at += 1;
        }
        self.expect("do")?;
        let body = self.commands(&["done"])?;
        self.expect("done")?;
        Ok(Command::For(name, words, body))
    }

    fn block(&mut self) -> Result<Vec<Command>> {
        self.expect("{")?;
        let body = self.commands(&[])?;
        self.expect("}")?;
        Ok(body)
    }

    fn simple(&mut self) -> Result<Command> {
        let mut words = Vec::new();
        while let Some(Token::Word(word)) = self.peek() {
            if self.keyword() == Some("{") {
                return Ok(Command::Simple(words, Some(self.block()?)));
            }
            words.push(word.clone());
            self.at += 1;
        }
        Ok(Command::Simple(words, None))
    }
}

fn tokens(text: &str) -> Result<Vec<(Token, u32)>> {
    let mut lexer = Lexer {
        rest: text.chars().peekable(),
        line: 1,
        word: None,
        tokens: Vec::new(),
    };
    while lexer.step()? {}
    lexer.finish();
    Ok(lexer.tokens)
}

struct Lexer<'a> {
    rest: core::iter::Peekable<core::str::Chars<'a>>,
    line: u32,
    /// The word that is being read.
    word: Option<Word>,
    tokens: Vec<(Token, u32)>,
}

impl Lexer<'_> {
    fn next(&mut self) -> Option<char> {
        let c = self.rest.next();
        self.line += u32::from(c == Some('\n'));
        c
    }

    fn text(&mut self, c: char) {
        let word = self.word.get_or_insert_default();
        match word.last_mut() {
            Some(Piece::Text(text)) => text.push(c),
            _ => word.push(Piece::Text(c.into())),
        }
    }

    fn finish(&mut self) {
        if let Some(word) = self.word.take() {
            self.tokens.push((Token::Word(word), self.line));
        }
    }

    fn end(&mut self) {
        self.finish();
        self.tokens.push((Token::End, self.line));
    }

    fn step(&mut self) -> Result<bool> {
        let Some(c) = self.next() else {
            return Ok(false);
        };
        match c {
            '\n' | ';' | '&' | '|' => self.end(),
            ' ' | '\t' | '\r' => self.finish(),
            '#' if self.word.is_none() => {
                while self.rest.peek().is_some_and(|c| *c != '\n') {
                    self.next();
                }
            }
            '\\' => match self.next() {
                Some('\n') | None => {}
                Some(c) => self.text(c),
            },
            '\'' => {
                self.quoted();
                loop {
                    match self.next() {
                        Some('\'') => break,
                        Some(c) => self.text(c),
                        None => return Err(self.open_quote()),
                    }
                }
            }
            '"' => self.in_double_quotes()?,
            '$' => self.variable(false)?,
            // Blocks open and close as words of their own; a word may have these characters within.
            '{' | '}' if self.word.is_none() => {
                self.text(c);
                self.finish();
            }
            c => self.text(c),
        }
        Ok(true)
    }

    /// A word that is in quotes is there even when it is empty.
    fn quoted(&mut self) {
        let word = self.word.get_or_insert_default();
        // Two pieces, so that a quoted word of the language is none.
        word.push(Piece::Text(String::new()));
    }

    fn open_quote(&self) -> Error {
        Error::damaged(format_args!("line {}: a quote is not closed", self.line))
    }

    fn in_double_quotes(&mut self) -> Result<()> {
        self.quoted();
        loop {
            match self.next() {
                Some('"') => return Ok(()),
                Some('\\') => match self.next() {
                    Some(c @ ('$' | '"' | '\\')) => self.text(c),
                    Some('\n') => {}
                    Some(c) => {
                        self.text('\\');
                        self.text(c);
                    }
                    None => return Err(self.open_quote()),
                },
                Some('$') => self.variable(true)?,
                Some(c) => self.text(c),
                None => return Err(self.open_quote()),
            }
        }
    }

    fn variable(&mut self, quoted: bool) -> Result<()> {
        let mut name = String::new();
        if self.rest.peek() == Some(&'{') {
            self.next();
            loop {
                match self.next() {
                    Some('}') => break,
                    Some(c) if c != '\n' => name.push(c),
                    _ => {
                        return Err(Error::damaged(format_args!(
                            "line {}: ${{ is not closed",
                            self.line
                        )));
                    }
                }
            }
        } else {
            let special = |c: char, first: bool| first && "?*@#".contains(c);
            while let Some(c) = self.rest.peek().copied()
                && (c.is_ascii_alphanumeric() || c == '_' || special(c, name.is_empty()))
            {
                name.push(c);
                self.next();
                if special(c, name.len() == 1) {
                    break;
                }
            }
        }
        if name.is_empty() {
            self.text('$');
            return Ok(());
        }
        self.word
            .get_or_insert_default()
            .push(Piece::Variable { name, quoted });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(command: &Command) -> Vec<String> {
        let Command::Simple(words, _) = command else {
            panic!("{command:?}");
        };
        let piece = |piece: &Piece| match piece {
            Piece::Text(text) => text.clone(),
            Piece::Variable { name, quoted } => alloc::format!("<{name}{}>", if *quoted { "\"" } else { "" }),
        };
        words
            .iter()
            .map(|word| word.iter().map(piece).collect())
            .collect()
    }

    #[test]
    fn words_are_taken_apart_as_a_shell_does() {
        for (text, expected) in [
            ("set a=b", &["set", "a=b"][..]),
            ("set root='hd0,gpt1' # where", &["set", "root=hd0,gpt1"]),
            ("echo \"a $b\\\"\" ${c}d'$e'", &["echo", "a <b\">\"", "<c>d$e"]),
            ("a \\\n b", &["a", "b"]),
            ("menuentry_id_option=\"\"", &["menuentry_id_option="]),
            ("x ''", &["x", ""]),
            ("a$ b#c", &["a$", "b#c"]),
        ] {
            assert_eq!(words(&parse(text).unwrap()[0]), expected, "{text}");
        }
    }

    #[test]
    fn conditions_blocks_and_functions_nest() {
        let text = "if [ a ]; then b; elif c\nthen d; else e; fi\nfunction f {\n g $1\n}\n\
            submenu 'x' --id y {\n menuentry z { linux /k\n initrd /i\n }\n}\nfor i in a b; do c $i; done";
        let commands = parse(text).unwrap();
        let [
            Command::If(branches, otherwise),
            Command::Function(name, body),
            Command::Simple(_, Some(sub)),
            Command::For(..),
        ] = commands.as_slice()
        else {
            panic!("{commands:?}");
        };
        assert_eq!(
            (branches.len(), otherwise.len(), name.as_str(), body.len()),
            (2, 1, "f", 1)
        );
        let Command::Simple(_, Some(entry)) = &sub[0] else {
            panic!("{sub:?}");
        };
        assert_eq!(words(&entry[0]), ["linux", "/k"]);
    }

    #[test]
    fn what_is_not_closed_is_named_by_its_line() {
        for (text, words) in [
            ("a\nif b; then\nc\n", "line 4"),
            ("a\n'b", "line 2: a quote"),
            ("}", "line 1: something is closed"),
            ("menuentry a {\n", "'}' is missing"),
            ("while true; do x; done", "loop"),
        ] {
            use alloc::string::ToString;
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
        assert!(parse(&"if a; then\n".repeat(100)).is_err());
    }
}
