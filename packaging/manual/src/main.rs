//! Writes the manual pages: `rbdkit-manual TREE RBDKIT RBDKIT-FILTER DIRECTORY`.
//!
//! The options, limits, plugins and filters come from the help texts of the two programs, which
//! come from the declarations that the programs parse with. The rest of a page is the page of the
//! plugin or filter in the tree, whose tables of parameters are held to the declarations by a test.
#![forbid(unsafe_code)]

mod contract;
mod help;
mod roff;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use help::Section;
use roff::Title;

const USAGE: &str = "usage: rbdkit-manual TREE RBDKIT RBDKIT-FILTER DIRECTORY";

fn main() -> ExitCode {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [tree, server, tool, directory] = arguments.as_slice() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match Manual::read(tree, server, tool).and_then(|manual| manual.write(directory)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rbdkit-manual: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A line that says what went wrong.
type Result<T> = std::result::Result<T, String>;

/// What the pages are made from.
struct Manual {
    tree: PathBuf,
    server: PathBuf,
    tool: PathBuf,
    version: String,
    help: String,
    plugins: Vec<String>,
    filters: Vec<String>,
}

impl Manual {
    fn read(tree: &Path, server: &Path, tool: &Path) -> Result<Manual> {
        let help = output(server, &["--help"])?;
        let sections = help::sections(&help);
        let names = |heading: &str| -> Result<Vec<String>> {
            let section = help::section(&sections, heading).ok_or(format!("--help has no list '{heading}'"))?;
            Ok(section.items.iter().map(|item| item.term.to_string()).collect())
        };
        let (plugins, filters) = (names("Plugins")?, names("Filters")?);
        let version = output(server, &["--version"])?;
        let version = version.split_whitespace().nth(1).unwrap_or_default().to_string();
        let (tree, server, tool) = (tree.to_path_buf(), server.to_path_buf(), tool.to_path_buf());
        Ok(Manual { tree, server, tool, version, help, plugins, filters })
    }

    /// Writes all pages.
    fn write(&self, directory: &Path) -> Result<()> {
        fs::create_dir_all(directory).map_err(|error| format!("{}: {error}", directory.display()))?;
        let page = |name: &str, section: &str, summary: &str, markdown: &str| {
            let title = Title { name, section, summary, version: &self.version };
            let text = roff::page(&title, markdown, &|path| self.linked(path));
            let path = directory.join(format!("{name}.{section}"));
            fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))
        };
        page("rbdkit", "1", "an NBD server with sandboxed filters", &self.server_page()?)?;
        page("rbdkit-filter", "1", "create, build and test filters for rbdkit", &self.tool_page()?)?;
        let contract = contract::markdown(&self.text("wit/filter.wit")?);
        page("rbdkit-contract", "7", "the contract between rbdkit and a filter", &contract)?;
        let guide = self.text("guest-filters/README.md")?;
        page("rbdkit-writing-filters", "7", "how to write a filter for rbdkit", &guide)?;
        let security = self.text("SECURITY.md")?;
        page("rbdkit-security", "7", "what rbdkit trusts and what it does not", &security)?;
        for name in &self.plugins {
            let markdown = self.layer_page(&format!("plugins/{name}"), &format!("rbdkit {name} [KEY=VALUE ...]"))?;
            page(&format!("rbdkit-{name}-plugin"), "1", &self.summary(&[name, "--help"])?, &markdown)?;
        }
        for name in &self.filters {
            let usage = format!("rbdkit --filter={name} PLUGIN [KEY=VALUE ...]");
            let markdown = self.layer_page(&format!("guest-filters/{name}"), &usage)?;
            let option = format!("--filter={name}");
            page(&format!("rbdkit-{name}-filter"), "1", &self.summary(&[&option, "null", "--help"])?, &markdown)?;
        }
        Ok(())
    }

    /// The page of the server, with the lists of its help text.
    fn server_page(&self) -> Result<String> {
        let sections = help::sections(&self.help);
        let list = |heading: &str| -> Result<&Section<'_>> {
            help::section(&sections, heading).ok_or(format!("--help has no list '{heading}'"))
        };
        let named = |kind: &str, names: &[String]| {
            names.iter().map(|name| format!("**rbdkit-{name}-{kind}**(1)")).collect::<Vec<_>>().join(", ")
        };
        let text = self.text("packaging/manual/pages/rbdkit.md")?;
        let text = filled(&text, "options", &help::definitions(&list("Options")?.items))?;
        let text = filled(&text, "limits", &help::definitions(&list("Limits")?.items))?;
        let text = filled(&text, "plugins", &help::definitions(&list("Plugins")?.items))?;
        let text = filled(&text, "filter-pages", &named("filter", &self.filters))?;
        filled(&text, "plugin-pages", &named("plugin", &self.plugins))
    }

    /// The page of the tool, with the help text of each command.
    fn tool_page(&self) -> Result<String> {
        let overview = output(&self.tool, &["--help"])?;
        let sections = help::sections(&overview);
        let commands = help::section(&sections, "Commands").ok_or("rbdkit-filter --help lists no commands")?;
        let mut text = String::new();
        for command in commands.items.iter().filter(|command| command.term != "help") {
            let help = output(&self.tool, &[command.term, "--help"])?;
            let usage = help.lines().find_map(|line| line.strip_prefix("Usage: ")).unwrap_or_default();
            let about: Vec<&str> = help.lines().take_while(|line| !line.starts_with("Usage: ")).collect();
            text.push_str(&format!("## {}\n\n{}\n\n", usage_words(usage), help::quoted(about.join("\n").trim())));
            let sections = help::sections(&help);
            for section in sections.iter().filter(|section| !section.items.is_empty()) {
                let items = section.items.iter().filter(|item| item.term != "-h, --help");
                text.push_str(&help::definitions(items));
            }
        }
        filled(&self.text("packaging/manual/pages/rbdkit-filter.md")?, "commands", &text)
    }

    /// The page of a plugin or a filter.
    fn layer_page(&self, place: &str, usage: &str) -> Result<String> {
        let page = self.text(&format!("{place}/README.md"))?;
        Ok(format!(
            "## Synopsis\n\n    {usage}\n\n## Description\n\n{page}\n\n## See also\n\n\
             **rbdkit**(1), **rbdkit-filter**(1), **rbdkit-security**(7)\n"
        ))
    }

    /// What a plugin or a filter is, from its own help: the line `plugin: NAME (WHAT)` or the one
    /// below it.
    fn summary(&self, arguments: &[&str]) -> Result<String> {
        let help = output(&self.server, arguments)?;
        let mut lines = help.lines();
        let kind = if arguments.len() == 2 { "plugin: " } else { "filter: " };
        let line = lines.find(|line| line.starts_with(kind)).unwrap_or_default();
        let below = lines.next().unwrap_or_default().trim();
        let long = line.split_once('(').map(|(_, rest)| rest.trim_end_matches(')'));
        let text = if kind == "plugin: " { below } else { long.unwrap_or(below) };
        match text.trim_end_matches('.') {
            "" => Err(format!("'{}' says nothing about what it is", arguments.join(" "))),
            text => Ok(text.to_string()),
        }
    }

    /// The page of the manual for a link of a page in the tree.
    fn linked(&self, path: &str) -> Option<String> {
        let path = path.split('#').next().unwrap_or_default();
        match path.rsplit('/').next().unwrap_or_default() {
            "filter.wit" => return Some("rbdkit-contract(7)".to_string()),
            "SECURITY.md" => return Some("rbdkit-security(7)".to_string()),
            "README.md" => {}
            _ => return None,
        }
        let place = path.rsplit('/').nth(1).unwrap_or_default();
        let kind = |names: &[String], kind: &str| {
            names.iter().any(|name| name == place).then(|| format!("rbdkit-{place}-{kind}(1)"))
        };
        let guide = (place == "guest-filters").then(|| "rbdkit-writing-filters(7)".to_string());
        guide.or_else(|| kind(&self.plugins, "plugin")).or_else(|| kind(&self.filters, "filter"))
    }

    fn text(&self, path: &str) -> Result<String> {
        fs::read_to_string(self.tree.join(path)).map_err(|error| format!("{path}: {error}"))
    }
}

/// A usage line without its options and arguments: `rbdkit-filter check`.
fn usage_words(usage: &str) -> &str {
    usage
        .split([' ', '[', '<'])
        .nth(1)
        .map_or(usage, |command| &usage[..usage.find(command).unwrap_or(0) + command.len()])
}

/// A page with a list in its place, `<!-- NAME -->`.
fn filled(page: &str, name: &str, list: &str) -> Result<String> {
    let place = format!("<!-- {name} -->");
    match page.contains(&place) {
        true => Ok(page.replace(&place, list)),
        false => Err(format!("the page has no place {place}")),
    }
}

/// What a program prints.
fn output(program: &Path, arguments: &[&str]) -> Result<String> {
    let said = |what: &str| format!("{} {}: {what}", program.display(), arguments.join(" "));
    let output = Command::new(program).args(arguments).output().map_err(|error| said(&error.to_string()))?;
    if !output.status.success() {
        return Err(said(String::from_utf8_lossy(&output.stderr).trim()));
    }
    String::from_utf8(output.stdout).map_err(|_| said("the output is not UTF-8"))
}
