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
