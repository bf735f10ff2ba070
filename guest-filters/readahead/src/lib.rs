//! Prefetches data ahead of a client that reads sequentially: while a read is served, the host's
//! workers make the layer below cache what will be read next.

mod window;

use rbdkit_filter_sdk::prelude::*;
use slots::Slot;
use window::Window;

/// Words a to c: the connection's window. Word d: the export's size plus one, or [`DISABLED`], or 0
/// before the first read.
const WINDOW: Slot = Slot { scope: Scope::Connection, index: 0 };

/// The value of word d if nothing below can cache.
const DISABLED: u64 = u64::MAX;

/// The filter.
pub struct Readahead;

impl Filter for Readahead {
    type Params = ();

    fn describe() -> Description {
        Description::new("readahead", env!("CARGO_PKG_VERSION"), "prefetches what a client reads next")
            .help("The plugin or a filter after this one must be able to cache: use --filter=readahead --filter=cache.")
            .thread_model(ThreadModel::Parallel)
            .transparent()
    }

    fn configure(_: ()) -> Result<Self, String> {
        Ok(Readahead)
    }
}

impl Features for Readahead {
    fn can(&self, below: Capabilities) -> Result<Capabilities, Errno> {
        // Emulated caching reads the data and drops it, so everything would be fetched twice.
        if below.cache != Support::Native {
            warn!("nothing below can cache, so nothing is prefetched: add --filter=cache after --filter=readahead");
        }
        Ok(below)
    }
}

/// The export's size plus one, or [`DISABLED`].
fn export_size_word() -> Result<u64, Errno> {
    if next::can()?.cache != Support::Native {
        return Ok(DISABLED);
    }
    // A size is at most 2^63 - 1, so the sum is never DISABLED.
    Ok(next::get_size()? + 1)
}

/// Moves the window, and asks the host for what is to be prefetched.
fn read_ahead(offset: u64, length: u32) -> Result<(), Errno> {
    let old = WINDOW.get();
    let size_word = if old.d == 0 { export_size_word()? } else { old.d };
    if size_word == DISABLED {
        if old.d == 0 {
            WINDOW.replace(old, [0, 0, 0, DISABLED]);
        }
        return Ok(());
    }
    let window = Window::unpack([old.a, old.b, old.c]);
    let (moved, fetch) = window.read(offset, length.into(), size_word - 1);
    if moved == window && old.d != 0 {
        return Ok(());
    }
    // If another read of the connection moved the window meanwhile, that read asks for what is
    // needed.
    let [a, b, c] = moved.pack();
    if !WINDOW.replace(old, [a, b, c, size_word]) {
        return Ok(());
    }
    if let Some((from, length)) = fetch
        && !next::prefetch(from, length)
    {
        let now = WINDOW.get();
        let [a, b, c] = Window::unpack([now.a, now.b, now.c]).refused(from).pack();
        WINDOW.replace(now, [a, b, c, now.d]);
    }
    Ok(())
}

impl Reads for Readahead {
    fn pread(&self, offset: u64, length: u32, _flags: CommandFlags) -> Result<(), Errno> {
        // Advisory: an error here must not fail the read.
        let _ = read_ahead(offset, length);
        next::pread(offset, length, PAYLOAD, 0)
    }
}

rbdkit_filter_sdk::export!(Readahead: features, reads);

#[cfg(test)]
mod tests {
    use super::*;
    use rbdkit_filter_sdk::testing::{Disk, Host};

    #[test]
    fn sequential_reads_are_followed_by_prefetches_of_what_comes_next() {
        let host = Host::new(Disk::zeroes(8 << 20)).serve::<Readahead>(&[]).unwrap();
        let client = host.connect().unwrap();
        for n in 0..4 {
            client.pread(n * 65536, 65536).unwrap();
        }
        let calls = host.take_calls();
        assert!(calls.iter().any(|call| call.starts_with("prefetch ")), "{calls:?}");
    }

    #[test]
    fn nothing_is_prefetched_if_nothing_below_can_cache() {
        let disk = Disk::zeroes(8 << 20).can(|can| can.cache = Support::None);
        let host = Host::new(disk).serve::<Readahead>(&[]).unwrap();
        let client = host.connect().unwrap();
        (0..4).for_each(|n| drop(client.pread(n * 65536, 65536).unwrap()));
        assert!(host.take_calls().iter().all(|call| !call.starts_with("prefetch ")));
        assert!(host.take_log()[0].starts_with("warning: nothing below can cache"));
    }
}
