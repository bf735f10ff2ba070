//! The page of the contract, from the text of `wit/filter.wit`.

use std::fmt::Write as _;

/// The contract as Markdown: a chapter for each interface and world, and in it a section for each
/// function and type with its text and its definition.
pub fn markdown(wit: &str) -> String {
    let mut text = String::new();
    let mut notes: Vec<&str> = Vec::new();
    let mut lines = wit.lines();
    while let Some(line) = lines.next() {
        let words = line.trim();
        if let Some(note) = words.strip_prefix("///") {
            notes.push(note.strip_prefix(' ').unwrap_or(note));
        } else if words.is_empty() || words == "}" || words.starts_with("//") {
            notes.clear();
        } else if words.starts_with("package ") {
            let _ = writeln!(text, "## Description\n\n{}\n", taken(&mut notes));
            let _ =
                writeln!(text, "The package is `{}`.\n", words.trim_start_matches("package ").trim_end_matches(';'));
        } else if !line.starts_with(' ') && words.ends_with('{') {
            let heading = words.trim_end_matches('{').trim();
            let _ = writeln!(text, "## {heading}\n\n{}\n", taken(&mut notes));
        } else {
            let definition = definition(line, &mut lines);
            if let Some(name) = name(words) {
                let _ = writeln!(text, "### {name}\n");
            }
            let _ = writeln!(text, "{definition}\n{}\n", taken(&mut notes));
        }
    }
    text
}

fn taken(notes: &mut Vec<&str>) -> String {
    std::mem::take(notes).join("\n")
}

/// The name of what a line begins to define. Imports, exports and uses of types have none.
fn name(words: &str) -> Option<&str> {
    let kinds = ["record ", "enum ", "flags ", "variant ", "resource ", "type "];
    match kinds.iter().find_map(|kind| words.strip_prefix(kind)) {
        Some(rest) => rest.split([' ', '=', ';']).next(),
        None if words.contains(": func(") => words.split(':').next(),
        None => None,
    }
}

/// A definition from its first line to its end, as a block of code.
fn definition<'a>(first: &'a str, lines: &mut impl Iterator<Item = &'a str>) -> String {
    let mut text = format!("    {}\n", unindented(first));
    let ends = |line: &str| line.ends_with(';') || line.trim() == "}" || line.trim_end().ends_with('}');
    let opens_block = first.trim_end().ends_with('{');
    let mut open = !ends(first) || opens_block;
    while open {
        let Some(line) = lines.next() else { break };
        text.push_str(&format!("    {}\n", unindented(line)));
        open = if opens_block { line.trim() != "}" } else { !ends(line) };
    }
    text
}

/// A line without the margin of its interface.
fn unindented(line: &str) -> &str {
    line.strip_prefix("  ").unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_function_and_type_has_a_section_with_its_text() {
        let wit = "/// What it is.\npackage a:b@0.1.0;\n\n/// Chapter.\ninterface next {\n  /// Why.\n  \
            enum e {\n    /// One.\n    one,\n  }\n\n  /// Reads.\n  pread: func(\n    offset: u64,\n  ) \
            -> u32;\n}\n";
        assert_eq!(
            markdown(wit),
            "## Description\n\nWhat it is.\n\nThe package is `a:b@0.1.0`.\n\n\
             ## interface next\n\nChapter.\n\n### e\n\n    \
             enum e {\n      /// One.\n      one,\n    }\n\nWhy.\n\n\
             ### pread\n\n    pread: func(\n      offset: u64,\n    ) -> u32;\n\nReads.\n\n"
        );
    }
}
