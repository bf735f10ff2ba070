//! The data language: text into a tree.
//!
//! The tree's depth is bounded here ([`MAX_NESTING`]), so that nothing that follows it, dropping it included, runs out of stack.
//! Operators that follow an expression are kept in a list beside it rather than around it, so that their number makes no depth.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::rc::Rc;

/// How deep parentheses and variables may be nested.
pub(crate) const MAX_NESTING: u32 = 128;

/// A place in the text, or in the text of a variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The variable's name.
    variable: Option<Rc<str>>,
    /// Bytes.
    offset: usize,
}

/// What is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wrong {
    pub(crate) place: Place,
    pub(crate) what: String,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place.variable {
            Some(name) => write!(f, "data: ${name} at offset {}: {}", self.place.offset, self.what),
            None => write!(f, "data: at offset {}: {}", self.place.offset, self.what),
        }
    }
}

/// Expressions in a scope of their own.
#[derive(Debug, Default)]
pub(crate) struct List {
    pub(crate) items: Vec<Item>,
    /// Lists within lists.
    depth: u32,
}

/// An expression, and what is done to it.
#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) place: Place,
    pub(crate) expr: Expr,
    pub(crate) then: Vec<(Place, Then)>,
}

#[derive(Debug)]
pub(crate) enum Expr {
    Byte(u8),
    Bytes(Vec<u8>),
    Move(Move),
    File(OsString),
    Script(OsString),
    Name(Rc<str>),
    List(Rc<List>),
}

/// `@...`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Move {
    To(u64),
    Forward(u64),
    Back(u64),
    /// A power of two.
    Align(u64),
}

/// An operator after an expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// `*N`
    Repeat(u64),
    /// `[FROM:TO]`; FROM is not after TO.
    Slice { from: u64, to: Option<u64> },
    /// `-> \NAME`
    Assign(Rc<str>),
}

/// Where `$NAME` is looked up.
pub(crate) type Lookup<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// Reads a whole text.
pub(crate) fn parse(text: &OsStr, lookup: Lookup<'_>) -> Result<Rc<List>, Wrong> {
    let variables = Variables { lookup, known: RefCell::default() };
    parse_text(text.as_bytes(), None, 0, &variables)
}

/// The variables that have been read: each only once, however often it is used.
struct Variables<'a> {
    lookup: Lookup<'a>,
    /// None while it is being read.
    known: RefCell<HashMap<Rc<str>, Option<Rc<List>>>>,
}

fn parse_text(
    text: &[u8],
    variable: Option<Rc<str>>,
    level: u32,
    variables: &Variables<'_>,
) -> Result<Rc<List>, Wrong> {
    let mut parser = Parser { text, at: 0, variable, variables };
    parser.list(level, None)
}

struct Parser<'a> {
    text: &'a [u8],
    at: usize,
    variable: Option<Rc<str>>,
    variables: &'a Variables<'a>,
}

impl Parser<'_> {
    fn place(&self, offset: usize) -> Place {
        Place { variable: self.variable.clone(), offset }
    }

    fn wrong<T>(&self, offset: usize, what: impl Into<String>) -> Result<T, Wrong> {
        Err(Wrong { place: self.place(offset), what: what.into() })
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn rest(&self) -> &[u8] {
        &self.text[self.at..]
    }

    fn take(&mut self, prefix: &[u8]) -> bool {
        let there = self.rest().starts_with(prefix);
        if there {
            self.at += prefix.len();
        }
        there
    }

    /// The bytes from here for which `wanted` holds.
    fn take_while(&mut self, wanted: impl Fn(u8) -> bool) -> &[u8] {
        let start = self.at;
        while self.peek().is_some_and(&wanted) {
            self.at += 1;
        }
        &self.text[start..self.at]
    }

    fn skip_blanks(&mut self) {
        self.take_while(is_blank);
    }

    /// What is here, for messages.
    fn here(&self) -> String {
        let rest = String::from_utf8_lossy(&self.rest()[..self.rest().len().min(4)]).into_owned();
        match rest.chars().next() {
            Some(c) => format!("{c:?}"),
            None => "the end".to_string(),
        }
    }

    /// Reads up to the closing parenthesis of `opened`, or to the end.
    fn list(&mut self, level: u32, opened: Option<usize>) -> Result<Rc<List>, Wrong> {
        if level > MAX_NESTING {
            let at = opened.unwrap_or(0);
            return self.wrong(at, format!("expressions are nested more than {MAX_NESTING} deep"));
        }
        let mut list = List { items: Vec::new(), depth: 1 };
        loop {
            self.skip_blanks();
            let start = self.at;
            let Some(byte) = self.peek() else {
                return match opened {
                    Some(at) => self.wrong(at, "unmatched '('"),
                    None => Ok(Rc::new(list)),
                };
            };
            match byte {
                b'#' => {
                    self.take_while(|byte| byte != b'\n');
                }
                b')' => {
                    if opened.is_none() {
                        return self.wrong(start, "unmatched ')'");
                    }
                    self.at += 1;
                    return Ok(Rc::new(list));
                }
                b'*' | b'[' | b'-' => {
                    let then = self.operator()?;
                    let what = match &then {
                        Then::Repeat(_) => "*N",
                        Then::Slice { .. } => "[N:M]",
                        Then::Assign(_) => "->",
                    };
                    let place = self.place(start);
                    match list.items.last_mut() {
                        None => return self.wrong(start, format!("{what} must follow an expression")),
                        Some(Item { expr: Expr::Move(_), .. }) => {
                            return self.wrong(start, format!("{what} cannot be applied to an offset"));
                        }
                        Some(item) => item.then.push((place, then)),
                    }
                }
                _ => {
                    let expr = self.expression(byte, level)?;
                    if let Expr::List(inner) = &expr {
                        list.depth = list.depth.max(inner.depth + 1);
                        if level + inner.depth > MAX_NESTING {
                            let what = format!("expressions are nested more than {MAX_NESTING} deep");
                            return self.wrong(start, what);
                        }
                    }
                    list.items.push(Item { place: self.place(start), expr, then: Vec::new() });
                }
            }
        }
    }

    fn expression(&mut self, byte: u8, level: u32) -> Result<Expr, Wrong> {
        let start = self.at;
        match byte {
            b'0'..=b'9' => {
                let value = self.number(u64::MAX)?;
                match u8::try_from(value) {
                    Ok(byte) => Ok(Expr::Byte(byte)),
                    Err(_) => self.wrong(start, "a byte must be in the range 0..255"),
                }
            }
            b'"' => Ok(Expr::Bytes(self.string()?)),
            b'@' => Ok(Expr::Move(self.offset()?)),
            b'(' => {
                self.at += 1;
                Ok(Expr::List(self.list(level + 1, Some(start))?))
            }
            b'<' => self.file_or_script(),
            b'\\' => Ok(Expr::Name(self.name()?)),
            b'$' => Ok(Expr::List(self.variable(level)?)),
            b'l' | b'b' => Ok(Expr::Bytes(self.word()?)),
            _ => self.wrong(
                start,
                format!(
                    "parsing error: unexpected {}, expecting a byte, \"STRING\", @OFFSET, <FILE, ( ... ), \\NAME or $VAR",
                    self.here()
                ),
            ),
        }
    }

    /// A number: decimal, hexadecimal after `0x`, octal after `0`.
    fn number(&mut self, max: u64) -> Result<u64, Wrong> {
        let start = self.at;
        if self.peek() == Some(b'-') {
            return self.wrong(start, "a number here must not be negative");
        }
        self.take(b"+");
        let radix = if self.take(b"0x") || self.take(b"0X") {
            16
        } else if self.peek() == Some(b'0') {
            8
        } else {
            10
        };
        let digits_start = self.at;
        // With all digits, so that 08 is a mistake and not two numbers.
        let digits = self.take_while(|byte| if radix == 16 { byte.is_ascii_hexdigit() } else { byte.is_ascii_digit() });
        if digits.is_empty() {
            self.at = digits_start;
            return self.wrong(digits_start, format!("expecting a number but got {}", self.here()));
        }
        let mut value = Some(0u64);
        for byte in digits {
            let Some(digit) = char::from(*byte).to_digit(radix) else {
                let text = String::from_utf8_lossy(digits).into_owned();
                return self.wrong(start, format!("{text} begins with 0 but is not an octal number"));
            };
            value = value.and_then(|v| v.checked_mul(u64::from(radix))).and_then(|v| v.checked_add(u64::from(digit)));
        }
        match value.filter(|value| *value <= max) {
            Some(value) => Ok(value),
            None => self.wrong(start, format!("the number is larger than {max}")),
        }
    }

    /// A number up to 2^63 - 1; blanks may stand before it.
    fn long_number(&mut self) -> Result<u64, Wrong> {
        self.skip_blanks();
        self.number(i64::MAX as u64)
    }

    /// After `@`.
    fn offset(&mut self) -> Result<Move, Wrong> {
        self.at += 1;
        let start = self.at;
        match self.peek() {
            Some(b'+') => {
                self.at += 1;
                Ok(Move::Forward(self.long_number()?))
            }
            Some(b'-') => {
                self.at += 1;
                Ok(Move::Back(self.long_number()?))
            }
            Some(b'^') => {
                self.at += 1;
                let alignment = self.long_number()?;
                if alignment.is_power_of_two() {
                    Ok(Move::Align(alignment))
                } else {
                    self.wrong(start, format!("@^{alignment} must be a power of 2"))
                }
            }
            _ => Ok(Move::To(self.number(i64::MAX as u64)?)),
        }
    }

    /// `*N`, `[N:M]` or `-> \NAME`.
    fn operator(&mut self) -> Result<Then, Wrong> {
        let start = self.at;
        if self.take(b"*") {
            return Ok(Then::Repeat(self.long_number()?));
        }
        if self.take(b"->") {
            self.skip_blanks();
            return Ok(Then::Assign(self.name()?));
        }
        if !self.take(b"[") {
            return self.wrong(start, "parsing error: unexpected '-', expecting '->'");
        }
        self.skip_blanks();
        let from = if self.peek() == Some(b':') { 0 } else { self.long_number()? };
        self.skip_blanks();
        if !self.take(b":") {
            return self.wrong(self.at, format!("expecting [N:M] but got {} in place of ':'", self.here()));
        }
        self.skip_blanks();
        let to = if self.peek() == Some(b']') { None } else { Some(self.long_number()?) };
        self.skip_blanks();
        if !self.take(b"]") {
            return self.wrong(self.at, format!("expecting [N:M] but got {} in place of ']'", self.here()));
        }
        match to {
            Some(to) if to < from => self.wrong(start, format!("[{from}:{to}] ends before it begins")),
            _ => Ok(Then::Slice { from, to }),
        }
    }

    /// `\NAME`
    fn name(&mut self) -> Result<Rc<str>, Wrong> {
        let start = self.at;
        if !self.take(b"\\") {
            return self.wrong(start, format!("expecting a \\NAME but got {}", self.here()));
        }
        let name = self.take_while(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-');
        let name: Rc<str> = String::from_utf8_lossy(name).into();
        if name.is_empty() {
            return self.wrong(start, "expecting letters, digits, - or _ after \\");
        }
        Ok(name)
    }

    /// `$VAR`
    fn variable(&mut self, level: u32) -> Result<Rc<List>, Wrong> {
        let start = self.at;
        self.at += 1;
        if !self.peek().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_') {
            return self.wrong(start, "expecting a letter or _ after $");
        }
        let name = self.take_while(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        let name: Rc<str> = String::from_utf8_lossy(name).into();
        match self.variables.known.borrow().get(&name) {
            Some(Some(list)) => return Ok(Rc::clone(list)),
            Some(None) => return self.wrong(start, format!("${name} is part of itself")),
            None => {}
        }
        let Some(text) = (self.variables.lookup)(&name) else {
            let what = format!("${name}: variable not found: neither a parameter nor in the environment");
            return self.wrong(start, what);
        };
        if level >= MAX_NESTING {
            return self.wrong(start, format!("expressions are nested more than {MAX_NESTING} deep"));
        }
        self.variables.known.borrow_mut().insert(Rc::clone(&name), None);
        let list = parse_text(text.as_bytes(), Some(Rc::clone(&name)), level + 1, self.variables)?;
        self.variables.known.borrow_mut().insert(name, Some(Rc::clone(&list)));
        Ok(list)
    }

    /// `<FILE` or `<(SCRIPT)`
    fn file_or_script(&mut self) -> Result<Expr, Wrong> {
        let start = self.at;
        self.at += 1;
        if !self.take(b"(") {
            let name = self.take_while(|byte| !b"*[) \t\n".contains(&byte)).to_vec();
            if name.is_empty() {
                return self.wrong(start, "expecting the name of a file or (SCRIPT) right after <");
            }
            return Ok(Expr::File(OsString::from_vec(name)));
        }
        let mut open = 1usize;
        let length = self.rest().iter().position(|byte| {
            match byte {
                b'(' => open += 1,
                b')' => open -= 1,
                _ => {}
            }
            open == 0
        });
        let Some(length) = length else {
            return self.wrong(start, "the ')' of <(SCRIPT) is missing");
        };
        let script = self.rest()[..length].to_vec();
        self.at += length + 1;
        Ok(Expr::Script(OsString::from_vec(script)))
    }

    /// `le16:WORD` and the like
    fn word(&mut self) -> Result<Vec<u8>, Wrong> {
        let start = self.at;
        let kinds: [(&[u8], usize, bool); 6] = [
            (b"le16:", 2, true),
            (b"le32:", 4, true),
            (b"le64:", 8, true),
            (b"be16:", 2, false),
            (b"be32:", 4, false),
            (b"be64:", 8, false),
        ];
        for (prefix, length, little) in kinds {
            if self.take(prefix) {
                let value = self.number(u64::MAX >> (64 - 8 * length))?;
                let bytes = value.to_le_bytes();
                let mut bytes = bytes[..length].to_vec();
                if !little {
                    bytes.reverse();
                }
                return Ok(bytes);
            }
        }
        self.wrong(start, "parsing error: expecting le16: le32: le64: be16: be32: or be64:")
    }

    /// `"STRING"`
    fn string(&mut self) -> Result<Vec<u8>, Wrong> {
        let start = self.at;
        self.at += 1;
        let mut string = Vec::new();
        while let Some(byte) = self.peek() {
            self.at += 1;
            match byte {
                b'"' => return Ok(string),
                b'\\' => string.push(self.escape(start)?),
                _ => string.push(byte),
            }
        }
        self.wrong(start, "unterminated string")
    }

    /// After a backslash in a string.
    fn escape(&mut self, string: usize) -> Result<u8, Wrong> {
        let start = self.at - 1;
        let Some(byte) = self.peek() else { return self.wrong(string, "unterminated string") };
        self.at += 1;
        Ok(match byte {
            b'a' => 7,
            b'b' => 8,
            b't' => 9,
            b'n' => 10,
            b'v' => 11,
            b'f' => 12,
            b'r' => 13,
            b'x' => {
                let digit = |at: usize| self.text.get(at).and_then(|byte| char::from(*byte).to_digit(16));
                let (Some(high), Some(low)) = (digit(self.at), digit(self.at + 1)) else {
                    return self.wrong(start, "\\x must be followed by exactly two hexadecimal digits");
                };
                self.at += 2;
                (high * 16 + low) as u8
            }
            b'0'..=b'7' => {
                self.at -= 1;
                let mut value = 0;
                for _ in 0..3 {
                    match self.peek() {
                        Some(digit @ b'0'..=b'7') => value = value * 8 + u32::from(digit - b'0'),
                        _ => break,
                    }
                    self.at += 1;
                }
                match u8::try_from(value) {
                    Ok(byte) => byte,
                    Err(_) => return self.wrong(start, "an octal escape must be at most \\377"),
                }
            }
            b'8' | b'9' | b'u' | b'U' => {
                return self.wrong(start, format!("there is no escape \\{}", char::from(byte)));
            }
            other => other,
        })
    }
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c)
}
