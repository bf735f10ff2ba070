//! What the tests of the decoders share.

pub mod dmg;
mod fuzz;
pub mod lvm;
pub mod vhdx;

use std::io::Write;
use std::ops::Range;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};

use rbdkit_filter_sdk::image::{Error, Part, Source};

pub use fuzz::{Rng, fuzz};

/// Data with runs, zeroes, text and noise, so that compression does something. The same for a seed.
pub fn sample(length: usize, seed: u64) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    let mut data = Vec::with_capacity(length + 4096);
    while data.len() < length {
        let run = 1 + rng.below(4096) as usize;
        match rng.below(4) {
            0 => data.extend(std::iter::repeat_n(0, run)),
            1 => data.extend(std::iter::repeat_n(rng.below(256) as u8, run)),
            2 => data.extend((0..run).map(|_| b"the quick brown fox"[rng.below(19) as usize])),
            _ => data.extend((0..run).map(|_| rng.below(256) as u8)),
        }
    }
    data.truncate(length);
    data
}

/// Runs a tool with `input` as its standard input, and returns its standard output.
///
/// # Panics
/// If it cannot be run, or fails.
pub fn piped(program: &str, args: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error} (make setup installs it)"));
    let mut stdin = child.stdin.take().expect("a pipe");
    let output = std::thread::scope(|scope| {
        scope.spawn(move || drop(stdin.write_all(input)));
        child.wait_with_output().expect("the tool's output")
    });
    assert!(output.status.success(), "{program} {args:?}: {}", output.status);
    output.stdout
}

/// Runs a tool on files.
///
/// # Panics
/// If it cannot be run, or fails.
pub fn run(program: &str, args: &[&str]) -> Vec<u8> {
    piped(program, args, &[])
}

/// A file in the seekable format of zstd: a frame for each `frame` bytes, and a table of them. The
/// tool makes the frames.
///
/// # Panics
/// If the tool cannot be run, or fails.
pub fn seekable_zstd(data: &[u8], frame: usize, args: &[&str], has_checksums: bool) -> Vec<u8> {
    let (mut file, mut entries) = (Vec::new(), Vec::new());
    for part in data.chunks(frame) {
        let packed = piped("zstd", args, part);
        entries.extend((packed.len() as u32).to_le_bytes());
        entries.extend((part.len() as u32).to_le_bytes());
        if has_checksums {
            entries.extend((twox_hash::XxHash64::oneshot(0, part) as u32).to_le_bytes());
        }
        file.extend(packed);
    }
    file.extend(0x184d_2a5e_u32.to_le_bytes());
    file.extend((entries.len() as u32 + 9).to_le_bytes());
    file.extend(entries);
    file.extend((data.len().div_ceil(frame) as u32).to_le_bytes());
    file.push(if has_checksums { 0x80 } else { 0 });
    file.extend(0x8f92_eab1_u32.to_le_bytes());
    file
}

/// A directory that is removed with its files when the value is dropped.
pub struct Dir(PathBuf);

impl Dir {
    /// Makes one. `name` says whose it is.
    ///
    /// # Panics
    /// If it cannot be made.
    #[allow(clippy::new_without_default, reason = "it makes a directory")]
    pub fn new(name: &str) -> Dir {
        // Tests run at once in one process.
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("rbdkit-formats-{name}-{}-{number}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).expect("a directory for the test");
        Dir(path)
    }

    /// The path of a file in it.
    pub fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("a path in UTF-8").to_string()
    }

    /// Writes a file and returns its path.
    pub fn file(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.path(name);
        std::fs::write(&path, bytes).expect("a file for the test");
        path
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A source from bytes.
pub fn source(bytes: &[u8]) -> Rc<dyn Source> {
    Rc::new(bytes.to_vec())
}

/// Everything that a source has.
///
/// # Errors
/// Those of the source.
pub fn read_all(source: &dyn Source) -> Result<Vec<u8>, Error> {
    rbdkit_filter_sdk::image::read(source, 0, source.size() as usize)
}

/// Cuts an image after each byte of `headers` and at a thousand other places. What `content` gives
/// of the rest has to be an error, or `expected`.
///
/// # Panics
/// If it is something else.
pub fn cut_anywhere(
    image: &[u8],
    headers: Range<usize>,
    expected: &[u8],
    content: impl Fn(Rc<dyn Source>) -> Result<Vec<u8>, Error>,
) {
    let whole = source(image);
    assert!(content(Rc::clone(&whole)).as_deref() == Ok(expected), "the whole image");
    for length in headers.chain((0..image.len()).step_by(image.len() / 1000 + 1)) {
        let cut = Part::new(Rc::clone(&whole), 0, length as u64).expect("a part of the image");
        if let Ok(bytes) = content(Rc::new(cut)) {
            assert!(bytes == expected, "cut after {length} bytes");
        }
    }
}
