//! Expands `~/` and nbdkit's `%` sequences in the names of files.

use std::path::PathBuf;

use rbdkit_plugin_api::ConfigError;

/// The values of the sequences.
pub(crate) struct Names {
    home: Option<String>,
    user: String,
    host: String,
    remote_user: String,
    port: String,
}

impl Names {
    pub(crate) fn new(host: &str, remote_user: Option<&str>, port: Option<&str>) -> Names {
        let user = std::env::var("USER").or_else(|_| std::env::var("LOGNAME")).unwrap_or_default();
        Names {
            home: std::env::home_dir().and_then(|home| home.into_os_string().into_string().ok()),
            remote_user: remote_user.unwrap_or(&user).to_owned(),
            user,
            host: host.to_owned(),
            port: port.unwrap_or("22").to_owned(),
        }
    }
}

/// Expands a parameter into an absolute path. It has to be absolute because the server changes its
/// directory when it goes to the background.
///
/// # Errors
/// One line about the parameter.
pub(crate) fn path(key: &str, text: &str, names: &Names) -> Result<PathBuf, ConfigError> {
    let wrong = |what: &str| ConfigError::new(format!("{key}={text}: {what}"));
    let home = || names.home.as_deref().ok_or_else(|| wrong("there is no home directory"));
    let mut expanded = String::new();
    let mut rest = match text.strip_prefix("~/") {
        Some(rest) => {
            expanded.push_str(home()?);
            expanded.push('/');
            rest
        }
        None => text,
    };
    while let Some((before, after)) = rest.split_once('%') {
        expanded.push_str(before);
        let mut after = after.chars();
        match after.next() {
            Some('%') => expanded.push('%'),
            Some('d') => {
                expanded.push_str(home()?);
                expanded.push_str("/.ssh");
            }
            Some('u') => expanded.push_str(&names.user),
            Some('l') => expanded.push_str(&rustix::system::uname().nodename().to_string_lossy()),
            Some('h') => expanded.push_str(&names.host),
            Some('r') => expanded.push_str(&names.remote_user),
            Some('p') => expanded.push_str(&names.port),
            _ => return Err(wrong("has a '%' that is not followed by one of %, d, u, l, h, r and p")),
        }
        rest = after.as_str();
    }
    expanded.push_str(rest);
    std::path::absolute(expanded).map_err(|error| wrong(&error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_and_the_home_directory_are_expanded() {
        let names = Names {
            home: Some("/home/me".into()),
            user: "me".into(),
            host: "far".into(),
            remote_user: "you".into(),
            port: "2222".into(),
        };
        for (text, expected) in [
            ("/keys/id", "/keys/id"),
            ("~/keys/id", "/home/me/keys/id"),
            ("%d/%h-%p-%r", "/home/me/.ssh/far-2222-you"),
            ("/100%%/%u", "/100%/me"),
        ] {
            assert_eq!(path("identity", text, &names).unwrap(), PathBuf::from(expected));
        }
        assert!(path("identity", "relative", &names).unwrap().is_absolute());
        for wrong in ["/a%", "/a%x"] {
            assert!(path("identity", wrong, &names).unwrap_err().to_string().contains("has a '%'"));
        }
    }
}
