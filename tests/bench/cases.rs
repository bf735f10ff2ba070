//! The matrix: which program does which job with which plugin below which filters.

use std::fmt;

/// The programs that are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// The rbdkit of this tree.
    Rbdkit,
    /// Another build of rbdkit to compare with, if there is one.
    Before,
    Nbdkit,
    QemuThreads,
    QemuUring,
    /// The least that a server can do: `bare.rs`.
    Bare,
}

impl Program {
    /// The programs in the order of the tables.
    pub const ALL: [Program; 6] =
        [Program::Rbdkit, Program::Before, Program::Nbdkit, Program::QemuThreads, Program::QemuUring, Program::Bare];

    /// The name in tables and in `PROGRAMS`.
    pub fn name(self) -> &'static str {
        match self {
            Program::Rbdkit => "rbdkit",
            Program::Before => "before",
            Program::Nbdkit => "nbdkit",
            Program::QemuThreads => "qemu-threads",
            Program::QemuUring => "qemu-uring",
            Program::Bare => "bare",
        }
    }
}

/// The filters, the first nearest to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stack {
    Plain,
    /// This many filters that do nothing.
    Nofilter(u8),
    /// Readahead over a cache that keeps what it reads and has read the whole disk.
    WarmCache,
    Cow,
    /// A disk of LUKS1 with AES-XTS, whose data the filter decrypts.
    Luks,
    /// No filter, and clients use TLS with a certificate of the server.
    Tls,
}

impl Stack {
    pub fn filters(self) -> Vec<&'static str> {
        match self {
            Stack::Plain | Stack::Tls => vec![],
            Stack::Nofilter(count) => vec!["nofilter"; count.into()],
            Stack::WarmCache => vec!["readahead", "cache"],
            Stack::Cow => vec!["cow"],
            Stack::Luks => vec!["luks"],
        }
    }

    /// The parameters for the filters.
    pub fn parameters(self) -> &'static [&'static str] {
        match self {
            Stack::WarmCache => &["cache-on-read=true"],
            Stack::Luks => &["passphrase=x"],
            _ => &[],
        }
    }
}

impl fmt::Display for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stack::Plain => Ok(()),
            Stack::Nofilter(1) => write!(f, "nofilter, "),
            Stack::Nofilter(count) => write!(f, "nofilter x {count}, "),
            Stack::WarmCache => write!(f, "readahead + cache, "),
            Stack::Cow => write!(f, "cow, "),
            Stack::Luks => write!(f, "luks, "),
            Stack::Tls => write!(f, "TLS, "),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plugin {
    /// A file in the page cache. qemu-nbd serves the same file.
    File,
    /// A disk in memory, of which every byte was written.
    Memory,
    /// The same with nbdkit's own memory plugin. rbdkit loads its file as a foreign plugin.
    NbdkitMemory,
}

impl Plugin {
    pub fn name(self) -> &'static str {
        match self {
            Plugin::File => "file",
            Plugin::Memory => "memory",
            Plugin::NbdkitMemory => "nbdkit's memory plugin",
        }
    }
}

/// The job of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    /// fio with its name of the pattern, the size of a request, the requests in flight on each
    /// connection, and the number of connections.
    Fio { pattern: &'static str, block: &'static str, depth: u32, connections: u32 },
    /// nbdcopy of the whole disk to `null:`.
    CopyOut,
    /// nbdcopy of a file over the whole disk.
    CopyIn,
}

impl Job {
    pub fn writes(self) -> bool {
        matches!(self, Job::Fio { pattern: "write" | "randwrite", .. } | Job::CopyIn)
    }

    /// Whether the rate is in MiB/s, as for sequential jobs, or in operations a second, as for
    /// random ones.
    pub fn in_bytes(self) -> bool {
        matches!(self, Job::CopyOut | Job::CopyIn | Job::Fio { pattern: "read" | "write", .. })
    }

    pub fn is_copy(self) -> bool {
        matches!(self, Job::CopyOut | Job::CopyIn)
    }

    pub fn unit(self) -> &'static str {
        if self.in_bytes() { "MiB/s" } else { "op/s" }
    }
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Job::Fio { pattern, block, depth, connections: 1 } => write!(f, "{pattern} {block} depth {depth}"),
            Job::Fio { pattern, block, depth, connections } => {
                write!(f, "{pattern} {block} depth {depth} on {connections} connections")
            }
            Job::CopyOut => write!(f, "nbdcopy out"),
            Job::CopyIn => write!(f, "nbdcopy in"),
        }
    }
}

/// One row of the tables.
#[derive(Clone, Debug)]
pub struct Case {
    pub stack: Stack,
    pub plugin: Plugin,
    pub job: Job,
    pub programs: Vec<Program>,
}

impl Case {
    /// The name, which is unique in the matrix.
    pub fn name(&self) -> String {
        format!("{}{}: {}", self.stack, self.plugin.name(), self.job)
    }
}

const fn random_read(depth: u32) -> Job {
    Job::Fio { pattern: "randread", block: "4k", depth, connections: 1 }
}

const fn random_write(depth: u32) -> Job {
    Job::Fio { pattern: "randwrite", block: "4k", depth, connections: 1 }
}

const fn sequential(pattern: &'static str, block: &'static str) -> Job {
    Job::Fio { pattern, block, depth: 8, connections: 1 }
}

const fn connections(connections: u32) -> Job {
    Job::Fio { pattern: "randread", block: "4k", depth: 8, connections }
}

struct Matrix {
    quick: bool,
    cases: Vec<Case>,
}

impl Matrix {
    /// Adds a case with the programs of a full run and of a quick one, which may be none.
    fn add(&mut self, stack: Stack, plugin: Plugin, job: Job, full: &[Program], quick: &[Program]) {
        let programs = if self.quick { quick } else { full };
        if !programs.is_empty() {
            self.cases.push(Case { stack, plugin, job, programs: programs.to_vec() });
        }
    }
}

/// All cases, or the fewer ones of a quick run.
pub fn cases(quick: bool) -> Vec<Case> {
    use Program::{Bare, Nbdkit, QemuThreads, QemuUring, Rbdkit};
    const ALL: &[Program] = &[Rbdkit, Nbdkit, QemuThreads, QemuUring, Bare];
    const LIMIT: &[Program] = &[Rbdkit, Nbdkit, Bare];
    const PAIR: &[Program] = &[Rbdkit, Nbdkit];
    let mut matrix = Matrix { quick, cases: Vec::new() };
    let mut add = |stack, plugin, job, full, quick| matrix.add(stack, plugin, job, full, quick);

    for depth in [1, 32, 128] {
        add(Stack::Plain, Plugin::File, random_read(depth), ALL, LIMIT);
    }
    add(Stack::Plain, Plugin::File, random_write(1), LIMIT, &[]);
    add(Stack::Plain, Plugin::File, random_write(32), ALL, LIMIT);
    add(Stack::Plain, Plugin::File, random_write(128), LIMIT, &[]);
    add(Stack::Plain, Plugin::File, sequential("read", "64k"), &[Rbdkit, Nbdkit, QemuUring, Bare], &[]);
    add(Stack::Plain, Plugin::File, sequential("read", "256k"), ALL, &[Rbdkit, Nbdkit, QemuThreads]);
    add(Stack::Plain, Plugin::File, sequential("write", "256k"), ALL, &[]);
    for count in [1, 4] {
        add(Stack::Plain, Plugin::File, connections(count), &[Rbdkit, Nbdkit, QemuThreads, Bare], PAIR);
    }
    for job in [Job::CopyOut, Job::CopyIn] {
        add(Stack::Plain, Plugin::File, job, ALL, &[Rbdkit, Nbdkit, QemuThreads]);
    }

    for depth in [1, 32, 128] {
        add(Stack::Plain, Plugin::Memory, random_read(depth), LIMIT, LIMIT);
    }
    add(Stack::Plain, Plugin::Memory, random_write(1), PAIR, &[]);
    add(Stack::Plain, Plugin::Memory, random_write(32), LIMIT, PAIR);
    add(Stack::Plain, Plugin::Memory, random_write(128), PAIR, &[]);
    add(Stack::Plain, Plugin::Memory, sequential("read", "256k"), LIMIT, &[]);
    for job in [Job::CopyOut, Job::CopyIn] {
        add(Stack::Plain, Plugin::Memory, job, PAIR, &[]);
    }

    add(Stack::Nofilter(1), Plugin::File, random_read(32), PAIR, &[]);
    add(Stack::Nofilter(1), Plugin::File, random_write(32), PAIR, &[]);
    for count in [1, 5, 10] {
        add(Stack::Nofilter(count), Plugin::Memory, random_read(32), PAIR, if count == 5 { &[] } else { PAIR });
    }

    for stack in [Stack::WarmCache, Stack::Cow] {
        for depth in [1, 32] {
            add(stack, Plugin::File, random_read(depth), PAIR, PAIR);
            add(stack, Plugin::File, random_write(depth), PAIR, PAIR);
        }
        add(stack, Plugin::File, sequential("read", "256k"), PAIR, &[]);
        add(stack, Plugin::File, Job::CopyOut, PAIR, &[]);
    }
    add(Stack::Luks, Plugin::File, sequential("read", "256k"), PAIR, PAIR);
    add(Stack::Plain, Plugin::NbdkitMemory, random_read(32), PAIR, PAIR);
    for connections in [1, 4] {
        let job = Job::Fio { pattern: "read", block: "256k", depth: 8, connections };
        add(Stack::Tls, Plugin::Memory, job, PAIR, PAIR);
    }
    matrix.cases
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_say_what_is_done() {
        for quick in [false, true] {
            let names: Vec<String> = cases(quick).iter().map(Case::name).collect();
            assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
            assert!(names.contains(&"file: randread 4k depth 32".to_owned()));
            assert!(names.contains(&"nofilter x 10, memory: randread 4k depth 32".to_owned()));
            assert!(names.contains(&"readahead + cache, file: randwrite 4k depth 1".to_owned()));
        }
    }

    #[test]
    fn a_quick_run_measures_cases_of_the_full_one_with_some_of_its_programs() {
        let full = cases(false);
        for case in cases(true) {
            let same = full.iter().find(|other| other.name() == case.name());
            let same = same.unwrap_or_else(|| panic!("{} is in the quick run alone", case.name()));
            assert!(case.programs.iter().all(|program| same.programs.contains(program)), "{}", case.name());
        }
    }
}
