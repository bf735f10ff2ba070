//! The text in which LVM keeps its metadata: sections, strings, numbers and lists.

use rbdkit_filter_sdk::image::{Error, quoted};

/// Sections are nested at most so deep. LVM needs four levels.
const MOST_DEPTH: usize = 8;

/// A value of a section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Text(String),
    Number(u64),
    List(Vec<Value>),
    Section(Section),
}

/// Keys and values, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Section(pub Vec<(String, Value)>);

impl Section {
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    /// # Errors
    /// A line if there is no such number. `of` names the section.
    pub fn number(&self, key: &str, of: &str) -> Result<u64, Error> {
        match self.get(key) {
            Some(Value::Number(number)) => Ok(*number),
            _ => Err(missing(key, "number", of)),
        }
    }

    /// # Errors
    /// A line if there is no such text.
    pub fn text(&self, key: &str, of: &str) -> Result<&str, Error> {
        match self.get(key) {
            Some(Value::Text(text)) => Ok(text),
            _ => Err(missing(key, "text", of)),
        }
    }

    /// # Errors
    /// A line if there is no such list.
    pub fn list(&self, key: &str, of: &str) -> Result<&[Value], Error> {
        match self.get(key) {
            Some(Value::List(list)) => Ok(list),
            _ => Err(missing(key, "list", of)),
        }
    }

    /// The section with this name. None if there is none.
    pub fn section(&self, key: &str) -> Option<&Section> {
        match self.get(key) {
            Some(Value::Section(section)) => Some(section),
            _ => None,
        }
    }

    /// The sections in it, with their names.
    pub fn sections(&self) -> impl Iterator<Item = (&str, &Section)> {
        self.0.iter().filter_map(|(name, value)| match value {
            Value::Section(section) => Some((name.as_str(), section)),
            _ => None,
        })
    }
}

fn missing(key: &str, kind: &str, of: &str) -> Error {
    Error::image(format!("the metadata of LVM has no {kind} {key} in {of}"))
}

/// Reads a text. Memory for the values is a few times that of the text.
///
/// # Errors
/// A line with the place where the text is wrong.
pub fn parse(text: &[u8]) -> Result<Section, Error> {
    Parser { text, at: 0 }.section(0)
}

struct Parser<'a> {
    text: &'a [u8],
    at: usize,
}

impl Parser<'_> {
    fn wrong(&self, what: &str) -> Error {
        let end = (self.at + 20).min(self.text.len());
        let here = quoted(&self.text[self.at.min(end)..end]);
        Error::image(format!("the metadata of LVM is wrong at byte {}: {what}, not {here}", self.at))
    }

    /// The next byte that counts.
    fn peek(&mut self) -> Option<u8> {
        loop {
            match *self.text.get(self.at)? {
                b'#' => self.at += self.text[self.at..].iter().take_while(|byte| **byte != b'\n').count(),
                0 => return None,
                byte if byte.is_ascii_whitespace() => self.at += 1,
                byte => return Some(byte),
            }
        }
    }

    fn take(&mut self, wanted: u8) -> bool {
        let is_there = self.peek() == Some(wanted);
        self.at += usize::from(is_there);
        is_there
    }

    fn section(&mut self, depth: usize) -> Result<Section, Error> {
        if depth > MOST_DEPTH {
            return Err(self.wrong(&format!("at most {MOST_DEPTH} sections are in each other")));
        }
        let mut section = Section::default();
        loop {
            match self.peek() {
                None if depth == 0 => return Ok(section),
                Some(b'}') if depth > 0 => {
                    self.at += 1;
                    return Ok(section);
                }
                _ => {}
            }
            let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || b"_-.+/".contains(byte);
            let length = self.text[self.at.min(self.text.len())..].iter().take_while(|byte| is_name(byte)).count();
            if length == 0 {
                return Err(self.wrong("a name is expected"));
            }
            let name = String::from_utf8_lossy(&self.text[self.at..self.at + length]).into_owned();
            self.at += length;
            let value = if self.take(b'{') {
                Value::Section(self.section(depth + 1)?)
            } else if self.take(b'=') {
                self.value()?
            } else {
                return Err(self.wrong("= or { is expected"));
            };
            section.0.push((name, value));
        }
    }

    fn value(&mut self) -> Result<Value, Error> {
        if !self.take(b'[') {
            return self.simple();
        }
        let mut list = Vec::new();
        while !self.take(b']') {
            list.push(self.simple()?);
            if !self.take(b',') && self.peek() != Some(b']') {
                return Err(self.wrong("a comma or ] is expected"));
            }
        }
        Ok(Value::List(list))
    }

    fn simple(&mut self) -> Result<Value, Error> {
        if self.take(b'"') {
            let mut text = Vec::new();
            loop {
                let Some(byte) = self.text.get(self.at) else {
                    return Err(self.wrong("the end of a text is expected"));
                };
                self.at += 1;
                match byte {
                    b'"' => return Ok(Value::Text(String::from_utf8_lossy(&text).into_owned())),
                    b'\\' => {
                        text.extend(self.text.get(self.at));
                        self.at += 1;
                    }
                    byte => text.push(*byte),
                }
            }
        }
        self.peek();
        let length = self.text[self.at.min(self.text.len())..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        let number = std::str::from_utf8(&self.text[self.at..self.at + length]).ok().and_then(|text| text.parse().ok());
        let number = number.ok_or_else(|| self.wrong("a text or a number is expected"))?;
        self.at += length;
        Ok(Value::Number(number))
    }
}
