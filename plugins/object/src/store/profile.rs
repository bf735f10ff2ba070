//! The files in which AWS's tools keep credentials: `~/.aws/credentials` and `~/.aws/config`.
//!
//! object_store does not read them. Only keys are taken from them, not other ways to get
//! credentials, such as a role to take or a program to run.

use std::path::PathBuf;

use zeroize::Zeroizing;

/// The longest file that is read, in bytes.
const LONGEST: u64 = 1 << 20;

/// What a profile says.
#[derive(Default)]
pub(crate) struct Profile {
    pub(crate) access_key: Option<Zeroizing<String>>,
    pub(crate) secret_key: Option<Zeroizing<String>>,
    pub(crate) session_token: Option<Zeroizing<String>>,
    pub(crate) region: Option<String>,
    pub(crate) endpoint: Option<String>,
}

impl Profile {
    /// The profile that the environment names, or `default`. What is not there is left out.
    pub(crate) fn of_environment() -> Profile {
        let name = std::env::var("AWS_PROFILE").unwrap_or_else(|_| "default".into());
        let home = std::env::var_os("HOME").map(PathBuf::from);
        let file = |variable: &str, default: &str| {
            let path = std::env::var_os(variable).map(PathBuf::from);
            let path = path.or_else(|| Some(home.as_ref()?.join(".aws").join(default)))?;
            let length = std::fs::metadata(&path).ok()?.len();
            (length <= LONGEST).then(|| std::fs::read_to_string(path).ok().map(Zeroizing::new))?
        };
        let mut profile = Profile::default();
        if let Some(text) = file("AWS_CONFIG_FILE", "config") {
            let section = if name == "default" { name.clone() } else { format!("profile {name}") };
            profile.read(&text, &section);
        }
        if let Some(text) = file("AWS_SHARED_CREDENTIALS_FILE", "credentials") {
            profile.read(&text, &name);
        }
        profile
    }

    /// Takes the values of a section.
    fn read(&mut self, text: &str, section: &str) {
        let mut within = false;
        for line in text.lines() {
            let line = line.trim_end();
            if let Some(name) = line.trim_start().strip_prefix('[').and_then(|rest| rest.split(']').next()) {
                within = name.split_whitespace().eq(section.split_whitespace());
                continue;
            }
            // A line that begins with a space belongs to a nested table.
            if !within || line.starts_with([' ', '\t', '#', ';']) {
                continue;
            }
            let Some((key, value)) = line.split_once('=') else { continue };
            let value = value.trim().to_owned();
            match key.trim() {
                "aws_access_key_id" => self.access_key = Some(value.into()),
                "aws_secret_access_key" => self.secret_key = Some(value.into()),
                "aws_session_token" => self.session_token = Some(value.into()),
                "region" => self.region = Some(value),
                "endpoint_url" => self.endpoint = Some(value),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_section_of_the_profile_counts() {
        let text = "[default]\naws_access_key_id = A\naws_secret_access_key=B=\n\n[ profile  two ]\n# x\n\
                    aws_access_key_id=C\nregion = eu-1\ns3 =\n  aws_access_key_id = nested\n\
                    endpoint_url = http://h:1\n";
        let mut first = Profile::default();
        first.read(text, "default");
        assert_eq!((first.access_key.unwrap().as_str(), first.region), ("A", None));
        assert_eq!(first.secret_key.unwrap().as_str(), "B=");
        let mut second = Profile::default();
        second.read(text, "profile two");
        assert_eq!((second.access_key.unwrap().as_str(), second.region.as_deref()), ("C", Some("eu-1")));
        assert!(second.secret_key.is_none());
        assert_eq!(second.endpoint.as_deref(), Some("http://h:1"));
    }
}
