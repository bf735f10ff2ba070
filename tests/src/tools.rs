//! The real clients.

use std::ffi::OsStr;
use std::process::{Command, Stdio};

/// How long a client may take, in seconds. A client that takes longer is killed, and the test
/// fails.
const SECONDS: &str = "180";

/// How a client ended and what it printed.
#[derive(Debug)]
pub struct Finished {
    /// Its exit status; 124 if it was killed because it took too long.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    command: String,
}

impl Finished {
    /// The standard output of a client that succeeded.
    ///
    /// # Panics
    /// If it failed.
    pub fn ok(self) -> String {
        assert!(self.code == 0, "{}\nfailed ({}):\n{}{}", self.command, self.code, self.stdout, self.stderr);
        self.stdout
    }

    /// Both outputs of a client that failed on its own.
    ///
    /// # Panics
    /// If it succeeded or hung.
    pub fn fails(self) -> String {
        let both = format!("{}{}", self.stdout, self.stderr);
        assert!(self.code != 0 && self.code < 124, "{}\nshould have failed ({}):\n{both}", self.command, self.code);
        both
    }
}

/// The Debian package of a client.
fn package(program: &str) -> &'static str {
    match program {
        "nbdinfo" | "nbdcopy" => "libnbd-bin",
        "nbdsh" => "python3-libnbd",
        "qemu-img" | "qemu-io" => "qemu-utils",
        "fio" => "fio",
        "/sbin/cryptsetup" => "cryptsetup-bin",
        "/sbin/e2fsck" | "/sbin/debugfs" | "/sbin/dumpe2fs" => "e2fsprogs",
        "/sbin/fsck.fat" => "dosfstools",
        "mdir" | "mcopy" => "mtools",
        "isoinfo" => "genisoimage",
        _ => "(see tests/setup.sh)",
    }
}

/// Runs a client and waits for its end.
///
/// # Panics
/// If the client is not installed: a test that did not run must not count as passed.
pub fn tool<I: IntoIterator<Item: AsRef<OsStr>>>(program: &str, arguments: I) -> Finished {
    // Debian's directories come first: nbdsh runs the first Python in PATH, and only Debian's has
    // libnbd.
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new("timeout");
    command.args(["-k", "5", SECONDS, program]).args(arguments);
    command.env("PATH", format!("/usr/bin:/bin:{path}")).env("LC_ALL", "C.UTF-8").stdin(Stdio::null());
    let shown = format!("{command:?}");
    let output = command.output().expect("timeout of coreutils");
    let code = output.status.code().unwrap_or(-1);
    assert!(code != 127, "{program} is missing: apt-get install {}", package(program));
    Finished {
        code,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        command: shown,
    }
}

/// Runs a Python script in nbdsh without connecting. The script has the variable `uri`, the module
/// `errno`, and `fails(call)`, which gives the name of the error.
pub fn nbdsh(uri: &str, script: &str) -> Finished {
    // Names instead of numbers, so that tests compare exactly and read well.
    const PRELUDE: &str = "
import errno, nbd
def fails(call):
    try:
        call()
    except nbd.Error as error:
        return errno.errorcode.get(error.errnum, str(error.errnum))
    return 'success'
";
    tool("nbdsh", ["-c".to_owned(), format!("uri = {uri:?}\n{PRELUDE}\n{script}")])
}
