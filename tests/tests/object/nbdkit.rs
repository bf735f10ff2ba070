//! nbdkit's own S3 plugin, in both directions.

use std::path::PathBuf;

use rbdkit_tests::{Launch, Rng, Server, seed};

use crate::servers::Store;

const BLOCK: usize = 64 << 10;
const BLOCKS: usize = 8;

/// Debian's nbdkit with its plugin S3.
fn nbdkit(store: &Store) -> Server {
    let endpoint = format!("endpoint-url=http://127.0.0.1:{}", store.port);
    let disk = ["bucket=bucket", "key=disk", "size=512k", "object-size=64k", "access-key=a", "secret-key=s"];
    let launch = Launch::new(["S3"]).program(PathBuf::from("/usr/bin/nbdkit")).args(disk).arg(endpoint);
    launch.env("AWS_DEFAULT_REGION", "us-east-1").start()
}

fn rbdkit(store: &Store) -> Server {
    let endpoint = format!("endpoint-url=http://127.0.0.1:{}", store.port);
    let disk = ["bucket=bucket", "key=disk", "size=512k", "object-size=64k", "access-key=a", "secret-key=s"];
    Launch::new(["S3"]).args(disk).arg(endpoint).start()
}

#[test]
fn disks_of_nbdkit_open_here_and_ours_open_there() {
    let seed = seed();
    println!("RBDKIT_SEED={seed}");
    let store = Store::s3();
    let mut model = vec![0; BLOCKS * BLOCK];
    let mut rng = Rng::new(seed);
    for turn in 0..4 {
        let ours = turn % 2 == 1;
        let server = if ours { rbdkit(&store) } else { nbdkit(&store) };
        let mut client = server.client();
        let is = client.read(0, (BLOCKS * BLOCK) as u32).expect("a read");
        assert!(is == model, "turn {turn}: what the other one wrote differs");
        for _ in 0..6 {
            let block = rng.below(BLOCKS as u64) as usize;
            let bytes = rng.bytes(BLOCK);
            // nbdkit's plugin takes whole blocks only from clients that ask for its block sizes.
            client.write((block * BLOCK) as u64, &bytes).expect("a write");
            model[block * BLOCK..][..BLOCK].copy_from_slice(&bytes);
        }
        let (at, length) = (rng.below(7) as usize * BLOCK + 777, 1 + rng.below(BLOCK as u64) as usize);
        let bytes = rng.bytes(length);
        client.write(at as u64, &bytes).expect("a write of a part");
        model[at..][..length].copy_from_slice(&bytes);
        let hole = rng.below(BLOCKS as u64) as usize;
        client.zero((hole * BLOCK) as u64, BLOCK as u32, 0).expect("a zero");
        model[hole * BLOCK..][..BLOCK].fill(0);
        client.flush().expect("a flush");
        if ours {
            assert_eq!(store.get(&format!("disk/{hole:016x}")), None, "turn {turn}");
        }
        // nbdkit waits for its clients before it ends.
        client.disconnect();
        server.stop();
    }
}
