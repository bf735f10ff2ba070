//! The lines of the log and the variables of the script, as nbdkit has them.

use std::fmt::Write;

/// The longest list in a line, in bytes. The rest is left out, and `...` stands for it.
const MAX_LIST: usize = 256 << 10;

/// The longest value of a script's variable, in bytes. All variables together may have 64 KiB.
const MAX_VALUE: usize = 32 << 10;

/// What a line tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An action begins.
    Enter,
    /// An action has ended.
    Leave,
    /// Something happened.
    Print,
}

impl Kind {
    /// The script's variable `type`.
    fn name(self) -> &'static str {
        match self {
            Kind::Enter => "ENTER",
            Kind::Leave => "LEAVE",
            Kind::Print => "PRINT",
        }
    }
}

/// A line, without its time.
#[derive(Clone, Debug)]
pub struct Line {
    kind: Kind,
    action: &'static str,
    connection: Option<u64>,
    id: Option<u64>,
    /// Names and values, in their order.
    fields: Vec<(&'static str, String)>,
}

impl Line {
    /// A line about an action.
    pub fn new(kind: Kind, action: &'static str) -> Line {
        Line { kind, action, connection: None, id: None, fields: Vec::new() }
    }

    /// The connection that it is about.
    pub fn connection(mut self, connection: u64) -> Line {
        self.connection = Some(connection);
        self
    }

    /// The number that the lines of one action share.
    pub fn id(mut self, id: u64) -> Line {
        self.id = Some(id);
        self
    }

    /// A number in decimal, or a truth value.
    pub fn number(mut self, name: &'static str, value: impl Into<u64>) -> Line {
        self.fields.push((name, value.into().to_string()));
        self
    }

    /// A number in hexadecimal.
    pub fn hex(mut self, name: &'static str, value: u64) -> Line {
        self.fields.push((name, format!("{value:#x}")));
        self
    }

    /// A text, quoted for a shell.
    pub fn text(mut self, name: &'static str, value: &str) -> Line {
        self.fields.push((name, quoted(value)));
        self
    }

    /// A list of words that are quoted already.
    pub fn list(mut self, name: &'static str, words: impl IntoIterator<Item = String>) -> Line {
        let mut text = String::from("(");
        for word in words {
            if text.len() + word.len() > MAX_LIST {
                text.push_str(" ...");
                break;
            }
            if text.len() > 1 {
                text.push(' ');
            }
            text.push_str(&word);
        }
        text.push(')');
        self.fields.push((name, text));
        self
    }

    /// How an action ended. `error` is the name of an errno.
    pub fn result(mut self, error: Option<&str>) -> Line {
        match error {
            None => self.fields.push(("return", "0".into())),
            Some(error) => {
                self.fields.push(("return", "-1".into()));
                self.fields.push(("error", error.to_ascii_uppercase()));
            }
        }
        self
    }

    /// The line of the file, with its end. `ns` is the time since 1970.
    pub fn for_file(&self, ns: u64) -> String {
        let mut text = timestamp(ns);
        if let Some(connection) = self.connection {
            let _ = write!(text, " connection={connection}");
        }
        let _ = write!(text, " {}{}", if self.kind == Kind::Leave { "..." } else { "" }, self.action);
        if let Some(id) = self.id {
            let _ = write!(text, " id={id}");
        }
        for (name, value) in &self.fields {
            let _ = write!(text, " {name}={value}");
        }
        text.push_str(if self.kind == Kind::Enter { " ...\n" } else { "\n" });
        text
    }

    /// The script's variables. A text is not quoted there.
    pub fn for_script(&self) -> Vec<(&str, String)> {
        let mut all = vec![("act", self.action.to_string()), ("type", self.kind.name().to_string())];
        all.extend(self.connection.map(|connection| ("connection", connection.to_string())));
        all.extend(self.id.map(|id| ("id", id.to_string())));
        for (name, value) in &self.fields {
            let value = if is_list(value) { value.clone() } else { unquoted(value) };
            all.push((name, within(&value, MAX_VALUE).to_string()));
        }
        all
    }
}

fn is_list(value: &str) -> bool {
    value.starts_with('(')
}

/// The longest beginning of a text that has at most `most` bytes.
fn within(text: &str, most: usize) -> &str {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Characters that a shell does not treat in a special way.
fn is_plain(character: char) -> bool {
    character.is_ascii_alphanumeric() || "%+,-./:=@_".contains(character)
}

/// A text as one word of a shell, in one line. Control characters are written as `\n`, `\t` and
/// `\x1b`, and other characters that are not seen as `\u{202e}`, so that no client can forge a
/// line.
pub fn quoted(text: &str) -> String {
    if !text.is_empty() && text.chars().all(is_plain) {
        return text.to_string();
    }
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' | '$' | '`' => quoted.extend(['\\', character]),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            control if control.is_control() => {
                let _ = write!(quoted, "\\x{:02x}", u32::from(control));
            }
            '\'' => quoted.push('\''),
            // Marks of the writing direction and the like, which hide a part of the line or let it
            // look like another one.
            hidden if hidden.escape_debug().len() > 1 => quoted.extend(hidden.escape_debug()),
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

/// What [`quoted`] was made of, but for control characters.
fn unquoted(text: &str) -> String {
    let Some(inner) = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')) else { return text.to_string() };
    let mut plain = String::new();
    let mut characters = inner.chars();
    while let Some(character) = characters.next() {
        match (character, characters.clone().next()) {
            ('\\', Some(next @ ('"' | '\\' | '$' | '`'))) => {
                plain.push(next);
                characters.next();
            }
            _ => plain.push(character),
        }
    }
    plain
}

/// A time as `2020-08-06 02:07:23.080415`, in UTC.
fn timestamp(ns: u64) -> String {
    let (seconds, micros) = (ns / 1_000_000_000, ns / 1000 % 1_000_000);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{:02}.{micros:06}", second % 60)
}

/// The date of a day since 1970. A year begins in March here, so that a leap day ends it.
fn date(days: u64) -> (u64, u64, u64) {
    // 1970-01-01 is day 719468 after 0000-03-01. 400 years have 146097 days.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    // From March on, five months have 153 days.
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_those_of_nbdkit() {
        let write = Line::new(Kind::Enter, "Write").connection(1).id(7).hex("offset", 0x2800).hex("count", 0x200);
        let write = write.number("fua", true);
        let time = 1_596_679_643_080_415_999;
        assert_eq!(
            write.for_file(time),
            "2020-08-06 02:07:23.080415 connection=1 Write id=7 offset=0x2800 count=0x200 fua=1 ...\n"
        );
        let left = Line::new(Kind::Leave, "Read").connection(1).id(1).result(Some("eio"));
        assert_eq!(left.for_file(0), "1970-01-01 00:00:00.000000 connection=1 ...Read id=1 return=-1 error=EIO\n");
        let ready = Line::new(Kind::Print, "Ready").number("thread_model", 3_u64);
        assert_eq!(ready.for_file(0), "1970-01-01 00:00:00.000000 Ready thread_model=3\n");
        let words = ["0x0", "0x8000", "\"hole,zero\""].map(String::from);
        let left = Line::new(Kind::Leave, "Extents").id(2).list("extents", words).result(None);
        assert!(left.for_file(0).ends_with(" ...Extents id=2 extents=(0x0 0x8000 \"hole,zero\") return=0\n"));
    }

    #[test]
    fn a_text_is_one_word_in_one_line() {
        for (text, word) in [
            ("", "\"\""),
            ("disk-1.img", "disk-1.img"),
            ("a b", "\"a b\""),
            ("\"$`\\", "\"\\\"\\$\\`\\\\\""),
            ("x\ny\t\u{1b}", "\"x\\ny\\t\\x1b\""),
            ("für", "\"für\""),
            ("it's", "\"it's\""),
            ("a\u{202e}b\u{2028}\u{200b}", "\"a\\u{202e}b\\u{2028}\\u{200b}\""),
        ] {
            assert_eq!(quoted(text), word);
            if text.chars().all(|character| character.escape_debug().len() == 1 || "\"\\'".contains(character)) {
                assert_eq!(unquoted(word), text);
            }
        }
    }

    #[test]
    fn a_script_gets_the_fields_as_variables() {
        let connect = Line::new(Kind::Print, "Connect").connection(3).text("export", "it's $HOME").number("tls", false);
        let variables = connect.for_script();
        let expected =
            [("act", "Connect"), ("type", "PRINT"), ("connection", "3"), ("export", "it's $HOME"), ("tls", "0")];
        assert_eq!(variables, expected.map(|(name, value)| (name, value.to_string())));
        let many = Line::new(Kind::Leave, "ListExports").list("exports", (0..100_000).map(|n| n.to_string()));
        let sizes: usize = many.for_script().iter().map(|(name, value)| name.len() + value.len()).sum();
        assert!(sizes < 64 << 10, "{sizes}");
        let line = many.for_file(0);
        assert!(line.len() < MAX_LIST + 100 && line.ends_with(" ...)\n"), "{}", line.len());
    }

    #[test]
    fn days_have_their_dates() {
        for (days, expected) in [
            (0, (1970, 1, 1)),
            (58, (1970, 2, 28)),
            (11_016, (2000, 2, 29)),
            (11_017, (2000, 3, 1)),
            (20_784, (2026, 11, 27)),
            (47_540, (2100, 2, 28)),
            (47_541, (2100, 3, 1)),
        ] {
            assert_eq!(date(days), expected, "{days}");
        }
    }
}
