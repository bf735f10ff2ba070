//! Help texts of the programs, as lists of definitions in Markdown.

/// A part of a help text that has a heading: `Options:`, `Plugins:`.
pub struct Section<'a> {
    /// The heading without its colon.
    pub heading: &'a str,
    /// What the lines below it define.
    pub items: Vec<Item<'a>>,
}

/// An option, a parameter or a name, and what it means.
pub struct Item<'a> {
    /// What is defined.
    pub term: &'a str,
    /// The lines of its explanation. An empty one separates paragraphs.
    pub lines: Vec<&'a str>,
}

/// Items begin with at most this many spaces. What has more goes on explaining.
const MAX_MARGIN: usize = 6;

/// The sections of a help text, in its order.
pub fn sections(text: &str) -> Vec<Section<'_>> {
    let mut found: Vec<Section<'_>> = Vec::new();
    for line in text.lines() {
        let margin = line.len() - line.trim_start().len();
        let words = line.trim();
        if margin == 0 && !words.is_empty() {
            if let Some(heading) = words.strip_suffix(':') {
                found.push(Section { heading, items: Vec::new() });
            } else if let Some((heading, names)) = words.split_once(": ")
                && heading == "Filters"
            {
                found.push(Section { heading, items: names.split(' ').map(name).collect() });
            }
            continue;
        }
        let Some(section) = found.last_mut() else { continue };
        if section.heading == "Filters" {
            section.items.extend(words.split(' ').filter(|word| !word.is_empty()).map(name));
        } else if (1..=MAX_MARGIN).contains(&margin) && !words.is_empty() {
            let (term, explanation) = words.split_once("  ").unwrap_or((words, ""));
            let lines = if explanation.is_empty() { Vec::new() } else { vec![explanation.trim_start()] };
            section.items.push(Item { term, lines });
        } else if let Some(item) = section.items.last_mut() {
            item.lines.push(words);
        }
    }
    found
}

fn name(word: &str) -> Item<'_> {
    Item { term: word, lines: Vec::new() }
}

/// The section with a heading that begins so.
pub fn section<'s, 'a>(sections: &'s [Section<'a>], heading: &str) -> Option<&'s Section<'a>> {
    sections.iter().find(|section| section.heading.starts_with(heading))
}

/// Items as a list of definitions.
pub fn definitions<'a>(items: impl IntoIterator<Item = &'a Item<'a>>) -> String {
    let mut text = String::new();
    for item in items {
        text.push_str(&format!("{}\n", code(item.term)));
        let mut mark = ": ";
        let lines = item.lines.join("\n");
        for paragraph in lines.trim().split("\n\n").filter(|paragraph| !paragraph.trim().is_empty()) {
            for line in paragraph.lines() {
                let bullet = line.strip_prefix("- ");
                if bullet.is_some() && mark == "  " {
                    text.push('\n');
                }
                let line = bullet.map_or_else(|| quoted(line), |line| format!("* {}", quoted(line)));
                text.push_str(&format!("{mark}{line}\n"));
                mark = "  ";
            }
            text.push('\n');
        }
        if mark == ": " {
            text.push_str(": \u{a0}\n\n");
        }
    }
    text
}

/// Text that Markdown shows as it is.
pub fn quoted(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        if matches!(character, '\\' | '`' | '*' | '_' | '[' | ']' | '<' | '>' | '#' | '|' | '&') {
            safe.push('\\');
        }
        safe.push(character);
    }
    safe
}

/// A piece of code within a line. No help text has a backquote in a term.
pub fn code(text: &str) -> String {
    format!("`{}`", text.replace('`', "'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELP: &str = "Usage: x\n\nOptions:\n  -4, --ipv4-only    Only IPv4\n\
        \x20     --filter-limit=[FILTER:]RESOURCE=VALUE\n\
        \x20                    Change a limit\n\nLimits (--limit R=V):\n  a=1   b\n\n\
        Filters: blocksize cache\n         cow\n";

    #[test]
    fn a_help_text_is_read_section_by_section() {
        let found = sections(HELP);
        let names: Vec<&str> = found.iter().map(|section| section.heading).collect();
        assert_eq!(names, ["Options", "Limits (--limit R=V)", "Filters"]);
        let options = section(&found, "Options").expect("options");
        assert_eq!(options.items[0].term, "-4, --ipv4-only");
        assert_eq!(options.items[0].lines, ["Only IPv4"]);
        assert_eq!(options.items[1].term, "--filter-limit=[FILTER:]RESOURCE=VALUE");
        assert_eq!(options.items[1].lines[0], "Change a limit");
        let filters: Vec<&str> = found[2].items.iter().map(|item| item.term).collect();
        assert_eq!(filters, ["blocksize", "cache", "cow"]);
    }

    #[test]
    fn definitions_keep_paragraphs_lists_and_odd_characters() {
        let items = [Item { term: "--x <A>", lines: vec!["One *two*", "", "Values:", "- a: b"] }];
        assert_eq!(definitions(&items), "`--x <A>`\n: One \\*two\\*\n\n  Values:\n\n  * a: b\n\n");
    }
}
