//! partition: disks that sfdisk has partitioned, against nbdkit's filter.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rbdkit_tests::{TempDir, tool};

use crate::shared::{assert_content, content, serve};

/// A disk of 24 MiB that sfdisk partitions by a script.
fn partitioned(dir: &TempDir, script: &str) -> (PathBuf, Vec<u8>) {
    let disk = dir.file("disk.img", &content(24 << 20, 31));
    let mut child = Command::new("/sbin/sfdisk")
        .args(["-q", "--wipe", "always"])
        .arg(&disk)
        .stdin(Stdio::piped())
        .spawn()
        .expect("sfdisk (make setup installs it)");
    child.stdin.take().expect("a pipe").write_all(script.as_bytes()).expect("the script");
    assert!(child.wait().expect("sfdisk").success());
    let bytes = std::fs::read(&disk).expect("the disk");
    (disk, bytes)
}

/// Start and size of each partition in bytes, with its number, as sfdisk has them.
fn listed(disk: &Path) -> Vec<(usize, usize, usize)> {
    let json = tool("/sbin/sfdisk", ["--json", disk.to_str().expect("UTF-8")]).ok();
    let json: serde_json::Value = serde_json::from_str(&json).expect("sfdisk's JSON");
    let number = |node: &serde_json::Value| {
        let name = node["node"].as_str().expect("a name");
        name.rsplit_once("img").expect("a number").1.parse().expect("a number")
    };
    let sectors = |node: &serde_json::Value, key: &str| node[key].as_u64().expect("a number") as usize * 512;
    let partitions = json["partitiontable"]["partitions"].as_array().expect("partitions");
    partitions.iter().map(|node| (number(node), sectors(node, "start"), sectors(node, "size"))).collect()
}

#[test]
fn each_partition_is_what_sfdisk_says_and_nbdkit_serves() {
    let dir = TempDir::new();
    let mbr = "label: dos\nsize=3MiB, type=83\nsize=12MiB, type=5\nsize=2MiB\nsize=2MiB\nsize=3MiB\n\
               size=2MiB, type=82\n";
    let gpt = "label: gpt\nsize=3MiB\nsize=5MiB, name=root\n";
    for (script, skipped) in [(mbr, Some(2)), (gpt, None)] {
        let (disk, bytes) = partitioned(&dir, script);
        for (number, start, size) in listed(&disk) {
            if Some(number) == skipped {
                continue;
            }
            let (parameter, what) = (format!("partition={number}"), format!("partition {number} of {script:?}"));
            let expected = &bytes[start..start + size];
            assert_content(&serve("partition", &disk, &[&parameter]), expected, &what);
            let (name, copy) = (disk.to_str().expect("UTF-8"), dir.join("copy"));
            let run = format!("nbdcopy \"$uri\" {}", copy.to_str().expect("UTF-8"));
            tool("nbdkit", ["-U", "-", "-r", "file", name, "--filter=partition", &parameter, "--run", &run]).ok();
            assert!(std::fs::read(copy).expect("the copy") == expected, "nbdkit: {what}");
        }
    }
    let (disk, bytes) = partitioned(&dir, gpt);
    let (_, start, size) = listed(&disk)[1];
    assert_content(&serve("partition", &disk, &["partition-label=root"]), &bytes[start..start + size], "by label");
}

#[test]
fn a_disk_that_sgdisk_and_parted_made_is_read() {
    let dir = TempDir::new();
    let disk = dir.file("disk.img", &content(8 << 20, 32));
    let name = disk.to_str().expect("UTF-8");
    tool("/sbin/sgdisk", ["-o", "-n", "1:2048:4095", "-n", "7:8192:+1M", "-c", "7:seventh", name]).ok();
    let bytes = std::fs::read(&disk).expect("the disk");
    let expected = &bytes[8192 * 512..8192 * 512 + (1 << 20)];
    assert_content(&serve("partition", &disk, &["partition-label=seventh"]), expected, "sgdisk");
    assert_content(&serve("partition", &disk, &["partition=7"]), expected, "sgdisk");
    tool("/sbin/parted", ["-s", name, "mklabel", "mac", "mkpart", "data", "hfs", "1MiB", "3MiB"]).ok();
    let bytes = std::fs::read(&disk).expect("the disk");
    let expected = &bytes[1 << 20..3 << 20];
    assert_content(&serve("partition", &disk, &["partition=2"]), expected, "an Apple partition map");
}
