//! The iso plugin: the files of directories on a CD image.
//!
//! A program makes the image when the server starts: xorriso, genisoimage or mkisofs. The image is
//! in a file without a name.
#![forbid(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rbdkit_assembled::{Assembled, AssembledDisk, Assembly, DiskFile, find_tool, run_tool, temporary_file};
use rbdkit_plugin_api::schema::ParamSpec;
use rbdkit_plugin_api::{ConfigError, Param, PluginInfo, ThreadModel};

/// What the registry needs to know.
pub const INFO: PluginInfo = PluginInfo {
    name: "iso",
    longname: "rbdkit iso plugin",
    description: "The files of directories on a read-only CD image",
    params,
    other_keys: None,
    max_thread_model: ThreadModel::Parallel,
    make: || Box::new(Assembled::<Iso>::default()),
};

/// The programs that make an image, the first that exists is taken.
const PROGRAMS: [&str; 3] = ["xorriso", "genisoimage", "mkisofs"];

fn params() -> Vec<ParamSpec> {
    vec![
        ParamSpec::path("dir")
            .magic()
            .placeholder("DIRECTORY")
            .required()
            .repeat()
            .help("The directories, whose files are merged"),
        ParamSpec::bytes("params").placeholder("'PARAMS'").help("More options for the program, as a shell splits them"),
        ParamSpec::path("prog")
            .placeholder("PROGRAM")
            .help("The program; by default xorriso, genisoimage or mkisofs, whichever there is"),
    ]
}

#[derive(Default)]
struct Iso {
    directories: Vec<PathBuf>,
    /// What the shell splits into options.
    params: OsString,
    program: Option<OsString>,
}

/// Whether the program is xorriso, which has to be told to act as mkisofs.
fn is_xorriso(program: &OsStr) -> bool {
    Path::new(program).file_name().is_some_and(|name| name == "xorriso")
}

impl Iso {
    fn program(&self) -> Result<OsString, ConfigError> {
        let none = || {
            let programs = PROGRAMS.join(", ");
            ConfigError::new(format!("iso: one of {programs} is needed, and there is none (Debian has genisoimage)"))
        };
        self.program.clone().or_else(|| find_tool(&PROGRAMS).map(OsString::from)).ok_or_else(none)
    }

    /// The command that writes the image to its standard output. A shell splits the user's options;
    /// the rest reaches the program as it is.
    fn command(&self, program: &OsStr) -> Command {
        let mut script = b"exec \"$0\"".to_vec();
        if is_xorriso(program) {
            script.extend(b" -as mkisofs");
        }
        script.extend(b" -quiet ");
        script.extend(self.params.as_bytes());
        script.extend(b" \"$@\"");
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(OsStr::from_bytes(&script)).arg(program).args(&self.directories);
        command
    }
}

impl Assembly for Iso {
    fn config(&mut self, param: Param<'_>) -> Result<(), ConfigError> {
        match param.key {
            // A path that begins with a slash cannot be taken for an option.
            "dir" => self.directories.push(param.path().canonicalize().map_err(|error| param.error(error))?),
            "params" => self.params = param.value.to_owned(),
            "prog" => self.program = Some(param.value.to_owned()),
            _ => return Err(param.unknown("iso")),
        }
        Ok(())
    }

    fn complete(&self) -> Result<(), ConfigError> {
        match self.directories.is_empty() {
            true => Err(ConfigError::new("iso: a directory has to be given: [dir=]DIRECTORY")),
            false => Ok(()),
        }
    }

    fn assemble(&mut self) -> Result<AssembledDisk, ConfigError> {
        let wrong = |error: std::io::Error| ConfigError::new(format!("iso: {error}"));
        let program = self.program()?;
        let image = temporary_file().map_err(wrong)?;
        let mut command = self.command(&program);
        command.stdout(Stdio::from(image.try_clone().map_err(wrong)?));
        run_tool("iso", "genisoimage", &program.to_string_lossy(), &mut command)?;
        let file = DiskFile::from_fd(image.into()).map_err(wrong)?;
        let disk = AssembledDisk::of_file(file).map_err(|error| ConfigError::new(format!("iso: {error}")))?;
        Ok(disk.read_only())
    }

    fn dump_plugin() -> Vec<(String, String)> {
        let program = find_tool(&PROGRAMS).unwrap_or("none");
        vec![("iso_prog".to_string(), program.to_string())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the program gets, one word a line: a program that prints its words.
    fn words(params: &str, directories: &[&str]) -> Vec<String> {
        let directories = directories.iter().map(PathBuf::from).collect();
        let iso = Iso { directories, params: params.into(), program: None };
        let mut command = iso.command("printf".as_ref());
        let arguments: Vec<OsString> = command.get_args().map(OsStr::to_owned).collect();
        // The first option stands where printf has its format.
        let script = arguments[1].to_str().unwrap().replace("-quiet", "'%s\\n' -quiet");
        command = Command::new("/bin/sh");
        command.arg("-c").arg(script).args(&arguments[2..]);
        let output = command.output().unwrap();
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_shell_splits_the_users_options_and_nothing_else() {
        assert_eq!(
            words("-JrT -V \"My Disk\"", &["/a b/$(id)", "/c'd"]),
            ["-quiet", "-JrT", "-V", "My Disk", "/a b/$(id)", "/c'd"]
        );
        assert_eq!(words("", &["/x"]), ["-quiet", "/x"]);
    }

    #[test]
    fn xorriso_acts_as_mkisofs() {
        let iso = Iso { directories: vec!["/x".into()], ..Iso::default() };
        for (program, acts) in [("xorriso", true), ("/usr/bin/xorriso", true), ("xorrisofs", false), ("mkisofs", false)]
        {
            let command = iso.command(program.as_ref());
            let script = command.get_args().nth(1).unwrap().to_string_lossy().into_owned();
            assert_eq!(script.contains("-as mkisofs"), acts, "{program}");
        }
    }
}
