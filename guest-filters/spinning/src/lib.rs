//! Delays requests as the seeks of a hard disk do.
//!
//! The positions of the arms are words of slots, one for each export. An arm moves for one request
//! at a time: a request holds the lock of its arm while the arm moves.

mod arm;

use std::time::Duration;

use arm::{Heads, SeekTimes, word};
use locks::{Held, Mode};
use rbdkit_filter_sdk::prelude::*;
use slots::Slot;

params! {
    /// The parameters.
    pub struct Settings {
        /// How many heads the disk has. Each serves an equal part of it.
        #[param(range = 1..=u32::MAX)]
        heads: u32 = 1,
        /// Whether each head moves on an arm of its own.
        separate_heads: bool = false,
        /// Time to move to the adjacent track.
        min_seek_time: Duration = Duration::from_millis(10),
        /// Time to move across half of the part of a head.
        half_seek_time: Duration = Duration::from_millis(200),
        /// Time to move across all of the part of a head.
        max_seek_time: Duration = Duration::from_millis(500),
    }
}

/// The filter.
pub struct Spinning {
    heads: Heads,
    times: SeekTimes,
}

impl Spinning {
    /// Moves the arm to a request, and waits as long as that takes.
    fn seek(&self, offset: u64, length: u64) -> Result<(), Errno> {
        let size = next::get_size()?;
        let to = self.heads.place(size, offset);
        let turn = Held::new(Scope::Exportname, to.arm.into(), 1, Mode::Exclusive)?;
        let (index, nth) = word(to.arm);
        let slot = Slot { scope: Scope::Exportname, index };
        let words = slot.get();
        let position = [words.a, words.b, words.c, words.d][nth];
        let time = self.times.seek(position.abs_diff(to.position), self.heads.part(size));
        if time > 0 {
            server::sleep(time)?;
        }
        let position = self.heads.after(size, to, length);
        loop {
            // Other arms may have moved, which share the slot.
            let old = slot.get();
            let mut new = [old.a, old.b, old.c, old.d];
            new[nth] = position;
            if slot.replace(old, new) {
                break;
            }
        }
        turn.release();
        Ok(())
    }
}

impl Filter for Spinning {
    type Params = Settings;

    fn describe() -> Description {
        Description::new("spinning", env!("CARGO_PKG_VERSION"), "delays requests as the seeks of a hard disk do")
            .help("A time is a number of seconds, or has a unit: 50ms.")
            .thread_model(ThreadModel::Parallel)
            .transparent()
    }

    fn configure(settings: Settings) -> Result<Self, String> {
        let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        Ok(Spinning {
            heads: Heads::new(settings.heads, settings.separate_heads)?,
            times: SeekTimes {
                min: ns(settings.min_seek_time),
                half: ns(settings.half_seek_time),
                max: ns(settings.max_seek_time),
            },
        })
    }
}

impl Features for Spinning {
    fn can(&self, below: Capabilities) -> Result<Capabilities, Errno> {
        Ok(Capabilities { rotational: true, ..below })
    }
}

impl Reads for Spinning {
    fn pread(&self, offset: u64, length: u32, _flags: CommandFlags) -> Result<(), Errno> {
        self.seek(offset, length.into())?;
        next::pread(offset, length, PAYLOAD, 0)
    }
}

impl Writes for Spinning {
    fn pwrite(&self, offset: u64, length: u32, flags: CommandFlags) -> Result<(), Errno> {
        self.seek(offset, length.into())?;
        next::pwrite(offset, length, PAYLOAD, 0, flags)
    }
}

impl Zeroes for Spinning {
    fn zero(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno> {
        self.seek(offset, length)?;
        next::zero(offset, length, flags)
    }
}

impl Caching for Spinning {
    fn cache(&self, offset: u64, length: u64) -> Result<(), Errno> {
        self.seek(offset, length)?;
        next::cache(offset, length)
    }
}

rbdkit_filter_sdk::export!(Spinning: features, reads, writes, zeroes, caching);

#[cfg(test)]
mod tests {
    use super::*;
    use rbdkit_filter_sdk::testing::{Disk, Host};

    #[test]
    fn a_request_waits_for_the_arm_and_what_follows_on_does_not() {
        let host = Host::new(Disk::pattern(8192)).serve::<Spinning>(&[]).unwrap();
        let client = host.connect().unwrap();
        assert!(client.can().rotational);
        host.take_calls();
        client.pread(0, 512).unwrap();
        client.pread(512, 3584).unwrap();
        client.pwrite(0, b"x", CommandFlags::empty()).unwrap();
        client.zero(4097, 512, CommandFlags::empty()).unwrap();
        let calls = ["pread 0 512", "pread 512 3584", "sleep 200000000", "pwrite 0 1", "sleep 200000000"];
        assert_eq!(host.take_calls(), [&calls[..], &["zero 4097 512"]].concat());
    }

    #[test]
    fn separate_heads_have_positions_of_their_own() {
        let words = ["heads=2", "separate-heads=true", "min-seek-time=1", "half-seek-time=1", "max-seek-time=1"];
        let host = Host::new(Disk::pattern(8192)).serve::<Spinning>(&words).unwrap();
        let client = host.connect().unwrap();
        client.pread(0, 512).unwrap();
        client.pread(4096, 512).unwrap();
        client.pread(512, 512).unwrap();
        assert_eq!(host.time(), 0, "each head stands at the start of its part, and goes on from there");
        client.pread(512, 512).unwrap();
        assert_eq!(host.time(), 1_000_000_000);
    }

    #[test]
    fn too_many_heads_are_refused_in_one_line() {
        let wrong = Host::new(Disk::pattern(512)).serve::<Spinning>(&["heads=65", "separate-heads=yes"]).err();
        assert_eq!(wrong.as_deref(), Some("spinning: heads=65: at most 64 heads can be separate"));
    }
}
