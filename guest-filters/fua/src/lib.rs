//! Changes how FUA and flush are handled.

mod mode;

use mode::{Fua, Mode, Offer};
use rbdkit_filter_sdk::prelude::*;

impl Choice for Mode {
    const CHOICES: &'static [(&'static str, Mode)] = &[
        ("none", Mode::None),
        ("emulate", Mode::Emulate),
        ("native", Mode::Native),
        ("force", Mode::Force),
        ("pass", Mode::Pass),
        ("discard", Mode::Discard),
    ];
}

params! {
    /// The parameters.
    pub struct Settings {
        /// What happens to FUA and flush.
        fuamode: Mode = Mode::None,
    }
}

/// The filter.
pub struct FuaFilter {
    mode: Mode,
}

impl FuaFilter {
    /// The flags with which a write goes down.
    fn flags(&self, flags: CommandFlags) -> CommandFlags {
        match self.mode.writes() {
            mode::Writes::AsAsked => flags,
            mode::Writes::Durable => flags | CommandFlags::FUA,
            mode::Writes::NotDurable => flags & !CommandFlags::FUA,
        }
    }
}

impl Filter for FuaFilter {
    type Params = Settings;

    fn describe() -> Description {
        Description::new("fua", env!("CARGO_PKG_VERSION"), "changes how FUA and flush are handled")
            .help("discard is unsafe: after a crash data is lost that a client believes to be safe.")
            .thread_model(ThreadModel::Parallel)
            .transparent()
    }

    fn configure(settings: Settings) -> Result<Self, String> {
        Ok(FuaFilter { mode: settings.fuamode })
    }
}

impl Features for FuaFilter {
    fn can(&self, below: Capabilities) -> Result<Capabilities, Errno> {
        if !below.write {
            return Ok(below);
        }
        let fua = match below.fua {
            Support::None => Fua::None,
            Support::Emulate => Fua::Emulate,
            Support::Native => Fua::Native,
        };
        let offer = self.mode.offer(Offer { flush: below.flush, fua }).map_err(|message| {
            error!("{message}");
            Errno::Einval
        })?;
        let fua = match offer.fua {
            Fua::None => Support::None,
            Fua::Emulate => Support::Emulate,
            Fua::Native => Support::Native,
        };
        Ok(Capabilities { flush: offer.flush, fua, ..below })
    }
}

impl Writes for FuaFilter {
    fn pwrite(&self, offset: u64, length: u32, flags: CommandFlags) -> Result<(), Errno> {
        next::pwrite(offset, length, PAYLOAD, 0, self.flags(flags))
    }
}

impl Flushes for FuaFilter {
    fn flush(&self) -> Result<(), Errno> {
        if self.mode.flushes() { next::flush() } else { Ok(()) }
    }
}

impl Trims for FuaFilter {
    fn trim(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno> {
        next::trim(offset, length, self.flags(flags))
    }
}

impl Zeroes for FuaFilter {
    fn zero(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno> {
        next::zero(offset, length, self.flags(flags))
    }
}

rbdkit_filter_sdk::export!(FuaFilter: features, writes, flushes, trims, zeroes);

#[cfg(test)]
mod tests {
    use super::*;
    use rbdkit_filter_sdk::testing::{Disk, Host};

    /// What goes down for a write with FUA, a write without, a trim, a zero request and a flush.
    fn calls(mode: &str) -> Vec<String> {
        let host = Host::new(Disk::zeroes(512)).serve::<FuaFilter>(&[&format!("fuamode={mode}")]).unwrap();
        let client = host.connect().unwrap();
        let (none, fua) = (CommandFlags::empty(), CommandFlags::FUA);
        host.take_calls();
        if client.can().fua != Support::None {
            client.pwrite(0, b"x", fua).unwrap();
        }
        client.pwrite(0, b"x", none).unwrap();
        client.trim(0, 1, none).unwrap();
        client.zero(0, 1, none).unwrap();
        client.flush().unwrap();
        host.take_calls()
    }

    #[test]
    fn each_mode_sends_down_what_it_says() {
        let plain = ["pwrite 0 1", "trim 0 1", "zero 0 1", "flush"];
        assert_eq!(calls("none"), plain);
        assert_eq!(calls("emulate"), [&["pwrite 0 1", "flush"][..], &plain].concat());
        assert_eq!(calls("native"), [&["pwrite 0 1 fua"][..], &plain].concat());
        assert_eq!(calls("pass"), [&["pwrite 0 1 fua"][..], &plain].concat());
        assert_eq!(calls("force"), ["pwrite 0 1 fua", "pwrite 0 1 fua", "trim 0 1 fua", "zero 0 1 fua"]);
        assert_eq!(calls("discard"), ["pwrite 0 1", "pwrite 0 1", "trim 0 1", "zero 0 1"]);
    }

    #[test]
    fn a_mode_that_the_layer_below_cannot_carry_fails_the_connection_and_says_why() {
        let disk = || Disk::zeroes(512).can(|can| (can.flush, can.fua) = (false, Support::None));
        let host = Host::new(disk()).serve::<FuaFilter>(&["fuamode=force"]).unwrap();
        assert_eq!(host.connect().err(), Some(Errno::Einval));
        assert_eq!(host.take_log(), ["error: fuamode=force: the layer below has no FUA"]);
        let host = Host::new(disk().read_only()).serve::<FuaFilter>(&["fuamode=force"]).unwrap();
        assert!(host.connect().is_ok(), "nothing is written there");
    }
}
