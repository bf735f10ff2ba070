//! zip: files of archives that zip has made.

use rbdkit_tests::{TempDir, tool};

use crate::shared::{assert_content, content, serve};

#[test]
fn stored_and_deflated_files_are_what_they_were() {
    let dir = TempDir::new();
    let disk = content((5 << 20) + 777, 41);
    dir.file("disk.img", &disk);
    dir.file("README.txt", b"text");
    let (archive, at) = (dir.join("a.zip"), dir.path().to_str().expect("UTF-8").to_string());
    for options in ["-0", "-6", "-fd"] {
        tool("sh", ["-c", &format!("cd {at} && rm -f a.zip && zip -q {options} a.zip README.txt disk.img")]).ok();
        assert_content(&serve("zip", &archive, &[]), &disk, options);
        assert_content(&serve("zip", &archive, &["zip-entry=disk.img"]), &disk, options);
    }
}
