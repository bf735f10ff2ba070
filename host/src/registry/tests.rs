use std::path::{Path, PathBuf};
use std::sync::Arc;

use rbdkit_plugin_api::Param;
use rbdkit_plugin_api::schema::{ParamKind, ParamSpec};
use rbdkit_sandbox::{Host, Options};

use super::*;

#[test]
fn plugins_are_in_alphabetical_order_and_found_by_name() {
    let names: Vec<&str> = plugins().map(|info| info.name).collect();
    assert!(names.is_sorted());
    for name in names {
        assert_eq!(plugin(name).unwrap().name, name);
    }
}

#[test]
fn an_unknown_name_is_answered_with_those_there_are() {
    let error = plugin("memroy").map(|info| info.name).unwrap_err().to_string();
    assert!(error.starts_with("cannot open plugin 'memroy': did you mean memory? There are "), "{error}");
    let error = filter("nosuchfilter").unwrap_err().to_string();
    assert!(error.starts_with("cannot open filter 'nosuchfilter': "), "{error}");
    assert!(error.ends_with("(--wasm-filter FILE takes one of your own)"), "{error}");
}

#[test]
fn every_plugin_declares_its_parameters_without_contradiction() {
    for info in plugins() {
        let specs = (info.params)();
        let magic = specs.iter().filter(|spec| spec.magic).count();
        assert!(magic <= 1, "{} has {magic} magic keys", info.name);
        for (nth, spec) in specs.iter().enumerate() {
            let what = format!("{} of {}", spec.name, info.name);
            let keys = || std::iter::once(&spec.name).chain(&spec.aliases);
            assert!(!specs[..nth].iter().any(|other| keys().any(|key| other.answers_to(key))), "{what} is there twice");
            assert!(spec.hidden || !spec.help.is_empty(), "{what} has no help");
            assert!(!spec.help.ends_with('.'), "the help of {what} ends with a full stop");
            assert!((spec.kind == ParamKind::Choice) != spec.choices.is_empty(), "{what} has no choices, or is none");
            let default = spec.default.as_deref().map(|default| spec.check(&spec.name, default.as_ref()));
            assert!(default.is_none_or(|checked| checked.is_ok()), "the default of {what} is not a value of it");
            assert!(!(spec.required && spec.default.is_some()), "{what} is required and has a default");
        }
    }
}

/// The values need not be right: what counts is that the plugin does not deny the key.
#[test]
fn every_plugin_knows_the_parameters_that_it_declares() {
    for info in plugins().filter(|info| info.other_keys.is_none()) {
        for spec in (info.params)() {
            for key in std::iter::once(&spec.name).chain(&spec.aliases) {
                let value = spec.choices.first().map_or("1", String::as_str);
                let mut plugin = (info.make)();
                let said = plugin.config(Param { key, value: value.as_ref() }).err().map(|error| error.to_string());
                assert!(!said.is_some_and(|said| said.contains("unknown parameter")), "{}: {key}", info.name);
            }
        }
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn page(place: &str) -> String {
    let path = root().join(place);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The rows of the tables whose first column is this, each as its cells.
fn rows(page: &str, first_column: &str) -> Vec<Vec<String>> {
    let cells = |line: &str| -> Vec<String> {
        line.trim()
            .trim_start_matches('|')
            .trim_end_matches('|')
            .split('|')
            .map(|cell| cell.trim().to_string())
            .collect()
    };
    let mut found = Vec::new();
    let mut within = false;
    for line in page.lines() {
        if !line.starts_with('|') {
            within = false;
        } else if within {
            found.extend((!line.starts_with("|---")).then(|| cells(line)));
        } else {
            within = cells(line)[0] == first_column;
            if within {
                found.push(cells(line));
            }
        }
    }
    found
}

/// The words in backticks.
fn code(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// Whether the default column says what is declared. Without a declared default it is empty, or a
/// description that cannot be taken for a value.
fn says_default(cell: &str, spec: &ParamSpec) -> bool {
    let plain = cell.replace('`', "");
    match &spec.default {
        Some(default) => {
            plain.strip_prefix(default.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', ';']))
        }
        None if spec.required => plain == "required",
        None => plain.is_empty() || (code(cell).count() == 0 && plain.contains([' ', '\''])),
    }
}

/// What is wrong with the table of parameters on a page.
fn differences(page: &str, specs: &[ParamSpec], other_keys: Option<&str>) -> Vec<String> {
    let mut wrong = Vec::new();
    let table = rows(page, "parameter");
    let default_column = table.first().and_then(|head| head.iter().position(|cell| cell == "default")).unwrap_or(1);
    let mut seen: Vec<String> = Vec::new();
    let mut seen_other = false;
    for row in table.iter().skip(1) {
        let last = row.last().map_or("", String::as_str);
        // `error-OP` stands for one parameter for each operation in the last column.
        let keys = code(&row[0]).flat_map(|word| match word.contains("-OP") {
            true => code(last).map(|operation| word.replace("OP", operation)).collect(),
            false => vec![word.to_string()],
        });
        let mut here: Vec<String> = Vec::new();
        for word in keys {
            if Some(word.as_str()) == other_keys {
                seen_other = true;
                continue;
            }
            let key = word.split('=').next().unwrap_or_default().trim_start_matches('[');
            let Some(spec) = specs.iter().find(|spec| !spec.hidden && spec.answers_to(key)) else {
                wrong.push(format!("{key} is on the page and not declared"));
                continue;
            };
            if word.starts_with('[') != spec.magic && word.contains('=') {
                wrong.push(format!("{key} is shown wrong: its key can be left out, or not"));
            }
            if seen.contains(&spec.name) {
                wrong.push(format!("{key} is on the page twice"));
            }
            if !says_default(&row[default_column], spec) {
                wrong.push(format!("the default of {key} is {:?}, not {}", spec.default, row[default_column]));
            }
            here.push(spec.name.clone());
        }
        seen.append(&mut here);
    }
    for spec in specs.iter().filter(|spec| !spec.hidden && !seen.contains(&spec.name)) {
        wrong.push(format!("{} is declared and not on the page", spec.name));
    }
    if other_keys.is_some() && !seen_other {
        wrong.push(format!("{} is not on the page", other_keys.unwrap_or_default()));
    }
    wrong
}

#[test]
fn the_pages_of_plugins_list_the_declared_parameters() {
    for info in plugins() {
        let page = page(&format!("plugins/{}/README.md", info.name));
        let wrong = differences(&page, &(info.params)(), info.other_keys.map(|other| other.form));
        assert!(wrong.is_empty(), "plugins/{}/README.md: {}", info.name, wrong.join("; "));
    }
}

#[test]
fn the_pages_of_filters_list_the_declared_parameters() {
    let host: Arc<Host> = Host::new(Options::default()).unwrap();
    for name in filters() {
        let module = host.load(name, filter(name).unwrap()).unwrap();
        let page = page(&format!("guest-filters/{name}/README.md"));
        let wrong = differences(&page, &module.description().params, None);
        assert!(wrong.is_empty(), "guest-filters/{name}/README.md: {}", wrong.join("; "));
    }
}

#[test]
fn a_filter_is_found_by_nbdkit_s_name_for_it() {
    for (alias, own) in FILTER_ALIASES {
        assert!(filter(own).is_ok(), "{own}");
        assert_eq!(filter(alias), filter(own));
        assert_eq!(filter_like(Path::new(&format!("/usr/lib/nbdkit/nbdkit-{alias}-filter.so"))), Some(*own));
        assert!(filters().all(|name| name != *alias), "{alias} is a filter of its own");
    }
}

#[test]
fn the_readme_lists_all_plugins_and_filters_and_no_others() {
    let readme = page("README.md");
    let listed = |first_column| {
        let mut names: Vec<String> = rows(&readme, first_column)
            .into_iter()
            .map(|row| row[0].clone())
            .filter(|name| name != first_column)
            .collect();
        names.sort_unstable();
        names
    };
    assert_eq!(listed("plugin"), plugins().map(|info| info.name).collect::<Vec<_>>());
    assert_eq!(listed("filter"), filters().collect::<Vec<_>>());
}

#[test]
fn the_page_about_filters_lists_all_of_them_in_alphabetical_order() {
    let page = page("guest-filters/README.md");
    let linked = |cell: &str| cell.split_once("](").map(|(name, _)| name.trim_start_matches('[').to_string());
    let listed: Vec<String> = rows(&page, "folder").iter().filter_map(|row| linked(&row[0])).collect();
    // The library for filters comes after them.
    assert_eq!(listed.split_last().map(|(last, _)| last.as_str()), Some("sdk"));
    assert_eq!(listed[..listed.len() - 1], filters().collect::<Vec<_>>());
}

#[test]
fn a_page_that_differs_from_the_declarations_is_found() {
    let specs = [
        ParamSpec::size("size").magic().required(),
        ParamSpec::bool("fast").default_value("true"),
        ParamSpec::string("name").alias("called"),
        ParamSpec::hidden("old"),
    ];
    let page = |rows: &str| format!("text\n\n| parameter | default | meaning |\n|---|---|---|\n{rows}\n\ntext\n");
    let right =
        "| `[size=]SIZE` | required | x |\n| `fast` | `true`; else | x |\n| `name`, `called` | the user's | x |";
    assert_eq!(differences(&page(right), &specs, None), Vec::<String>::new());
    for (from, to) in [
        ("[size=]SIZE", "size=SIZE"),
        ("required", ""),
        ("`fast`", "`fats`"),
        ("`true`", "`false`"),
        ("the user's", "me"),
        ("the user's", "`me`"),
        ("`name`, `called`", "`fast`"),
        ("`name`, `called`", "`old`"),
    ] {
        assert!(!differences(&page(&right.replace(from, to)), &specs, None).is_empty(), "{from} {to}");
    }
    assert!(!differences(&page(right), &specs, Some("KEY=VALUE")).is_empty());
}
