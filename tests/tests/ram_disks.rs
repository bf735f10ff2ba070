//! The memory and the data plugin with real clients, beside nbdkit's.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use rbdkit_tests::server::program;
use rbdkit_tests::{Rng, Server, TempDir, seed, tool, wait};

/// Text that compresses well and in which no two lines are equal.
fn text(length: usize) -> Vec<u8> {
    let mut text = String::with_capacity(length + 64);
    for line in 0u64.. {
        if text.len() >= length {
            break;
        }
        writeln!(text, "line {line} of a text that is compressed, {}", line * 7919).expect("memory");
    }
    text.truncate(length);
    text.into_bytes()
}

fn utf8(path: &Path) -> &str {
    path.to_str().expect("a name in UTF-8")
}

#[test]
fn a_compressed_disk_takes_a_quarter_of_the_memory_and_gives_everything_back() {
    const SIZE: usize = 48 << 20;
    let dir = TempDir::new();
    let (disk, copy) = (dir.file("disk", &text(SIZE)), dir.join("copy"));
    let size = SIZE.to_string();
    // The most that a server may have grown by, or none if that does not matter.
    let growth = |allocator: &str, most: Option<u64>| {
        let server = Server::start(["memory", &size, allocator]);
        let before = server.resident();
        tool("nbdcopy", [utf8(&disk), &server.uri()]).ok();
        let growth = || server.resident().saturating_sub(before);
        if let Some(most) = most {
            // The buffers of the copy go back to the system within ten seconds.
            server.wait_until("the compressed disk takes a quarter", |_| growth() < most);
        }
        let growth = growth();
        tool("nbdcopy", [&server.uri(), utf8(&copy)]).ok();
        assert!(std::fs::read(&disk).ok() == std::fs::read(&copy).ok(), "{allocator}");
        // What is trimmed is a hole again.
        tool("qemu-io", ["-f", "raw", "-c", "discard 0 48M", &server.uri()]).ok();
        let map = tool("nbdinfo", ["--map", &server.uri()]).ok();
        assert!(map.contains("hole,zero") && !map.contains("data"), "{allocator}: {map}");
        growth
    };
    let plain = growth("allocator=sparse", None);
    growth("allocator=zstd", Some(plain / 4));
}

#[test]
fn both_servers_say_that_they_have_zstd() {
    for plugin in ["memory", "data"] {
        for server in [utf8(&program()), "nbdkit"] {
            let dump = tool(server, [plugin, "--dump-plugin"]).ok();
            assert!(dump.lines().any(|line| line == "zstd=yes"), "{server} {plugin}: {dump}");
        }
    }
}

/// Writes expressions of the data language that nbdkit 1.32 knows too.
struct Language {
    rng: Rng,
    /// A file of [`FILE`] bytes.
    file: PathBuf,
    names: u32,
}

const FILE: u64 = 700;

/// The variables that expressions may use, and the length of each.
const VARIABLES: [(&str, &str, u64); 2] = [("v", "1 2 \"xyz\"", 5), ("w", "( 9 $v ) * 2", 12)];

/// The names that an expression may use, and the length of each.
type Names = Vec<(String, u64)>;

impl Language {
    fn below(&mut self, limit: u64) -> u64 {
        self.rng.below(limit)
    }

    /// A number in one of its three notations.
    fn number(&mut self, number: u64) -> String {
        match self.below(3) {
            0 => format!("{number}"),
            1 => format!("{number:#x}"),
            _ if number == 0 => "0".into(),
            _ => format!("0{number:o}"),
        }
    }

    /// An expression and its length.
    fn expression(&mut self, depth: u32, names: &Names) -> (String, u64) {
        let (mut text, mut length) = self.plain(depth, names);
        for _ in 0..self.below(3) {
            if self.below(2) == 0 {
                let times = self.below(4);
                let times = if length * times > 4000 { 1 } else { times };
                let _ = write!(text, " * {}", self.number(times));
                length *= times;
            } else {
                let from = self.below(length + 1);
                let to = from + self.below(length - from + 1);
                let (text_from, text_to) = (self.number(from), self.number(to));
                let (has_from, has_to) = (self.below(3) > 0, self.below(3) > 0);
                let (from, to) = (if has_from { from } else { 0 }, if has_to { to } else { length });
                let (text_from, text_to) =
                    (if has_from { &text_from } else { "" }, if has_to { text_to.as_str() } else { "" });
                let _ = write!(text, " [{text_from}:{text_to}]");
                length = to - from;
            }
        }
        (text, length)
    }

    fn plain(&mut self, depth: u32, names: &Names) -> (String, u64) {
        match self.below(if depth > 0 { 11 } else { 8 }) {
            0 | 1 => {
                let byte = self.below(256);
                (self.number(byte), 1)
            }
            2 => {
                let count = self.below(6);
                let pieces = ["a", "\\n", "\\\\", "\\\"", "\\x00", "\\xfe", " ", "(", "#", "é"];
                let chosen: Vec<&str> = (0..count).map(|_| pieces[self.below(10) as usize]).collect();
                let length = chosen.iter().map(|piece| if *piece == "é" { 2 } else { 1 }).sum();
                (format!("\"{}\"", chosen.concat()), length)
            }
            3 => {
                let bits = 16 << self.below(3);
                let end = if self.below(2) == 0 { "le" } else { "be" };
                let value = self.rng.next_u64() >> (64 - bits);
                (format!("{end}{bits}:{}", self.number(value)), bits / 8)
            }
            4 if !names.is_empty() => {
                let (name, length) = &names[self.below(names.len() as u64) as usize];
                (format!("\\{name}"), *length)
            }
            5 => (format!("<{}", self.file.display()), FILE),
            // Two of them: nbdkit 1.32 loses the output of one script if an open slice follows.
            6 => ("( <( printf 'a(b)c' ) <( echo d ) )".into(), 7),
            7 => {
                let (name, _, length) = VARIABLES[self.below(2) as usize];
                (format!("${name}"), length)
            }
            8.. => {
                let (text, length) = self.sequence(depth - 1, names);
                (format!("( {text} )"), length)
            }
            _ => ("0".into(), 1),
        }
    }

    /// Expressions one after the other, and their length.
    fn sequence(&mut self, depth: u32, names: &Names) -> (String, u64) {
        let mut names = names.clone();
        let (mut at, mut length) = (0, 0);
        let mut text = String::new();
        for _ in 0..1 + self.below(5) {
            match self.below(10) {
                0 => {
                    at = self.below(300);
                    let _ = write!(text, "@{} ", self.number(at));
                }
                1 => {
                    let by = self.below(40);
                    at += by;
                    let _ = write!(text, "@+{} ", self.number(by));
                }
                2 => {
                    let by = self.below(at + 1);
                    at -= by;
                    let _ = write!(text, "@-{} ", self.number(by));
                }
                3 => {
                    let alignment = 1 << self.below(7);
                    at = at.next_multiple_of(alignment);
                    let _ = write!(text, "@^{} ", self.number(alignment));
                }
                4 => text.push_str("# a comment ) \" (\n"),
                5 => {
                    let (value, value_length) = self.expression(depth, &names);
                    self.names += 1;
                    let name = format!("n-{}_x", self.names);
                    let _ = write!(text, "{value} -> \\{name} ");
                    names.push((name, value_length));
                }
                _ => {
                    let (value, value_length) = self.expression(depth, &names);
                    let _ = write!(text, "{value} ");
                    at += value_length;
                }
            }
            length = length.max(at);
        }
        (text, length)
    }
}

/// What a server makes of a description.
fn served(server: &Path, description: &str) -> Vec<u8> {
    let mut command = Command::new(server);
    command.args(["-U", "-", "data", description, "--run", "nbdcopy \"$uri\" -"]);
    command.args(VARIABLES.map(|(name, value, _)| format!("{name}={value}")));
    let output = wait::output(&mut command);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {description}\n{errors}", server.display());
    output.stdout
}

/// Eight disks with forty expressions each, because most of the time goes into starting servers.
#[test]
fn random_descriptions_mean_the_same_to_both_servers() {
    let seed = seed();
    println!("seed {seed}");
    let dir = TempDir::new();
    let mut rng = Rng::new(seed);
    let file = dir.file("file", &rng.bytes(FILE as usize));
    let mut language = Language { rng, file, names: 0 };
    for _ in 0..8 {
        let (mut description, mut length) = ("7 ".to_string(), 1);
        for _ in 0..40 {
            let (text, text_length) = language.sequence(3, &Names::new());
            let _ = writeln!(description, "( {text} )");
            length += text_length;
        }
        let (ours, theirs) = (served(&program(), &description), served(Path::new("nbdkit"), &description));
        let differ = ours.iter().zip(&theirs).position(|(ours, theirs)| ours != theirs);
        let lengths = (ours.len(), theirs.len(), length as usize);
        assert!(ours == theirs && ours.len() == length as usize, "{lengths:?} {differ:?}: {description}");
    }
}
