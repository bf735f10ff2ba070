//! How messages begin.
//!
//! nbdkit begins a message about a connection with the plugin's name and the connection's number:
//! `nbdkit: file[1]: error: ...`. Programs that start nbdkit look for that, so a server that is
//! called `nbdkit` writes it too. Otherwise the number stands in the text: `rbdkit: error:
//! connection 1: ...`.

use rbdkit_plugin_api::text::one_line;

use crate::cli::Plan;

/// How messages of this process begin.
pub(super) struct Form {
    /// The program's name, and that of `--name` in brackets.
    pub prefix: &'static str,
    /// The plugin's name, if messages have nbdkit's form.
    plugin: Option<String>,
}

impl Form {
    pub fn new(program: &'static str, plan: &Plan) -> Form {
        let prefix = match &plan.name {
            None => program,
            // Once in a process.
            Some(name) => Box::leak(format!("{program}[{}]", one_line(name)).into_boxed_str()),
        };
        let plugin = (program == "nbdkit").then(|| short_name(plan.plugin.as_deref().unwrap_or_default()));
        Form { prefix, plugin }
    }

    /// A message without the prefix: level and text, and the connection that it is about.
    pub fn line(&self, level: &str, connection: Option<u64>, text: &str) -> String {
        let Some(plugin) = &self.plugin else { return format!("{level}: {text}") };
        let (connection, text) = match (connection, split(plugin, text)) {
            (None, Some((connection, rest))) => (Some(connection), rest),
            _ => (connection, text),
        };
        match connection {
            Some(connection) => format!("{plugin}[{connection}]: {level}: {text}"),
            None => format!("{level}: {text}"),
        }
    }
}

/// Splits `connection N: text`, and `PLUGIN[N]: text` of one of nbdkit's own plugins.
fn split<'a>(plugin: &str, text: &'a str) -> Option<(u64, &'a str)> {
    let (number, text) = match text.strip_prefix("connection ") {
        Some(rest) => rest.split_once(": ")?,
        None => text.strip_prefix(plugin)?.strip_prefix('[')?.split_once("]: ")?,
    };
    Some((number.parse().ok()?, text))
}

/// `vddk` for a plugin that is given as `/usr/lib/nbdkit/plugins/nbdkit-vddk-plugin.so`.
fn short_name(plugin: &str) -> String {
    let file = plugin.rsplit('/').next().unwrap_or_default();
    let name = file.strip_suffix(".so").unwrap_or(file);
    let short = name.strip_prefix("nbdkit-").and_then(|name| name.strip_suffix("-plugin"));
    one_line(short.unwrap_or(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_about_a_connection_has_nbdkits_form_only_if_the_program_is_called_so() {
        let nbdkit = Form { prefix: "nbdkit", plugin: Some("file".into()) };
        assert_eq!(nbdkit.line("error", None, "connection 3: open: x: y"), "file[3]: error: open: x: y");
        assert_eq!(nbdkit.line("debug", Some(3), "file: pread"), "file[3]: debug: file: pread");
        assert_eq!(nbdkit.line("debug", None, "file: get_ready"), "debug: file: get_ready");
        assert_eq!(nbdkit.line("error", None, "connection x: y"), "error: connection x: y");
        assert_eq!(nbdkit.line("debug", None, "file[3]: its own words"), "file[3]: debug: its own words");
        assert_eq!(nbdkit.line("debug", None, "file[x]: y"), "debug: file[x]: y");
        let rbdkit = Form { prefix: "rbdkit", plugin: None };
        assert_eq!(rbdkit.line("error", None, "connection 3: open: x: y"), "error: connection 3: open: x: y");
        assert_eq!(rbdkit.line("debug", Some(3), "file: pread"), "debug: file: pread");
    }

    #[test]
    fn a_plugin_has_its_short_name() {
        for (plugin, short) in [
            ("file", "file"),
            ("/usr/lib/nbdkit/plugins/nbdkit-vddk-plugin.so", "vddk"),
            ("./nbdkit-x-plugin", "x"),
            ("/opt/testing/libvddk-test-plugin.so", "libvddk-test-plugin"),
        ] {
            assert_eq!(short_name(plugin), short);
        }
    }
}
