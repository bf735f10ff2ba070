//! Plugins whose disks do not exist as a whole before the server starts: computed, put together
//! from files, or made by a command. With real clients, and beside nbdkit's plugins of the same
//! name.

mod computed;
mod directories;
mod on_demand;
mod partitions;

use std::path::{Path, PathBuf};

use rbdkit_tests::{Launch, Server, TempDir, tool};

/// nbdkit of Debian, with these arguments.
fn nbdkit(arguments: &[&str]) -> Launch {
    Launch::new(arguments).program(PathBuf::from("/usr/bin/nbdkit"))
}

/// All bytes of a server's default export.
fn copy(server: &Server) -> Vec<u8> {
    copy_of(server, &server.uri())
}

/// All bytes of an export.
fn copy_of(server: &Server, uri: &str) -> Vec<u8> {
    let copy = server.dir().join("copy");
    tool("nbdcopy", [uri, text(&copy)]).ok();
    let bytes = std::fs::read(&copy).expect("the copy");
    std::fs::remove_file(copy).expect("the copy");
    bytes
}

/// The address of an export whose name needs this text in an address.
fn export(server: &Server, name: &str) -> String {
    server.uri().replace("?socket", &format!("{name}?socket"))
}

/// What nbdinfo says that clients can do, one line for each.
fn abilities(server: &Server) -> Vec<String> {
    let all = tool("nbdinfo", [server.uri()]).ok();
    let lines = all.lines().map(str::trim);
    lines.filter(|line| line.starts_with("can_") || line.starts_with("is_")).map(str::to_owned).collect()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a name in UTF-8")
}

/// What is in a server's directory apart from its socket and its pid file: nothing that a plugin
/// has left there.
fn leftovers(dir: &TempDir) -> Vec<String> {
    let entries = std::fs::read_dir(dir.path()).expect("the directory");
    let names = entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned());
    names.filter(|name| name != "sock" && name != "pid").collect()
}
