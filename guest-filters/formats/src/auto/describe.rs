//! What was found, for programs.

use serde_json::{Value, json};

use super::found::{Found, Layer};

fn layer(layer: &Layer) -> Value {
    let facts = layer.report.facts.iter().map(|(name, value)| ((*name).to_string(), Value::from(value.as_str())));
    json!({
        "format": layer.name,
        "size": layer.report.size,
        "facts": facts.collect::<serde_json::Map<_, _>>(),
        "dangers": layer.report.dangers,
    })
}

/// A report as JSON.
pub fn json(found: &Found, file_size: u64) -> String {
    let report = json!({
        "file-size": file_size,
        "kind": found.names(),
        "formats": found.layers.iter().map(layer).collect::<Vec<_>>(),
        "content": found.content.iter().map(layer).collect::<Vec<_>>(),
        "disk-size": found.size,
        "dangers": found.dangers().count(),
        "refused": found.refused,
    });
    format!("{report:#}\n")
}
