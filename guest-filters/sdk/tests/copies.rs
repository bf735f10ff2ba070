//! Files that stand in the package as well as elsewhere, because a package holds only its own.

use std::path::Path;

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn the_simulated_host_reads_values_with_the_servers_own_code() {
    let server = read("../../plugins/api/src/units.rs");
    let code = server.split("\n#[cfg(test)]\n").next().unwrap();
    assert_eq!(read("src/units.rs").trim_end(), code.trim_end(), "copy plugins/api/src/units.rs, without its tests");
}

#[test]
fn the_package_has_the_licence_of_the_project() {
    assert_eq!(read("LICENSE"), read("../../LICENSE"));
}

/// The first example in the text of a file, without the lines that rustdoc hides.
fn example(text: &str, start: &str) -> String {
    let code = text.split(start).nth(1).expect("an example").split("```").next().expect("its end");
    let shown = code.lines().filter(|line| !line.starts_with("# "));
    shown.map(|line| format!("{line}\n")).collect::<String>().trim().to_string()
}

#[test]
fn the_example_of_the_readme_is_the_one_that_the_documentation_compiles() {
    let first_page: String = read("src/lib.rs")
        .lines()
        .map_while(|line| line.strip_prefix("//!"))
        .map(|line| format!("{}\n", line.strip_prefix(' ').unwrap_or(line)))
        .collect();
    assert_eq!(example(&read("../../README.md"), "```rust\n"), example(&first_page, "```\n"));
}
