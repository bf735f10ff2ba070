//! The options about the record of a layer's gates.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rbdkit_parameters::Target;
use rbdkit_plugin_api::{ConfigError, units};

use super::options::Options;
use super::values::{error, path, text};

/// The most bytes of a record, unless `--record-limit` says otherwise. A busy server fills it with
/// digests in about an hour.
const DEFAULT_LIMIT: u64 = 1 << 30;

/// The least limit: room for the first and the last entry.
const MIN_LIMIT: u64 = 64 << 10;

/// What is recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordOption {
    /// The layer; none for the one nearest the client.
    pub layer: Option<Target>,
    /// The file.
    pub file: PathBuf,
    /// Record whole payloads, and not only their digests.
    pub with_payloads: bool,
    /// The most bytes of the file.
    pub limit: u64,
}

/// `--record`, `--record-payloads` and `--record-limit`.
pub(super) fn record(given: &Options) -> Result<Option<RecordOption>, ConfigError> {
    let Some(value) = &given.record else {
        return match () {
            () if given.record_payloads => Err(error("--record-payloads: --record is not given")),
            () if given.record_limit.is_some() => Err(error("--record-limit: --record is not given")),
            () => Ok(None),
        };
    };
    let (layer, file) = layer_and_file(value)?;
    let limit = given.record_limit.as_ref().map_or(Ok(DEFAULT_LIMIT), |value| limit(value))?;
    Ok(Some(RecordOption { layer, file, with_payloads: given.record_payloads, limit }))
}

/// Splits `LAYER:FILE`. A colon behind a slash belongs to the file's name.
fn layer_and_file(value: &OsStr) -> Result<(Option<Target>, PathBuf), ConfigError> {
    let bytes = value.as_bytes();
    let colon = bytes.iter().position(|byte| matches!(byte, b':' | b'/')).filter(|at| bytes[*at] == b':');
    let Some(colon) = colon else { return Ok((None, path("--record", value)?)) };
    let (name, file) = (OsStr::from_bytes(&bytes[..colon]), OsStr::from_bytes(&bytes[colon + 1..]));
    let target = name.to_str().and_then(Target::parse).ok_or_else(|| {
        let name = name.to_string_lossy();
        error(format!(
            "--record: '{name}' does not name a layer: NAME, or NAME#2 for the second (a file whose name has a colon \
             is ./FILE)"
        ))
    })?;
    Ok((Some(target), path("--record", file)?))
}

fn limit(value: &OsStr) -> Result<u64, ConfigError> {
    let value = text("--record-limit", value)?;
    match units::parse_size(&value) {
        Ok(size) if size >= MIN_LIMIT => Ok(size),
        Ok(_) => Err(error(format!("--record-limit={value}: is less than 64K"))),
        Err(wrong) => Err(error(format!("--record-limit={value}: {wrong}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layer_stands_before_the_first_colon_that_comes_before_any_slash() {
        let split = |value: &str| layer_and_file(OsStr::new(value)).unwrap();
        let target = |name: &str, instance| Some(Target { name: name.into(), instance });
        assert_eq!(split("a.rec"), (None, "a.rec".into()));
        assert_eq!(split("cow:a.rec"), (target("cow", 1), "a.rec".into()));
        assert_eq!(split("cow#2:/tmp/a:b"), (target("cow", 2), "/tmp/a:b".into()));
        assert_eq!(split("./a:b"), (None, "./a:b".into()));
        assert_eq!(split("/tmp/a:b"), (None, "/tmp/a:b".into()));
        let wrong = |value: &str| layer_and_file(OsStr::new(value)).unwrap_err().to_string();
        assert_eq!(wrong(""), "--record: the name of the file is empty");
        assert_eq!(wrong("cow:"), "--record: the name of the file is empty");
        assert!(wrong(":x").starts_with("--record: '' does not name a layer"));
        assert!(wrong("cow#0:x").starts_with("--record: 'cow#0' does not name a layer"));
    }
}
