//! `inspect`: shows what an operator wants to know about a component before using it.

use std::path::Path;

use rbdkit_sandbox::{Description, Limits, wasi_grants};

use crate::component::{Component, Trust, load};
use crate::error::Result;

/// What each interface of the contract grants a filter, in a line for the operator. The lines for
/// WASI are in the sandbox.
const GRANTS: &[(&str, &str)] = &[
    ("types", "names of types, nothing"),
    ("log", "lines in the server's log, limited in rate"),
    ("request", "the connection's number, the export's name"),
    ("client", "the client's address and, on a Unix socket, its process and user"),
    ("next", "read, write and query the layer below, within the request"),
    ("next-open", "open the layer below under a name of its choice, list its exports"),
    ("buffer", "the data of the request being served, if it asks for it"),
    ("locks", "range locks, released when the call ends"),
    ("slots", "a few shared numbers"),
    ("maps", "shared block maps, within the memory limit"),
    ("scratch", "a temporary file without a name, within the quota"),
    ("files", "only the files that you name in its parameters"),
    ("storage", "only the files that you name in its parameters, which it keeps"),
    ("disks", "reads the disks that you name in its parameters, and no others"),
    ("scripts", "runs the shell commands that you give in its parameters, and no others"),
    ("counters", "sums for statistics"),
    ("crypto", "ciphers on the data of the request, with keys from your secret parameters that it does not see"),
    ("clock", "time and random numbers"),
    ("server", "sleep; the number of connections"),
    ("gate", "holds the requests before it"),
    ("alarms", "calls at times that it chooses, within a twentieth of a processor"),
];

fn grant(name: &str) -> &'static str {
    let own = || GRANTS.iter().find(|(interface, _)| *interface == name).map(|(_, grant)| *grant);
    wasi_grants(name).or_else(own).unwrap_or("unknown: refused")
}

/// How to print it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Prints information about a component.
pub fn inspect(file: &Path, trust: &Trust, format: Format) -> Result<()> {
    let component = load(file, trust)?;
    match format {
        Format::Text => print(file, &component),
        Format::Json => say!("{:#}", json(file, &component)),
    }
    Ok(())
}

fn json(file: &Path, component: &Component) -> serde_json::Value {
    let about = component.module.description();
    let granted = |name: &String| serde_json::json!({"name": name, "grants": grant(name)});
    let imports: Vec<_> = about.imports.iter().map(granted).collect();
    let limits = Limits::default().table().into_iter().map(|(name, value, _)| (name.to_string(), value.into()));
    let limits: serde_json::Map<_, _> = limits.collect();
    serde_json::json!({
        "file": file.display().to_string(),
        "size": component.size,
        "sha256": component.digest,
        "name": about.name,
        "version": about.version,
        "longname": about.longname,
        "help": about.help,
        "thread-model": about.thread_model.name(),
        "transparent": about.transparent,
        "recovery": about.recovery,
        "exports": about.exports,
        "unknown-exports": component.module.unknown_exports(),
        "imports": imports,
        "powers": component.module.asks_for().names().collect::<Vec<_>>(),
        "parameters": about.params.iter().map(|p| serde_json::json!({
            "name": p.name, "aliases": p.aliases, "kind": p.kind.name(), "choices": p.choices, "default": p.default,
            "required": p.required, "repeat": p.repeat, "help": p.help,
        })).collect::<Vec<_>>(),
        "limits": limits,
        "wishes": component.module.wishes().iter().map(|wish| serde_json::json!({
            "limit": wish.limit, "wanted": wish.wanted, "granted": wish.granted,
        })).collect::<Vec<_>>(),
    })
}

fn print(file: &Path, component: &Component) {
    let about = component.module.description();
    say!("{} {}: {}", about.name, about.version, about.longname);
    let path = rbdkit_plugin_api::text::one_line(&file.display().to_string());
    say!("file:          {path} ({} bytes)", component.size);
    say!("pin it with:   --wasm-filter {}", rbdkit_plugin_api::text::one_line(&component.pinned));
    say!("thread model:  {}", about.thread_model);
    let unexported = if about.transparent { "passes by (transparent)" } else { "is withdrawn or emulated (opaque)" };
    say!("unexported:    what it does not export {unexported}");
    say!("after a fault: {}", about.recovery);
    say!("\nexports:");
    for name in &about.exports {
        say!("  {name}");
    }
    for unknown in component.module.unknown_exports() {
        say!("  warning: {unknown}");
    }
    say!("\nimports, and what each one grants:");
    let imports: Vec<&String> = about.imports.iter().filter(|name| *name != "types").collect();
    let width = imports.iter().map(|name| name.len()).max().unwrap_or(0).max(10);
    for name in imports {
        say!("  {name:<width$} {}", grant(name));
    }
    print_powers(component);
    print_parameters(about);
    let limits = Limits::default();
    say!("\nlimits (change with --filter-limit {}:RESOURCE=VALUE):", about.name);
    for (name, value, what) in limits.table() {
        match component.module.wishes().iter().find(|wish| wish.limit == name) {
            Some(wish) if wish.granted < wish.wanted => {
                let (granted, wanted) = (wish.shown(wish.granted), wish.shown(wish.wanted));
                say!("  {name:<15} {granted:<10} {what} (it asks for {wanted}; the default is {value})");
            }
            Some(wish) => {
                let granted = wish.shown(wish.granted);
                say!("  {name:<15} {granted:<10} {what} (as it asks for; the default is {value})");
            }
            None => say!("  {name:<15} {value:<10} {what}"),
        }
    }
}

/// The powers that it can ask for, and how to grant them.
fn print_powers(component: &Component) {
    let name = &component.module.description().name;
    let asks: Vec<&str> = component.module.asks_for().names().collect();
    if asks.is_empty() {
        return;
    }
    say!("\nit can ask for, and gets only if you allow it (--filter-allow {name}:{}):", asks.join(","));
    for power in asks {
        let what = match power {
            "shutdown" => "end the server, as SIGTERM does",
            _ => "disconnect a client",
        };
        say!("  {power:<10} {what}");
    }
}

fn print_parameters(about: &Description) {
    if !about.params.is_empty() {
        say!("\nparameters:");
    }
    for param in &about.params {
        let default = match (&param.default, param.required) {
            (_, true) => " (required)".to_string(),
            (Some(default), _) => format!(" (default {default})"),
            (None, _) => String::new(),
        };
        say!("  {}={}{default}\n      {}", param.name, param.kind.name().to_uppercase(), param.help);
    }
}
