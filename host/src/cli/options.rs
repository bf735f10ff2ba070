//! The options of the program. Each is defined once: the parser, `--help`, `--long-options` and the
//! tests all read [`Options`].
//!
//! clap parses the command line, configured to behave as getopt_long does for nbdkit: options may
//! stand anywhere, the last of a repeated option wins, long names may be shortened, an option's
//! value may begin with `-`, and `--` ends options. No value is checked here.

use std::ffi::OsString;

use clap::builder::{Command, StyledStr};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, CommandFactory, FromArgMatches, Parser};
use rbdkit_parameters::nearest;
use rbdkit_plugin_api::ConfigError;

/// The parsed command line. The comments are the texts of `--help`, in its order.
#[derive(Debug, Parser)]
#[command(name = "rbdkit", no_binary_name = true, disable_help_flag = true, disable_version_flag = true)]
#[command(infer_long_args = true, args_override_self = true)]
pub(super) struct Options {
    /// Listen on, and resolve -i to, IPv4 addresses only
    #[arg(short = '4', long = "ipv4-only", overrides_with = "ipv6_only")]
    pub(super) ipv4_only: bool,

    /// Listen on, and resolve -i to, IPv6 addresses only
    #[arg(short = '6', long = "ipv6-only", overrides_with = "ipv4_only")]
    pub(super) ipv6_only: bool,

    /// Set a debug flag of a plugin, a filter, or the server (NAME is nbdkit)
    #[arg(short = 'D', long = "debug", value_name = "NAME.FLAG=N")]
    pub(super) debug: Vec<OsString>,

    /// Print how the program was built, and exit
    #[arg(long = "dump-config")]
    pub(super) dump_config: bool,

    /// Print information about the plugin and the filters, and exit
    #[arg(long = "dump-plugin")]
    pub(super) dump_plugin: bool,

    /// Exit when the parent process exits; implies -f
    #[arg(long = "exit-with-parent")]
    pub(super) exit_with_parent: bool,

    /// The export name in $uri and $exportname of --run
    #[arg(short = 'e', long = "exportname", visible_aliases = ["export-name", "export"], value_name = "NAME")]
    pub(super) exportname: Option<OsString>,

    /// Put this filter in front of the plugin; the first is nearest the client
    #[arg(long = "filter", value_name = "NAME")]
    filter: Vec<OsString>,

    /// Allow this filter to end the server or to disconnect clients
    #[arg(long = "filter-allow", value_name = "FILTER:shutdown|disconnect,...")]
    pub(super) filter_allow: Vec<OsString>,

    /// Refuse filters that are not signed by this public key
    #[arg(long = "filter-key", value_name = "PUB")]
    pub(super) filter_key: Option<OsString>,

    /// Change a limit of filters, for example cow:memory=128M
    #[arg(long = "filter-limit", value_name = "[FILTER:]RESOURCE=VALUE")]
    pub(super) filter_limit: Vec<OsString>,

    /// When a filter has a fault, fail the request, end the connection, or end the server
    #[arg(long = "filter-on-fault", value_name = "error|disconnect|exit")]
    pub(super) filter_on_fault: Option<OsString>,

    /// Give a parameter to this filter, even if another layer declares the key
    #[arg(long = "filter-param", value_name = "FILTER:KEY=VALUE")]
    pub(super) filter_param: Vec<OsString>,

    /// Give a parameter to the plugin, even if a filter declares the key
    #[arg(long = "plugin-param", value_name = "KEY=VALUE")]
    pub(super) plugin_param: Vec<OsString>,

    /// Do not fork into the background
    #[arg(short = 'f', long = "foreground", visible_aliases = ["no-fork"])]
    pub(super) foreground: bool,

    /// Change to this group, a name or a number, once the sockets are open
    #[arg(short = 'g', long = "group", value_name = "GROUP")]
    pub(super) group: Option<OsString>,

    /// Print this text, or the parameters of the given plugin and filters, and exit
    #[arg(short = 'h', long = "help")]
    pub(super) help: bool,

    /// Listen on this address or host name (default: all addresses)
    #[arg(short = 'i', long = "ipaddr", visible_aliases = ["ip-addr"], value_name = "ADDRESS")]
    pub(super) ipaddr: Option<OsString>,

    /// Let the kernel check that idle TCP and vsock clients are still there
    #[arg(long = "keepalive")]
    pub(super) keepalive: bool,

    /// Change a limit of the server, for example connections=100
    #[arg(long = "limit", value_name = "RESOURCE=VALUE")]
    pub(super) limit: Vec<OsString>,

    /// Where error messages go (default: stderr, and syslog in the background)
    #[arg(long = "log", value_name = "default|stderr|syslog|null|/PATH|fd:N")]
    pub(super) log: Option<OsString>,

    /// Print the long options, for shell completion, and exit
    #[arg(long = "long-options")]
    pub(super) long_options: bool,

    /// Offer only these global handshake flags to clients
    #[arg(long = "mask-handshake", value_name = "MASK")]
    pub(super) mask_handshake: Option<OsString>,

    /// Begin messages with rbdkit[NAME], to tell several servers apart
    #[arg(long = "name", value_name = "NAME")]
    pub(super) name: Option<OsString>,

    /// Use the newstyle protocol (the default)
    #[arg(short = 'n', long = "newstyle", visible_aliases = ["new-style"], overrides_with = "oldstyle")]
    newstyle: bool,

    /// Do not give up the rights that serving does not need
    #[arg(long = "no-confine")]
    pub(super) no_confine: bool,

    /// Do not offer metadata contexts, so that clients cannot ask what is allocated
    #[arg(long = "no-meta-contexts", visible_aliases = ["no-mc"])]
    pub(super) no_meta_contexts: bool,

    /// Do not offer multi-conn
    #[arg(long = "no-multi-conn")]
    pub(super) no_multi_conn: bool,

    /// Do not offer structured replies and extended headers
    #[arg(long = "no-structured-replies", visible_aliases = ["no-sr"])]
    pub(super) no_structured_replies: bool,

    /// Use the oldstyle protocol, for clients that know no other
    #[arg(short = 'o', long = "oldstyle", visible_aliases = ["old-style"], overrides_with = "newstyle")]
    pub(super) oldstyle: bool,

    /// Write the process id to this file when the server is ready for clients
    #[arg(short = 'P', long = "pidfile", visible_aliases = ["pid-file"], value_name = "FILE")]
    pub(super) pidfile: Option<OsString>,

    /// Pull filters from registries on other machines without TLS
    #[arg(long = "plain-http")]
    pub(super) plain_http: bool,

    /// Look for nbdkit's plugins in this directory (default: nbdkit's own)
    #[arg(long = "plugindir", value_name = "DIR")]
    pub(super) plugindir: Option<OsString>,

    /// Listen on this TCP or vsock port (default: 10809; TCP port 0: any that is free)
    #[arg(short = 'p', long = "port", value_name = "PORT")]
    pub(super) port: Option<OsString>,

    /// Print the URI to connect to, and commands that use it
    #[arg(long = "print-uri")]
    pub(super) print_uri: bool,

    /// Do not let clients write
    #[arg(short = 'r', long = "readonly", visible_aliases = ["read-only"])]
    pub(super) readonly: bool,

    /// Record in this file what passes one layer (default: the one nearest the client)
    #[arg(long = "record", value_name = "[LAYER:]FILE")]
    pub(super) record: Option<OsString>,

    /// End the record when its file has this size (default: 1G); the server serves on
    #[arg(long = "record-limit", value_name = "SIZE")]
    pub(super) record_limit: Option<OsString>,

    /// Record all data that clients read and write, not only digests of it
    #[arg(long = "record-payloads")]
    pub(super) record_payloads: bool,

    /// On SIGHUP, read the files of --wasm-filter again and serve with the new filters
    #[arg(long = "reload")]
    pub(super) reload: bool,

    /// Serve while this shell command runs and exit with its status; by default on -U -
    #[arg(long = "run", value_name = "COMMAND")]
    pub(super) run: Option<OsString>,

    /// Give the sockets that the server makes this SELinux label
    #[arg(long = "selinux-label", value_name = "LABEL")]
    pub(super) selinux_label: Option<OsString>,

    /// Print the short options, for shell completion, and exit
    #[arg(long = "short-options")]
    pub(super) short_options: bool,

    /// Serve one client on standard input and output
    #[arg(short = 's', long = "single", visible_aliases = ["stdin"])]
    pub(super) single: bool,

    /// Lock the process into memory, for an export that is this machine's swap space
    #[arg(long = "swap")]
    pub(super) swap: bool,

    /// Serve this many requests of one client at once (default: 256)
    #[arg(short = 't', long = "threads", value_name = "N")]
    pub(super) threads: Option<OsString>,

    /// Drop clients that take longer than this for the whole negotiation
    #[arg(long = "timeout", value_name = "TIME")]
    pub(super) timeout: Option<OsString>,

    /// Do not let clients use TLS, let them, or require it (default: on with certificates)
    #[arg(long = "tls", value_name = "off|on|require")]
    pub(super) tls: Option<OsString>,

    /// The directory of certificates (default: /etc/pki/nbdkit, or below $HOME if not root)
    #[arg(long = "tls-certificates", value_name = "DIR")]
    pub(super) tls_certificates: Option<OsString>,

    /// The algorithms of TLS, as a priority string of GnuTLS (default: NORMAL)
    #[arg(long = "tls-priority", value_name = "PRIORITY")]
    pub(super) tls_priority: Option<OsString>,

    /// Use the pre-shared keys of this file instead of certificates
    #[arg(long = "tls-psk", value_name = "FILE")]
    pub(super) tls_psk: Option<OsString>,

    /// Refuse clients without a certificate of the authority
    #[arg(long = "tls-verify-peer")]
    pub(super) tls_verify_peer: bool,

    /// Listen on this Unix socket; - creates a private one
    #[arg(short = 'U', long = "unix", value_name = "SOCKET")]
    pub(super) unix: Option<OsString>,

    /// Change to this user, a name or a number, once the sockets are open
    #[arg(short = 'u', long = "user", value_name = "USER")]
    pub(super) user: Option<OsString>,

    /// Print debugging messages to standard error
    #[arg(short = 'v', long = "verbose")]
    pub(super) verbose: bool,

    /// Print the version, and exit
    #[arg(short = 'V', long = "version")]
    pub(super) version: bool,

    /// Listen on AF_VSOCK, for virtual machines of this host; -p is its port
    #[arg(long = "vsock")]
    pub(super) vsock: bool,

    /// Put this component in front of the plugin: a file, or oci://host/name:tag
    #[arg(long = "wasm-filter", value_name = "FILE[@sha256:HEX]")]
    wasm_filter: Vec<OsString>,

    // The plugin's name and its parameters. (A doc comment would become a help text.)
    #[arg(num_args = 0..)]
    pub(super) words: Vec<OsString>,

    // The values of both options above, in the order of the command line.
    #[arg(skip)]
    pub(super) filters: Vec<FilterOption>,
}

/// A value of `--filter` or of `--wasm-filter`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum FilterOption {
    Named(OsString),
    File(OsString),
}

/// Parses the words after the program's name.
///
/// # Errors
/// One line for an option that does not exist, lacks its value or has one that it should not.
pub(super) fn take_apart(args: Vec<OsString>) -> Result<Options, ConfigError> {
    let matches = command().try_get_matches_from(args).map_err(|error| one_line(&error))?;
    let mut options = Options::from_arg_matches(&matches).map_err(|error| one_line(&error))?;
    options.filters = options.filters_in_order(&matches);
    Ok(options)
}

/// The options that a chain has which is not the server's own.
const OF_A_CHAIN: [&str; 5] = ["filter", "filter_param", "plugin_param", "wasm_filter", "words"];

/// [`take_apart`] for the words of a chain that is not the server's own.
///
/// # Errors
/// As [`take_apart`], or one line for an option of the server's.
pub(super) fn take_apart_chain(args: Vec<OsString>) -> Result<Options, ConfigError> {
    let matches = command().try_get_matches_from(&args).map_err(|error| one_line(&error))?;
    let is_given = |arg: &&Arg| matches.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine);
    let of_server = |arg: &&Arg| !OF_A_CHAIN.contains(&arg.get_id().as_str());
    if let Some(arg) = Options::command().get_arguments().filter(of_server).find(is_given) {
        let option = arg.get_long().unwrap_or_default();
        return Err(ConfigError::new(format!(
            "option '--{option}' is for the server, and not for a disk: a disk has --filter, --filter-param, \
             --plugin-param and --wasm-filter"
        )));
    }
    take_apart(args)
}

fn command() -> Command {
    let takes_a_value = |arg: &Arg| !arg.is_positional() && arg.get_action().takes_values();
    Options::command().mut_args(|arg| if takes_a_value(&arg) { arg.allow_hyphen_values(true) } else { arg })
}

impl Options {
    /// The filters of both options, in the order in which they stand on the command line.
    fn filters_in_order(&self, matches: &ArgMatches) -> Vec<FilterOption> {
        let places = |id: &str| matches.indices_of(id).into_iter().flatten();
        let named = places("filter").zip(self.filter.iter().cloned().map(FilterOption::Named));
        let files = places("wasm_filter").zip(self.wasm_filter.iter().cloned().map(FilterOption::File));
        let mut all: Vec<(usize, FilterOption)> = named.chain(files).collect();
        all.sort_by_key(|(place, _)| *place);
        all.into_iter().map(|(_, filter)| filter).collect()
    }
}

/// What `--help` says of an option.
pub(super) struct OptionHelp {
    /// The one-letter name.
    pub(super) short: Option<char>,
    /// All long names.
    pub(super) long: Vec<String>,
    /// The placeholder for its value; none for a switch.
    pub(super) value: Option<String>,
    /// One sentence.
    pub(super) help: String,
}

/// All options, in the order of `--help`.
pub(super) fn all() -> impl Iterator<Item = OptionHelp> {
    let options: Vec<OptionHelp> =
        Options::command().get_arguments().filter(|arg| !arg.is_positional()).map(describe).collect();
    options.into_iter()
}

fn describe(arg: &Arg) -> OptionHelp {
    let aliases = arg.get_visible_aliases().unwrap_or_default();
    OptionHelp {
        short: arg.get_short(),
        long: arg.get_long().into_iter().chain(aliases).map(String::from).collect(),
        value: arg
            .get_action()
            .takes_values()
            .then(|| arg.get_value_names().and_then(|names| names.first()).map(ToString::to_string))
            .flatten(),
        help: arg.get_help().map(StyledStr::to_string).unwrap_or_default(),
    }
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
        // clap gives no other errors for these definitions. If it does, the first line is the
        // message.
        _ => {
            let text = error.to_string();
            text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_string()
        }
    })
}

fn unknown(option: &str) -> String {
    let names: Vec<String> = all().flat_map(|option| option.long).collect();
    let Some(given) = option.strip_prefix("--") else {
        return format!("unknown option '{option}' (--help lists all options)");
    };
    let begun: Vec<String> =
        names.iter().filter(|name| name.starts_with(given)).map(|name| format!("--{name}")).collect();
    if !begun.is_empty() {
        return format!("option '{option}' may mean {}", begun.join(" or "));
    }
    match nearest(given, names.iter().map(String::as_str)) {
        Some(name) => format!("unknown option '{option}': did you mean --{name}?"),
        None => format!("unknown option '{option}' (--help lists all options)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(args: &[&str]) -> Result<Options, String> {
        take_apart(args.iter().map(OsString::from).collect()).map_err(|error| error.to_string())
    }

    fn words(args: &[&str]) -> Vec<OsString> {
        given(args).unwrap().words
    }

    #[test]
    fn options_may_stand_anywhere() {
        for args in
            [["-r", "-p1", "file", "x=y"], ["file", "-rp", "1", "x=y"], ["file", "x=y", "--port=1", "--readonly"]]
        {
            let given = given(&args).unwrap();
            assert!(given.readonly, "{args:?}");
            assert_eq!(given.port.as_ref().unwrap(), "1", "{args:?}");
            assert_eq!(given.words, ["file", "x=y"], "{args:?}");
        }
    }

    #[test]
    fn two_dashes_end_options_and_one_dash_is_a_word() {
        assert_eq!(words(&["sh", "-", "-r", "--", "-x", "--"]), ["sh", "-", "-x", "--"]);
    }

    #[test]
    fn a_value_may_begin_with_a_dash() {
        let given = given(&["-U", "-", "-e", "-r", "--run", "--", "null", "--pidfile=-"]).unwrap();
        assert_eq!(given.unix.as_ref().unwrap(), "-");
        assert_eq!(given.exportname.as_ref().unwrap(), "-r");
        assert_eq!(given.run.as_ref().unwrap(), "--");
        assert_eq!(given.pidfile.as_ref().unwrap(), "-");
        assert!(!given.readonly);
        assert_eq!(given.words, ["null"]);
    }

    #[test]
    fn the_last_of_a_repeated_option_wins() {
        let given = given(&["-p", "1", "-r", "--port=2", "-r"]).unwrap();
        assert_eq!(given.port.as_ref().unwrap(), "2");
    }

    #[test]
    fn the_last_of_two_options_that_contradict_each_other_wins() {
        let of = |args: &[&str]| given(args).unwrap();
        assert!(of(&["-6", "-4"]).ipv4_only && !of(&["-6", "-4"]).ipv6_only);
        assert!(of(&["-4", "--ipv6-only"]).ipv6_only && !of(&["-4", "--ipv6-only"]).ipv4_only);
        assert!(of(&["-4", "-6", "-4"]).ipv4_only);
        assert!(of(&["-n", "-o"]).oldstyle && !of(&["--old-style", "--new-style"]).oldstyle);
    }

    #[test]
    fn every_filter_counts_and_its_place_is_known() {
        let given = given(&["--filter=a", "null", "--wasm-filter", "b", "--filter", "c"]).unwrap();
        let (named, file) = (|name: &str| FilterOption::Named(name.into()), FilterOption::File("b".into()));
        assert_eq!(given.filters, [named("a"), file, named("c")]);
    }

    #[test]
    fn long_names_may_be_shortened() {
        assert!(given(&["--read"]).unwrap().readonly);
        assert!(given(&["--foregr"]).unwrap().foreground);
        assert_eq!(given(&["--exportn", "x"]).unwrap().exportname.unwrap(), "x");
    }

    #[test]
    fn an_empty_value_is_a_value() {
        assert_eq!(given(&["--exportname="]).unwrap().exportname.unwrap(), "");
        assert_eq!(given(&["-e", ""]).unwrap().exportname.unwrap(), "");
    }

    #[test]
    fn mistakes_are_one_line() {
        for (args, message) in [
            (&["--redonly"][..], "unknown option '--redonly': did you mean --readonly?"),
            (&["--bogus-thing"], "unknown option '--bogus-thing' (--help lists all options)"),
            (&["-x"], "unknown option '-x' (--help lists all options)"),
            (&["-fx"], "unknown option '-x' (--help lists all options)"),
            (
                &["--sel", "x", "--si", "--t", "1"],
                "option '--t' may mean --threads or --timeout or --tls or --tls-certificates or --tls-priority \
                    or --tls-psk or --tls-verify-peer",
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
        let mut names: Vec<String> = all().flat_map(|option| option.long).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
        command().debug_assert();
    }
}
