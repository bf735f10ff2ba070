//! Reads text in the data language into a tree.
//!
//! The depth of the tree is bounded ([`MAX_NESTING`]), so that no function that follows it,
//! dropping it included, runs out of stack.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::rc::Rc;

use crate::error::{DataError, Problem};
use crate::scan::Scanner;
use crate::tree::{Expr, Item, List, Move, Operator};
use rbdkit_plugin_api::base64;

/// How deep parentheses and variables may be nested.
const MAX_NESTING: u32 = 128;

/// Where `$NAME` is looked up.
pub(crate) type Lookup<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// Reads a whole text.
pub(crate) fn parse(text: &OsStr, lookup: Lookup<'_>) -> Result<Rc<List>, DataError> {
    let variables = Variables { lookup, known: RefCell::default() };
    parse_text(text.as_bytes(), None, 0, &variables)
}

/// The variables that have been read. Each is read once, however often it is used.
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
) -> Result<Rc<List>, DataError> {
    let mut parser = Parser { scanner: Scanner::new(text, variable), variables };
    parser.list(level, None)
}

struct Parser<'a> {
    scanner: Scanner<'a>,
    variables: &'a Variables<'a>,
}

impl Parser<'_> {
    fn too_deep<T>(&self, offset: usize) -> Result<T, DataError> {
        Err(DataError::new(&self.scanner.place(offset), Problem::NestedTooDeep(MAX_NESTING)))
    }

    /// Reads up to the closing parenthesis of `opened`, or to the end.
    fn list(&mut self, level: u32, opened: Option<usize>) -> Result<Rc<List>, DataError> {
        if level > MAX_NESTING {
            let at = opened.unwrap_or(0);
            return self.too_deep(at);
        }
        let mut list = List { items: Vec::new(), depth: 1 };
        loop {
            self.scanner.skip_blanks();
            let start = self.scanner.at;
            let Some(byte) = self.scanner.peek() else {
                return match opened {
                    Some(at) => self.scanner.wrong(at, "unmatched '('"),
                    None => Ok(Rc::new(list)),
                };
            };
            match byte {
                b'#' => {
                    self.scanner.take_while(|byte| byte != b'\n');
                }
                b')' => {
                    if opened.is_none() {
                        return self.scanner.wrong(start, "unmatched ')'");
                    }
                    self.scanner.at += 1;
                    return Ok(Rc::new(list));
                }
                b'*' | b'[' | b'-' => {
                    let operator = self.operator()?;
                    let what = match &operator {
                        Operator::Repeat(_) => "*N",
                        Operator::Slice { .. } => "[N:M]",
                        Operator::Assign(_) => "->",
                    };
                    let place = self.scanner.place(start);
                    match list.items.last_mut() {
                        None => return self.scanner.wrong(start, format!("{what} must follow an expression")),
                        Some(Item { expr: Expr::Move(_), .. }) => {
                            return self.scanner.wrong(start, format!("{what} cannot be applied to an offset"));
                        }
                        Some(item) => item.operators.push((place, operator)),
                    }
                }
                _ => {
                    let expr = self.expression(byte, level)?;
                    if let Expr::List(inner) = &expr {
                        list.depth = list.depth.max(inner.depth + 1);
                        if level + inner.depth > MAX_NESTING {
                            return self.too_deep(start);
                        }
                    }
                    list.items.push(Item { place: self.scanner.place(start), expr, operators: Vec::new() });
                }
            }
        }
    }

    fn expression(&mut self, byte: u8, level: u32) -> Result<Expr, DataError> {
        let start = self.scanner.at;
        match byte {
            b'0'..=b'9' => {
                let value = self.scanner.number(u64::MAX)?;
                match u8::try_from(value) {
                    Ok(byte) => Ok(Expr::Byte(byte)),
                    Err(_) => self.scanner.wrong(start, "a byte must be in the range 0..255"),
                }
            }
            b'"' => Ok(Expr::Bytes(self.scanner.string()?)),
            b'@' => Ok(Expr::Move(self.offset()?)),
            b'(' => {
                self.scanner.at += 1;
                Ok(Expr::List(self.list(level + 1, Some(start))?))
            }
            b'<' => self.file_or_script(),
            b'\\' => Ok(Expr::Name(self.scanner.name()?)),
            b'$' => Ok(Expr::List(self.variable(level)?)),
            b'b' if self.scanner.take(b"base64:") => {
                let bytes = base64::decode(self.scanner.base64());
                bytes
                    .map(Expr::Bytes)
                    .or_else(|wrong| self.scanner.wrong(start, format!("the text after base64: {wrong}")))
            }
            b'l' | b'b' => Ok(Expr::Bytes(self.scanner.word()?)),
            _ => self.scanner.wrong(
                start,
                format!(
                    "parsing error: unexpected {}, expecting a byte, \"STRING\", @OFFSET, <FILE, ( ... ), \
                        \\NAME or $VAR",
                    self.scanner.here()
                ),
            ),
        }
    }

    /// After `@`.
    fn offset(&mut self) -> Result<Move, DataError> {
        self.scanner.at += 1;
        let start = self.scanner.at;
        match self.scanner.peek() {
            Some(b'+') => {
                self.scanner.at += 1;
                Ok(Move::Forward(self.scanner.spaced_number()?))
            }
            Some(b'-') => {
                self.scanner.at += 1;
                Ok(Move::Back(self.scanner.spaced_number()?))
            }
            Some(b'^') => {
                self.scanner.at += 1;
                let alignment = self.scanner.spaced_number()?;
                if alignment.is_power_of_two() {
                    Ok(Move::Align(alignment))
                } else {
                    self.scanner.wrong(start, format!("@^{alignment} must be a power of 2"))
                }
            }
            _ => Ok(Move::To(self.scanner.long_number()?)),
        }
    }

    /// `*N`, `[N:M]` or `-> \NAME`.
    fn operator(&mut self) -> Result<Operator, DataError> {
        let start = self.scanner.at;
        if self.scanner.take(b"*") {
            return Ok(Operator::Repeat(self.scanner.spaced_number()?));
        }
        if self.scanner.take(b"->") {
            self.scanner.skip_blanks();
            return Ok(Operator::Assign(self.scanner.name()?));
        }
        if !self.scanner.take(b"[") {
            return self.scanner.wrong(start, "parsing error: unexpected '-', expecting '->'");
        }
        self.scanner.skip_blanks();
        let from = if self.scanner.peek() == Some(b':') { 0 } else { self.scanner.spaced_number()? };
        self.scanner.skip_blanks();
        if !self.scanner.take(b":") {
            return self
                .scanner
                .wrong(self.scanner.at, format!("expecting [N:M] but got {} in place of ':'", self.scanner.here()));
        }
        self.scanner.skip_blanks();
        let to = if self.scanner.peek() == Some(b']') { None } else { Some(self.scanner.spaced_number()?) };
        self.scanner.skip_blanks();
        if !self.scanner.take(b"]") {
            return self
                .scanner
                .wrong(self.scanner.at, format!("expecting [N:M] but got {} in place of ']'", self.scanner.here()));
        }
        match to {
            Some(to) if to < from => self.scanner.wrong(start, format!("[{from}:{to}] ends before it begins")),
            _ => Ok(Operator::Slice { from, to }),
        }
    }

    /// `$VAR`
    fn variable(&mut self, level: u32) -> Result<Rc<List>, DataError> {
        let start = self.scanner.at;
        self.scanner.at += 1;
        if !self.scanner.peek().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_') {
            return self.scanner.wrong(start, "expecting a letter or _ after $");
        }
        let name = self.scanner.take_while(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        let name: Rc<str> = String::from_utf8_lossy(name).into();
        match self.variables.known.borrow().get(&name) {
            Some(Some(list)) => return Ok(Rc::clone(list)),
            Some(None) => return self.scanner.wrong(start, format!("${name} is part of itself")),
            None => {}
        }
        let Some(text) = (self.variables.lookup)(&name) else {
            let what = format!("${name}: variable not found: neither a parameter nor in the environment");
            return self.scanner.wrong(start, what);
        };
        if level >= MAX_NESTING {
            return self.too_deep(start);
        }
        self.variables.known.borrow_mut().insert(Rc::clone(&name), None);
        let list = parse_text(text.as_bytes(), Some(Rc::clone(&name)), level + 1, self.variables)?;
        self.variables.known.borrow_mut().insert(name, Some(Rc::clone(&list)));
        Ok(list)
    }

    /// `<FILE` or `<(SCRIPT)`
    fn file_or_script(&mut self) -> Result<Expr, DataError> {
        let start = self.scanner.at;
        self.scanner.at += 1;
        if !self.scanner.take(b"(") {
            let name = self.scanner.take_while(|byte| !b"*[) \t\n".contains(&byte)).to_vec();
            if name.is_empty() {
                return self.scanner.wrong(start, "expecting the name of a file or (SCRIPT) right after <");
            }
            return Ok(Expr::File(OsString::from_vec(name)));
        }
        let mut open = 1usize;
        let length = self.scanner.rest().iter().position(|byte| {
            match byte {
                b'(' => open += 1,
                b')' => open -= 1,
                _ => {}
            }
            open == 0
        });
        let Some(length) = length else {
            return self.scanner.wrong(start, "the ')' of <(SCRIPT) is missing");
        };
        let script = self.scanner.rest()[..length].to_vec();
        self.scanner.at += length + 1;
        Ok(Expr::Script(OsString::from_vec(script)))
    }
}
