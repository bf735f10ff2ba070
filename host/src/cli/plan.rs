//! [`Plan`]: what the command line asks for, checked.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::Duration;

use rbdkit_parameters::{Parameter, Target, TargetedParameter};
use rbdkit_plugin_api::{ConfigError, units};

use super::options::Given;
use super::words::whole_number;

/// What the program is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Serve.
    Serve,
    /// Print the usage, and the parameters of the plugin and filters given.
    Help,
    /// Print the version, and that the plugin and filters given can be loaded.
    Version,
    /// Print how the program was built.
    DumpConfig,
    /// Print what is known of the plugin.
    DumpPlugin,
    /// Print the one-letter options.
    ShortOptions,
    /// Print the long options.
    LongOptions,
}

/// Where clients come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// TCP.
    Tcp {
        /// An address or a host name; none for all addresses.
        address: Option<String>,
        /// A number, or the name of a service.
        port: String,
        /// Not IPv6 (`-4`).
        no_ipv6: bool,
        /// Not IPv4 (`-6`).
        no_ipv4: bool,
    },
    /// A Unix socket of this name.
    Unix(PathBuf),
    /// A Unix socket in a directory that nobody else may enter.
    PrivateUnix,
    /// One client, on standard input and output.
    Single,
    /// So many sockets from file descriptor 3 on, which the parent process listens on already (socket activation).
    Inherited(u32),
}

/// What the environment says of sockets that the parent process passes on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inherited {
    /// `LISTEN_PID`.
    pub pid: Option<OsString>,
    /// `LISTEN_FDS`.
    pub fds: Option<OsString>,
    /// This process.
    pub own_pid: u32,
}

impl Inherited {
    /// How many sockets are passed on to this process; none if that is not what the variables are about.
    fn sockets(&self) -> Result<Option<u32>, ConfigError> {
        let (Some(pid), Some(fds)) = (&self.pid, &self.fds) else {
            return Ok(None);
        };
        if whole_number("LISTEN_PID", pid, u64::from(u32::MAX))? != u64::from(self.own_pid) {
            return Ok(None);
        }
        // As many as nbdkit takes. More would be a mistake.
        match whole_number("LISTEN_FDS", fds, 16)? {
            0 => Err(ConfigError::new("LISTEN_FDS: socket activation with 0 sockets")),
            count => Ok(Some(count as u32)),
        }
    }
}

/// Where error messages go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogTo {
    /// Standard error, and the system log once the process is in the background.
    Default,
    /// Standard error.
    Stderr,
    /// The system log.
    Syslog,
    /// Nowhere.
    Null,
}

/// What a fault of a filter ends beside its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilterFault {
    /// Nothing.
    Error,
    /// The connection.
    Disconnect,
    /// The server.
    Exit,
}

/// A SHA-256 digest.
pub type Sha256 = [u8; 32];

/// Where a filter comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FilterSource {
    /// One that the program brings along.
    Named(String),
    /// A component in a file.
    File {
        /// The file.
        path: PathBuf,
        /// What the file has to hash to.
        sha256: Option<Sha256>,
    },
}

/// A change to what a filter may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilterLimit {
    /// The filter; none for all of them.
    pub target: Option<Target>,
    /// The resource's name. Whether it exists is the sandbox's to say.
    pub resource: String,
    /// The value.
    pub value: String,
}

/// `-D NAME.FLAG=N`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DebugFlag {
    /// A plugin, a filter or `nbdkit`.
    pub name: String,
    /// The flag, dots included.
    pub flag: String,
    /// Its value.
    pub value: i64,
}

/// What the command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What to do.
    pub action: Action,
    /// Where clients come from.
    pub listen: Listen,
    /// Stay in the foreground: asked for or implied.
    pub foreground: bool,
    /// End with the parent process.
    pub exit_with_parent: bool,
    /// The command of `--run`.
    pub run: Option<OsString>,
    /// The export name for the command.
    pub exportname: OsString,
    /// The pid file.
    pub pidfile: Option<PathBuf>,
    /// Print the URI.
    pub print_uri: bool,
    /// Clients may not write.
    pub readonly: bool,
    /// Offer structured replies.
    pub structured_replies: bool,
    /// Offer multi-conn.
    pub multi_conn: bool,
    /// The global handshake flags that may be offered; none for all of them.
    pub handshake_mask: Option<u16>,
    /// Requests of one client at once; none for the default.
    pub threads: Option<u32>,
    /// How long negotiation may take.
    pub timeout: Option<Duration>,
    /// Lock the process into memory.
    pub swap: bool,
    /// Whom to become.
    pub user: Option<String>,
    /// Which group to become.
    pub group: Option<String>,
    /// Where error messages go.
    pub log: LogTo,
    /// Print debugging messages.
    pub verbose: bool,
    /// Debug flags.
    pub debug_flags: Vec<DebugFlag>,
    /// The filters, the first nearest the client.
    pub filters: Vec<FilterSource>,
    /// `--filter-param`.
    pub filter_params: Vec<TargetedParameter>,
    /// `--filter-limit`.
    pub filter_limits: Vec<FilterLimit>,
    /// `--filter-on-fault`.
    pub filter_on_fault: FilterFault,
    /// Confine the process once it has started.
    pub confine: bool,
    /// The plugin's name; missing only where the action does without.
    pub plugin: Option<String>,
    /// What follows the plugin's name.
    pub params: Vec<Parameter>,
}

fn error(message: impl Into<String>) -> ConfigError {
    ConfigError::new(message)
}

fn text(option: &str, value: &OsStr) -> Result<String, ConfigError> {
    let text =
        value.to_str().ok_or_else(|| error(format!("{option}: '{}' is not UTF-8 text", value.to_string_lossy())))?;
    Ok(text.to_string())
}

impl Plan {
    pub(super) fn new(given: &Given, inherited: Inherited) -> Result<Plan, ConfigError> {
        refuse_what_there_is_not(given)?;
        let action = action(given);
        let mut words = given.words().into_iter();
        let plugin = words.next().map(|word| plugin_name(&word)).transpose()?;
        if plugin.is_none() {
            match action {
                Action::Serve => return Err(error("no plugin given, for example: rbdkit file disk.img (see --help)")),
                Action::DumpPlugin => {
                    return Err(error("--dump-plugin needs the name of a plugin: rbdkit PLUGIN --dump-plugin"));
                }
                _ => {}
            }
        }
        let listen = listen(given, &inherited)?;
        let run = given.value("run").cloned();
        let exit_with_parent = given.has("exit-with-parent");
        let foreground = given.has("foreground")
            || exit_with_parent
            || run.is_some()
            || matches!(listen, Listen::Single | Listen::Inherited(_));
        Ok(Plan {
            action,
            foreground,
            exit_with_parent,
            run,
            exportname: given.value("exportname").cloned().unwrap_or_default(),
            pidfile: given.value("pidfile").map(|file| path("--pidfile", file)).transpose()?,
            print_uri: given.has("print-uri"),
            readonly: given.has("readonly"),
            structured_replies: !given.has("no-sr"),
            multi_conn: !given.has("no-mc"),
            handshake_mask: handshake_mask(given)?,
            threads: threads(given)?,
            timeout: timeout(given)?,
            swap: given.has("swap"),
            user: given.value("user").map(|user| text("--user", user)).transpose()?,
            group: given.value("group").map(|group| text("--group", group)).transpose()?,
            log: log(given)?,
            verbose: given.has("verbose"),
            debug_flags: given
                .values("debug")
                .into_iter()
                .map(|(_, flag)| debug_flag(flag))
                .collect::<Result<_, _>>()?,
            filters: filters(given)?,
            filter_params: each(given, "filter-param", filter_param)?,
            filter_limits: each(given, "filter-limit", filter_limit)?,
            filter_on_fault: filter_on_fault(given)?,
            confine: !given.has("no-confine"),
            plugin,
            params: words.map(Parameter::new).collect(),
            listen,
        })
    }
}

fn each<T>(given: &Given, name: &str, parse: impl Fn(&OsStr) -> Result<T, ConfigError>) -> Result<Vec<T>, ConfigError> {
    given.values(name).into_iter().map(|(_, value)| parse(value)).collect()
}

/// When several are given the first of these wins, as in nbdkit, except that help comes before everything.
fn action(given: &Given) -> Action {
    for (option, action) in [
        ("help", Action::Help),
        ("short-options", Action::ShortOptions),
        ("long-options", Action::LongOptions),
        ("version", Action::Version),
        ("dump-config", Action::DumpConfig),
        ("dump-plugin", Action::DumpPlugin),
    ] {
        if given.has(option) {
            return action;
        }
    }
    Action::Serve
}

fn refuse_what_there_is_not(given: &Given) -> Result<(), ConfigError> {
    if given.has("oldstyle") {
        return Err(error("--oldstyle: the oldstyle protocol is not supported, clients have to use newstyle"));
    }
    if given.has("vsock") {
        return Err(error("--vsock: AF_VSOCK is not supported in this version, use -p or -U"));
    }
    if given.value("selinux-label").is_some() {
        return Err(error("--selinux-label is not supported, label the socket with chcon after it was made"));
    }
    if let Some(tls) = given.value("tls") {
        // nbdkit takes every way to say no.
        match tls.to_str() {
            Some("on" | "require") => {}
            Some(value) if units::parse_bool(value) == Ok(false) => return Ok(()),
            _ => return Err(error(format!("--tls={}: is not one of off, on, require", tls.to_string_lossy()))),
        }
        return Err(error("--tls: TLS is not supported in this version, only --tls=off is"));
    }
    let with_tls = ["tls-certificates", "tls-psk"].into_iter().find(|name| given.value(name).is_some());
    if let Some(name) = with_tls.or(given.has("tls-verify-peer").then_some("tls-verify-peer")) {
        return Err(error(format!("--{name}: TLS is not supported in this version")));
    }
    Ok(())
}

fn plugin_name(word: &OsStr) -> Result<String, ConfigError> {
    let name = word.to_string_lossy();
    if name.contains('/') || name.ends_with(".so") {
        return Err(error(format!(
            "cannot open plugin '{name}': plugins are built into this program, native .so plugins cannot be loaded"
        )));
    }
    Ok(name.into_owned())
}

fn listen(given: &Given, inherited: &Inherited) -> Result<Listen, ConfigError> {
    let [port, unix, ipaddr, run] = ["port", "unix", "ipaddr", "run"].map(|name| given.value(name));
    let single = given.has("single");
    if let Some(count) = inherited.sockets()? {
        let taken = [
            (ipaddr.is_some(), "-i"),
            (port.is_some(), "-p"),
            (run.is_some(), "--run"),
            (single, "-s"),
            (unix.is_some(), "-U"),
        ];
        return match taken.into_iter().find(|(given, _)| *given) {
            Some((_, option)) => {
                Err(error(format!("{option} cannot be used with socket activation (LISTEN_FDS is set)")))
            }
            None => Ok(Listen::Inherited(count)),
        };
    }
    let ways = [
        (port.is_some(), "-p"),
        (single, "-s"),
        (unix.is_some(), "-U"),
        (given.has("dump-plugin") && given.value("run").is_some(), "--dump-plugin"),
    ];
    let mut ways = ways.into_iter().filter_map(|(given, option)| given.then_some(option));
    if let (Some(first), Some(second)) = (ways.next(), ways.next()) {
        return Err(error(format!("{first} and {second} cannot be used together")));
    }
    if single && run.is_some() {
        return Err(error("-s and --run cannot be used together"));
    }
    match unix {
        _ if single => Ok(Listen::Single),
        Some(socket) if socket == "-" => Ok(Listen::PrivateUnix),
        Some(socket) => path("--unix", socket).map(Listen::Unix),
        None => {
            let (mut no_ipv4, mut no_ipv6) = (given.has("ipv6-only"), given.has("ipv4-only"));
            if no_ipv4 && no_ipv6 {
                // nbdkit lets the last one win; which that was is rarely meant and never worth a difference.
                (no_ipv4, no_ipv6) = (true, false);
            }
            let address = ipaddr.map(|address| text("--ipaddr", address)).transpose()?;
            let port = port.map_or(Ok("10809".to_string()), |port| text("--port", port))?;
            let is_number = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
            if port.is_empty() || (is_number && port.parse::<u16>().is_err()) {
                return Err(error(format!(
                    "--port: '{port}' is not a port from 0 to 65535, nor the name of a service"
                )));
            }
            Ok(Listen::Tcp { address, port, no_ipv6, no_ipv4 })
        }
    }
}

fn path(option: &str, value: &OsStr) -> Result<PathBuf, ConfigError> {
    if value.is_empty() {
        return Err(error(format!("{option}: the name of the file is empty")));
    }
    Ok(PathBuf::from(value))
}

fn handshake_mask(given: &Given) -> Result<Option<u16>, ConfigError> {
    let Some(value) = given.value("mask-handshake") else {
        return Ok(None);
    };
    // nbdkit takes 32 bits, of which the handshake has 16.
    Ok(Some(whole_number("--mask-handshake", value, u64::from(u32::MAX))? as u16))
}

fn threads(given: &Given) -> Result<Option<u32>, ConfigError> {
    let Some(value) = given.value("threads") else {
        return Ok(None);
    };
    let count = whole_number("--threads", value, u64::from(u32::MAX))? as u32;
    // 0 stands for the default in nbdkit.
    Ok((count > 0).then_some(count))
}

fn timeout(given: &Given) -> Result<Option<Duration>, ConfigError> {
    let Some(value) = given.value("timeout") else {
        return Ok(None);
    };
    let value = text("--timeout", value)?;
    match units::parse_duration(&value) {
        Ok(0) => Err(error(format!("--timeout={value}: has to be more than 0"))),
        Ok(nanoseconds) => Ok(Some(Duration::from_nanos(nanoseconds))),
        Err(wrong) => Err(error(format!("--timeout={value}: {wrong}"))),
    }
}

fn log(given: &Given) -> Result<LogTo, ConfigError> {
    let Some(value) = given.value("log") else {
        return Ok(LogTo::Default);
    };
    match value.to_str() {
        Some("stderr") => Ok(LogTo::Stderr),
        Some("syslog") => Ok(LogTo::Syslog),
        Some("null") => Ok(LogTo::Null),
        _ => Err(error(format!("--log={}: is not one of stderr, syslog, null", value.to_string_lossy()))),
    }
}

fn debug_flag(value: &OsStr) -> Result<DebugFlag, ConfigError> {
    let shown = value.to_string_lossy();
    let wrong = || error(format!("-D {shown}: must have the form NAME.FLAG=N, N a whole number"));
    let (flag, number) = shown.split_once('=').ok_or_else(wrong)?;
    let (name, flag) = flag.split_once('.').ok_or_else(wrong)?;
    if name.is_empty() || flag.is_empty() {
        return Err(wrong());
    }
    let value = number.parse().map_err(|_| wrong())?;
    Ok(DebugFlag { name: name.to_string(), flag: flag.to_string(), value })
}

/// The filters of both options, in the order in which they stand on the command line.
fn filters(given: &Given) -> Result<Vec<FilterSource>, ConfigError> {
    let named = given.values("filter").into_iter().map(|(place, value)| (place, named_filter(value)));
    let files =
        given.values("wasm-filter").into_iter().map(|(place, value)| (place, filter_file("--wasm-filter", value)));
    let mut all: Vec<_> = named.chain(files).collect();
    all.sort_by_key(|(place, _)| *place);
    all.into_iter().map(|(_, source)| source).collect()
}

/// A name, or as in nbdkit a path.
fn named_filter(value: &OsStr) -> Result<FilterSource, ConfigError> {
    let name = value.to_string_lossy();
    if name.ends_with(".so") {
        return Err(error(format!(
            "--filter={name}: native .so filters cannot be loaded, filters are WebAssembly components"
        )));
    }
    if name.contains('/') || name.ends_with(".wasm") {
        return filter_file("--filter", value);
    }
    match name.is_empty() {
        true => Err(error("--filter: the name of the filter is empty")),
        false => Ok(FilterSource::Named(name.into_owned())),
    }
}

fn filter_file(option: &str, value: &OsStr) -> Result<FilterSource, ConfigError> {
    const MARK: &str = "@sha256:";
    let Some((file, digest)) = value.to_str().and_then(|text| text.rsplit_once(MARK)) else {
        return Ok(FilterSource::File { path: path(option, value)?, sha256: None });
    };
    let sha256 = parse_digest(digest)
        .ok_or_else(|| error(format!("{option}: '{digest}' is not a SHA-256 digest: 64 hexadecimal digits")))?;
    Ok(FilterSource::File { path: path(option, OsStr::new(file))?, sha256: Some(sha256) })
}

fn parse_digest(text: &str) -> Option<Sha256> {
    let mut digest = [0; 32];
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, at) in digest.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(&text[at..at + 2], 16).ok()?;
    }
    Some(digest)
}

fn filter_param(value: &OsStr) -> Result<TargetedParameter, ConfigError> {
    let wrong = || {
        let shown = value.to_string_lossy();
        error(format!("--filter-param: '{shown}' is not FILTER:KEY=VALUE, for example cow:cow-on-read=true"))
    };
    let (target, key, value) = TargetedParameter::split(value).ok_or_else(wrong)?;
    Ok(TargetedParameter { target: filter_name("--filter-param", &target)?, key, value })
}

fn filter_name(option: &str, text: &str) -> Result<Target, ConfigError> {
    Target::parse(text)
        .ok_or_else(|| error(format!("{option}: '{text}' does not name a filter: NAME, or NAME#2 for the second")))
}

fn filter_on_fault(given: &Given) -> Result<FilterFault, ConfigError> {
    let Some(value) = given.value("filter-on-fault") else { return Ok(FilterFault::Error) };
    match value.to_str() {
        Some("error") => Ok(FilterFault::Error),
        Some("disconnect") => Ok(FilterFault::Disconnect),
        Some("exit") => Ok(FilterFault::Exit),
        _ => {
            let shown = value.to_string_lossy();
            Err(error(format!("--filter-on-fault: '{shown}' is not one of error, disconnect, exit")))
        }
    }
}

fn filter_limit(value: &OsStr) -> Result<FilterLimit, ConfigError> {
    let shown = value.to_string_lossy();
    let wrong = || {
        error(format!(
            "--filter-limit: '{shown}' is not RESOURCE=VALUE or FILTER:RESOURCE=VALUE, for example cow:memory=128M"
        ))
    };
    let (what, amount) = shown.split_once('=').ok_or_else(wrong)?;
    let (target, resource) = match what.split_once(':') {
        Some((target, resource)) => (Some(filter_name("--filter-limit", target)?), resource),
        None => (None, what),
    };
    if resource.is_empty() || amount.is_empty() {
        return Err(wrong());
    }
    Ok(FilterLimit { target, resource: resource.to_string(), value: amount.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::parse;

    fn plan(line: &str) -> Plan {
        parse(line.split_whitespace().map(OsString::from).collect(), Inherited::default()).unwrap()
    }

    fn mistake(line: &str) -> String {
        parse(line.split_whitespace().map(OsString::from).collect(), Inherited::default()).unwrap_err().to_string()
    }

    fn activated(line: &str, fds: &str) -> Result<Plan, String> {
        let inherited = Inherited { pid: Some("7".into()), fds: Some(fds.into()), own_pid: 7 };
        parse(line.split_whitespace().map(OsString::from).collect(), inherited).map_err(|error| error.to_string())
    }

    #[test]
    fn without_options_it_serves_on_the_nbd_port_in_the_background() {
        let plan = plan("file disk.img x=1");
        assert_eq!(plan.action, Action::Serve);
        assert_eq!(plan.listen, Listen::Tcp { address: None, port: "10809".into(), no_ipv6: false, no_ipv4: false });
        assert!(!plan.foreground && !plan.readonly && plan.structured_replies && plan.multi_conn);
        assert_eq!(plan.plugin.as_deref(), Some("file"));
        assert_eq!(plan.params, [Parameter::Bare("disk.img".into()), Parameter::Keyed("x".into(), "1".into())]);
    }

    #[test]
    fn what_implies_the_foreground_does() {
        for line in ["-f null", "--no-fork null", "-s null", "--exit-with-parent null", "--run true null"] {
            assert!(plan(line).foreground, "{line}");
        }
        assert!(activated("null", "1").unwrap().foreground);
    }

    #[test]
    fn ways_to_listen_exclude_each_other() {
        for (line, message) in [
            ("-p 1 -U x null", "-p and -U cannot be used together"),
            ("-p 1 -s null", "-p and -s cannot be used together"),
            ("-s -U - null", "-s and -U cannot be used together"),
            ("-s --run true null", "-s and --run cannot be used together"),
        ] {
            assert_eq!(mistake(line), message);
        }
        for (line, option) in [("-p 1", "-p"), ("-i x", "-i"), ("-U x", "-U"), ("-s", "-s"), ("--run true", "--run")] {
            let message = format!("{option} cannot be used with socket activation (LISTEN_FDS is set)");
            assert_eq!(activated(&format!("{line} null"), "1").unwrap_err(), message);
        }
    }

    #[test]
    fn sockets_are_inherited_only_by_the_process_they_are_meant_for() {
        assert_eq!(activated("null", "2").unwrap().listen, Listen::Inherited(2));
        let other = Inherited { pid: Some("8".into()), fds: Some("1".into()), own_pid: 7 };
        assert!(matches!(parse(vec!["null".into()], other).unwrap().listen, Listen::Tcp { .. }));
        for fds in ["0", "17", "x", "", "-1"] {
            assert!(activated("null", fds).unwrap_err().starts_with("LISTEN_FDS: "), "{fds}");
        }
    }

    #[test]
    fn values_out_of_range_are_named() {
        for (line, message) in [
            ("-p 65536 null", "--port: '65536' is not a port from 0 to 65535, nor the name of a service"),
            ("-t x null", "--threads: 'x' is not a whole number from 0 to 4294967295"),
            ("-t -1 null", "--threads: '-1' is not a whole number from 0 to 4294967295"),
            ("--log=x null", "--log=x: is not one of stderr, syslog, null"),
            ("--mask-handshake=x null", "--mask-handshake: 'x' is not a whole number from 0 to 4294967295"),
            ("--timeout=0 null", "--timeout=0: has to be more than 0"),
            ("-D x null", "-D x: must have the form NAME.FLAG=N, N a whole number"),
            ("-D x.y=z null", "-D x.y=z: must have the form NAME.FLAG=N, N a whole number"),
            ("--unix= null", "--unix: the name of the file is empty"),
            ("--pidfile= null", "--pidfile: the name of the file is empty"),
            ("--filter= null", "--filter: the name of the filter is empty"),
            ("--filter-param=x null", "--filter-param: 'x' is not FILTER:KEY=VALUE, for example cow:cow-on-read=true"),
            (
                "--filter-param=x#0:k=v null",
                "--filter-param: 'x#0' does not name a filter: NAME, or NAME#2 for the second",
            ),
            ("--wasm-filter=x@sha256:12 null", "--wasm-filter: '12' is not a SHA-256 digest: 64 hexadecimal digits"),
        ] {
            assert_eq!(mistake(line), message);
        }
    }

    #[test]
    fn what_this_version_does_not_have_is_refused_in_one_line() {
        for (line, message) in [
            ("-o null", "--oldstyle: the oldstyle protocol is not supported, clients have to use newstyle"),
            ("--vsock null", "--vsock: AF_VSOCK is not supported in this version, use -p or -U"),
            ("--tls=on null", "--tls: TLS is not supported in this version, only --tls=off is"),
            ("--tls=maybe null", "--tls=maybe: is not one of off, on, require"),
            ("--tls-psk=x null", "--tls-psk: TLS is not supported in this version"),
            ("--tls-verify-peer null", "--tls-verify-peer: TLS is not supported in this version"),
        ] {
            assert_eq!(mistake(line), message);
        }
        assert_eq!(plan("--tls=off null").action, Action::Serve);
    }

    #[test]
    fn native_plugins_and_filters_are_refused_by_name() {
        for line in ["./nbdkit-x-plugin.so", "/usr/lib/x", "x.so"] {
            assert!(mistake(line).ends_with("native .so plugins cannot be loaded"), "{line}");
        }
        assert!(mistake("--filter=./x.so null").contains("native .so filters cannot be loaded"));
    }

    #[test]
    fn filters_of_both_kinds_keep_their_order() {
        let digest = "0123456789abcdefABCDEF0123456789".repeat(2);
        let plan =
            plan(&format!("--filter=cow --wasm-filter x.wasm@sha256:{digest} null --filter=./y.wasm --filter delay"));
        let FilterSource::File { path, sha256: Some(sha256) } = &plan.filters[1] else {
            panic!("{:?}", plan.filters);
        };
        assert_eq!(path, &PathBuf::from("x.wasm"));
        assert_eq!(sha256[..4], [0x01, 0x23, 0x45, 0x67]);
        assert_eq!(plan.filters[0], FilterSource::Named("cow".into()));
        assert_eq!(plan.filters[2], FilterSource::File { path: "./y.wasm".into(), sha256: None });
        assert_eq!(plan.filters[3], FilterSource::Named("delay".into()));
    }

    #[test]
    fn parameters_and_limits_are_aimed_at_a_filter() {
        let plan =
            plan("--filter-param cow#2:cow-on-read=/a:b=c --filter-limit cow:memory=1M --filter-limit cpu=2s null");
        let target = Target { name: "cow".into(), instance: 2 };
        assert_eq!(
            plan.filter_params,
            [TargetedParameter { target, key: "cow-on-read".into(), value: "/a:b=c".into() }]
        );
        let target = Some(Target { name: "cow".into(), instance: 1 });
        assert_eq!(
            plan.filter_limits,
            [
                FilterLimit { target, resource: "memory".into(), value: "1M".into() },
                FilterLimit { target: None, resource: "cpu".into(), value: "2s".into() }
            ]
        );
    }

    #[test]
    fn a_plugin_is_needed_to_serve_and_to_dump_but_not_for_help() {
        assert_eq!(mistake("-f"), "no plugin given, for example: rbdkit file disk.img (see --help)");
        assert_eq!(mistake("--dump-plugin"), "--dump-plugin needs the name of a plugin: rbdkit PLUGIN --dump-plugin");
        for line in ["--help", "-h", "-V", "--dump-config", "--short-options", "--long-options"] {
            assert_eq!(plan(line).plugin, None, "{line}");
        }
    }
}
