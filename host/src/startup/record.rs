//! `--record`: puts the layers that record around the recorded layer, and opens the file.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;

use rbdkit_chain::Layer;
use rbdkit_parameters::Target;
use rbdkit_plugin_api::ConfigError;
use rbdkit_plugin_api::own_file::OwnFile;
use rbdkit_plugin_api::schema::{ParamKind, ParamSpec, ParamValue};
use rbdkit_plugin_api::text::plain;
use rbdkit_record::format::{Gate, GivenParameter, MAGIC, MAX_PARAMETERS, MAX_TEXT};
use rbdkit_record::{Options, Recorder, recording_layer};
use rustix::fs::{FlockOperation, OFlags, flock};

use crate::cli::RecordOption;

/// Only the server's user may read a record: it holds what clients read and write, or digests of
/// it.
const MODE: u32 = 0o600;

/// The parameters of a filter as a record has them. It has values of the kinds below only: a value
/// of another kind names a file, or is secret. So a kind that is added is not recorded before it
/// stands here.
pub fn given(specs: &[ParamSpec], values: &[(String, ParamValue)]) -> Vec<GivenParameter> {
    let given = |(key, value): &(String, ParamValue)| {
        let spec = specs.iter().find(|spec| spec.name == *key);
        let is_open = spec.is_some_and(|spec| !spec.secret && shows_its_value(spec.kind));
        let kept = is_open && value.path.is_none() && value.text.len() <= MAX_TEXT;
        let kind = spec.map_or("", |spec| spec.kind.name()).to_string();
        GivenParameter { key: key.clone(), kind, value: kept.then(|| value.text.clone()) }
    };
    values.iter().map(given).collect()
}

fn shows_its_value(kind: ParamKind) -> bool {
    matches!(
        kind,
        ParamKind::String
            | ParamKind::Bool
            | ParamKind::Int
            | ParamKind::Size
            | ParamKind::Duration
            | ParamKind::Percent
            | ParamKind::Probability
            | ParamKind::Choice
            | ParamKind::BoolOrWatch
    )
}

/// Puts layers that record in front of the recorded layer and behind it. A plugin has none behind
/// it. `given` has the parameters of each filter.
///
/// # Errors
/// One line: there is no such layer, or it has more parameters than a record can have.
pub fn insert(
    option: &RecordOption,
    layers: &mut Vec<Arc<dyn Layer>>,
    mut given: Vec<Vec<GivenParameter>>,
    plugin: &str,
) -> Result<Arc<Recorder>, ConfigError> {
    let place = match &option.layer {
        None => 0,
        Some(target) => find(target, layers, plugin)?,
    };
    let is_filter = place < layers.len();
    let layer = layers.get(place).map_or(plugin, |layer| layer.name()).to_string();
    let parameters = given.get_mut(place).map(std::mem::take).unwrap_or_default();
    if parameters.len() > MAX_PARAMETERS {
        let count = parameters.len();
        return Err(ConfigError::new(format!(
            "--record: {layer} has {count} parameters, and a record has at most {MAX_PARAMETERS}"
        )));
    }
    let recorder = Recorder::new(Options {
        file: option.file.display().to_string(),
        program: env!("CARGO_PKG_VERSION").to_string(),
        layer,
        is_filter,
        with_payloads: option.with_payloads,
        parameters,
        limit: option.limit,
    });
    if is_filter {
        layers.insert(place + 1, recording_layer(&recorder, Gate::Below));
    }
    layers.insert(place, recording_layer(&recorder, Gate::Above));
    Ok(recorder)
}

fn find(target: &Target, layers: &[Arc<dyn Layer>], plugin: &str) -> Result<usize, ConfigError> {
    let mut named = layers.iter().enumerate().filter(|(_, layer)| layer.name() == target.name);
    if let Some((place, _)) = named.nth(target.instance - 1) {
        return Ok(place);
    }
    if target.name == plugin && target.instance == 1 {
        return Ok(layers.len());
    }
    let names: Vec<&str> = layers.iter().map(|layer| layer.name()).chain([plugin]).collect();
    Err(ConfigError::new(format!(
        "--record: there is no layer {target}: there are {} (a file whose name has a colon is ./FILE)",
        names.join(", ")
    )))
}

/// Opens the file and begins the record. Returns the file if it is new, so that a start that fails
/// can remove it.
///
/// # Errors
/// One line that names the file.
pub fn start(option: &RecordOption, recorder: &Arc<Recorder>) -> Result<Option<OwnFile>, ConfigError> {
    let path = &option.file;
    let failed = |why: &dyn std::fmt::Display| ConfigError::new(format!("--record: {}: {why}", path.display()));
    let (file, own) = open(path).map_err(|error| failed(&plain(&error)))?;
    recorder.start(file, rbdkit_confine::confine_thread).map_err(|error| failed(&plain(&error)))?;
    if option.with_payloads {
        tracing::warn!(
            "--record-payloads: {} gets all data that clients read and write: guard it as the disk itself",
            path.display()
        );
    }
    Ok(own)
}

/// Makes the file, or empties one that is an earlier record. No other file is overwritten.
fn open(path: &Path) -> io::Result<(File, Option<OwnFile>)> {
    let mut options = OpenOptions::new();
    // A pipe would block the start, and a link could lead to a file of somebody else's.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
    options.read(true).write(true).mode(MODE).custom_flags(flags);
    let (mut file, own) = match options.clone().create_new(true).open(path) {
        Ok(file) => (file, OwnFile::at(path).ok()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let file = options.open(path).map_err(|error| match rustix::io::Errno::from_io_error(&error) {
                Some(rustix::io::Errno::LOOP) => io::Error::other("is a symbolic link (give the name of the file)"),
                _ => error,
            })?;
            (file, None)
        }
        Err(error) => return Err(error),
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("is not a file"));
    }
    flock(&file, FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| io::Error::other("is being written by another server"))?;
    let mut begin = [0; MAGIC.len()];
    if file.metadata()?.len() > 0 && !(file.read_exact(&mut begin).is_ok() && begin == MAGIC) {
        return Err(io::Error::other("exists and is not a record (remove it, or give another name)"));
    }
    file.set_permissions(Permissions::from_mode(MODE))?;
    file.set_len(0)?;
    io::Seek::rewind(&mut file)?;
    Ok((file, own))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_has_no_value_that_names_a_file_or_is_secret() {
        let spec = |name: &str, kind, secret| ParamSpec { name: name.into(), kind, secret, ..ParamSpec::default() };
        let all = [
            spec("size", ParamKind::Size, false),
            spec("text", ParamKind::String, false),
            spec("password", ParamKind::String, true),
            spec("file", ParamKind::PathRead, false),
            spec("now", ParamKind::PathNow, false),
            spec("log", ParamKind::PathAppend, false),
            spec("there", ParamKind::Watch, false),
            spec("either", ParamKind::BoolOrWatch, false),
        ];
        let value = |text: &str, path: Option<&str>| ParamValue { text: text.into(), path: path.map(Into::into) };
        let values = [
            ("size", value("4096", None)),
            ("text", value("plain", None)),
            ("text", value(&"x".repeat(MAX_TEXT + 1), None)),
            ("password", value("hunter2", None)),
            ("file", value("set", Some("/secret"))),
            ("now", value("set", Some("/secret"))),
            ("log", value("set", Some("/secret"))),
            ("there", value("set", Some("/secret"))),
            ("either", value("watch", Some("/secret"))),
            ("either", value("true", None)),
            ("unknown", value("hunter2", None)),
        ];
        let values = values.map(|(key, value)| (key.to_string(), value));
        let kept: Vec<Option<String>> = given(&all, &values).into_iter().map(|given| given.value).collect();
        let shown = |text: &str| Some(text.to_string());
        let mut expected = vec![None; 11];
        (expected[0], expected[1], expected[9]) = (shown("4096"), shown("plain"), shown("true"));
        assert_eq!(kept, expected);
    }

    fn refused(path: &Path) -> String {
        open(path).expect_err("it is refused").to_string()
    }

    #[test]
    fn only_a_record_is_overwritten_and_nobody_else_may_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.rec");
        let (first, own) = open(&path).unwrap();
        assert!(own.is_some());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(refused(&path), "is being written by another server");
        drop(first);
        std::fs::write(&path, [&MAGIC[..], b"more"].concat()).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        let (_again, own) = open(&path).unwrap();
        let now = std::fs::metadata(&path).unwrap();
        assert!(own.is_none());
        assert_eq!((now.len(), now.permissions().mode() & 0o777), (0, 0o600));
        for foreign in [&b"a disk image"[..], b"rbd"] {
            let disk = dir.path().join("disk.img");
            std::fs::write(&disk, foreign).unwrap();
            assert_eq!(refused(&disk), "exists and is not a record (remove it, or give another name)");
            assert_eq!(std::fs::read(&disk).unwrap(), foreign);
        }
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert_eq!(refused(&link), "is a symbolic link (give the name of the file)");
        assert!(refused(dir.path()).contains("directory"));
    }
}
