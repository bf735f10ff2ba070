//! Texts as tests: lines are as wide as agreed, and the documents say what is there.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use rbdkit_tests::server::{is_nbdkit, program, root};
use rbdkit_tests::tool;
use rbdkit_tests::tree::{files, read, relative};

/// Most columns of a comment. Code may be wider, because rustfmt breaks it and nobody reads it as
/// prose.
const COMMENT_COLUMNS: usize = 100;

/// Most columns of a line of code or of prose in Markdown.
const COLUMNS: usize = 120;

fn columns(line: &str) -> usize {
    line.chars().count()
}

/// The lines of Rust or WIT that are too wide, as (number, columns, what is too wide).
fn wide_code(text: &str) -> Vec<(usize, usize, &'static str)> {
    let mut found = Vec::new();
    for (nth, line) in text.lines().enumerate() {
        let is_comment = line.trim_start().starts_with("//");
        if is_comment && columns(line) > COMMENT_COLUMNS {
            found.push((nth + 1, columns(line), "comment"));
        } else if columns(line) > COLUMNS {
            found.push((nth + 1, columns(line), "line"));
        }
    }
    found
}

/// The lines of prose in Markdown that are too wide. Tables, code and lines that are only a link
/// cannot be broken.
fn wide_prose(text: &str) -> Vec<(usize, usize, &'static str)> {
    let mut found = Vec::new();
    let (mut in_fence, mut after_blank) = (false, true);
    for (nth, line) in text.lines().enumerate() {
        let words = line.trim_start();
        let is_fence = words.starts_with("```");
        in_fence ^= is_fence;
        // Four spaces are code after an empty line, and the rest of a list's item otherwise.
        let is_code = in_fence || is_fence || after_blank && line.starts_with("    ");
        let is_link = !words.trim_start_matches("* ").contains(' ') || words.starts_with('[') && words.contains("]: ");
        if columns(line) > COLUMNS && !is_code && !words.starts_with('|') && !is_link {
            found.push((nth + 1, columns(line), "line"));
        }
        // Code goes on after its first line.
        after_blank = words.is_empty() || is_code && !in_fence && !is_fence;
    }
    found
}

/// Asserts that `wide` finds nothing in these files. What it finds is counted for each file, with
/// the first lines.
fn assert_narrow(files: &[PathBuf], wide: fn(&str) -> Vec<(usize, usize, &'static str)>) {
    let mut wrong = Vec::new();
    for file in files {
        let found = wide(&read(file));
        let shown = found.iter().take(3).map(|(line, columns, what)| format!("{what} {line} has {columns} columns"));
        if !found.is_empty() {
            let shown: Vec<String> = shown.collect();
            wrong.push(format!("{}: {} too wide: {}", relative(file), found.len(), shown.join(", ")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn comments_have_at_most_100_columns_and_code_120() {
    let all: Vec<PathBuf> = [".rs", ".wit"].iter().flat_map(|ending| files(&root(), ending)).collect();
    assert_narrow(&all, wide_code);
}

#[test]
fn prose_in_markdown_has_at_most_120_columns() {
    assert_narrow(&files(&root(), ".md"), wide_prose);
}

#[test]
fn wide_lines_are_found_and_what_cannot_be_broken_is_left() {
    let wide = "words ".repeat(20) + "end";
    assert_eq!(
        wide_code(&format!("{wide}\n    // {}\n/// {}", &wide[..94], &wide[..95])),
        [(1, 123, "line"), (2, 101, "comment")]
    );
    let code = format!("text:\n\n    {wide}\n    {wide}\n\n```\n{wide}\n```\n| {wide} |\n");
    assert_eq!(wide_prose(&code), []);
    let link = "https://".to_owned() + &"a".repeat(150);
    assert_eq!(wide_prose(&format!("{link}\n* {link}\n[name]: {link} \"title\"\n")), []);
    assert_eq!(wide_prose(&format!("* item\n    {wide}\n{wide}")), [(2, 127, "line"), (3, 123, "line")]);
}

/// Words in paths that stand for any name.
const PLACEHOLDERS: &[&str] = &["NAME", "INTERFACE"];

#[test]
fn files_and_places_that_the_architecture_names_exist() {
    let all: Vec<String> = files(&root(), "").iter().map(|file| relative(file)).collect();
    let text = read(&root().join("ARCHITECTURE.md"));
    let is_path = |word: &&str| {
        let plain = word.chars().all(|c| c.is_ascii_alphanumeric() || "._-/".contains(c));
        let ending =
            word.rsplit_once('.').is_some_and(|(_, ending)| ["rs", "md", "toml", "wit", "sh"].contains(&ending));
        let is_placeholder = PLACEHOLDERS.iter().any(|name| word.contains(name));
        plain && (ending || word.contains('/')) && !is_placeholder
    };
    let words = text.split('`').skip(1).step_by(2).filter(is_path);
    let missing: BTreeSet<&str> = words.filter(|word| !names_a_file(word, &all)).collect();
    assert!(missing.is_empty(), "ARCHITECTURE.md names what does not exist: {missing:?}");
}

/// Whether a path, or its end, is that of one of these files or of a directory with some of them.
fn names_a_file(word: &str, files: &[String]) -> bool {
    let word = format!("/{}/", word.trim_matches('/'));
    files.iter().any(|file| format!("/{file}/").contains(&word))
}

#[test]
fn names_of_files_are_found_by_their_end() {
    let files = ["host/nbd/src/lib.rs".to_owned(), "wit/filter.wit".to_owned()];
    let is_found = |word: &str| names_a_file(word, &files);
    assert!(["host/nbd/", "nbd/src/lib.rs", "lib.rs", "wit/", "src"].into_iter().all(is_found));
    assert!(!["host/src/nbd/", "b.rs", "it/filter.wit", "filter"].into_iter().any(is_found));
}

/// The documents for users and developers.
fn documents() -> Vec<PathBuf> {
    files(&root(), ".md").into_iter().filter(|path| !path.ends_with("CHANGELOG.md")).collect()
}

#[test]
fn links_in_the_documents_lead_somewhere() {
    for document in documents() {
        let text = read(&document);
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = link.split('#').next().unwrap_or_default();
            if !path.is_empty() && !path.contains("://") {
                let target = document.parent().unwrap_or(Path::new(".")).join(path);
                assert!(target.exists(), "{} links to {link}", document.display());
            }
        }
    }
}

#[test]
fn targets_of_make_in_the_documents_exist() {
    let makefile = read(&root().join("Makefile"));
    for document in documents() {
        let text = read(&document);
        let code = text.split('`').skip(1).step_by(2).chain(text.lines().filter(|line| line.starts_with("    ")));
        for command in code.filter_map(|code| code.trim().strip_prefix("make ")) {
            let target = command.split_whitespace().next().unwrap_or_default();
            if target.chars().all(|c| c.is_ascii_lowercase() || c == '-') {
                let rule = format!("{target}:");
                let there = makefile.lines().any(|line| line.starts_with(&rule));
                assert!(there, "{} says 'make {target}'", document.display());
            }
        }
    }
}

fn help(arguments: &[&str]) -> String {
    let program = program();
    tool(program.to_str().expect("a path in UTF-8"), arguments.iter().chain(&["--help"])).ok()
}

/// The words of a text that begin with two dashes.
fn options(text: &str) -> BTreeSet<String> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '-';
    text.split(|c| !word(c))
        .filter(|text| text.len() > 3 && text.starts_with("--") && !text.starts_with("---"))
        .map(|text| text.trim_end_matches('-').to_owned())
        .collect()
}

#[test]
fn options_in_the_readme_are_in_the_help() {
    if is_nbdkit() {
        return;
    }
    let known = options(&help(&[]));
    let text = read(&root().join("README.md"));
    for line in text.lines().filter(|line| line.contains("rbdkit ") && !line.contains("rbdkit-filter")) {
        for option in options(line) {
            assert!(known.contains(&option), "README.md says {option}, --help does not");
        }
    }
}

#[test]
fn every_plugin_and_filter_in_the_readme_has_help_and_a_page_with_its_parameters() {
    if is_nbdkit() {
        return;
    }
    let readme = read(&root().join("README.md"));
    let mut helps = Vec::new();
    for line in readme.lines().filter(|line| line.contains("README.md)") && line.starts_with('|')) {
        let name = line.split('|').nth(1).unwrap_or_default().trim();
        let page = line.split("](").nth(1).and_then(|rest| rest.split(')').next()).unwrap_or_default();
        let text = match page.starts_with("plugins/") {
            true => help(&[name]),
            false => help(&[&format!("--filter={name}"), "null"]),
        };
        assert!(text.contains(name), "the help of {name}:\n{text}");
        helps.push((name, page, text));
    }
    assert!(helps.len() >= 14, "only {} plugins and filters in README.md's tables", helps.len());
    // A page may speak of another's parameter.
    let all: String = helps.iter().map(|(_, _, text)| text.as_str()).collect();
    for (name, page, _) in &helps {
        // Lines of --dump-plugin look like parameters.
        let page: String = read(&root().join(page)).lines().filter(|line| !line.contains("--dump-plugin")).collect();
        for key in page.split('`').skip(1).step_by(2).filter_map(|code| code.split_once('=')).map(|(key, _)| key) {
            let is_key = key.starts_with(|c: char| c.is_ascii_lowercase())
                && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
            assert!(!is_key || all.contains(key), "the page of {name} names {key}=, no --help does");
        }
    }
}
