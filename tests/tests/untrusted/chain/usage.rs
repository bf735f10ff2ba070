//! What a server holds, before and after the hostile filters were used.

use rbdkit_tests::raw::cmd;
use rbdkit_tests::{Client, Server, TempDir};

/// The memory, threads and files of a server.
pub struct Usage {
    resident: u64,
    threads: u64,
    files: usize,
    temporary: usize,
}

impl Usage {
    pub fn of(server: &Server, dir: &TempDir) -> Usage {
        Usage {
            resident: server.resident(),
            threads: server.proc_status("Threads:"),
            files: server.open_files(),
            temporary: std::fs::read_dir(dir.path()).expect("the directory").count(),
        }
    }

    /// Waits until the server holds no more than this. Its idle threads end and its free memory is
    /// given back some seconds after the last request.
    pub fn is_back(&self, server: &Server, dir: &TempDir) {
        server.wait_until("its files are closed", |server| Usage::of(server, dir).files <= self.files);
        server.wait_until("its threads are gone", |server| Usage::of(server, dir).threads <= self.threads);
        let most = self.resident + self.resident / 10;
        server.wait_until("its memory is given back", |server| server.resident() <= most);
        let now = Usage::of(server, dir);
        println!("resident: {} KiB before, {} KiB after", self.resident >> 10, now.resident >> 10);
        assert_eq!(now.temporary, self.temporary, "temporary files");
    }
}

pub fn kinds(server: &Server) -> String {
    let kib = |key| server.proc_status(key);
    format!("{} KiB resident, of them {} of files", kib("VmRSS:"), kib("RssFile:"))
}

/// The offset at which [`serve_honestly`] reads and writes, in bytes.
pub const BURST_AT: u64 = 32 << 20;
pub const BURST: u32 = 4 << 20;

/// Sends a burst of requests of all sizes, several at once, as any client may.
pub fn serve_honestly(client: &mut Client) {
    for (length, count) in
        [(4 << 10, 128), (16 << 10, 128), (64 << 10, 64), (256 << 10, 16), (1 << 20, 4), (4 << 20, 1)]
    {
        let bytes = vec![7; length as usize];
        for nth in 0..count {
            client.submit(cmd::WRITE, 0, BURST_AT + u64::from(nth * length), length, &bytes).expect("a request");
        }
        for _ in 0..count {
            assert!(client.receive().expect("a reply").result.is_ok());
        }
        assert_eq!(client.read(BURST_AT, length), Ok(bytes));
    }
    assert!(client.call(cmd::BLOCK_STATUS, 0, BURST_AT, 32 << 20, &[]).result.is_ok());
}
