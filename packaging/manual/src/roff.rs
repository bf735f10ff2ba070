//! From Markdown to the macros of man(7).
//!
//! A table becomes a list: the first column of a row is the term, and the other columns are its
//! explanation. A terminal cannot show a table whose cells have sentences.

use std::fmt::Write as _;

use pulldown_cmark::{Event, HeadingLevel, Options, Parser, Tag, TagEnd};

/// The title line of a page.
pub struct Title<'a> {
    /// The name, for example `rbdkit-file-plugin`.
    pub name: &'a str,
    /// The section of the manual.
    pub section: &'a str,
    /// What the page is about, in a few words and without a full stop.
    pub summary: &'a str,
    /// The version of the program.
    pub version: &'a str,
}

/// Where a link leads: the page of the manual for a path in the tree, if there is one.
pub type Pages<'a> = &'a dyn Fn(&str) -> Option<String>;

/// A page of the manual. Headings of the first level are left out, because the title says the same.
pub fn page(title: &Title<'_>, markdown: &str, pages: Pages<'_>) -> String {
    let name = title.name.to_uppercase();
    let mut text = format!(
        ".\\\" Made from the pages and the help texts of rbdkit. Do not edit.\n\
         .TH \"{}\" {} \"\" \"rbdkit {}\" \"rbdkit\"\n.nh\n.ad l\n.SH NAME\n{} \\- {}\n",
        escaped(&name),
        title.section,
        escaped(title.version),
        escaped(title.name),
        escaped(title.summary)
    );
    let mut writer = Writer::new(pages);
    let options = Options::ENABLE_TABLES | Options::ENABLE_DEFINITION_LIST;
    for event in Parser::new_ext(markdown, options) {
        writer.event(event);
    }
    writer.end_block();
    text.push_str(&writer.text);
    text
}

/// What the writer is inside of.
struct Writer<'a> {
    text: String,
    pages: Pages<'a>,
    /// The text of the block that is being read, escaped.
    block: String,
    heading: Option<HeadingLevel>,
    in_code: bool,
    /// The destination of the link that is being read.
    link: Option<String>,
    /// Lists that are open: the next number, or none for bullets.
    lists: Vec<Option<u64>>,
    /// Whether the next block begins an item, so that the macro stands already.
    item_begins: bool,
    /// Whether a list of definitions is open.
    definitions: bool,
    table: Table,
}

/// A table that is being read.
#[derive(Default)]
struct Table {
    open: bool,
    header: Vec<String>,
    row: Vec<String>,
}

impl<'a> Writer<'a> {
    fn new(pages: Pages<'a>) -> Writer<'a> {
        Writer {
            text: String::new(),
            pages,
            block: String::new(),
            heading: None,
            in_code: false,
            link: None,
            lists: Vec::new(),
            item_begins: false,
            definitions: false,
            table: Table::default(),
        }
    }

    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Start(tag) => self.start(tag),
            Event::End(tag) => self.end(tag),
            Event::Text(text) if self.in_code => self.block.push_str(&verbatim(&text)),
            Event::Text(text) | Event::InlineHtml(text) => self.block.push_str(&escaped(&text)),
            Event::Code(code) => {
                let _ = write!(self.block, "\\fB{}\\fR", escaped(&code));
            }
            Event::SoftBreak | Event::HardBreak => self.block.push('\n'),
            _ => {}
        }
    }

    fn start(&mut self, tag: Tag<'_>) {
        match tag {
            Tag::Heading { level, .. } => {
                self.end_block();
                self.heading = Some(level);
            }
            Tag::CodeBlock(_) => {
                self.end_block();
                self.in_code = true;
            }
            Tag::List(first) => {
                self.end_block();
                if !self.lists.is_empty() {
                    self.text.push_str(".RS 4\n");
                }
                self.lists.push(first);
            }
            Tag::Item => {
                self.end_block();
                self.item();
            }
            Tag::DefinitionListTitle => self.end_block(),
            Tag::DefinitionListDefinition => {
                self.end_block();
                self.item_begins = true;
            }
            Tag::Emphasis => self.block.push_str("\\fI"),
            Tag::Strong => self.block.push_str("\\fB"),
            Tag::Link { dest_url, .. } => self.link = Some(dest_url.into_string()),
            Tag::Table(_) => {
                self.end_block();
                self.table = Table { open: true, ..Table::default() };
            }
            _ => {}
        }
    }

    fn end(&mut self, tag: TagEnd) {
        match tag {
            TagEnd::Heading(_) => self.end_heading(),
            TagEnd::Paragraph if !self.table.open => self.end_block(),
            TagEnd::CodeBlock => self.end_code(),
            TagEnd::List(_) => {
                self.end_block();
                self.lists.pop();
                self.text.push_str(if self.lists.is_empty() { "" } else { ".RE\n" });
            }
            TagEnd::Item => self.end_block(),
            TagEnd::DefinitionListTitle => {
                let term = std::mem::take(&mut self.block);
                self.text.push_str(".TP\n");
                self.text.push_str(&guarded(&term));
                self.text.push('\n');
                self.definitions = true;
            }
            TagEnd::DefinitionListDefinition => self.end_block(),
            TagEnd::DefinitionList => self.definitions = false,
            TagEnd::Emphasis | TagEnd::Strong => self.block.push_str("\\fR"),
            TagEnd::Link => self.end_link(),
            TagEnd::TableCell => self.table.row.push(std::mem::take(&mut self.block)),
            TagEnd::TableHead => self.table.header = std::mem::take(&mut self.table.row),
            TagEnd::TableRow => self.end_row(),
            TagEnd::Table => self.table.open = false,
            _ => {}
        }
    }

    fn item(&mut self) {
        match self.lists.last_mut() {
            Some(Some(number)) => {
                let _ = writeln!(self.text, ".IP {number}. 4");
                *number += 1;
            }
            _ => self.text.push_str(".IP \\(bu 2\n"),
        }
        self.item_begins = true;
    }

    /// Writes the paragraph that was read.
    fn end_block(&mut self) {
        let block = std::mem::take(&mut self.block);
        if block.trim().is_empty() {
            return;
        }
        match (self.item_begins, self.lists.is_empty() && !self.definitions) {
            (true, _) => self.item_begins = false,
            (false, true) => self.text.push_str(".PP\n"),
            (false, false) => self.text.push_str(".IP\n"),
        }
        self.lines(&block);
    }

    fn end_heading(&mut self) {
        let block = std::mem::take(&mut self.block);
        let macro_name = match self.heading.take() {
            Some(HeadingLevel::H1) => return,
            Some(HeadingLevel::H2) => ".SH",
            _ => ".SS",
        };
        let words = block.replace('"', "\\(dq");
        let words = if macro_name == ".SH" { upper(&words) } else { words };
        let _ = writeln!(self.text, "{macro_name} \"{words}\"");
    }

    fn end_code(&mut self) {
        let code = std::mem::take(&mut self.block);
        self.text.push_str(if self.lists.is_empty() { ".PP\n.RS 4\n.nf\n" } else { ".RS 4\n.nf\n" });
        self.lines(code.trim_end());
        self.text.push_str(".fi\n.RE\n");
        self.in_code = false;
    }

    fn end_link(&mut self) {
        let Some(destination) = self.link.take() else { return };
        let target = match destination.starts_with("http") {
            true => Some(format!("<{}>", escaped(&destination))),
            false => (self.pages)(&destination).map(|page| {
                let (name, section) = page.split_once('(').unwrap_or((&page, ""));
                format!("\\fB{}\\fR({section}", escaped(name))
            }),
        };
        if let Some(target) = target {
            let _ = write!(self.block, " ({target})");
        }
    }

    /// A row as a term and its explanation.
    fn end_row(&mut self) {
        let row = std::mem::take(&mut self.table.row);
        let mut cells = row.iter().zip(&self.table.header);
        let Some((term, _)) = cells.next() else { return };
        self.text.push_str(".TP\n");
        let bold = term.contains("\\fB");
        let term = if bold { term.clone() } else { format!("\\fB{term}\\fR") };
        self.text.push_str(&guarded(&term.replace('\n', " ")));
        self.text.push('\n');
        let mut explanation = Vec::new();
        let mut default = None;
        let columns = row.len();
        for (cell, head) in cells.filter(|(cell, _)| !cell.trim().is_empty()) {
            match head.as_str() {
                "default" if cell == "required" => default = Some("Required.".to_string()),
                "default" => default = Some(format!("Default: {cell}.")),
                _ if columns > 3 => explanation.push(format!("{head}: {}", sentence(cell))),
                _ => explanation.push(sentence(cell)),
            }
        }
        explanation.extend(default);
        match explanation.is_empty() {
            true => self.text.push_str("\\&\n"),
            false => explanation.iter().for_each(|line| self.lines(line)),
        }
    }

    /// Lines of text. None of them can be taken for a macro.
    fn lines(&mut self, text: &str) {
        for line in text.lines() {
            self.text.push_str(&guarded(if self.in_code { line } else { line.trim_start() }));
            self.text.push('\n');
        }
    }
}

/// A cell that ends as a sentence does.
fn sentence(cell: &str) -> String {
    let ends = cell.ends_with(['.', ':', ';', '?', '!']);
    if ends { cell.to_string() } else { format!("{cell}.") }
}

/// A heading in capitals. Escapes stay as they are.
fn upper(words: &str) -> String {
    let mut text = String::new();
    let mut characters = words.chars();
    while let Some(character) = characters.next() {
        text.extend(character.to_uppercase());
        if character == '\\' {
            match characters.next() {
                // A font or a special character with two letters: `\fB`, `\(dq`.
                Some(kind @ ('f' | '(')) => {
                    text.push(kind);
                    text.extend(characters.by_ref().take(if kind == '(' { 2 } else { 1 }));
                }
                Some(other) => text.push(other),
                None => {}
            }
        }
    }
    text
}

/// A line that does not begin with a control character of roff.
fn guarded(line: &str) -> String {
    if line.starts_with(['.', '\'']) { format!("\\&{line}") } else { line.to_string() }
}

/// Text in which roff sees no escape. A hyphen stays the character that a user types.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\\' => safe.push_str("\\e"),
            '-' => safe.push_str("\\-"),
            '^' => safe.push_str("\\(ha"),
            '~' => safe.push_str("\\(ti"),
            '`' => safe.push_str("\\(ga"),
            '\'' => safe.push_str("\\(aq"),
            other => safe.push(other),
        }
    }
    safe
}

/// A piece of a program.
fn verbatim(code: &str) -> String {
    escaped(&code.replace('\t', "    "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(markdown: &str) -> String {
        let title = Title { name: "x", section: "1", summary: "s", version: "1" };
        let known = |path: &str| path.contains("rate").then(|| "rbdkit-rate-filter(1)".to_string());
        let text = page(&title, markdown, &known);
        text.split_once("x \\- s\n").map(|(_, body)| body.to_string()).unwrap_or_default()
    }

    #[test]
    fn text_never_becomes_a_macro_or_an_escape() {
        assert_eq!(body(".so /etc/passwd"), ".PP\n\\&.so /etc/passwd\n");
        assert_eq!(body("a\n'quoted' `-v` back\\\\slash"), ".PP\na\n\\(aqquoted\\(aq \\fB\\-v\\fR back\\eslash\n");
        assert_eq!(body("    .TH\n    \\fB"), ".PP\n.RS 4\n.nf\n\\&.TH\n\\efB\n.fi\n.RE\n");
    }

    #[test]
    fn a_table_becomes_a_list_of_terms() {
        let text =
            body("| parameter | default | meaning |\n|---|---|---|\n| `a` | 0 | what it is |\n| `b` | | why. |\n");
        assert_eq!(text, ".TP\n\\fBa\\fR\nwhat it is.\nDefault: 0.\n.TP\n\\fBb\\fR\nwhy.\n");
    }

    #[test]
    fn headings_lists_and_links_have_their_macros() {
        assert_eq!(body("# Title\n\n## One `a-B`\n\n### Two"), ".SH \"ONE \\fBA\\-B\\fR\"\n.SS \"Two\"\n");
        assert_eq!(body("* one\n* two\n\n3. three"), ".IP \\(bu 2\none\n.IP \\(bu 2\ntwo\n.IP 3. 4\nthree\n");
        assert_eq!(body("see [rate](../rate/README.md)"), ".PP\nsee rate (\\fBrbdkit\\-rate\\-filter\\fR(1))\n");
        assert_eq!(body("see [x](https://x.org)"), ".PP\nsee x (<https://x.org>)\n");
    }
}
