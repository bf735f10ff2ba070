//! Plugins that are programs, called `nbdkit-NAME-plugin`.
//!
//! Such a program is usually a script whose first line names this program and a plugin that runs
//! scripts: `#!/usr/sbin/nbdkit sh`. As the plugin NAME, or by its path, it is started in place of
//! this process, with all options and parameters. So it starts this program again, which gets the
//! script as the first parameter of the other plugin.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rbdkit_plugin_api::ConfigError;
use rbdkit_plugin_api::text::plain;

use super::process;
use crate::cli::{self, Plan};
use crate::registry;

/// Names the program that started this process. A program that starts this one with itself as the
/// plugin is found by it.
const STARTED_BY: &str = "RBDKIT_PLUGIN_PROGRAM";

/// Starts the plugin in place of this process if it is a program. `args` are those of this process.
/// Call it while the process has a single thread. Returns if the plugin is no program.
///
/// # Errors
/// One line: the program cannot be started, or names itself as its plugin.
pub fn start_if_program(plan: &Plan, args: &[OsString]) -> Result<(), ConfigError> {
    let started_by = std::env::var_os(STARTED_BY);
    process::forget_variables(&[STARTED_BY]);
    // Looked for only if a plugin is not built in.
    let directories = || match &plan.plugindir {
        Some(directory) => std::slice::from_ref(directory),
        None => registry::foreign_directories(),
    };
    let find = |plugin: &str| find(plugin, std::iter::once_with(directories).flatten());
    let Some(program) = plan.plugin.as_deref().and_then(find) else { return Ok(()) };
    let shown = program.display();
    let Ok(path) = std::fs::canonicalize(&program) else { return Ok(()) };
    if started_by.is_some_and(|by| by == path) {
        return Err(ConfigError::new(format!(
            "plugin program {shown}: its first line names no plugin that runs it, for example \
             #!/usr/bin/env -S rbdkit sh"
        )));
    }
    let error = Command::new(&program).args(cli::without_plugin(args)?).env(STARTED_BY, path).exec();
    Err(ConfigError::new(format!("cannot start the plugin program {shown}: {}", plain(&error))))
}

/// The program of a plugin that is given by its name, in one of the directories, or by its path.
fn find(plugin: &str, mut directories: impl Iterator<Item: AsRef<Path>>) -> Option<PathBuf> {
    if registry::is_built_in(plugin) {
        return None;
    }
    if plugin.contains('/') {
        return Some(PathBuf::from(plugin)).filter(|path| is_executable(path) && is_program(path));
    }
    let name = format!("nbdkit-{plugin}-plugin");
    directories.find_map(|directory| Some(directory.as_ref().join(&name)).filter(|path| is_executable(path)))
}

fn is_executable(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// Whether it has the name of a plugin that is a program, or is a script.
fn is_program(path: &Path) -> bool {
    let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
    let named = name.starts_with("nbdkit-") && name.ends_with("-plugin");
    let mut start = [0; 2];
    let begins = |mut file: std::fs::File| file.read_exact(&mut start).is_ok() && start == *b"#!";
    named || std::fs::File::open(path).is_ok_and(begins)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_finds_the_first_executable_file_and_built_in_plugins_come_before() {
        let [one, two] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let directories = || [one.path(), two.path()].map(Path::to_path_buf).into_iter();
        let program = two.path().join("nbdkit-x-plugin");
        for (directory, mode) in [(&one, 0o644), (&two, 0o755)] {
            for name in ["nbdkit-x-plugin", "nbdkit-null-plugin"] {
                let file = directory.path().join(name);
                std::fs::write(&file, "").unwrap();
                std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
            }
        }
        assert_eq!(find("x", directories()), Some(program.clone()));
        assert_eq!(find("null", directories()), None);
        assert_eq!(find("y", directories()), None);
        // By its path it needs no first line, because it has the name of a plugin.
        assert_eq!(find(program.to_str().unwrap(), directories()), Some(program));
        assert_eq!(find(one.path().join("nbdkit-x-plugin").to_str().unwrap(), directories()), None);
    }
}
