//! The layers of a chain as words name them: on the command line, and in the value of a parameter
//! that gives a filter a disk.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;

use rbdkit_parameters::{Parameter, TargetedParameter};
use rbdkit_plugin_api::ConfigError;
use rbdkit_plugin_api::schema::CHAIN_PREFIX;
use rbdkit_plugin_api::shell::shell_words;

use super::filters::{FilterSource, filter_param, filters, plugin_param};
use super::options;
use super::plan::{Plan, each, plugin_name};
use super::values::error;

/// The layers of one chain, and their parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainPlan {
    /// The filters, the first nearest the client.
    pub filters: Vec<FilterSource>,
    /// `--filter-param`.
    pub filter_params: Vec<TargetedParameter>,
    /// The plugin's name.
    pub plugin: String,
    /// What follows the plugin's name, and then `--plugin-param`.
    pub params: Vec<Parameter>,
}

impl Plan {
    /// The chain that clients reach.
    pub fn chain(&self) -> ChainPlan {
        ChainPlan {
            filters: self.filters.clone(),
            filter_params: self.filter_params.clone(),
            plugin: self.plugin.clone().unwrap_or_default(),
            params: self.params.clone(),
        }
    }
}

/// The chain of a disk: `chain:` and the words of a chain, quoted as in a shell, or the name of a
/// file.
///
/// # Errors
/// One line without the value.
pub fn disk(value: &OsStr) -> Result<ChainPlan, ConfigError> {
    let Some(text) = value.as_bytes().strip_prefix(CHAIN_PREFIX.as_bytes()) else {
        let file = Parameter::ForPlugin("file".into(), value.to_os_string());
        return Ok(ChainPlan {
            filters: Vec::new(),
            filter_params: Vec::new(),
            plugin: "file".into(),
            params: vec![file],
        });
    };
    let words = shell_words(OsStr::from_bytes(text)).map_err(|why| error(why.to_string()))?;
    let given = options::take_apart_chain(words)?;
    let mut words = given.words.iter();
    let plugin = words.next().ok_or_else(|| error("no plugin given, for example: chain:file disk.img"))?;
    let words: Vec<OsString> = words.cloned().collect();
    if let Some(word) = words.iter().find(|word| word.as_bytes().first() == Some(&b'@')) {
        let word = word.to_string_lossy();
        return Err(error(format!("{word}: a file of parameters cannot be given here")));
    }
    Ok(ChainPlan {
        filters: filters(&given)?,
        filter_params: each(&given.filter_param, filter_param)?,
        plugin: plugin_name(plugin)?,
        params: words.into_iter().map(Parameter::new).chain(each(&given.plugin_param, plugin_param)?).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(value: &str) -> Result<ChainPlan, String> {
        disk(OsStr::new(value)).map_err(|error| error.to_string())
    }

    #[test]
    fn a_path_is_a_file_of_the_file_plugin() {
        let file = of("a b=c").unwrap();
        assert_eq!((file.plugin.as_str(), file.filters.len()), ("file", 0));
        assert_eq!(file.params, [Parameter::ForPlugin("file".into(), "a b=c".into())]);
    }

    #[test]
    fn a_chain_has_the_words_of_a_command_line() {
        let chain =
            of("chain:--filter=cow --wasm-filter x.wasm curl 'https://h/a b' timeout=5 -- base=\"x y\"").unwrap();
        let cow = FilterSource::Named("cow".into());
        assert!(matches!(&chain.filters[..], [first, FilterSource::File { .. }] if *first == cow), "{chain:?}");
        assert_eq!(chain.plugin, "curl");
        let keyed = |key: &str, value: &str| Parameter::Keyed(key.into(), value.into());
        let expected = [Parameter::Bare("https://h/a b".into()), keyed("timeout", "5"), keyed("base", "x y")];
        assert_eq!(chain.params, expected);
    }

    #[test]
    fn what_is_no_chain_is_one_line() {
        for (value, line) in [
            ("chain:", "no plugin given, for example: chain:file disk.img"),
            ("chain:  ", "no plugin given, for example: chain:file disk.img"),
            ("chain:file 'a", "a ' is not closed"),
            ("chain:file a\\", "nothing follows the backslash at the end"),
            (
                "chain:-r file a",
                "option '--readonly' is for the server, and not for a disk: a disk has --filter, --filter-param, \
                 --plugin-param and --wasm-filter",
            ),
            (
                "chain:--run=reboot file a",
                "option '--run' is for the server, and not for a disk: a disk has --filter, --filter-param, \
                 --plugin-param and --wasm-filter",
            ),
            ("chain:file @list", "@list: a file of parameters cannot be given here"),
        ] {
            assert_eq!(of(value).err().as_deref(), Some(line), "{value}");
        }
        assert!(of("chain:--frobnicate file a").is_err());
        assert!(of("chain:file://x").is_err());
    }
}
