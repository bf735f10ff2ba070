//! The clients, fio's nbd engine and nbdcopy, against a server that is ready, and their results.

use std::path::{Path, PathBuf};
use std::time::Instant;

use rbdkit_tests::{Rng, Server, TempDir, tool};
use serde_json::Value;

use crate::cases::{Case, Job, Plugin, Program, Stack};
use crate::machine::Busy;
use crate::results::Sample;
use crate::servers::{self, Programs, cpu_seconds, cpu_seconds_here};

/// The size of the disk in bytes: it fits into the page cache of any machine, and a cache filter
/// has enough to do.
const SIZE: u64 = 256 << 20;
/// The size of the disk that nbdcopy copies, in bytes.
const COPY_SIZE: u64 = 1 << 30;
/// The size of nbdcopy's requests in bytes, by default.
const COPY_REQUEST: u64 = 256 << 10;

/// The disks that are served and copied.
pub struct Images {
    _dir: TempDir,
    disk: PathBuf,
    /// Encrypted, if a case needs it.
    encrypted: PathBuf,
    source: PathBuf,
    target: PathBuf,
    /// The directory of certificates, if a case needs it.
    certificates: PathBuf,
}

impl Images {
    /// Makes files without holes in `TMPDIR`.
    ///
    /// # Errors
    /// If the files cannot be made.
    pub fn make(cases: &[Case]) -> std::io::Result<Images> {
        let dir = TempDir::new();
        let (disk, source, target) = (dir.join("disk.img"), dir.join("source.img"), dir.join("target.img"));
        fill(&disk, SIZE)?;
        let encrypted = dir.join("encrypted.img");
        if cases.iter().any(|case| case.stack == Stack::Luks) {
            encrypt(&dir, &encrypted)?;
        }
        let certificates = dir.join("certificates");
        if cases.iter().any(|case| case.stack == Stack::Tls) {
            certify(&certificates)?;
        }
        if cases.iter().any(|case| case.job.is_copy()) {
            fill(&source, COPY_SIZE)?;
            fill(&target, COPY_SIZE)?;
        }
        Ok(Images { _dir: dir, disk, encrypted, source, target, certificates })
    }

    /// The file and the size that are served for a case.
    fn served(&self, case: &Case) -> (&Path, u64) {
        match case.job {
            Job::Fio { .. } if case.stack == Stack::Luks => (&self.encrypted, SIZE),
            Job::Fio { .. } => (&self.disk, SIZE),
            Job::CopyOut => (&self.source, COPY_SIZE),
            Job::CopyIn => (&self.target, COPY_SIZE),
        }
    }
}

/// Fills a file with random bytes, so that nothing can leave out holes or zeroes. The bytes are
/// synced to the disk at the end, so that writing them does not disturb the measurements.
fn fill(path: &Path, size: u64) -> std::io::Result<()> {
    use std::io::Write;
    let mut file = std::fs::File::create(path)?;
    let mut rng = Rng::new(size);
    for _ in 0..size >> 20 {
        file.write_all(&rng.bytes(1 << 20))?;
    }
    file.sync_all()
}

/// Makes a disk of LUKS1 with [`SIZE`] bytes of data. Its data is random, and so is what it
/// decrypts to. The passphrase is `x`.
fn encrypt(dir: &TempDir, disk: &Path) -> std::io::Result<()> {
    // The header of LUKS1 with a key of 512 bits, and the alignment of the data.
    fill(disk, SIZE + (2 << 20))?;
    let (pass, disk) = (dir.file("pass", b"x"), text(disk).map_err(std::io::Error::other)?);
    let pass = text(&pass).map_err(std::io::Error::other)?;
    let format = ["luksFormat", "-q", "--type", "luks1", "--pbkdf-force-iterations", "1000", "--align-payload", "4096"];
    let more = ["--cipher", "aes-xts-plain64", "--key-size", "512", "--key-file", pass, disk];
    run("/sbin/cryptsetup", &[&format[..], &more].concat()).map(drop).map_err(std::io::Error::other)
}

/// Makes an authority and a certificate for the server, as nbdkit's instructions have it.
fn certify(directory: &Path) -> std::io::Result<()> {
    std::fs::create_dir(directory)?;
    let path = |name: &str| directory.join(name).display().to_string();
    let certtool = |arguments: &[String]| run("certtool", arguments).map(drop).map_err(std::io::Error::other);
    for (name, template) in [
        ("ca", "cn = CA\nca\ncert_signing_key\n"),
        ("server", "cn = localhost\ndns_name = localhost\ntls_www_server\nencryption_key\nsigning_key\n"),
    ] {
        let file = |kind: &str| path(&format!("{name}{kind}"));
        std::fs::write(file(".info"), template)?;
        certtool(&["--generate-privkey".to_owned(), format!("--outfile={}", file("-key.pem"))])?;
        let mut arguments = vec![
            format!("--load-privkey={}", file("-key.pem")),
            format!("--template={}", file(".info")),
            format!("--outfile={}", file("-cert.pem")),
        ];
        match name {
            "ca" => arguments.push("--generate-self-signed".to_owned()),
            _ => arguments.extend([
                "--generate-certificate".to_owned(),
                format!("--load-ca-privkey={}", path("ca-key.pem")),
                format!("--load-ca-certificate={}", path("ca-cert.pem")),
            ]),
        }
        certtool(&arguments)?;
    }
    Ok(())
}

/// The URI of a server for a case.
fn uri(server: &Server, case: &Case) -> String {
    match case.stack {
        Stack::Tls => {
            // fio does not let libnbd read files that a URI names, so it cannot verify the server.
            format!("nbds+unix:///?socket={}&tls-verify-peer=false", server.socket().display())
        }
        _ => server.uri(),
    }
}

/// Runs a case's job against a program for this many seconds.
///
/// # Errors
/// What failed.
pub fn measure(
    programs: &Programs,
    program: Program,
    case: &Case,
    images: &Images,
    seconds: u64,
) -> Result<Sample, String> {
    let (image, size) = images.served(case);
    let server = servers::start(programs, program, case, (image, size), &images.certificates)?;
    let uri = uri(&server, case);
    prepare(&uri, program, case, image)?;
    let (busy, started) = (Busy::start(), Instant::now());
    let (before, here) = (cpu_seconds(server.pid())?, cpu_seconds_here()?);
    let mut done = match case.job {
        Job::Fio { pattern, block, depth, connections } => {
            let text = run("fio", &fio(&uri, pattern, block, depth, connections, seconds))?;
            parse(&text, case.job).ok_or_else(|| format!("not what fio says: {text}"))?
        }
        Job::CopyOut => copies(&uri, "null:", seconds)?,
        Job::CopyIn => copies(text(&images.source)?, &uri, seconds)?,
    };
    let cpu = cpu_seconds(server.pid())? - before;
    done.sample.cpu = cpu / (done.requests / 1e6);
    let known = (cpu + cpu_seconds_here()? - here) / started.elapsed().as_secs_f64();
    done.sample.others = busy.and_then(|busy| busy.others(known)).unwrap_or(0.0);
    done.sample.peak = server.proc_status("VmHWM:") as f64 / 1024.0;
    Ok(done.sample)
}

/// Writes memory and fills the cache. Untouched memory and an empty cache would measure something
/// else.
fn prepare(uri: &str, program: Program, case: &Case, image: &Path) -> Result<(), String> {
    if case.plugin != Plugin::File && program != Program::Bare && case.job != Job::CopyIn {
        copy(text(image)?, uri)?;
    }
    if case.stack == Stack::WarmCache {
        copy(uri, "null:")?;
    }
    Ok(())
}

fn text(path: &Path) -> Result<&str, String> {
    path.to_str().ok_or_else(|| format!("{} is not UTF-8", path.display()))
}

fn run<T: AsRef<std::ffi::OsStr>>(program: &str, arguments: &[T]) -> Result<String, String> {
    let finished = tool(program, arguments);
    match finished.code {
        0 => Ok(finished.stdout),
        code => Err(format!("{program} failed ({code}): {}{}", finished.stdout, finished.stderr)),
    }
}

fn copy(from: &str, to: &str) -> Result<(), String> {
    run("nbdcopy", &["--no-extents", from, to]).map(drop)
}

/// A sample without the figures of the server's process, and the number of requests.
struct Done {
    sample: Sample,
    requests: f64,
}

/// Makes at least one copy, and more until the time is over.
fn copies(from: &str, to: &str, seconds: u64) -> Result<Done, String> {
    let started = Instant::now();
    let mut copied = 0;
    while copied == 0 || started.elapsed().as_secs() < seconds {
        copy(from, to)?;
        copied += COPY_SIZE;
    }
    let rate = copied as f64 / f64::from(1 << 20) / started.elapsed().as_secs_f64();
    Ok(Done { sample: Sample { rate, ..Sample::default() }, requests: (copied / COPY_REQUEST) as f64 })
}

fn fio(uri: &str, pattern: &str, block: &str, depth: u32, connections: u32, seconds: u64) -> Vec<String> {
    vec![
        "--name=bench".to_owned(),
        "--ioengine=nbd".to_owned(),
        format!("--uri={uri}"),
        format!("--rw={pattern}"),
        format!("--bs={block}"),
        format!("--iodepth={depth}"),
        format!("--numjobs={connections}"),
        "--group_reporting".to_owned(),
        format!("--size={SIZE}"),
        format!("--runtime={seconds}"),
        // Without a ramp, whose requests would count as the server's work and not as fio's.
        "--time_based".to_owned(),
        "--randrepeat=1".to_owned(),
        "--norandommap".to_owned(),
        "--output-format=json".to_owned(),
    ]
}

/// Reads fio's JSON, in front of which may be other output. `None` if a needed number is missing.
fn parse(text: &str, job: Job) -> Option<Done> {
    let json: Value = serde_json::from_str(&text[text.find('{')?..]).ok()?;
    let jobs = json.get("jobs")?.as_array()?;
    let [result] = &jobs[..] else { return None };
    if result.get("error")?.as_i64()? != 0 {
        return None;
    }
    let result = result.get(if job.writes() { "write" } else { "read" })?;
    let number = |key: &str| result.get(key)?.as_f64();
    let microseconds =
        |percentile: &str| Some(result.get("clat_ns")?.get("percentile")?.get(percentile)?.as_f64()? / 1e3);
    let rate = if job.in_bytes() { number("bw_bytes")? / f64::from(1 << 20) } else { number("iops")? };
    let requests = number("total_ios")?;
    let (p50, p99) = (microseconds("50.000000")?, microseconds("99.000000")?);
    let sample = Sample { rate, p50, p99, ..Sample::default() };
    (rate > 0.0 && requests > 0.0).then_some(Done { sample, requests })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAYS: &str = r#"fio: connected to NBD server
{
  "fio version" : "fio-3.33",
  "jobs" : [ {
    "jobname" : "bench", "error" : ERROR,
    "read" : {
      "bw_bytes" : 419430400, "iops" : 102400.5, "total_ios" : 204801,
      "clat_ns" : { "percentile" : { "50.000000" : 251500, "99.000000" : 1892352 } }
    },
    "write" : { "bw_bytes" : 0, "iops" : 0.0, "total_ios" : 0, "clat_ns" : { "min" : 0 } }
  } ]
}"#;

    fn job(pattern: &'static str) -> Job {
        Job::Fio { pattern, block: "4k", depth: 32, connections: 1 }
    }

    #[test]
    fn a_random_job_is_told_in_operations_and_a_sequential_one_in_bytes() {
        let says = SAYS.replace("ERROR", "0");
        let done = parse(&says, job("randread")).unwrap();
        assert_eq!((done.sample.rate, done.sample.p50, done.sample.p99), (102_400.5, 251.5, 1892.352));
        assert_eq!(done.requests, 204_801.0);
        assert_eq!(parse(&says, job("read")).unwrap().sample.rate, 400.0);
    }

    #[test]
    fn a_job_that_failed_or_did_nothing_gives_no_figures() {
        assert!(parse(&SAYS.replace("ERROR", "5"), job("randread")).is_none());
        assert!(parse(&SAYS.replace("ERROR", "0"), job("randwrite")).is_none(), "no percentiles of what was not done");
        assert!(parse("fio: no such engine", job("randread")).is_none());
        assert!(parse("{ \"jobs\" : [] }", job("randread")).is_none());
        assert!(parse("{", job("randread")).is_none());
    }
}
