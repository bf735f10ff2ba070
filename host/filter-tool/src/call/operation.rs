//! The operations that `call` carries out, by the names of the contract and of nbdkit.

use std::fmt;
use std::sync::Arc;

use rbdkit_chain::{Hop, NextLayer};
use rbdkit_plugin_api::units::parse_size;
use rbdkit_plugin_api::{Buffer, Error as LayerError, Flags, MAX_REQUEST, Span};
use serde_json::{Value, json};

use crate::error::{Error, Result};

/// What an operation is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperationKind {
    Pread,
    Pwrite,
    Flush,
    Trim,
    Zero,
    Extents,
    Cache,
    Size,
    Can,
    BlockSize,
    Description,
    Describe,
    Configure,
    Open,
    Preconnect,
    ListExports,
    DefaultExport,
    Finalize,
}

/// The names of each operation, the contract's first, and the function of the contract that serves
/// it with its interface.
const NAMES: [(OperationKind, &[&str], &str, &str); 18] = [
    (OperationKind::Pread, &["pread", "read"], "pread", "reads"),
    (OperationKind::Pwrite, &["pwrite", "write"], "pwrite", "writes"),
    (OperationKind::Flush, &["flush"], "flush", "flushes"),
    (OperationKind::Trim, &["trim"], "trim", "trims"),
    (OperationKind::Zero, &["zero"], "zero", "zeroes"),
    (OperationKind::Extents, &["extents"], "extents", "mapping"),
    (OperationKind::Cache, &["cache"], "cache", "caching"),
    (OperationKind::Size, &["get-size", "size", "get_size"], "get-size", "info"),
    (OperationKind::Can, &["can"], "can", "features"),
    (OperationKind::BlockSize, &["block-size", "block_size"], "block-size", "info"),
    (
        OperationKind::Description,
        &["export-description", "description", "export_description"],
        "export-description",
        "info",
    ),
    (OperationKind::Describe, &["describe"], "describe", "filter"),
    (OperationKind::Configure, &["configure", "config"], "configure", "filter"),
    (OperationKind::Open, &["open"], "open", "connection"),
    (OperationKind::Preconnect, &["preconnect"], "preconnect", "admission"),
    (OperationKind::ListExports, &["list-exports", "list_exports"], "list-exports", "names"),
    (OperationKind::DefaultExport, &["default-export", "default_export"], "default-export", "names"),
    (OperationKind::Finalize, &["finalize"], "finalize", "connection"),
];

/// When the guest is called for an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// When the filter is loaded and configured.
    Load,
    /// When a connection is opened.
    Open,
    /// On its own, before a connection is open.
    Before,
    /// On its own, on an open connection.
    Request,
}

impl OperationKind {
    fn names(self) -> (&'static [&'static str], &'static str, &'static str) {
        let found = NAMES.iter().find(|(kind, ..)| *kind == self);
        found.map_or((&[], "", ""), |(_, names, function, interface)| (names, function, interface))
    }

    /// The contract's function.
    pub fn function(self) -> &'static str {
        self.names().1
    }

    /// The contract's interface.
    pub fn interface(self) -> &'static str {
        self.names().2
    }

    /// When the guest is called for it.
    pub fn stage(self) -> Stage {
        match self {
            OperationKind::Describe | OperationKind::Configure => Stage::Load,
            OperationKind::Open | OperationKind::Can | OperationKind::Size => Stage::Open,
            OperationKind::Preconnect | OperationKind::ListExports | OperationKind::DefaultExport => Stage::Before,
            _ => Stage::Request,
        }
    }
}

/// One operation with its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    pub kind: OperationKind,
    pub offset: u64,
    pub length: u64,
    pub flags: Flags,
    /// What a write writes.
    pub data: Vec<u8>,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.names().0.first().unwrap_or(&""))?;
        if takes_range(self.kind) {
            write!(f, " {} {}", self.offset, self.length)?;
        }
        Ok(())
    }
}

fn takes_range(kind: OperationKind) -> bool {
    matches!(
        kind,
        OperationKind::Pread
            | OperationKind::Pwrite
            | OperationKind::Trim
            | OperationKind::Zero
            | OperationKind::Extents
            | OperationKind::Cache
    )
}

/// What a write writes, if the command line says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteData {
    /// Every byte is this one.
    Fill(u8),
    /// These bytes.
    Bytes(Vec<u8>),
}

/// The byte that is written if the command line names none.
const FILL: u8 = 0xa5;

impl Operation {
    /// Reads an operation's name and its arguments.
    ///
    /// # Errors
    /// One line that says what would be right.
    pub fn parse(name: &str, arguments: &[String], flags: Flags, data: Option<WriteData>) -> Result<Operation> {
        let kind = NAMES.iter().find(|(_, names, ..)| names.contains(&name)).map(|(kind, ..)| *kind);
        let Some(kind) = kind else {
            let known: Vec<&str> = NAMES.iter().filter_map(|(_, names, ..)| names.first().copied()).collect();
            return Err(Error::Call(format!("there is no operation '{name}': use one of {}", known.join(", "))));
        };
        let number = |what: &str, text: &String| {
            parse_size(text).map_err(|why| Error::Call(format!("{name}: the {what} '{text}' {why}")))
        };
        let (offset, length) = match (takes_range(kind), arguments, &data) {
            (false, [], _) => (0, 0),
            (true, [offset, length], _) => (number("offset", offset)?, number("length", length)?),
            (true, [offset], Some(WriteData::Bytes(bytes))) => (number("offset", offset)?, bytes.len() as u64),
            (true, _, _) => return Err(Error::Call(format!("{name} takes an offset and a length, in bytes"))),
            (false, _, _) => return Err(Error::Call(format!("{name} takes no arguments"))),
        };
        if data.is_some() && kind != OperationKind::Pwrite {
            return Err(Error::Call(format!("{name} writes no data: --fill and --data are for pwrite")));
        }
        if matches!(kind, OperationKind::Pread | OperationKind::Pwrite)
            && !(1..=u64::from(MAX_REQUEST)).contains(&length)
        {
            return Err(Error::Call(format!("{name}: the length is from 1 byte to {} MiB", MAX_REQUEST >> 20)));
        }
        let data = match (kind, data) {
            (OperationKind::Pwrite, Some(WriteData::Bytes(bytes))) if bytes.len() as u64 == length => bytes,
            (OperationKind::Pwrite, Some(WriteData::Bytes(bytes))) => {
                return Err(Error::Call(format!("the file of --data has {} bytes, not {length}", bytes.len())));
            }
            (OperationKind::Pwrite, fill) => {
                let byte = if let Some(WriteData::Fill(byte)) = fill { byte } else { FILL };
                vec![byte; length as usize]
            }
            _ => Vec::new(),
        };
        Ok(Operation { kind, offset, length, flags, data })
    }
}

/// What an operation answered.
#[derive(Clone, Debug, PartialEq)]
pub enum OperationReply {
    /// Success without a value.
    Done,
    /// A read's bytes.
    Data(Vec<u8>),
    /// A value: for people, and for programs.
    Value(String, Value),
}

/// Carries out an operation on an open connection, or reads what opening it has told.
///
/// # Errors
/// Those of the layers.
pub async fn on_connection(hop: &Arc<Hop>, operation: &Operation) -> Result<OperationReply, LayerError> {
    let Operation { offset, length, flags, .. } = *operation;
    let short = u32::try_from(length).unwrap_or(u32::MAX);
    match operation.kind {
        OperationKind::Pread => {
            let (mut buffer, result) = hop.pread(Buffer::new(short), Span::new(0, short), offset).await;
            result?;
            let span = buffer.span();
            Ok(OperationReply::Data(buffer.bytes(span).to_vec()))
        }
        OperationKind::Pwrite => {
            let buffer = Buffer::from_vec(operation.data.clone());
            hop.pwrite(buffer, Span::new(0, short), offset, flags).await.1?;
            Ok(OperationReply::Done)
        }
        OperationKind::Flush => hop.flush().await.map(|()| OperationReply::Done),
        OperationKind::Trim => hop.trim(offset, length, flags).await.map(|()| OperationReply::Done),
        OperationKind::Zero => hop.zero(offset, length, flags).await.map(|()| OperationReply::Done),
        OperationKind::Cache => hop.cache(offset, length).await.map(|()| OperationReply::Done),
        OperationKind::Finalize => hop.finalize().await.map(|()| OperationReply::Done),
        OperationKind::Extents => {
            let extents = hop.extents(offset, length, flags).await?;
            Ok(extents_answer(extents.as_slice()))
        }
        OperationKind::Size => Ok(OperationReply::Value(format!("{} bytes", hop.size()), json!(hop.size()))),
        OperationKind::Can => {
            let can = hop.can();
            let value = json!({
                "write": can.write, "flush": can.flush, "rotational": can.rotational, "trim": can.trim,
                "fast-zero": can.fast_zero, "extents": can.extents, "multi-conn": can.multi_conn,
                "zero": support(can.zero), "fua": support(can.fua), "cache": support(can.cache),
            });
            let fields = value.as_object().into_iter().flatten();
            let words: Vec<String> = fields.map(|(name, value)| format!("{name}={}", plain(value))).collect();
            Ok(OperationReply::Value(words.join(" "), value))
        }
        OperationKind::BlockSize => Ok(match hop.block_sizes().await {
            None => OperationReply::Value("it states none".into(), Value::Null),
            Some(sizes) => OperationReply::Value(
                format!("minimum {}, preferred {}, maximum {}", sizes.minimum, sizes.preferred, sizes.maximum),
                json!({"minimum": sizes.minimum, "preferred": sizes.preferred, "maximum": sizes.maximum}),
            ),
        }),
        OperationKind::Description => Ok(match hop.description().await {
            None => OperationReply::Value("none".into(), Value::Null),
            Some(text) => OperationReply::Value(text.clone(), json!(text)),
        }),
        _ => Ok(OperationReply::Done),
    }
}

/// Carries out an operation of a client that has opened no export.
///
/// # Errors
/// Those of the layers.
pub async fn before_open(top: &NextLayer, kind: OperationKind, readonly: bool) -> Result<OperationReply, LayerError> {
    match kind {
        OperationKind::ListExports => {
            let list = top.list_exports(readonly).await?;
            let words: Vec<String> = list.iter().map(|entry| format!("{:?}", entry.name)).collect();
            let entries = list.iter().map(|entry| json!({"name": entry.name, "description": entry.description}));
            Ok(OperationReply::Value(words.join(", "), entries.collect()))
        }
        OperationKind::DefaultExport => {
            let name = top.default_export(readonly).await?;
            Ok(OperationReply::Value(format!("{name:?}"), json!(name)))
        }
        _ => top.preconnect(readonly).await.map(|()| OperationReply::Done),
    }
}

fn support(support: rbdkit_plugin_api::Support) -> String {
    format!("{support:?}").to_lowercase()
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_string)
}

/// How many extents are shown.
const MAX_EXTENTS: usize = 16;

fn extents_answer(extents: &[rbdkit_plugin_api::Extent]) -> OperationReply {
    let kind = |extent: &rbdkit_plugin_api::Extent| match (extent.hole, extent.zero) {
        (true, true) => "hole,zero",
        (true, false) => "hole",
        (false, true) => "zero",
        (false, false) => "data",
    };
    let shown = extents.iter().take(MAX_EXTENTS);
    let mut words: Vec<String> =
        shown.map(|extent| format!("{}+{} {}", extent.offset, extent.length, kind(extent))).collect();
    if extents.len() > MAX_EXTENTS {
        words.push(format!("and {} more", extents.len() - MAX_EXTENTS));
    }
    let all = extents.iter().map(
        |extent| json!({"offset": extent.offset, "length": extent.length, "hole": extent.hole, "zero": extent.zero}),
    );
    OperationReply::Value(words.join("; "), all.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str], data: Option<WriteData>) -> Result<Operation, String> {
        let arguments: Vec<String> = words[1..].iter().map(|word| (*word).to_string()).collect();
        Operation::parse(words[0], &arguments, Flags::NONE, data).map_err(|error| error.to_string())
    }

    #[test]
    fn operations_have_the_names_of_the_contract_and_of_nbdkit() {
        assert_eq!(parse(&["pread", "4k", "512"], None).unwrap().to_string(), "pread 4096 512");
        assert_eq!(parse(&["get_size"], None).unwrap().to_string(), "get-size");
        assert_eq!(parse(&["size"], None).unwrap().kind, OperationKind::Size);
        assert_eq!(parse(&["pwrite", "7", "3"], None).unwrap().data, [FILL; 3]);
        assert_eq!(parse(&["pwrite", "7"], Some(WriteData::Bytes(vec![1, 2]))).unwrap().to_string(), "pwrite 7 2");
        for (kind, names, ..) in NAMES {
            let range = if takes_range(kind) { &["0", "1"][..] } else { &[] };
            for name in names {
                assert_eq!(parse(&[&[*name], range].concat(), None).unwrap().kind, kind);
            }
        }
    }

    #[test]
    fn what_is_no_operation_is_refused_with_what_would_be_right() {
        let refused = |words: &[&str], data, why: &str| {
            let error = parse(words, data).unwrap_err();
            assert!(error.contains(why), "{error}");
        };
        refused(&["peek"], None, "there is no operation 'peek': use one of pread, pwrite, flush");
        refused(&["pread", "0"], None, "pread takes an offset and a length, in bytes");
        refused(&["pread", "x", "1"], None, "pread: the offset 'x' ");
        refused(&["pread", "0", "65M"], None, "the length is from 1 byte to 64 MiB");
        refused(&["flush", "1"], None, "flush takes no arguments");
        refused(&["pread", "0", "1"], Some(WriteData::Fill(1)), "--fill and --data are for pwrite");
        refused(&["pwrite", "0", "1"], Some(WriteData::Bytes(vec![1, 2])), "has 2 bytes, not 1");
    }
}
