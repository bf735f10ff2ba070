//! The whole disk, which the crowd's connections share.

use std::collections::BTreeMap;
use std::path::Path;

use super::crowd::{Crowd, Tally};
use super::stripe::{Known, Stripe};
use super::worker::Worker;
use crate::raw::{Client, error};
use crate::server::is_nbdkit;
use crate::wait::Deadline;
use crate::{Rng, TempDir};

/// The model of a whole disk.
pub struct Disk {
    stripes: Vec<Stripe>,
    size: u64,
}

impl Disk {
    /// A disk with these bytes, in stripes of `stripe` bytes.
    pub fn new(content: &[u8], stripe: u64) -> Disk {
        let stripes = content.chunks(stripe as usize).enumerate().map(|(nth, bytes)| Stripe {
            start: nth as u64 * stripe,
            bytes: bytes.to_vec(),
            known: vec![Known::Value; bytes.len()],
        });
        Disk { stripes: stripes.collect(), size: content.len() as u64 }
    }

    /// Cuts the same disk into stripes of another length.
    pub fn cut(&mut self, stripe: u64) {
        let bytes: Vec<u8> = self.stripes.iter().flat_map(|part| part.bytes.iter().copied()).collect();
        let known: Vec<Known> = self.stripes.iter().flat_map(|part| part.known.iter().copied()).collect();
        let parts = bytes.chunks(stripe as usize).zip(known.chunks(stripe as usize)).enumerate();
        let parts = parts.map(|(nth, (bytes, known))| Stripe {
            start: nth as u64 * stripe,
            bytes: bytes.to_vec(),
            known: known.to_vec(),
        });
        self.stripes = parts.collect();
    }

    /// Compares the model with bytes that came from elsewhere: the file below, another connection.
    ///
    /// # Panics
    /// With the first byte that differs.
    pub fn compare(&self, what: &str, data: &[u8]) {
        assert_eq!(data.len() as u64, self.size, "{what}: the size");
        for stripe in &self.stripes {
            if let Some(difference) = stripe.difference(0, data) {
                panic!("{what}: {difference}");
            }
        }
    }

    /// Compares the model with what a new connection reads. With `retry`, reads that fail with EIO
    /// are tried again.
    pub fn compare_with(&self, what: &str, client: &mut Client, retry: bool) {
        assert_eq!(client.size, self.size, "{what}: the size");
        let mut data = Vec::with_capacity(self.size as usize);
        let deadline = Deadline::new();
        while (data.len() as u64) < self.size {
            let length = (self.size - data.len() as u64).min(256 << 10) as u32;
            match client.read(data.len() as u64, length) {
                Ok(bytes) => data.extend_from_slice(&bytes),
                Err(error::EIO) if retry => deadline.check("the whole disk is read, some reads again"),
                Err(error) => panic!("{what}: reading {length} at {} failed with {error}", data.len()),
            }
        }
        self.compare(what, &data);
    }

    /// Runs the crowd's clients against the server and compares every reply.
    ///
    /// # Panics
    /// With the first reply that contradicts the model.
    pub fn exercise(&mut self, socket: &Path, crowd: &Crowd) -> Tally {
        let mut rng = Rng::new(crowd.seed);
        let mut clients: Vec<Client> = (0..crowd.connections).map(|nth| connect(socket, nth)).collect();
        let mut tally = Tally::default();
        let each = crowd.operations.div_ceil(crowd.phases * crowd.connections as u64);
        for phase in 0..crowd.phases {
            // In each phase one connection is new, so that what belongs to the disk cannot be kept
            // with a connection.
            let renewed = (phase as usize) % crowd.connections;
            let old = std::mem::replace(&mut clients[renewed], connect(socket, renewed));
            old.disconnect();
            let count = self.stripes.len();
            let mut workers: Vec<Worker> =
                clients.drain(..).map(|client| Worker::new(client, count, self.size, rng.fork(), crowd)).collect();
            for (nth, stripe) in self.stripes.drain(..).enumerate() {
                let owner = (nth + phase as usize) % crowd.connections;
                workers[owner].give(nth, stripe);
            }
            std::thread::scope(|scope| {
                let running: Vec<_> = workers.iter_mut().map(|worker| scope.spawn(move || worker.run(each))).collect();
                let failed = running.into_iter().filter_map(|thread| thread.join().err()).next();
                if let Some(panic) = failed {
                    std::panic::resume_unwind(panic);
                }
            });
            let mut stripes = BTreeMap::new();
            for worker in workers {
                let (client, done, owned) = worker.finish();
                stripes.extend(owned);
                tally.add(done);
                clients.push(client);
            }
            assert_eq!(stripes.len(), count, "each stripe has one owner");
            self.stripes = stripes.into_values().collect();
        }
        clients.into_iter().for_each(Client::disconnect);
        tally
    }
}

/// A connection of a crowd. Every other one has extended headers, if the server has them.
fn connect(socket: &Path, nth: usize) -> Client {
    match nth % 2 == 1 && !is_nbdkit() {
        true => Client::extended(socket),
        false => Client::connect(socket),
    }
}

/// A disk's first content: runs of random bytes and of zeroes, so that block status has something
/// to report.
pub fn content(seed: u64, size: usize) -> Vec<u8> {
    let mut rng = Rng::new(seed ^ 0x00c0_ffee);
    let mut bytes = vec![0; size];
    let mut at = 0;
    while at < size {
        let run = (1 + rng.below(300_000) as usize).min(size - at);
        if rng.chance(50) {
            bytes[at..at + run].copy_from_slice(&rng.bytes(run));
        }
        at += run;
    }
    bytes
}

/// Makes a file with this content. Blocks of zeroes are holes.
pub fn sparse(dir: &TempDir, name: &str, content: &[u8]) -> std::path::PathBuf {
    use std::os::unix::fs::FileExt;
    let path = dir.sparse_file(name, content.len() as u64);
    let file = std::fs::File::options().write(true).open(&path).expect("a file of the test");
    for (nth, block) in content.chunks(4096).enumerate() {
        if block.iter().any(|&byte| byte != 0) {
            file.write_all_at(block, nth as u64 * 4096).expect("a file of the test");
        }
    }
    path
}
