//! Changes the names and descriptions of exports, and which of them clients may open.

mod names;

use names::{Admission as Admitted, Descriptions, LONGEST, ListMode, printed};
use rbdkit_filter_sdk::prelude::*;

params! {
    /// The parameters.
    pub struct Settings {
        /// The export that a client gets which asks for the empty name.
        #[param(check = not_too_long)]
        default_export: Option<String>,
        /// Which exports clients see that list them.
        exportname_list: ListMode = ListMode::Keep,
        /// An export for the list, and for exportname-strict. It may be given more than once.
        #[param(check = not_too_long)]
        exportname: Vec<String>,
        /// Clients may only open the exports that exportname names.
        exportname_strict: bool = false,
        /// Where descriptions come from: keep, none, fixed:TEXT or script:COMMAND.
        #[param(check = is_descriptions)]
        exportdesc: StringOrScript = StringOrScript::Text("keep".to_string()),
    }
}

#[expect(clippy::ptr_arg, reason = "the check of a parameter takes its type")]
fn not_too_long(name: &String) -> Result<(), String> {
    if name.len() > LONGEST { Err(format!("is longer than {LONGEST} bytes")) } else { Ok(()) }
}

fn is_descriptions(given: &StringOrScript) -> Result<(), String> {
    match given {
        StringOrScript::Text(text) => Descriptions::parse(text).map(drop),
        StringOrScript::Script(_) => Ok(()),
    }
}

impl Choice for ListMode {
    const CHOICES: &'static [(&'static str, ListMode)] = &[
        ("keep", ListMode::Keep),
        ("error", ListMode::Error),
        ("empty", ListMode::Empty),
        ("defaultonly", ListMode::DefaultOnly),
        ("explicit", ListMode::Explicit),
    ];
}

/// The filter.
pub struct Exportname {
    /// Empty if the layer below decides.
    default: String,
    list: ListMode,
    /// In the order in which they were given.
    named: Vec<String>,
    admitted: Admitted,
    descriptions: Descriptions,
    /// The command that prints descriptions, if they come from one.
    command: Option<Script>,
}

impl Exportname {
    /// The description of an export. `below` asks the layer below for it.
    fn description_of(&self, name: &str, below: impl FnOnce() -> Option<String>) -> Option<String> {
        self.descriptions.of(below, || {
            // The host logs why a command could not run.
            let (status, output) = self.command.as_ref()?.run(&[("name", name)]).ok()?;
            if status != 0 {
                error!("exportdesc: the command ended with status {status} for the export '{name}'");
            }
            printed(&output)
        })
    }
}

impl Filter for Exportname {
    type Params = Settings;

    fn describe() -> Description {
        Description::new("exportname", env!("CARGO_PKG_VERSION"), "changes the names and descriptions of exports")
            .help("exportname adds an export to the list of exportname-list=explicit.")
            .thread_model(ThreadModel::Parallel)
            .transparent()
    }

    fn configure(settings: Settings) -> Result<Self, String> {
        let (descriptions, command) = match settings.exportdesc {
            StringOrScript::Text(text) => (Descriptions::parse(&text)?, None),
            StringOrScript::Script(command) => (Descriptions::Script, Some(command)),
        };
        Ok(Exportname {
            default: settings.default_export.unwrap_or_default(),
            list: settings.exportname_list,
            admitted: match settings.exportname_strict {
                true => Admitted::Named(settings.exportname.clone()),
                false => Admitted::All,
            },
            named: settings.exportname,
            descriptions,
            command,
        })
    }
}

impl Names for Exportname {
    fn list_exports(&self, readonly: bool, is_tls: bool) -> Result<Vec<ExportEntry>, Errno> {
        // The layer below is not open yet, so it cannot describe an export that it does not list.
        let entry = |name: String| ExportEntry { description: self.description_of(&name, || None), name };
        match self.list {
            ListMode::Keep => {
                let below = next_open::list_exports(readonly)?;
                let described = |entry: ExportEntry| ExportEntry {
                    description: self.description_of(&entry.name, || entry.description),
                    name: entry.name,
                };
                Ok(below.into_iter().map(described).collect())
            }
            ListMode::Error => {
                error!("exportname-list=error: a client asked for the list of exports");
                Err(Errno::Enotsup)
            }
            ListMode::Empty => Ok(Vec::new()),
            ListMode::DefaultOnly => Ok(vec![entry(self.default_export(readonly, is_tls)?)]),
            ListMode::Explicit => Ok(self.named.iter().cloned().map(entry).collect()),
        }
    }

    fn default_export(&self, readonly: bool, _is_tls: bool) -> Result<String, Errno> {
        match self.default.as_str() {
            "" => next_open::default_export(readonly),
            name => Ok(name.to_string()),
        }
    }
}

impl Connection for Exportname {
    fn open(&self, readonly: bool, exportname: &str, _is_tls: bool, _replayed: bool) -> Result<u64, Errno> {
        if !self.admitted.admits(exportname) {
            error!("exportname-strict: a client asked for the export '{exportname}', which no exportname names");
            return Err(Errno::Enoent);
        }
        next_open::open(readonly, exportname)?;
        Ok(0)
    }
}

impl Info for Exportname {
    fn export_description(&self) -> Option<String> {
        self.description_of(&request::exportname(), next::export_description)
    }
}

rbdkit_filter_sdk::export!(Exportname: names, connection, info);

#[cfg(test)]
mod tests {
    use super::*;
    use rbdkit_filter_sdk::testing::{Disk, Host, Served};

    fn serve(words: &[&str]) -> Served<Exportname> {
        Host::new(Disk::pattern(512)).serve::<Exportname>(words).unwrap()
    }

    fn listed(words: &[&str]) -> Vec<(String, Option<String>)> {
        let list = serve(words).list_exports().unwrap();
        list.into_iter().map(|entry| (entry.name, entry.description)).collect()
    }

    #[test]
    fn the_list_is_what_the_mode_says() {
        assert_eq!(listed(&[]), [(String::new(), None)]);
        assert_eq!(listed(&["exportname-list=empty", "exportname=a"]), []);
        let default = listed(&["exportname-list=defaultonly", "default-export=b", "exportdesc=fixed:x"]);
        assert_eq!(default, [("b".into(), Some("x".into()))]);
        let named = listed(&["exportname-list=explicit", "exportname=a", "exportname=a", "exportname=c"]);
        assert_eq!(named, ["a", "a", "c"].map(|name| (name.to_string(), None)));
        assert_eq!(serve(&["exportname-list=error"]).list_exports().err(), Some(Errno::Enotsup));
    }

    #[test]
    fn the_default_export_is_the_operators_or_that_of_the_layer_below() {
        assert_eq!(serve(&["default-export=b"]).default_export(), Ok("b".to_string()));
        assert_eq!(serve(&["default-export="]).default_export(), Ok(String::new()));
    }

    #[test]
    fn a_strict_server_opens_only_the_exports_that_were_named() {
        let host = serve(&["exportname-strict=true", "exportname=a"]);
        assert!(host.connect_to("a").is_ok());
        assert_eq!(host.connect_to("b").err(), Some(Errno::Enoent));
        assert_eq!(host.connect().err(), Some(Errno::Enoent));
        assert_eq!(host.take_calls(), ["open a"]);
    }

    #[test]
    fn an_open_export_has_the_description_that_was_chosen() {
        let description = |words: &[&str]| serve(words).connect().unwrap().export_description();
        assert_eq!(description(&["exportdesc=fixed:hi"]), Some("hi".into()));
        assert_eq!((description(&["exportdesc=none"]), description(&[])), (None, None));
    }

    #[test]
    fn a_command_describes_each_export_and_its_status_does_not_count() {
        let words = ["exportdesc=script:describe", "exportname-list=explicit", "exportname=a", "exportname=b"];
        let host = Host::new(Disk::pattern(512)).script("describe", 3, b"a disk\n");
        let host = host.serve::<Exportname>(&words).unwrap();
        host.take_calls();
        let described = |name: &str| ExportEntry { name: name.into(), description: Some("a disk".into()) };
        assert_eq!(host.list_exports().unwrap(), [described("a"), described("b")]);
        assert_eq!(host.take_calls(), ["script describe name=a", "script describe name=b"]);
        let line = "error: exportdesc: the command ended with status 3 for the export 'a'";
        assert_eq!(host.take_log()[0], line);
        let client = host.connect_to("c").unwrap();
        host.take_calls();
        assert_eq!(client.export_description(), Some("a disk".into()));
        assert_eq!(host.take_calls(), ["script describe name=c"]);
        host.fail_next("script", Errno::Etimedout);
        assert_eq!(client.export_description(), None);
    }
}
