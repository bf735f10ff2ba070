//! [`Plan`]: what the command line asks for, checked.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::Duration;

use rbdkit_parameters::{Parameter, TargetedParameter};
use rbdkit_plugin_api::secrets::without_userinfo;
use rbdkit_plugin_api::{ConfigError, units};

use super::filters::{
    FilterAllow, FilterFault, FilterLimit, FilterSource, RegistryOptions, filter_allow, filter_limit, filter_on_fault,
    filter_param, filters, plugin_param, registries, reload,
};
use super::listen::{Inherited, Listen, listen};
use super::messages::{DebugFlag, LogTo, debug_flag, log, name};
use super::options::{self, Options};
use super::parameter_file::{self, ReadFile};
use super::record::{RecordOption, record};
use super::tls::{TlsPlan, tls};
use super::values::{error, export_name, path, text, whole_number};

/// What the program is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Serve.
    Serve,
    /// Print the usage, and the parameters of the given plugin and filters.
    Help,
    /// Print the version, after checking that the given plugin and filters can be loaded.
    Version,
    /// Print how the program was built.
    DumpConfig,
    /// Print information about the plugin.
    DumpPlugin,
    /// Print the one-letter options.
    ShortOptions,
    /// Print the long options.
    LongOptions,
}

/// The two forms of NBD's handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandshakeStyle {
    /// Client and server negotiate.
    Newstyle,
    /// The server tells the size of its one export, and the client begins.
    Oldstyle,
}

/// What the command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What to do.
    pub action: Action,
    /// Where clients come from.
    pub listen: Listen,
    /// Stay in the foreground: given or implied.
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
    /// How the negotiation with clients goes.
    pub handshake_style: HandshakeStyle,
    /// Offer structured replies.
    pub structured_replies: bool,
    /// Offer metadata contexts.
    pub meta_contexts: bool,
    /// Offer multi-conn.
    pub multi_conn: bool,
    /// The global handshake flags that may be offered; none for all of them.
    pub handshake_mask: Option<u16>,
    /// Requests of one client at once; none for the default.
    pub threads: Option<u32>,
    /// How long the whole negotiation may take.
    pub timeout: Option<Duration>,
    /// Let the kernel check that idle clients are still there.
    pub keepalive: bool,
    /// The SELinux label of the sockets that the server makes.
    pub selinux_label: Option<OsString>,
    /// `--limit`: resources of the server and their values, not checked yet.
    pub limits: Vec<(String, String)>,
    /// Lock the process into memory.
    pub swap: bool,
    /// The user to change to.
    pub user: Option<String>,
    /// The group to change to.
    pub group: Option<String>,
    /// Where error messages go.
    pub log: LogTo,
    /// The name of this server in messages.
    pub name: Option<String>,
    /// Print debugging messages.
    pub verbose: bool,
    /// Debug flags.
    pub debug_flags: Vec<DebugFlag>,
    /// The filters, the first nearest the client.
    pub filters: Vec<FilterSource>,
    /// `--filter-key` and `--plain-http`.
    pub registries: RegistryOptions,
    /// `--filter-param`.
    pub filter_params: Vec<TargetedParameter>,
    /// `--filter-limit`.
    pub filter_limits: Vec<FilterLimit>,
    /// `--filter-allow`.
    pub filter_allows: Vec<FilterAllow>,
    /// Read the files of filters again on SIGHUP.
    pub reload: bool,
    /// `--filter-on-fault`.
    pub filter_on_fault: FilterFault,
    /// `--record`.
    pub record: Option<RecordOption>,
    /// The options of TLS.
    pub tls: TlsPlan,
    /// Confine the process once it has started.
    pub confine: bool,
    /// The plugin's name; missing only if the action needs none.
    pub plugin: Option<String>,
    /// Where nbdkit's plugins are (`--plugindir`).
    pub plugindir: Option<PathBuf>,
    /// What follows the plugin's name, and then `--plugin-param`.
    pub params: Vec<Parameter>,
}

/// Makes a plan of the words after the program's name. `read_file` reads the files that `@FILE`
/// names.
///
/// # Errors
/// One line that names the option and says what would be right.
pub fn parse(args: Vec<OsString>, inherited: Inherited, read_file: ReadFile<'_>) -> Result<Plan, ConfigError> {
    let mut given = options::take_apart(args)?;
    if given.words.len() > 1 {
        // The first word is the plugin's name.
        let parameters = given.words.split_off(1);
        given.words.extend(parameter_file::expand(parameters, read_file)?);
    }
    Plan::new(&given, inherited)
}

/// The words without the plugin's name: what a plugin that is a program gets.
///
/// # Errors
/// As [`parse`].
pub fn without_plugin(args: &[OsString]) -> Result<Vec<OsString>, ConfigError> {
    let words = options::take_apart(args.to_vec())?.words;
    let Some((plugin, parameters)) = words.split_first() else { return Ok(args.to_vec()) };
    for (index, _) in args.iter().enumerate().filter(|(_, arg)| *arg == plugin) {
        let rest = [&args[..index], &args[index + 1..]].concat();
        // The word may also be the value of an option. Without that one, other words are left.
        if options::take_apart(rest.clone()).is_ok_and(|left| left.words == parameters) {
            return Ok(rest);
        }
    }
    Ok(args.to_vec())
}

impl Plan {
    fn new(given: &Options, inherited: Inherited) -> Result<Plan, ConfigError> {
        let action = action(given);
        let mut words = given.words.iter();
        let plugin = words.next().map(|word| plugin_name(word)).transpose()?;
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
        let run = given.run.clone();
        let exit_with_parent = given.exit_with_parent;
        let foreground = given.foreground
            || exit_with_parent
            || run.is_some()
            || matches!(listen, Listen::Single | Listen::Inherited(_));
        Ok(Plan {
            action,
            foreground,
            exit_with_parent,
            run,
            exportname: given
                .exportname
                .as_ref()
                .map_or_else(|| Ok(OsString::new()), |name| export_name("-e", name))?,
            pidfile: given.pidfile.as_ref().map(|file| path("--pidfile", file)).transpose()?,
            print_uri: given.print_uri,
            readonly: given.readonly,
            handshake_style: if given.oldstyle { HandshakeStyle::Oldstyle } else { HandshakeStyle::Newstyle },
            structured_replies: !given.no_structured_replies,
            meta_contexts: !given.no_meta_contexts,
            multi_conn: !given.no_multi_conn,
            handshake_mask: handshake_mask(given)?,
            threads: threads(given)?,
            timeout: timeout(given)?,
            keepalive: given.keepalive,
            selinux_label: given.selinux_label.as_ref().map(|label| selinux_label(label)).transpose()?,
            limits: each(&given.limit, limit)?,
            swap: given.swap,
            user: given.user.as_ref().map(|user| text("--user", user)).transpose()?,
            group: given.group.as_ref().map(|group| text("--group", group)).transpose()?,
            log: log(given)?,
            name: name(given)?,
            verbose: given.verbose,
            debug_flags: each(&given.debug, debug_flag)?,
            filters: filters(given)?,
            registries: registries(given)?,
            filter_params: each(&given.filter_param, filter_param)?,
            filter_limits: each(&given.filter_limit, filter_limit)?,
            filter_allows: each(&given.filter_allow, filter_allow)?,
            reload: reload(given)?,
            filter_on_fault: filter_on_fault(given)?,
            record: record(given)?,
            tls: tls(given)?,
            confine: !given.no_confine,
            plugin,
            plugindir: given.plugindir.as_ref().map(|directory| path("--plugindir", directory)).transpose()?,
            params: words.cloned().map(Parameter::new).chain(each(&given.plugin_param, plugin_param)?).collect(),
            listen,
        })
    }
}

pub(super) fn each<T>(
    values: &[OsString],
    parse: impl Fn(&OsStr) -> Result<T, ConfigError>,
) -> Result<Vec<T>, ConfigError> {
    values.iter().map(|value| parse(value)).collect()
}

/// If several actions are given, the first in this order wins. The order is nbdkit's, except that
/// help comes first.
fn action(given: &Options) -> Action {
    match given {
        _ if given.help => Action::Help,
        _ if given.short_options => Action::ShortOptions,
        _ if given.long_options => Action::LongOptions,
        _ if given.version => Action::Version,
        _ if given.dump_config => Action::DumpConfig,
        _ if given.dump_plugin => Action::DumpPlugin,
        _ => Action::Serve,
    }
}

/// A label that the kernel can take. Whether it exists is for the kernel to say.
fn selinux_label(label: &OsStr) -> Result<OsString, ConfigError> {
    match label.is_empty() {
        true => Err(error("--selinux-label: the label is empty")),
        false => Ok(label.to_os_string()),
    }
}

/// The plugin's name or its file, as the command line has it.
pub(super) fn plugin_name(word: &OsStr) -> Result<String, ConfigError> {
    let name = word.to_string_lossy();
    if name.contains("://") {
        return Err(error(format!(
            "cannot open plugin '{}': the name of a plugin has to stand before a URL, for example: rbdkit curl URL",
            without_userinfo(&name)
        )));
    }
    Ok(name.into_owned())
}

fn handshake_mask(given: &Options) -> Result<Option<u16>, ConfigError> {
    let Some(value) = &given.mask_handshake else {
        return Ok(None);
    };
    // nbdkit takes 32 bits, of which the handshake has 16.
    Ok(Some(whole_number("--mask-handshake", value, u64::from(u32::MAX))? as u16))
}

fn threads(given: &Options) -> Result<Option<u32>, ConfigError> {
    let Some(value) = &given.threads else {
        return Ok(None);
    };
    let count = whole_number("--threads", value, u64::from(u32::MAX))? as u32;
    // 0 stands for the default in nbdkit.
    Ok((count > 0).then_some(count))
}

fn limit(value: &OsStr) -> Result<(String, String), ConfigError> {
    let value = text("--limit", value)?;
    match value.split_once('=') {
        Some((resource, amount)) if !resource.is_empty() && !amount.is_empty() => Ok((resource.into(), amount.into())),
        _ => Err(error(format!("--limit: '{value}' is not RESOURCE=VALUE, for example connections=100"))),
    }
}

fn timeout(given: &Options) -> Result<Option<Duration>, ConfigError> {
    let Some(value) = &given.timeout else {
        return Ok(None);
    };
    let value = text("--timeout", value)?;
    match units::parse_duration(&value) {
        Ok(0) => Err(error(format!("--timeout={value}: has to be more than 0"))),
        Ok(nanoseconds) => Ok(Some(Duration::from_nanos(nanoseconds))),
        Err(wrong) => Err(error(format!("--timeout={value}: {wrong}"))),
    }
}

#[cfg(test)]
mod tests;
