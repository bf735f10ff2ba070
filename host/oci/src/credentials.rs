//! Credentials for a registry, from the configuration that `docker login` and its relatives write.

use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::Error;

/// The largest configuration that is read, in bytes.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// The name under which docker keeps the credentials of its own registry.
const DOCKER_HUB: &str = "index.docker.io";

/// A user and a password. Neither is shown in messages.
#[derive(Clone, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Credentials {
    pub(crate) user: String,
    pub(crate) password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(***)")
    }
}

/// Where the credentials of a registry are.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// There are none.
    Nothing,
    /// In the configuration.
    Credentials(Credentials),
    /// In a program that the configuration names and that is not started.
    Helper,
}

/// The file: `$REGISTRY_AUTH_FILE`, or `config.json` in `$DOCKER_CONFIG` or in `~/.docker`.
fn file() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("REGISTRY_AUTH_FILE")
        .or_else(|| variable("DOCKER_CONFIG").map(|directory| directory.join("config.json")))
        .or_else(|| variable("HOME").map(|home| home.join(".docker/config.json")))
}

/// Finds the credentials of a registry.
///
/// # Errors
/// The configuration exists and cannot be read. The line does not show what is in it.
pub(crate) fn find(host: &str) -> Result<Found, Error> {
    let Some(path) = file() else { return Ok(Found::Nothing) };
    let wrong = |why: String| Error::File { path: path.clone(), why };
    let mut text = Vec::new();
    let read = File::open(&path).and_then(|file| file.take(MAX_CONFIG_BYTES + 1).read_to_end(&mut text));
    match read {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Err(wrong(rbdkit_plugin_api::text::plain(&error))),
        Ok(size) if size as u64 > MAX_CONFIG_BYTES => return Err(wrong("is larger than 1 MiB".into())),
        Ok(_) => {}
    }
    in_config(&text, host).map_err(|why| wrong(why.into()))
}

fn in_config(text: &[u8], host: &str) -> Result<Found, &'static str> {
    let config: Value = serde_json::from_slice(text).map_err(|_| "is not JSON")?;
    let auths = config["auths"].as_object().into_iter().flatten();
    let mut known = auths.filter(|(key, _)| is_of(key, host)).map(|(_, entry)| entry);
    if let Some(credentials) = known.find_map(|entry| credentials(entry).transpose()).transpose()? {
        return Ok(Found::Credentials(credentials));
    }
    let helps = config["credHelpers"].as_object().is_some_and(|map| map.keys().any(|key| is_of(key, host)));
    Ok(if helps || config["credsStore"].is_string() { Found::Helper } else { Found::Nothing })
}

/// Whether a key of the configuration is this registry: its host, perhaps as an address.
fn is_of(key: &str, host: &str) -> bool {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let key = key.split('/').next().unwrap_or_default();
    key.eq_ignore_ascii_case(host) || (host == "docker.io" && key == DOCKER_HUB)
}

/// What an entry has: `auth` is `user:password` in base64. None for an empty entry, which docker
/// writes if a helper has the password.
fn credentials(entry: &Value) -> Result<Option<Credentials>, &'static str> {
    const WRONG: &str = "has an 'auth' that is not user:password in base64";
    if let (Some(user), Some(password)) = (entry["username"].as_str(), entry["password"].as_str()) {
        return Ok(Some(Credentials { user: user.into(), password: password.into() }));
    }
    let Some(auth) = entry["auth"].as_str().filter(|auth| !auth.is_empty()) else { return Ok(None) };
    let text = STANDARD.decode(auth.trim()).map_err(|_| WRONG)?;
    let text = String::from_utf8(text).map_err(|_| WRONG)?;
    let (user, password) = text.trim_end_matches('\0').split_once(':').ok_or(WRONG)?;
    Ok(Some(Credentials { user: user.into(), password: password.into() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(user: &str, password: &str) -> Result<Found, &'static str> {
        Ok(Found::Credentials(Credentials { user: user.into(), password: password.into() }))
    }

    #[test]
    fn the_entry_of_the_registry_is_found() {
        let config = r#"{"auths": {
            "ghcr.io": {"auth": "bWU6cGE6c3M="}, "https://index.docker.io/v1/": {"auth": "aHViOng="},
            "h:5000": {"username": "u", "password": "p"}, "empty": {}
        }, "credHelpers": {"helped": "x"}}"#;
        let config = config.as_bytes();
        assert_eq!(in_config(config, "ghcr.io"), found("me", "pa:ss"));
        assert_eq!(in_config(config, "docker.io"), found("hub", "x"));
        assert_eq!(in_config(config, "h:5000"), found("u", "p"));
        assert_eq!(in_config(config, "h"), Ok(Found::Nothing));
        assert_eq!(in_config(config, "xghcr.io"), Ok(Found::Nothing));
        assert_eq!(in_config(config, "empty"), Ok(Found::Nothing));
        assert_eq!(in_config(config, "helped"), Ok(Found::Helper));
        assert_eq!(in_config(br#"{"credsStore": "x"}"#, "h"), Ok(Found::Helper));
        assert_eq!(in_config(b"{}", "h"), Ok(Found::Nothing));
    }

    #[test]
    fn a_damaged_configuration_is_not_shown() {
        for (config, why) in [
            ("GEHEIM", "is not JSON"),
            (r#"{"auths": {"h": {"auth": "!GEHEIM"}}}"#, "has an 'auth' that is not user:password in base64"),
            (r#"{"auths": {"h": {"auth": "R0VIRUlN"}}}"#, "has an 'auth' that is not user:password in base64"),
        ] {
            assert_eq!(in_config(config.as_bytes(), "h"), Err(why));
        }
        let credentials = Credentials { user: "GEHEIM".into(), password: "GEHEIM".into() };
        assert_eq!(format!("{credentials:?}"), "Credentials(***)");
    }
}
