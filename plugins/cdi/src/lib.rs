//! The cdi plugin: a layer of a container image, as the Containerized Data Importer has them.
//!
//! podman pulls the image when the server starts and saves it in a directory, jq finds the layer in
//! the manifest. The layer then has no name any more.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Stdio};

use rbdkit_assembled::{Access, Assembled, AssembledDisk, Assembly, DiskFile, run_tool};
use rbdkit_plugin_api::schema::ParamSpec;
use rbdkit_plugin_api::{ConfigError, Param, PluginInfo, ThreadModel, temporary};

/// What the registry needs to know.
pub const INFO: PluginInfo = PluginInfo {
    name: "cdi",
    longname: "rbdkit containerized data importer plugin",
    description: "A read-only layer of a container image, which podman pulls",
    params,
    other_keys: None,
    max_thread_model: ThreadModel::Parallel,
    make: || Box::new(Assembled::<Cdi>::default()),
};

fn params() -> Vec<ParamSpec> {
    vec![
        ParamSpec::bytes("name")
            .magic()
            .placeholder("NAME[:TAG|@DIGEST]")
            .required()
            .help("The container image, as podman pull takes it"),
        ParamSpec::string("layer")
            .placeholder("N")
            .default_value("0")
            .help("Which layer: 0 is the first, -1 is the last"),
    ]
}

#[derive(Default)]
struct Cdi {
    name: Option<OsString>,
    layer: i32,
}

impl Cdi {
    /// Runs podman. What it prints is not for clients.
    fn podman(&self, directory: &Path) -> Result<(), ConfigError> {
        let name = self.name.clone().unwrap_or_default();
        let run = |command: &mut Command| {
            command.stdout(Stdio::null());
            run_tool("cdi", "podman", "podman", command).map(drop)
        };
        // After "--" no name can be an option.
        run(Command::new("podman").args(["pull", "--"]).arg(&name))?;
        let save = ["save", "--format", "oci-dir", "-o"];
        run(Command::new("podman").args(save).arg(directory).arg("--").arg(&name))
    }

    /// The name of the layer's file in the directory that podman saved.
    fn layer_file(&self, directory: &Path) -> Result<String, ConfigError> {
        let filter = format!(".layers[{}].digest", self.layer);
        let mut command = Command::new("jq");
        command.args(["-r", &filter]).arg(directory.join("manifest.json"));
        let digest = run_tool("cdi", "jq", "jq", &mut command)?;
        let none = || ConfigError::new(format!("cdi: the image has no layer {}", self.layer));
        file_of_digest(&digest).ok_or_else(none)
    }
}

/// The name of the file for a digest: what follows the colon, if it is hexadecimal.
fn file_of_digest(output: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(output).ok()?.trim();
    let (_, file) = text.split_once(':')?;
    (!file.is_empty() && file.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| file.to_owned())
}

impl Assembly for Cdi {
    fn config(&mut self, param: Param<'_>) -> Result<(), ConfigError> {
        match param.key {
            "name" if param.value.is_empty() => return Err(param.error("is not the name of an image")),
            "name" => self.name = Some(param.value.to_owned()),
            "layer" => {
                let number = param.text()?.trim().parse();
                self.layer = number.map_err(|_| param.error("is not a whole number"))?;
            }
            _ => return Err(param.unknown("cdi")),
        }
        Ok(())
    }

    fn complete(&self) -> Result<(), ConfigError> {
        match self.name {
            Some(_) => Ok(()),
            None => Err(ConfigError::new("cdi: an image has to be given: [name=]NAME[:TAG|@DIGEST]")),
        }
    }

    fn assemble(&mut self) -> Result<AssembledDisk, ConfigError> {
        let wrong = |error: &dyn std::fmt::Display| ConfigError::new(format!("cdi: {error}"));
        let parent = temporary::large_directory().map_err(|error| wrong(&error))?;
        // It goes at the end of this function, with all but the open file.
        let private = tempfile::Builder::new().prefix("rbdkit-cdi-").tempdir_in(&parent);
        let private = private.map_err(|error| wrong(&format_args!("{}: {error}", parent.display())))?;
        let directory = private.path().join("image");
        self.podman(&directory)?;
        let path = directory.join(self.layer_file(&directory)?);
        let layer = DiskFile::open(&path, Access::ReadNoLink);
        let layer = layer.map_err(|error| wrong(&format_args!("could not extract layer {}: {error}", self.layer)))?;
        let disk = AssembledDisk::of_file(layer).map_err(|error| wrong(&error))?;
        Ok(disk.read_only())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_names_a_file_of_the_directory_and_no_other() {
        assert_eq!(file_of_digest(b"sha256:0123abCD\n"), Some("0123abCD".to_owned()));
        for output in [&b"null\n"[..], b"", b"sha256:", b"sha256:../x", b"sha256:a/b", b"sha256:a\nsha256:b", b"\xff:a"]
        {
            assert_eq!(file_of_digest(output), None, "{output:?}");
        }
    }

    #[test]
    fn mistakes_are_one_line() {
        let mut plugin = Cdi::default();
        let error = plugin.complete().unwrap_err().to_string();
        assert_eq!(error, "cdi: an image has to be given: [name=]NAME[:TAG|@DIGEST]");
        let mut wrong = |key, value: &str| plugin.config(Param { key, value: value.as_ref() }).unwrap_err().to_string();
        assert_eq!(wrong("layer", "x"), "layer=x: is not a whole number");
        assert_eq!(wrong("name", ""), "name=: is not the name of an image");
    }
}
