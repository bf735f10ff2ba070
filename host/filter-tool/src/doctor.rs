//! `doctor`: says for which languages the tools are here.

use clap::ValueEnum as _;
use serde_json::json;

use crate::error::{Error, Result};
use crate::inspect::Format;
use crate::languages::{self, Language, Tool, Way};

/// Prints for one language, or for all, whether filters can be built, and what is missing.
///
/// # Errors
/// The language's tools are not here, or those of no language.
pub fn doctor(language: Option<Language>, format: Format) -> Result<()> {
    let languages = language.map_or(Language::value_variants().to_vec(), |language| vec![language]);
    let found: Vec<(Language, Vec<Way>)> =
        languages.into_iter().map(|language| (language, (languages::definition(language).ways)())).collect();
    match format {
        Format::Json => say!("{:#}", json(&found)),
        Format::Text => found.iter().for_each(|(language, ways)| print(*language, ways)),
    }
    if found.iter().any(|(_, ways)| ways.iter().any(Way::is_complete)) { Ok(()) } else { Err(Error::Incomplete) }
}

fn print(language: Language, ways: &[Way]) {
    match ways.iter().find(|way| way.is_complete()) {
        Some(way) => {
            say!("{}: ready, with {}", language.name(), way.name);
            for Tool { name, found, .. } in &way.tools {
                say!("  {name}: {}", found.as_deref().unwrap_or_default());
            }
        }
        None => {
            say!("{}: tools are missing", language.name());
            for (nth, way) in ways.iter().enumerate() {
                if nth > 0 {
                    say!("  or with {}:", way.name);
                }
                for Tool { name, install, found } in &way.tools {
                    match found {
                        Ok(found) => say!("  {name}: {found}"),
                        Err(why) => say!("  {name} ({why}): {install}"),
                    }
                }
            }
        }
    }
}

fn json(found: &[(Language, Vec<Way>)]) -> serde_json::Value {
    let tool = |tool: &Tool| match &tool.found {
        Ok(found) => json!({"name": tool.name, "found": found}),
        Err(why) => json!({"name": tool.name, "missing": why, "install": tool.install}),
    };
    let way = |way: &Way| {
        let tools: Vec<_> = way.tools.iter().map(tool).collect();
        json!({"name": way.name, "ready": way.is_complete(), "tools": tools})
    };
    let language = |(language, ways): &(Language, Vec<Way>)| {
        let ready = ways.iter().any(Way::is_complete);
        json!({"language": language.name(), "ready": ready, "ways": ways.iter().map(way).collect::<Vec<_>>()})
    };
    json!(found.iter().map(language).collect::<Vec<_>>())
}
