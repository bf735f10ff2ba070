//! Changes how zero requests are handled.

mod mode;

use buffer::Buffer;
use mode::{Action, FastMode, Modes, ZeroMode};
use rbdkit_filter_sdk::prelude::*;
use rbdkit_filter_shared::durable::Durable;

/// How many bytes of zeroes are written at once.
const PIECE: u64 = 1 << 20;

impl Choice for ZeroMode {
    const CHOICES: &'static [(&'static str, ZeroMode)] = &[
        ("none", ZeroMode::None),
        ("emulate", ZeroMode::Emulate),
        ("notrim", ZeroMode::Notrim),
        ("plugin", ZeroMode::Plugin),
    ];
}

impl Choice for FastMode {
    const CHOICES: &'static [(&'static str, FastMode)] = &[
        ("none", FastMode::None),
        ("slow", FastMode::Slow),
        ("ignore", FastMode::Ignore),
        ("default", FastMode::Default),
    ];
}

params! {
    /// The parameters.
    pub struct Settings {
        /// What happens to zero requests.
        zeromode: ZeroMode = ZeroMode::None,
        /// What happens to fast zero requests.
        fastzeromode: FastMode = FastMode::Default,
    }
}

/// The filter.
pub struct Nozero {
    modes: Modes,
}

/// Writes zeroes. A new buffer reads as zero.
fn write_zeroes(offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno> {
    let zeroes = Buffer::new(length.min(PIECE) as u32)?;
    let durable = Durable::new(flags & CommandFlags::FUA)?;
    let mut done = 0;
    while done < length {
        let count = (length - done).min(PIECE);
        next::pwrite(offset + done, count as u32, zeroes.id(), 0, durable.flags)?;
        done += count;
    }
    durable.finish()
}

impl Filter for Nozero {
    type Params = Settings;

    fn describe() -> Description {
        Description::new("nozero", env!("CARGO_PKG_VERSION"), "changes how zero requests are handled")
            .help("fastzeromode=ignore is unsafe: a request that has to be fast may be slow.")
            .thread_model(ThreadModel::Parallel)
            .transparent()
    }

    fn configure(settings: Settings) -> Result<Self, String> {
        Ok(Nozero { modes: Modes { zero: settings.zeromode, fast: settings.fastzeromode } })
    }
}

impl Features for Nozero {
    fn can(&self, below: Capabilities) -> Result<Capabilities, Errno> {
        if !below.write {
            return Ok(below);
        }
        if self.modes.needs_native() && below.zero != Support::Native {
            let name = if self.modes.zero == ZeroMode::Plugin { "plugin" } else { "notrim" };
            error!("zeromode={name}: the layer below has no zero requests of its own");
            return Err(Errno::Einval);
        }
        let zero = if self.modes.offers_zero() { Support::Native } else { Support::None };
        Ok(Capabilities { zero, fast_zero: self.modes.offers_fast(below.fast_zero), ..below })
    }
}

impl Zeroes for Nozero {
    fn zero(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno> {
        let (trim, quick) = (CommandFlags::MAY_TRIM, CommandFlags::FAST_ZERO);
        match self.modes.action(flags.contains(trim), flags.contains(quick)) {
            Action::Refuse => Err(Errno::Enotsup),
            Action::Write => write_zeroes(offset, length, flags),
            Action::Pass { may_trim, fast } => {
                let mut flags = flags & CommandFlags::FUA;
                flags.set(trim, may_trim);
                flags.set(quick, fast);
                next::zero(offset, length, flags)
            }
        }
    }
}

rbdkit_filter_sdk::export!(Nozero: features, zeroes);

#[cfg(test)]
mod tests {
    use super::*;
    use rbdkit_filter_sdk::testing::{Disk, Host};

    const FUA: CommandFlags = CommandFlags::FUA;
    const FAST: CommandFlags = CommandFlags::FAST_ZERO;
    const TRIM: CommandFlags = CommandFlags::MAY_TRIM;

    #[test]
    fn without_parameters_zero_requests_are_not_offered() {
        let host = Host::new(Disk::zeroes(512)).serve::<Nozero>(&[]).unwrap();
        let can = host.connect().unwrap().can();
        assert!(can.zero == Support::None && !can.fast_zero && can.trim);
    }

    #[test]
    fn emulate_writes_zeroes_and_refuses_fast_ones() {
        let disk = Disk::pattern(3 << 20).can(|can| can.fua = Support::Emulate);
        let host = Host::new(disk).serve::<Nozero>(&["zeromode=emulate"]).unwrap();
        let client = host.connect().unwrap();
        host.take_calls();
        assert_eq!(client.zero(0, 512, FAST), Err(Errno::Enotsup));
        client.zero(5, 5 << 19, FUA | TRIM).unwrap();
        assert_eq!(host.take_calls(), ["pwrite 5 1048576", "pwrite 1048581 1048576", "pwrite 2097157 524288", "flush"]);
        assert!(host.disk()[5..5 + (5 << 19)].iter().all(|byte| *byte == 0) && host.disk()[4] != 0);
    }

    #[test]
    fn notrim_and_ignore_remove_their_flags() {
        let disk = || Disk::zeroes(4096).can(|can| can.fast_zero = true);
        for (words, call) in [
            (["zeromode=notrim", "fastzeromode=default"], "zero 0 512 fua fast-zero"),
            (["zeromode=notrim", "fastzeromode=ignore"], "zero 0 512 fua"),
            (["zeromode=plugin", "fastzeromode=ignore"], "zero 0 512 fua may-trim"),
        ] {
            let host = Host::new(disk()).serve::<Nozero>(&words).unwrap();
            let client = host.connect().unwrap();
            host.take_calls();
            client.zero(0, 512, FUA | TRIM | FAST).unwrap();
            assert_eq!(host.take_calls(), [call]);
        }
    }

    #[test]
    fn modes_that_pass_zero_requests_on_need_native_ones() {
        let disk = Disk::zeroes(512).can(|can| can.zero = Support::Emulate);
        let host = Host::new(disk).serve::<Nozero>(&["zeromode=plugin"]).unwrap();
        assert_eq!(host.connect().err(), Some(Errno::Einval));
        assert_eq!(host.take_log(), ["error: zeromode=plugin: the layer below has no zero requests of its own"]);
    }
}
