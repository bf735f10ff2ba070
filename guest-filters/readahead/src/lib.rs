//! Reads ahead of a client that reads on and on: the layer below is asked to cache what will be read next, while this read is served.
#![deny(unsafe_code)]

mod window;

use rbdkit_filter_sdk::prelude::*;
use slots::Slot;
use window::Window;

/// The connection's window in three words, and in the last one the export's size plus one, or [`OFF`], or 0 before the first read.
const WINDOW: Slot = Slot { scope: Scope::Connection, index: 0 };

/// Nothing below can cache.
const OFF: u64 = u64::MAX;

/// The filter.
pub struct Readahead;

impl Filter for Readahead {
    fn describe() -> Description {
        Description::new("readahead", env!("CARGO_PKG_VERSION"), "prefetches what a client reads next")
            .help("Works if the plugin, or a filter after this one, can cache: use --filter=readahead --filter=cache.")
            .thread_model(ThreadModel::Parallel)
            .transparent()
    }

    fn configure(_params: &Params) -> Result<Self, String> {
        Ok(Readahead)
    }
}

impl Features for Readahead {
    fn can(&self, below: Capabilities) -> Result<Capabilities, Errno> {
        // Emulated caching is reading into nowhere: everything would be fetched twice.
        if below.cache != Support::Native {
            log::warn(
                "nothing below can cache, so that nothing is read ahead: add --filter=cache after --filter=readahead",
            );
        }
        Ok(below)
    }
}

/// The export's size plus one, or [`OFF`].
fn learn() -> Result<u64, Errno> {
    if next::can()?.cache != Support::Native {
        return Ok(OFF);
    }
    // A size is at most 2^63 - 1.
    Ok(next::get_size()? + 1)
}

/// Moves the window, and asks for what is to be fetched.
fn read_ahead(offset: u64, length: u32) -> Result<(), Errno> {
    let old = WINDOW.get();
    let mark = if old.d == 0 { learn()? } else { old.d };
    if mark == OFF {
        if old.d == 0 {
            WINDOW.replace(old, [0, 0, 0, OFF]);
        }
        return Ok(());
    }
    let window = Window::unpack([old.a, old.b, old.c]);
    let (moved, fetch) = window.read(offset, length.into(), mark - 1);
    if moved == window && old.d != 0 {
        return Ok(());
    }
    // If another read of the connection moved the window meanwhile, then that read asks for what is needed.
    let [a, b, c] = moved.pack();
    if !WINDOW.replace(old, [a, b, c, mark]) {
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
        // Advisory: what goes wrong with it must not fail the read.
        let _ = read_ahead(offset, length);
        next::pread(offset, length, PAYLOAD, 0)
    }
}

rbdkit_filter_sdk::export!(Readahead: features, reads);
