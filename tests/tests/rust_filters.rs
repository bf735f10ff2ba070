//! What a filter in Rust does in the server that its native tests cannot show: the standard library
//! in WebAssembly, as the first page of the SDK describes it.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use rbdkit_tests::server::{program, root};
use rbdkit_tests::{Launch, nbdsh, wait};

/// Each read uses a part of the standard library. The offset says which.
const SOURCE: &str = r#"
use rbdkit_filter_sdk::prelude::*;

pub struct Standard;

impl Filter for Standard {
    type Params = ();

    fn describe() -> Description {
        Description::new("standard", "1", "uses the standard library")
    }

    fn configure(_: ()) -> Result<Self, String> {
        Ok(Standard)
    }
}

impl Reads for Standard {
    fn pread(&self, offset: u64, length: u32, _flags: CommandFlags) -> Result<(), Errno> {
        next::pread(offset, length, PAYLOAD, 0)?;
        match offset / 512 {
            0 => {
                println!("printed on standard output");
                eprintln!("printed on standard error");
                info!("informed {}", 1);
            }
            1 => std::thread::sleep(std::time::Duration::from_nanos(1)),
            2 => drop(std::thread::spawn(|| ())),
            3 => drop(std::time::Instant::now()),
            4 => drop(std::time::SystemTime::now()),
            5 => {
                let file = std::fs::read("/etc/passwd").is_err();
                let socket = std::net::TcpStream::connect("127.0.0.1:1").is_err();
                let program = std::process::Command::new("true").status().is_err();
                let variable = std::env::var("PATH").is_err();
                info!("refused {file} {socket} {program} {variable}, {} arguments", std::env::args().count());
            }
            6 => std::process::exit(0),
            7 => std::process::abort(),
            8 => info!("{} names", (0..9).map(|n| (n, n)).collect::<std::collections::HashMap<u8, u8>>().len()),
            _ => server::sleep(1)?,
        }
        Ok(())
    }
}

rbdkit_filter_sdk::export!(Standard: reads);
"#;

/// Makes a project with this source and builds it. Returns its directory and what the tool says.
/// What is built stays below `target`, the standard library among it, so that only the first run
/// takes long.
fn build(name: &str, source: &str) -> (PathBuf, Output) {
    let place = root().join("target/template-rust");
    let (project, built) = (place.join(name), place.join("built"));
    let _ = std::fs::remove_dir_all(&project);
    std::fs::create_dir_all(&built).unwrap();
    let made = tool(&["new", name, "--dir", project.to_str().unwrap()]);
    assert!(made.status.success(), "{made:?}");
    std::os::unix::fs::symlink(&built, project.join("target")).unwrap();
    std::fs::copy(root().join("guest-filters/Cargo.lock"), project.join("Cargo.lock")).unwrap();
    std::fs::write(project.join("src/lib.rs"), source).unwrap();
    let output = tool(&["build", project.to_str().unwrap()]);
    (project, output)
}

#[test]
fn a_trait_that_export_does_not_name_fails_the_build_of_the_component() {
    let pwrite = "fn pwrite(&self, _: u64, _: u32, _: CommandFlags) -> Result<(), Errno> { Ok(()) }";
    let (_, output) = build("unnamed", &format!("{SOURCE}\nimpl Writes for Standard {{ {pwrite} }}"));
    let said = String::from_utf8_lossy(&output.stderr);
    let message = "`Standard` implements `Writes`, and export! does not name `writes`: pwrite would never be called";
    assert!(!output.status.success() && said.contains(message), "{said}");
}

#[test]
fn the_standard_library_does_in_a_filter_what_the_documentation_says() {
    let (project, output) = build("standard", SOURCE);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let server = Launch::new(["--wasm-filter"]).arg(project.join("standard.wasm")).args(["memory", "1M"]).start();
    let script = "h.connect_uri(uri)\n\
                  for n in range(10):\n    \
                      try:\n        h.pread(512, n * 512)\n        print(n, 'read')\n    \
                      except nbd.Error as error:\n        print(n, error.errno)";
    let answers = nbdsh(&server.uri(), script).ok();
    let answers: Vec<&str> = answers.lines().collect();
    let expected = ["0 read", "1 EIO", "2 EIO", "3 EIO", "4 EIO", "5 read", "6 EIO", "7 EIO", "8 read", "9 read"];
    assert_eq!(answers, expected);
    for line in [
        "info: standard: informed 1\n",
        "can't sleep\n",
        "failed to spawn thread",
        "time not implemented on this platform\n",
        "info: standard: refused true true true true, 0 arguments\n",
        "info: standard: 9 names\n",
    ] {
        server.wait_for_log(line);
    }
    assert!(!server.stderr().contains("printed on"), "{}", server.stderr());
}

/// Runs the tool beside the server under test. The first build takes long.
fn tool(arguments: &[&str]) -> Output {
    let mut command = Command::new(program().with_file_name("rbdkit-filter"));
    wait::output_within(Duration::from_secs(1200), command.args(arguments))
}
