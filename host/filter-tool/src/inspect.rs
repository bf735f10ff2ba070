//! `inspect`: everything an operator wants to know of a component before serving anything through it.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, anyhow};
use rbdkit_sandbox::{CompileLimits, Compiler, Host, Limits, Module, Options, read_component, wasi_grants};
use sha2::{Digest, Sha256};

/// What each interface of the contract gives a filter, in a line for the operator. The stubs of WASI have theirs in the host.
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
    ("clock", "time and random numbers"),
    ("server", "sleep; the number of connections"),
];

/// A component that the sandbox has accepted.
pub struct Component {
    pub host: Arc<Host>,
    pub module: Module,
    pub size: usize,
    pub digest: String,
}

/// Reads a component and loads it into the sandbox, which refuses what it would not run. Nothing is configured or served.
pub fn load(file: &Path) -> Result<Component> {
    let bytes = read(file)?;
    let digest = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    let compiler = Compiler::Child(CompileLimits::default());
    let host = Host::new(Options { compiler, ..Options::default() }).map_err(|e| anyhow!("{e}"))?;
    let module = host.load(&file.display().to_string(), &bytes).map_err(|e| anyhow!("{e}"))?;
    Ok(Component { host, module, size: bytes.len(), digest })
}

/// A file that claims to be a component or a module, if it is of a size that either may have.
pub fn read(file: &Path) -> Result<Vec<u8>> {
    read_component(file).map_err(|why| anyhow!("cannot read {}: {why}", file.display()))
}

fn grant(name: &str) -> &'static str {
    let own = || GRANTS.iter().find(|(interface, _)| *interface == name).map(|(_, grant)| *grant);
    wasi_grants(name).or_else(own).unwrap_or("unknown: refused")
}

/// Prints what there is to know.
pub fn inspect(file: &Path, json: bool) -> Result<()> {
    let component = load(file)?;
    let about = component.module.description();
    let limits = Limits::default();
    if json {
        let value = serde_json::json!({
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
            "imports": about.imports.iter().map(|name| serde_json::json!({"name": name, "grants": grant(name)})).collect::<Vec<_>>(),
            "parameters": about.params.iter().map(|p| serde_json::json!({
                "name": p.name, "aliases": p.aliases, "kind": p.kind.name(), "choices": p.choices, "default": p.default,
                "required": p.required, "repeat": p.repeat, "help": p.help,
            })).collect::<Vec<_>>(),
            "limits": limits.table().into_iter().map(|(name, value, _)| (name.to_string(), value.into())).collect::<serde_json::Map<_, _>>(),
        });
        say!("{value:#}");
        return Ok(());
    }
    say!("{} {}: {}", about.name, about.version, about.longname);
    let path = rbdkit_plugin_api::text::one_line(&file.display().to_string());
    say!("file:          {path} ({} bytes)", component.size);
    say!("pin it with:   --wasm-filter {path}@sha256:{}", component.digest);
    say!("thread model:  {}", about.thread_model);
    let unexported = if about.transparent { "passes by (transparent)" } else { "is withdrawn or emulated (opaque)" };
    say!("unexported:    what it does not export {unexported}");
    say!("after a fault: {}", about.recovery);
    say!("\nexports:");
    for name in &about.exports {
        say!("  {name}");
    }
    say!("\nimports, and what each one grants:");
    let imports: Vec<&String> = about.imports.iter().filter(|name| *name != "types").collect();
    let width = imports.iter().map(|name| name.len()).max().unwrap_or(0).max(10);
    for name in imports {
        say!("  {name:<width$} {}", grant(name));
    }
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
    say!("\nlimits (change with --filter-limit {}:RESOURCE=VALUE):", about.name);
    for (name, value, what) in limits.table() {
        say!("  {name:<15} {value:<10} {what}");
    }
    Ok(())
}
