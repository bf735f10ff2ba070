//! Passwords, which are bytes.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;

use tempfile::TempDir;

use super::*;

/// A password of Latin-1, which is not UTF-8.
const PASSWORD: &[u8] = b"h\xfcsch \xff";

fn password(value: &[u8]) -> Vec<u8> {
    let mut config = Config::default();
    for (key, value) in [("host", &b"far"[..]), ("path", b"/disk"), ("password", value)] {
        config.set(Param { key, value: OsStr::from_bytes(value) }).unwrap();
    }
    config.settings().unwrap().password.unwrap().bytes().to_vec()
}

#[test]
fn a_password_need_not_be_text_wherever_it_comes_from() {
    assert_eq!(password(PASSWORD), PASSWORD);
    let directory = TempDir::new().unwrap();
    let file = directory.path().join(OsStr::from_bytes(b"pass\xff"));
    std::fs::write(&file, [PASSWORD, b"\nanother line"].concat()).unwrap();
    assert_eq!(password(&[b"+", file.as_os_str().as_bytes()].concat()), PASSWORD);
    let open = File::open(&file).unwrap();
    assert_eq!(password(format!("-{}", open.as_raw_fd()).as_bytes()), PASSWORD);
    let spec = crate::params().into_iter().find(|spec| spec.name == "password").unwrap();
    assert!(spec.check("password", OsStr::from_bytes(PASSWORD)).is_ok() && spec.secret);
}
