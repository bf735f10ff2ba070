//! Makes requests fail at random, to test how a client handles errors.

mod rules;

use rbdkit_filter_sdk::prelude::*;
use rules::{Op, Rules};

/// The errors that the NBD protocol can express.
const ERRORS: [(&str, Errno); 6] = [
    ("EPERM", Errno::Eperm),
    ("EIO", Errno::Eio),
    ("ENOMEM", Errno::Enomem),
    ("EINVAL", Errno::Einval),
    ("ENOSPC", Errno::Enospc),
    ("ESHUTDOWN", Errno::Eshutdown),
];

/// The filter.
pub struct ErrorFilter {
    rules: Rules,
}

impl ErrorFilter {
    /// Fails if the operation's rule says so.
    fn inject(&self, op: Op) -> Result<(), Errno> {
        let rule = self.rules.of(op);
        if !rule.fails(clock::random, |param| files::holds(param, 0).unwrap_or(false)) {
            return Ok(());
        }
        error!("injecting {} error into {}", rule.error, op.name());
        let errno = ERRORS.iter().find(|(name, _)| *name == rule.error);
        Err(errno.map_or(Errno::Eio, |(_, errno)| *errno))
    }
}

/// By hand: each operation has the same three parameters, and the later of two parameters wins.
impl Parameters for ErrorFilter {
    fn declare() -> Vec<Param> {
        let names = ERRORS.map(|(name, _)| name);
        let mut declared = vec![
            Param::choice("error", &names).default("EIO").help("The error that requests fail with."),
            Param::probability("error-rate").default("0%").help("How many requests fail."),
            Param::watch("error-file").help("Requests fail only while this file exists."),
        ];
        for op in Op::ALL.map(Op::name) {
            let error = format!("error-{op}");
            declared.extend([
                Param::choice(&error, &names).help(&format!("Like error, for {op} alone.")),
                Param::probability(&format!("{error}-rate")).help(&format!("Like error-rate, for {op} alone.")),
                Param::watch(&format!("{error}-file")).help(&format!("Like error-file, for {op} alone.")),
            ]);
        }
        declared
    }

    fn read(given: &Params) -> Result<Self, String> {
        Ok(ErrorFilter { rules: Rules::new(given.iter())? })
    }
}

impl Filter for ErrorFilter {
    type Params = ErrorFilter;

    fn describe() -> Description {
        Description::new("error", env!("CARGO_PKG_VERSION"), "makes requests fail at random, for tests")
            .help("Nothing fails unless a rate is given. A later parameter replaces an earlier one.")
            .thread_model(ThreadModel::Parallel)
            .transparent()
    }

    fn configure(filter: ErrorFilter) -> Result<Self, String> {
        Ok(filter)
    }
}

impl Reads for ErrorFilter {
    fn pread(&self, offset: u64, length: u32, _flags: CommandFlags) -> Result<(), Errno> {
        self.inject(Op::Pread)?;
        next::pread(offset, length, PAYLOAD, 0)
    }
}

impl Writes for ErrorFilter {
    fn pwrite(&self, offset: u64, length: u32, flags: CommandFlags) -> Result<(), Errno> {
        self.inject(Op::Pwrite)?;
        next::pwrite(offset, length, PAYLOAD, 0, flags)
    }
}

impl Trims for ErrorFilter {
    fn trim(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno> {
        self.inject(Op::Trim)?;
        next::trim(offset, length, flags)
    }
}

impl Zeroes for ErrorFilter {
    fn zero(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno> {
        self.inject(Op::Zero)?;
        next::zero(offset, length, flags)
    }
}

impl Mapping for ErrorFilter {
    fn extents(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<Vec<Extent>, Errno> {
        self.inject(Op::Extents)?;
        next::extents_forward_until(offset, length, u64::MAX, offset, flags)?;
        Ok(Vec::new())
    }
}

impl Caching for ErrorFilter {
    fn cache(&self, offset: u64, length: u64) -> Result<(), Errno> {
        self.inject(Op::Cache)?;
        next::cache(offset, length)
    }
}

rbdkit_filter_sdk::export!(ErrorFilter: reads, writes, trims, zeroes, mapping, caching);

#[cfg(test)]
mod tests {
    use super::*;
    use rbdkit_filter_sdk::testing::{Disk, Host};

    #[test]
    fn an_operation_fails_while_its_file_exists() {
        let words = ["error-pwrite-rate=100%", "error-pwrite=ENOSPC", "error-pwrite-file=/broken"];
        let host = Host::new(Disk::pattern(512)).serve::<ErrorFilter>(&words).unwrap();
        let client = host.connect().unwrap();
        let write = || client.pwrite(0, b"x", CommandFlags::empty());
        assert_eq!(write(), Ok(()));
        host.set_file("/broken", Some(b""));
        assert_eq!((write(), client.pread(0, 1).is_ok()), (Err(Errno::Enospc), true));
        assert_eq!(host.take_log(), ["error: injecting ENOSPC error into pwrite"]);
        host.set_file("/broken", None);
        assert_eq!(write(), Ok(()));
    }
}
