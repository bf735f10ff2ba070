//! Makes requests fail at random, to see whether clients bear it.
#![deny(unsafe_code)]

mod plan;

use plan::{Op, Plan};
use rbdkit_filter_sdk::prelude::*;

/// What can be told to a client.
const ERRORS: [(&str, Errno); 6] = [
    ("EPERM", Errno::Eperm),
    ("EIO", Errno::Eio),
    ("ENOMEM", Errno::Enomem),
    ("EINVAL", Errno::Einval),
    ("ENOSPC", Errno::Enospc),
    ("ESHUTDOWN", Errno::Eshutdown),
];

/// The filter.
pub struct Fail {
    plan: Plan,
}

impl Fail {
    fn chance(&self, op: Op) -> Result<(), Errno> {
        let setting = self.plan.of(op);
        if !setting.strikes(clock::random, files::holds_now) {
            return Ok(());
        }
        log::error(&format!("injecting {} error into {}", setting.error, op.name()));
        let errno = ERRORS.iter().find(|(name, _)| *name == setting.error);
        Err(errno.map_or(Errno::Eio, |(_, errno)| *errno))
    }
}

impl Filter for Fail {
    fn describe() -> Description {
        let names = ERRORS.map(|(name, _)| name);
        let mut description =
            Description::new("error", env!("CARGO_PKG_VERSION"), "makes requests fail at random, for tests")
                .help("Without a rate nothing fails. A later parameter replaces an earlier one.")
                .thread_model(ThreadModel::Parallel)
                .transparent()
                .param(Param::choice("error", &names).default("EIO").help("What they fail with."))
                .param(Param::probability("error-rate").default("0%").help("How many of them fail."))
                .param(Param::watch("error-file").help("They only fail while this file exists."));
        for op in Op::ALL.map(Op::name) {
            let error = format!("error-{op}");
            description = description
                .param(Param::choice(&error, &names).help(&format!("As error, for {op} alone.")))
                .param(Param::probability(&format!("{error}-rate")).help(&format!("As error-rate, for {op} alone.")))
                .param(Param::watch(&format!("{error}-file")).help(&format!("As error-file, for {op} alone.")));
        }
        description
    }

    fn configure(params: &Params) -> Result<Self, String> {
        Ok(Fail { plan: Plan::new(params.iter())? })
    }
}

impl Reads for Fail {
    fn pread(&self, offset: u64, length: u32, _flags: CommandFlags) -> Result<(), Errno> {
        self.chance(Op::Pread)?;
        next::pread(offset, length, PAYLOAD, 0)
    }
}

impl Writes for Fail {
    fn pwrite(&self, offset: u64, length: u32, flags: CommandFlags) -> Result<(), Errno> {
        self.chance(Op::Pwrite)?;
        next::pwrite(offset, length, PAYLOAD, 0, flags)
    }
}

impl Trims for Fail {
    fn trim(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno> {
        self.chance(Op::Trim)?;
        next::trim(offset, length, flags)
    }
}

impl Zeroes for Fail {
    fn zero(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno> {
        self.chance(Op::Zero)?;
        next::zero(offset, length, flags)
    }
}

impl Mapping for Fail {
    fn extents(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<Vec<Extent>, Errno> {
        self.chance(Op::Extents)?;
        next::extents_forward(offset, length, offset, flags)?;
        Ok(Vec::new())
    }
}

impl Caching for Fail {
    fn cache(&self, offset: u64, length: u64) -> Result<(), Errno> {
        self.chance(Op::Cache)?;
        next::cache(offset, length)
    }
}

rbdkit_filter_sdk::export!(Fail: reads, writes, trims, zeroes, mapping, caching);
