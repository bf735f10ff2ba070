//! The options of the program, each written down once: the parser, `--help`, `--long-options` and the tests all read [`OPTIONS`].
//!
//! clap takes the command line apart, configured to behave as getopt_long does for nbdkit: options may stand anywhere, the last of a
//! repeated option wins, long names may be shortened, an option's value may begin with `-`, and `--` ends options.

use std::ffi::OsString;

use clap::builder::Command;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, ArgMatches, value_parser};
use rbdkit_parameters::nearest;
use rbdkit_plugin_api::ConfigError;

/// One option.
pub struct OptionSpec {
    /// Its first long name: also how the parser knows it.
    pub name: &'static str,
    /// The one-letter name.
    pub short: Option<char>,
    /// Further long names.
    pub aliases: &'static [&'static str],
    /// What stands for its value in `--help`; none for a switch.
    pub value: Option<&'static str>,
    /// May be given several times, and every one counts.
    pub repeat: bool,
    /// One sentence for `--help`.
    pub help: &'static str,
}

const fn switch(name: &'static str, short: Option<char>, help: &'static str) -> OptionSpec {
    OptionSpec { name, short, aliases: &[], value: None, repeat: false, help }
}

const fn valued(name: &'static str, short: Option<char>, value: &'static str, help: &'static str) -> OptionSpec {
    OptionSpec { name, short, aliases: &[], value: Some(value), repeat: false, help }
}

impl OptionSpec {
    const fn or(self, aliases: &'static [&'static str]) -> OptionSpec {
        OptionSpec { aliases, ..self }
    }

    const fn repeated(self) -> OptionSpec {
        OptionSpec { repeat: true, ..self }
    }

    /// All long names.
    pub fn long_names(&self) -> impl Iterator<Item = &'static str> {
        std::iter::once(self.name).chain(self.aliases.iter().copied())
    }
}

/// All of them, in the order of `--help`.
pub const OPTIONS: &[OptionSpec] = &[
    switch("ipv4-only", Some('4'), "Listen on, and resolve -i to, IPv4 addresses only"),
    switch("ipv6-only", Some('6'), "Listen on, and resolve -i to, IPv6 addresses only"),
    valued("debug", Some('D'), "NAME.FLAG=N", "Set a debug flag of a plugin, a filter or (NAME = nbdkit) the server")
        .repeated(),
    switch("dump-config", None, "Print how the program was built, and exit"),
    switch("dump-plugin", None, "Print what is known of the plugin and the filters, and exit"),
    switch("exit-with-parent", None, "Exit when the parent process exits; implies -f"),
    valued("exportname", Some('e'), "NAME", "The export name in $uri and $exportname of --run")
        .or(&["export-name", "export"]),
    valued("filter", None, "NAME", "Put a filter in front of the plugin; the first is nearest the client").repeated(),
    valued(
        "filter-limit",
        None,
        "[FILTER:]RESOURCE=VALUE",
        "Change what filters may take, for example cow:memory=128M",
    )
    .repeated(),
    valued(
        "filter-on-fault",
        None,
        "error|disconnect|exit",
        "A filter's fault fails its request, ends the connection, or the server",
    ),
    valued("filter-param", None, "FILTER:KEY=VALUE", "Give a parameter to this filter, whoever else knows the key")
        .repeated(),
    switch("foreground", Some('f'), "Do not fork into the background").or(&["no-fork"]),
    valued("group", Some('g'), "GROUP", "Change to this group, a name or a number, when listening"),
    switch("help", Some('h'), "Print this, with the parameters of the plugin and filters given, and exit"),
    valued("ipaddr", Some('i'), "ADDRESS", "Listen on this address or host name (default: all addresses)")
        .or(&["ip-addr"]),
    valued(
        "log",
        None,
        "stderr|syslog|null",
        "Where error messages go (default: stderr, and syslog in the background)",
    ),
    switch("long-options", None, "Print the long options, for shell completion, and exit"),
    valued("mask-handshake", None, "MASK", "Offer only these global handshake flags to clients"),
    switch("newstyle", Some('n'), "Use the newstyle protocol (always on)").or(&["new-style"]),
    switch("no-confine", None, "Do not confine the process to what serving needs"),
    switch("no-mc", None, "Do not offer multi-conn"),
    switch("no-sr", None, "Do not offer structured replies"),
    switch("oldstyle", Some('o'), "Not supported: the oldstyle protocol").or(&["old-style"]),
    valued("pidfile", Some('P'), "FILE", "Write the process id to this file when ready for clients").or(&["pid-file"]),
    valued("port", Some('p'), "PORT", "Listen on this TCP port (default: 10809; 0: any that is free)"),
    switch("print-uri", None, "Print the URI to connect to"),
    switch("readonly", Some('r'), "Clients may not write").or(&["read-only"]),
    valued("run", None, "COMMAND", "Serve while this shell command runs, and exit with its status"),
    valued("selinux-label", None, "LABEL", "Not supported: a label for the socket"),
    switch("short-options", None, "Print the short options, for shell completion, and exit"),
    switch("single", Some('s'), "Serve one client on standard input and output").or(&["stdin"]),
    switch("swap", None, "Lock the process into memory, to be used as swap space of this machine"),
    valued("threads", Some('t'), "N", "Requests of one client that are served at once (default: 256)"),
    valued("timeout", None, "TIME", "Drop clients that take longer than this to negotiate"),
    valued("tls", None, "off|on|require", "Only off is supported in this version"),
    valued("tls-certificates", None, "DIR", "Not supported in this version"),
    valued("tls-psk", None, "FILE", "Not supported in this version"),
    switch("tls-verify-peer", None, "Not supported in this version"),
    valued("unix", Some('U'), "SOCKET", "Listen on this Unix socket; - makes a private one"),
    valued("user", Some('u'), "USER", "Change to this user, a name or a number, when listening"),
    switch("verbose", Some('v'), "Print debugging messages to standard error"),
    switch("version", Some('V'), "Print the version, and exit"),
    switch("vsock", None, "Not supported in this version: listen on AF_VSOCK"),
    valued("wasm-filter", None, "FILE[@sha256:HEX]", "Put the filter in this component file in front of the plugin")
        .repeated(),
];

/// The id of the positional words.
const WORDS: &str = "words";

/// A command line taken apart, nothing checked.
pub struct Given {
    matches: ArgMatches,
}

impl Given {
    /// Whether the switch is there.
    pub fn has(&self, name: &str) -> bool {
        self.matches.get_flag(name)
    }

    /// The value of an option, the last if it was repeated.
    pub fn value(&self, name: &str) -> Option<&OsString> {
        self.matches.get_many::<OsString>(name).and_then(Iterator::last)
    }

    /// The values of an option that may be repeated, each with its place on the command line.
    pub fn values(&self, name: &str) -> Vec<(usize, &OsString)> {
        match (self.matches.indices_of(name), self.matches.get_many::<OsString>(name)) {
            (Some(places), Some(values)) => places.zip(values).collect(),
            _ => Vec::new(),
        }
    }

    /// What is no option: the plugin's name and its parameters.
    pub fn words(&self) -> Vec<OsString> {
        self.matches.get_many::<OsString>(WORDS).map(|words| words.cloned().collect()).unwrap_or_default()
    }
}

/// Takes the words after the program's name apart.
///
/// # Errors
/// One line for an option that does not exist, lacks its value or has one that it should not.
pub fn take_apart(args: Vec<OsString>) -> Result<Given, ConfigError> {
    match command().try_get_matches_from(args) {
        Ok(matches) => Ok(Given { matches }),
        Err(error) => Err(one_line(&error)),
    }
}

fn command() -> Command {
    let command = Command::new("rbdkit")
        .no_binary_name(true)
        .disable_help_flag(true)
        .disable_version_flag(true)
        .infer_long_args(true)
        .args_override_self(true);
    let words = Arg::new(WORDS).num_args(0..).value_parser(value_parser!(OsString));
    OPTIONS.iter().map(argument).fold(command, Command::arg).arg(words)
}

fn argument(spec: &OptionSpec) -> Arg {
    let mut arg = Arg::new(spec.name).long(spec.name).aliases(spec.aliases);
    if let Some(short) = spec.short {
        arg = arg.short(short);
    }
    if spec.value.is_none() {
        return arg.action(ArgAction::SetTrue);
    }
    // Every value is appended: which of them count is decided by whoever asks.
    arg.action(ArgAction::Append).num_args(1).value_parser(value_parser!(OsString)).allow_hyphen_values(true)
}

fn one_line(error: &clap::Error) -> ConfigError {
    let option = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(text)) => text.split([' ', '=']).next().unwrap_or_default().to_string(),
        _ => String::new(),
    };
    ConfigError::new(match error.kind() {
        ErrorKind::UnknownArgument => unknown(&option),
        ErrorKind::InvalidValue => format!("option '{option}' requires an argument"),
        ErrorKind::TooManyValues => format!("option '{option}' does not take an argument"),
        // Nothing else can come of the arguments above; if it does, its first line says what.
        _ => {
            let text = error.to_string();
            text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_string()
        }
    })
}

fn unknown(option: &str) -> String {
    let names = || OPTIONS.iter().flat_map(OptionSpec::long_names);
    let Some(given) = option.strip_prefix("--") else {
        return format!("unknown option '{option}' (--help lists those there are)");
    };
    let begun: Vec<String> = names().filter(|name| name.starts_with(given)).map(|name| format!("--{name}")).collect();
    if !begun.is_empty() {
        return format!("option '{option}' may mean {}", begun.join(" or "));
    }
    match nearest(given, names()) {
        Some(name) => format!("unknown option '{option}': did you mean --{name}?"),
        None => format!("unknown option '{option}' (--help lists those there are)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(args: &[&str]) -> Result<Given, String> {
        take_apart(args.iter().map(OsString::from).collect()).map_err(|error| error.to_string())
    }

    fn words(args: &[&str]) -> Vec<OsString> {
        given(args).unwrap().words()
    }

    #[test]
    fn options_may_stand_anywhere() {
        for args in
            [["-r", "-p1", "file", "x=y"], ["file", "-rp", "1", "x=y"], ["file", "x=y", "--port=1", "--readonly"]]
        {
            let given = given(&args).unwrap();
            assert!(given.has("readonly"), "{args:?}");
            assert_eq!(given.value("port").unwrap(), "1", "{args:?}");
            assert_eq!(given.words(), ["file", "x=y"], "{args:?}");
        }
    }

    #[test]
    fn two_dashes_end_options_and_one_dash_is_a_word() {
        assert_eq!(words(&["sh", "-", "-r", "--", "-x", "--"]), ["sh", "-", "-x", "--"]);
    }

    #[test]
    fn a_value_may_begin_with_a_dash() {
        let given = given(&["-U", "-", "-e", "-r", "--run", "--", "null", "--pidfile=-"]).unwrap();
        assert_eq!(given.value("unix").unwrap(), "-");
        assert_eq!(given.value("exportname").unwrap(), "-r");
        assert_eq!(given.value("run").unwrap(), "--");
        assert_eq!(given.value("pidfile").unwrap(), "-");
        assert!(!given.has("readonly"));
        assert_eq!(given.words(), ["null"]);
    }

    #[test]
    fn the_last_of_a_repeated_option_wins() {
        let given = given(&["-p", "1", "-r", "--port=2", "-r"]).unwrap();
        assert_eq!(given.value("port").unwrap(), "2");
    }

    #[test]
    fn every_filter_counts_and_its_place_is_known() {
        let given = given(&["--filter=a", "null", "--wasm-filter", "b", "--filter", "c"]).unwrap();
        let filters: Vec<&OsString> = given.values("filter").into_iter().map(|(_, value)| value).collect();
        assert_eq!(filters, ["a", "c"]);
        let (a, b, c) = (given.values("filter")[0].0, given.values("wasm-filter")[0].0, given.values("filter")[1].0);
        assert!(a < b && b < c);
    }

    #[test]
    fn long_names_may_be_shortened() {
        assert!(given(&["--read"]).unwrap().has("readonly"));
        assert!(given(&["--foregr"]).unwrap().has("foreground"));
        assert_eq!(given(&["--exportn", "x"]).unwrap().value("exportname").unwrap(), "x");
    }

    #[test]
    fn an_empty_value_is_a_value() {
        assert_eq!(given(&["--exportname="]).unwrap().value("exportname").unwrap(), "");
        assert_eq!(given(&["-e", ""]).unwrap().value("exportname").unwrap(), "");
    }

    #[test]
    fn mistakes_are_one_line() {
        for (args, message) in [
            (&["--redonly"][..], "unknown option '--redonly': did you mean --readonly?"),
            (&["--bogus-thing"], "unknown option '--bogus-thing' (--help lists those there are)"),
            (&["-x"], "unknown option '-x' (--help lists those there are)"),
            (&["-fx"], "unknown option '-x' (--help lists those there are)"),
            (
                &["--sel", "x", "--si", "--t", "1"],
                "option '--t' may mean --threads or --timeout or --tls or --tls-certificates or --tls-psk or --tls-verify-peer",
            ),
            (&["-U"], "option '--unix' requires an argument"),
            (&["null", "--exportname"], "option '--exportname' requires an argument"),
            (&["--readonly=yes"], "option '--readonly' does not take an argument"),
        ] {
            assert_eq!(given(args).err().unwrap(), message, "{args:?}");
        }
    }

    #[test]
    fn no_two_options_share_a_name() {
        let mut names: Vec<&str> = OPTIONS.iter().flat_map(OptionSpec::long_names).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
        command().debug_assert();
    }
}
