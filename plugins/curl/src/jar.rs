//! The cookie jar: the file that cookies are written to.
//!
//! The file is opened when the server starts and written in place. libcurl would write a new file
//! and rename it, for which a confined server would need rights to the whole directory.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rbdkit_plugin_api::ConfigError;

/// The first lines of a cookie file, by which other programs recognise it.
const HEAD: &str = "# Netscape HTTP Cookie File\n# Written by rbdkit. What is changed here by hand is lost.\n\n";

pub(crate) struct Jar(File);

impl Jar {
    /// Opens the file and keeps its content. Creates it, readable only by the user, if it does not
    /// exist.
    pub(crate) fn open(path: &Path) -> Result<Jar, ConfigError> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
        file.map(Jar).map_err(|error| ConfigError::new(format!("cookiejar={}: {error}", path.display())))
    }

    /// Replaces the content by these lines, one for each cookie.
    pub(crate) fn write(&self, cookies: &[Vec<u8>]) -> std::io::Result<()> {
        let mut text = HEAD.as_bytes().to_vec();
        for line in cookies {
            text.extend_from_slice(line);
            text.push(b'\n');
        }
        self.0.write_all_at(&text, 0)?;
        self.0.set_len(text.len() as u64)
    }
}
