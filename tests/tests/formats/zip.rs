//! zip: files of archives that zip has made.

use rbdkit_tests::{TempDir, nbdsh, tool};

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

/// A request may compute for a second. The end of a large file is not a second away.
#[test]
fn a_large_deflated_file_is_read_anywhere() {
    let dir = TempDir::new();
    let disk = content(400 << 20, 42);
    let plain = dir.file("disk.img", &disk);
    let (archive, at) = (dir.join("a.zip"), dir.path().to_str().expect("UTF-8").to_string());
    tool("sh", ["-c", &format!("cd {at} && zip -q -1 a.zip disk.img")]).ok();
    let script = format!(
        "h.connect_uri(uri)\nplain = open({plain:?}, 'rb')\nimport random\nrandom.seed(4)\n\
         for at in [{}] + [random.randrange({}) for _ in range(60)]:\n    plain.seek(at)\n    \
         assert h.pread(5000, at) == plain.read(5000), at\n",
        disk.len() - 5000,
        disk.len() - 5000,
    );
    nbdsh(&serve("zip", &archive, &[]).uri(), &script).ok();
    nbdsh(&serve("auto", &archive, &[]).uri(), &script).ok();
}
