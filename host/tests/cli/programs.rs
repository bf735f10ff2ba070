//! Scripts whose first line names the program, and plugins that are programs.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use crate::support::{Outcome, PROGRAM, TempDir, outcome, path};

/// A plugin in the language of the sh plugin.
const SCRIPT: &str = "
case \"$1\" in
    get_size) echo 3k ;;
    pread) dd if=/dev/zero count=$3 iflag=count_bytes status=none ;;
    *) exit 2 ;;
esac
";

const SIZE: [&str; 2] = ["--run", "nbdinfo --size \"$uri\""];

/// An executable file.
fn script(directory: &TempDir, name: &str, first_line: &str) -> String {
    let file = directory.join(name);
    std::fs::write(&file, format!("{first_line}\n{SCRIPT}")).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    file.to_str().unwrap().to_string()
}

/// A directory in which the program is called `rbdkit` and `nbdkit`, which is first in PATH.
fn installed() -> (TempDir, String) {
    let directory = TempDir::new();
    for name in ["rbdkit", "nbdkit"] {
        std::os::unix::fs::symlink(PROGRAM, directory.join(name)).unwrap();
    }
    let path = format!("{}:{}", directory.path().display(), path());
    (directory, path)
}

fn serves(mut command: Command, what: &str) {
    let expected = Outcome { status: 0, stdout: "3072\n".into(), stderr: String::new() };
    assert_eq!(outcome(&mut command), expected, "{what}");
}

#[test]
fn a_script_whose_first_line_names_the_program_serves_itself() {
    let (directory, path) = installed();
    let direct = format!("#!{} sh", directory.join("nbdkit").display());
    for first_line in [&direct[..], "#!/usr/bin/env -S rbdkit sh", "#!/usr/bin/env -S nbdkit -U - sh"] {
        let file = script(&directory, "disk", first_line);
        let mut command = Command::new(&file);
        command.args(SIZE).env("PATH", &path);
        serves(command, first_line);
    }
}

#[test]
fn a_script_may_be_the_plugin_and_gets_options_and_parameters() {
    let (directory, path) = installed();
    let first_line = "#!/usr/bin/env -S nbdkit sh";
    for name in ["nbdkit-disk-plugin", "any name"] {
        let file = script(&directory, name, first_line);
        let mut command = Command::new(PROGRAM);
        command.args(["-r", &file]).args(SIZE).env("PATH", &path);
        serves(command, name);
    }
    let file = script(&directory, "nbdkit-disk-plugin", first_line);
    let mut command = Command::new(PROGRAM);
    let refused = outcome(command.args([&file, "-r", "no equals sign"]).args(SIZE).env("PATH", &path));
    // The other plugin gets the parameters.
    assert!(refused.status == 1 && refused.stderr.contains("no equals sign"), "{refused:?}");
    let mut command = Command::new(PROGRAM);
    let version = outcome(command.args([&file[..], "--version"]).env("PATH", &path)).stdout;
    assert!(version.starts_with("nbdkit 1.46.") && version.contains("\nsh "), "{version}");
}

#[test]
fn a_script_that_names_no_plugin_is_one_line_and_does_not_start_itself_for_ever() {
    let (directory, path) = installed();
    let file = script(&directory, "disk", "#!/usr/bin/env rbdkit");
    for mut command in [Command::new(&file), Command::new(PROGRAM)] {
        if command.get_program() == PROGRAM {
            command.arg(&file);
        }
        let refused = outcome(command.args(SIZE).env("PATH", &path));
        let message = format!(
            "rbdkit: error: plugin program {file}: its first line names no plugin that runs it, for example \
             #!/usr/bin/env -S rbdkit sh\n"
        );
        assert_eq!(refused, Outcome { status: 1, stdout: String::new(), stderr: message });
    }
    let file = script(&directory, "nbdkit-x-plugin", "#!/no/such/interpreter");
    let refused = outcome(Command::new(PROGRAM).arg(&file));
    let message = format!("rbdkit: error: cannot start the plugin program {file}: No such file or directory\n");
    assert_eq!(refused, Outcome { status: 1, stdout: String::new(), stderr: message });
}
