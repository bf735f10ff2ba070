//! Logs every request, in a file or by a script of the operator.

mod line;

use line::{Kind, Line, quoted};
use rbdkit_filter_sdk::prelude::*;

params! {
    /// The parameters.
    pub struct Settings {
        /// The file that the lines are written to.
        logfile: Option<WriteFile>,
        /// A shell command that is run for each line.
        logscript: Option<Script>,
        /// Whether the file keeps what it has.
        logappend: bool = false,
    }
}

/// The slot of a connection's last request number. Word a.
const REQUESTS: u32 = 0;

/// The slot of the server with the number of exports that were opened. Word a.
const OPENED: u32 = 0;

/// The handle: a number that tells what was opened, and whether the client uses TLS.
struct Handle {
    /// Counted from 1. A client may open several exports over one connection, one after another.
    number: u64,
    is_tls: bool,
}

impl Handle {
    fn encode(&self) -> u64 {
        self.number << 1 | u64::from(self.is_tls)
    }

    /// That of the call being served.
    fn current() -> Handle {
        let handle = request::handle();
        Handle { number: handle >> 1, is_tls: handle & 1 == 1 }
    }
}

/// The filter.
pub struct Log {
    settings: Settings,
}

/// An action that has begun.
struct Action {
    name: &'static str,
    id: u64,
    /// Whether it is a request of a connection.
    connection: Option<u64>,
}

impl Action {
    /// A line about it.
    fn line(&self, kind: Kind) -> Line {
        let line = Line::new(kind, self.name).id(self.id);
        match self.connection {
            Some(connection) => line.connection(connection),
            None => line,
        }
    }
}

impl Log {
    /// Whether nothing is logged, so that requests pass without a line.
    fn is_silent(&self) -> bool {
        self.settings.logfile.is_none() && self.settings.logscript.is_none()
    }

    /// Writes a line. What goes wrong is only logged: a log never fails a request.
    fn write(&self, line: &Line) {
        if let Some(file) = &self.settings.logfile
            && let Err(error) = file.append(line.for_file(clock::realtime()).as_bytes())
        {
            error!("logfile: a line is lost: {}", error.name());
        }
        if let Some(script) = &self.settings.logscript {
            let variables = line.for_script();
            let variables: Vec<(&str, &str)> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
            // The host logs why a script could not run. Its status does not count.
            let _ = script.run(&variables);
        }
    }

    /// A request begins. `fields` adds to its line.
    fn enter(&self, name: &'static str, fields: impl FnOnce(Line) -> Line) -> Action {
        let id = slots::add(Scope::Connection, REQUESTS, 1);
        let action = Action { name, id, connection: Some(Handle::current().number) };
        self.write(&fields(action.line(Kind::Enter)));
        action
    }

    /// An action has ended.
    fn leave<T>(&self, action: &Action, result: &Result<T, Errno>, fields: impl FnOnce(Line) -> Line) {
        let error = result.as_ref().err().map(Errno::name);
        self.write(&fields(action.line(Kind::Leave)).result(error));
    }

    /// Serves a request between its two lines.
    fn serve(
        &self,
        name: &'static str,
        fields: impl FnOnce(Line) -> Line,
        serve: impl FnOnce() -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        if self.is_silent() {
            return serve();
        }
        let action = self.enter(name, fields);
        let result = serve();
        self.leave(&action, &result, |line| line);
        result
    }
}

/// An offset and a length.
fn range(line: Line, offset: u64, length: u64) -> Line {
    line.hex("offset", offset).hex("count", length)
}

/// How the log shows support.
fn level(support: Support) -> u64 {
    match support {
        Support::None => 0,
        Support::Emulate => 1,
        Support::Native => 2,
    }
}

/// The type of an extent.
fn kind(extent: ExtentType) -> &'static str {
    match (extent.contains(ExtentType::HOLE), extent.contains(ExtentType::ZERO)) {
        (true, true) => "\"hole,zero\"",
        (true, false) => "hole",
        (false, true) => "zero",
        (false, false) => "\"\"",
    }
}

impl Filter for Log {
    type Params = Settings;

    fn describe() -> Description {
        Description::new("log", env!("CARGO_PKG_VERSION"), "logs every request")
            .help("Writes a line when a request begins and one when it ends. Without logfile and logscript: none.")
            .thread_model(ThreadModel::Parallel)
            .transparent()
    }

    fn configure(settings: Settings) -> Result<Self, String> {
        Ok(Log { settings })
    }
}

impl Lifecycle for Log {
    fn get_ready(&self) -> Result<(), String> {
        if let Some(file) = &self.settings.logfile
            && !self.settings.logappend
        {
            file.truncate().map_err(|error| format!("logfile: cannot be emptied: {}", error.name()))?;
        }
        let model: u64 = match server::thread_model_below() {
            ThreadModel::SerializeConnections => 0,
            ThreadModel::SerializeAllRequests => 1,
            ThreadModel::SerializeRequests => 2,
            ThreadModel::Parallel => 3,
        };
        self.write(&Line::new(Kind::Print, "Ready").number("thread_model", model));
        Ok(())
    }

    fn after_fork(&self) -> Result<(), String> {
        self.write(&Line::new(Kind::Print, "Fork"));
        Ok(())
    }
}

impl Admission for Log {
    fn preconnect(&self, readonly: bool) -> Result<(), Errno> {
        let action = Action { name: "Preconnect", id: request::connection(), connection: None };
        self.write(&action.line(Kind::Enter).number("readonly", readonly));
        let result = next_open::preconnect(readonly);
        self.leave(&action, &result, |line| line);
        result
    }
}

impl Names for Log {
    fn list_exports(&self, readonly: bool, is_tls: bool) -> Result<Vec<ExportEntry>, Errno> {
        let action = Action { name: "ListExports", id: request::connection(), connection: None };
        self.write(&action.line(Kind::Enter).number("readonly", readonly).number("tls", is_tls));
        let result = next_open::list_exports(readonly);
        let exports = result.as_deref().unwrap_or_default();
        self.leave(&action, &result, |line| match result {
            Ok(_) => line.list("exports", exports.iter().map(|export| quoted(&export.name))),
            Err(_) => line,
        });
        result
    }

    fn default_export(&self, readonly: bool, _is_tls: bool) -> Result<String, Errno> {
        next_open::default_export(readonly)
    }
}

impl Connection for Log {
    fn open(&self, readonly: bool, exportname: &str, is_tls: bool, _replayed: bool) -> Result<u64, Errno> {
        next_open::open(readonly, exportname)?;
        Ok(Handle { number: slots::add(Scope::Server, OPENED, 1), is_tls }.encode())
    }

    fn prepare(&self) -> Result<(), Errno> {
        let size = next::get_size()?;
        let can = next::can()?;
        let none = BlockSizes { minimum: 0, preferred: 0, maximum: 0 };
        let BlockSizes { minimum, preferred, maximum } = next::block_size().unwrap_or(none);
        let Handle { number, is_tls } = Handle::current();
        let line = Line::new(Kind::Print, "Connect")
            .connection(number)
            .text("export", &request::exportname())
            .number("tls", is_tls)
            .hex("size", size)
            .hex("minsize", minimum.into())
            .hex("prefsize", preferred.into())
            .hex("maxsize", maximum.into())
            .number("write", can.write)
            .number("flush", can.flush)
            .number("rotational", can.rotational)
            .number("trim", can.trim)
            .number("zero", level(can.zero))
            .number("fua", level(can.fua))
            .number("extents", can.extents)
            .number("cache", level(can.cache))
            .number("fast_zero", can.fast_zero);
        self.write(&line);
        Ok(())
    }

    fn close(&self) {
        let requests = slots::get(Scope::Connection, REQUESTS).a;
        let line = Line::new(Kind::Print, "Disconnect").connection(Handle::current().number);
        self.write(&line.number("transactions", requests));
    }
}

impl Features for Log {
    /// The host would carry out FUA that is emulated with a flush in front of this layer, and the
    /// log would not show what the client asked for. So this layer passes FUA on.
    fn can(&self, below: Capabilities) -> Result<Capabilities, Errno> {
        let fua = if below.fua == Support::Emulate { Support::Native } else { below.fua };
        Ok(Capabilities { fua, ..below })
    }
}

impl Reads for Log {
    fn pread(&self, offset: u64, length: u32, _flags: CommandFlags) -> Result<(), Errno> {
        let fields = |line| range(line, offset, length.into());
        self.serve("Read", fields, || next::pread(offset, length, PAYLOAD, 0))
    }
}

impl Writes for Log {
    fn pwrite(&self, offset: u64, length: u32, flags: CommandFlags) -> Result<(), Errno> {
        let fua = flags.contains(CommandFlags::FUA);
        let fields = |line| range(line, offset, length.into()).number("fua", fua);
        self.serve("Write", fields, || next::pwrite(offset, length, PAYLOAD, 0, flags))
    }
}

impl Flushes for Log {
    fn flush(&self) -> Result<(), Errno> {
        self.serve("Flush", |line| line, next::flush)
    }
}

impl Trims for Log {
    fn trim(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno> {
        let fua = flags.contains(CommandFlags::FUA);
        let fields = |line| range(line, offset, length).number("fua", fua);
        self.serve("Trim", fields, || next::trim(offset, length, flags))
    }
}

impl Zeroes for Log {
    fn zero(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno> {
        let has = |flag| flags.contains(flag);
        let fields = |line| {
            range(line, offset, length)
                .number("trim", has(CommandFlags::MAY_TRIM))
                .number("fua", has(CommandFlags::FUA))
                .number("fast", has(CommandFlags::FAST_ZERO))
        };
        self.serve("Zero", fields, || next::zero(offset, length, flags))
    }
}

impl Mapping for Log {
    fn extents(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<Vec<Extent>, Errno> {
        let one = flags.contains(CommandFlags::REQ_ONE);
        let action = self.enter("Extents", |line| range(line, offset, length).number("req_one", one));
        // What lies beyond the request is for the client, and not in the line.
        let result = next::extents_until(offset, length, u64::MAX, flags);
        let end = offset.saturating_add(length);
        let found = result.as_deref().unwrap_or_default();
        let words = found.iter().map(|extent| {
            let within = extent.length.min(end - extent.offset);
            format!("{:#x} {within:#x} {}", extent.offset, kind(extent.kind))
        });
        self.leave(&action, &result, |line| match result {
            Ok(_) => line.list("extents", words),
            Err(_) => line,
        });
        result
    }
}

impl Caching for Log {
    fn cache(&self, offset: u64, length: u64) -> Result<(), Errno> {
        self.serve("Cache", |line| range(line, offset, length), || next::cache(offset, length))
    }
}

rbdkit_filter_sdk::export!(
    Log: lifecycle, admission, names, connection, features, reads, writes, flushes, trims, zeroes, mapping, caching
);

#[cfg(test)]
mod tests {
    use super::*;
    use rbdkit_filter_sdk::testing::{Disk, Host, Served};

    /// The lines of the file, without their times.
    fn lines(file: &[u8]) -> Vec<String> {
        let text = String::from_utf8(file.to_vec()).unwrap();
        text.lines().map(|line| line["1970-01-01 00:00:00.000000 ".len()..].to_string()).collect()
    }

    fn use_it(host: &Served<Log>) {
        let client = host.connect().unwrap();
        client.pread(0, 512).unwrap();
        host.fail_next("pwrite", Errno::Enospc);
        assert_eq!(client.pwrite(512, b"x", CommandFlags::FUA), Err(Errno::Enospc));
        client.zero(0, 4096, CommandFlags::MAY_TRIM).unwrap();
        client.extents(0, 8192, CommandFlags::REQ_ONE).unwrap();
        client.close().unwrap();
    }

    #[test]
    fn a_request_has_two_lines_with_its_number() {
        let host = Host::new(Disk::pattern(8192)).file("/log", b"old\n");
        let host = host.serve::<Log>(&["logfile=/log"]).unwrap();
        use_it(&host);
        let found = lines(&host.file("/log").unwrap());
        let first = ["Ready thread_model=3", "Fork", "Preconnect id=1 readonly=0 ...", "...Preconnect id=1 return=0"];
        assert_eq!(found[..4], first);
        assert!(found[4].starts_with("connection=1 Connect export=\"\" tls=0 size=0x2000 minsize="), "{}", found[4]);
        assert_eq!(
            found[5..],
            [
                "connection=1 Read id=1 offset=0x0 count=0x200 ...",
                "connection=1 ...Read id=1 return=0",
                "connection=1 Write id=2 offset=0x200 count=0x1 fua=1 ...",
                "connection=1 ...Write id=2 return=-1 error=ENOSPC",
                "connection=1 Zero id=3 offset=0x0 count=0x1000 trim=1 fua=0 fast=0 ...",
                "connection=1 ...Zero id=3 return=0",
                "connection=1 Extents id=4 offset=0x0 count=0x2000 req_one=1 ...",
                "connection=1 ...Extents id=4 extents=(0x0 0x1000 \"hole,zero\") return=0",
                "connection=1 Disconnect transactions=4",
            ]
        );
    }

    #[test]
    fn the_file_keeps_what_it_has_with_logappend() {
        let host = Host::new(Disk::pattern(512)).file("/log", b"old\n");
        let host = host.serve::<Log>(&["logfile=/log", "logappend=true"]).unwrap();
        let file = host.file("/log").unwrap();
        assert!(file.starts_with(b"old\n") && file.ends_with(b"Fork\n"));
    }

    #[test]
    fn a_script_is_run_for_each_line_and_its_failure_does_not_count() {
        let host = Host::new(Disk::pattern(8192)).script("notify", 1, b"ignored");
        let host = host.serve::<Log>(&["logscript=notify"]).unwrap();
        host.fail_next("script", Errno::Etimedout);
        host.take_calls();
        use_it(&host);
        let calls = host.take_calls();
        let scripts: Vec<&str> = calls.iter().filter_map(|call| call.strip_prefix("script notify ")).collect();
        assert_eq!(scripts.len(), 12);
        assert_eq!(scripts[3], "act=Read type=ENTER connection=1 id=1 offset=0x0 count=0x200");
        assert_eq!(scripts[6], "act=Write type=LEAVE connection=1 id=2 return=-1 error=ENOSPC");
        assert_eq!(scripts[11], "act=Disconnect type=PRINT connection=1 transactions=4");
    }

    #[test]
    fn without_a_file_and_a_script_nothing_is_written() {
        let host = Host::new(Disk::pattern(8192)).serve::<Log>(&[]).unwrap();
        use_it(&host);
        assert!(host.take_log().is_empty());
    }
}
