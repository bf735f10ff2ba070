//! The texts of `--help`, `--short-options` and `--long-options`.

use std::fmt::Write;

use rbdkit_plugin_api::PluginInfo;
use rbdkit_plugin_api::schema::{ParamKind, ParamSpec};

use super::options::{self, OptionHelp};

/// The column at which the explanation begins, in characters.
const COLUMN: usize = 34;

/// The longest line of a list of names.
const WIDTH: usize = 100;

/// What `--help` shows of a filter.
pub struct FilterHelp<'a> {
    /// Its name.
    pub name: &'a str,
    /// For people.
    pub longname: &'a str,
    /// Its own help text.
    pub help: &'a str,
    /// The words of the powers that it has (`--filter-allow`).
    pub powers: Vec<&'static str>,
    /// Its parameters.
    pub specs: &'a [ParamSpec],
}

/// The usage of the program, with the server's limits (name, default and meaning) and the built-in
/// plugins and filters.
pub fn usage<'a>(
    limits: &[(&str, String, &str)],
    plugins: impl Iterator<Item = &'a PluginInfo>,
    filters: impl Iterator<Item = &'a str>,
) -> String {
    let mut text = String::from(
        "Usage: rbdkit [OPTIONS] [--filter=NAME | --wasm-filter=FILE ...] PLUGIN [[KEY=]VALUE ...]\
         \n       rbdkit --dump-config\n       rbdkit PLUGIN --dump-plugin\n       \
         rbdkit [--filter=NAME ...] PLUGIN --help\n\
         \nOptions:\n",
    );
    for spec in options::all() {
        line(&mut text, &option(&spec), &spec.help);
    }
    text.push_str("\nLimits (--limit RESOURCE=VALUE):\n");
    for (resource, value, what) in limits {
        line(&mut text, &format!("  {resource}={value}"), what);
    }
    text.push_str("\nPlugins:\n");
    for info in plugins {
        line(&mut text, &format!("  {}", info.name), info.description);
    }
    let filters: Vec<&str> = filters.collect();
    text.push_str("\nFilters: ");
    text.push_str(&wrapped(if filters.is_empty() { &["none"] } else { &filters }, "         "));
    text
}

/// Words in lines of at most [`WIDTH`] columns. The first line has `margin`'s width before it, and
/// the others begin with the margin.
fn wrapped(words: &[&str], margin: &str) -> String {
    let (mut text, mut column) = (String::new(), margin.len());
    for word in words {
        if column > margin.len() && column + 1 + word.len() > WIDTH {
            text.push('\n');
            text.push_str(margin);
            column = margin.len();
        } else if column > margin.len() {
            text.push(' ');
            column += 1;
        }
        text.push_str(word);
        column += word.len();
    }
    text.push('\n');
    text
}

fn option(spec: &OptionHelp) -> String {
    let mut text = match spec.short {
        Some(short) => format!("  -{short}, "),
        None => "      ".to_string(),
    };
    let names: Vec<String> = spec.long.iter().map(|name| format!("--{name}")).collect();
    text.push_str(&names.join(", "));
    if let Some(value) = &spec.value {
        let _ = write!(text, "={value}");
    }
    text
}

fn line(text: &mut String, what: &str, explanation: &str) {
    if what.len() + 2 > COLUMN {
        let _ = writeln!(text, "{what}\n{:COLUMN$}{explanation}", "");
    } else {
        let _ = writeln!(text, "{what:COLUMN$}{explanation}");
    }
}

/// The parameters of a plugin.
pub fn plugin(info: &PluginInfo) -> String {
    let mut text = format!("\nplugin: {} ({})\n{}\n", info.name, info.longname, info.description);
    parameters(&mut text, &(info.params)());
    if let Some(other) = info.other_keys {
        line(&mut text, other.form, other.help);
    }
    text
}

/// The parameters of a filter.
pub fn filter(filter: &FilterHelp<'_>) -> String {
    let mut text = match filter.longname {
        "" => format!("\nfilter: {}\n", filter.name),
        longname => format!("\nfilter: {} ({longname})\n", filter.name),
    };
    if !filter.help.is_empty() {
        // Indented, so that a filter's text never looks like a line of the program.
        for line in filter.help.trim_end().lines() {
            let _ = writeln!(text, "{}", format!("  {line}").trim_end());
        }
    }
    if !filter.powers.is_empty() {
        let _ = writeln!(text, "  It may use: {} (--filter-allow)", filter.powers.join(", "));
    }
    parameters(&mut text, filter.specs);
    text
}

fn parameters(text: &mut String, specs: &[ParamSpec]) {
    for spec in specs.iter().filter(|spec| !spec.hidden) {
        let key = if spec.magic { format!("[{}=]", spec.name) } else { format!("{}=", spec.name) };
        line(text, &format!("{key}{}", value(spec)), &explanation(spec));
    }
}

fn value(spec: &ParamSpec) -> String {
    match spec.kind {
        _ if !spec.placeholder.is_empty() => spec.placeholder.clone(),
        ParamKind::Choice => spec.choices.join("|"),
        ParamKind::BoolOrWatch => "BOOL|/PATH".to_string(),
        ParamKind::PathRead
        | ParamKind::PathNow
        | ParamKind::PathAppend
        | ParamKind::PathWrite
        | ParamKind::PathReadWrite
        | ParamKind::Path => "FILENAME".to_string(),
        ParamKind::Disk => "FILENAME|chain:PLUGIN...".to_string(),
        ParamKind::StringOrScript => "TEXT|script:SCRIPT".to_string(),
        ParamKind::Watch => "PATH".to_string(),
        ParamKind::Control => "SOCKET".to_string(),
        kind => kind.name().to_ascii_uppercase(),
    }
}

fn explanation(spec: &ParamSpec) -> String {
    let mut text = String::new();
    if spec.required {
        text.push_str("(required) ");
    }
    text.push_str(without_full_stop(spec.help.trim_end()));
    let mut notes = Vec::new();
    if let Some(default) = &spec.default {
        notes.push(format!("default: {default}"));
    }
    if spec.repeat {
        notes.push("may be repeated".to_string());
    }
    if !spec.aliases.is_empty() {
        notes.push(format!("also {}", spec.aliases.join(", ")));
    }
    if !notes.is_empty() {
        let _ = write!(text, " ({})", notes.join("; "));
    }
    text
}

/// Filters may end their sentences with a full stop, plugins do not. This makes both look the same.
fn without_full_stop(help: &str) -> &str {
    match help.strip_suffix('.') {
        Some(sentence) if !sentence.ends_with('.') => sentence,
        _ => help,
    }
}

/// All one-letter options, one a line.
pub fn short_options() -> String {
    options::all().filter_map(|spec| spec.short).map(|short| format!("-{short}\n")).collect()
}

/// All long options, one a line.
pub fn long_options() -> String {
    options::all().flat_map(|spec| spec.long).map(|name| format!("--{name}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filters_parameters_are_explained() {
        let specs = [ParamSpec::choice("cache", &["writeback", "unsafe"])
            .alias("c")
            .default_value("writeback")
            .help("When writes go below.")];
        let text =
            filter(&FilterHelp { name: "cache", longname: "", help: "Keeps blocks\n", powers: vec![], specs: &specs });
        assert_eq!(
            text,
            "\nfilter: cache\n  Keeps blocks\n\
             cache=writeback|unsafe            When writes go below (default: writeback; also c)\n"
        );
    }

    #[test]
    fn a_filters_text_never_looks_like_a_line_of_the_program() {
        let line = "rbdkit: error: the disk is broken";
        let specs = [ParamSpec::choice("choice", &[line]).default_value(line).help(line)];
        let help = format!("{line}\n\n{line}\n");
        let text = filter(&FilterHelp { name: "cow", longname: line, help: &help, powers: vec![], specs: &specs });
        assert!(text.contains(line) && text.lines().all(|shown| !shown.starts_with("rbdkit:")), "{text}");
    }

    #[test]
    fn a_plugins_parameters_are_explained() {
        let mut text = String::new();
        let specs = [
            ParamSpec::size("size").magic().required().help("Size of the disk"),
            ParamSpec::path("file").repeat().help("A file"),
            ParamSpec::hidden("old"),
        ];
        parameters(&mut text, &specs);
        assert_eq!(
            text,
            "[size=]SIZE                       (required) Size of the disk\n\
             file=FILENAME                     A file (may be repeated)\n"
        );
    }

    #[test]
    fn every_option_is_in_the_usage() {
        let text = usage(&[], std::iter::empty(), std::iter::empty());
        for name in options::all().flat_map(|spec| spec.long) {
            assert!(text.contains(&format!("--{name}")), "{name}");
        }
    }
}
