//! The table of snapshots: each is an L1 table of its own.

use rbdkit_filter_sdk::image::{BlockCache, Error, Fields, quoted};

use super::header::{Header, Table};

/// An entry before its extra data.
const FIXED: usize = 40;

/// qemu's bounds of the extra data, and of the whole table.
const MAX_EXTRA: u32 = 1024;
const MAX_TABLE: u64 = 64 << 20;

/// A message names at most so many snapshots.
const NAMED: usize = 8;

/// A snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Its ID: a number as text, in images that qemu made.
    pub id: Vec<u8>,
    /// Its name.
    pub name: Vec<u8>,
    /// Its L1 table.
    pub l1: Table,
    /// The size that the disk had, in bytes.
    pub size: u64,
    /// When it was made, in seconds since 1970.
    pub seconds: u32,
    /// The size of the machine's state that was saved with it, in bytes.
    pub vm_state: u64,
}

impl Snapshot {
    /// For messages: `'name' (ID '1')`.
    pub fn label(&self) -> String {
        format!("{} (ID {})", quoted(&self.name), quoted(&self.id))
    }
}

/// Reads the snapshots from the first on, as long as `each` says true. Returns how many bytes of
/// the table were read.
///
/// # Errors
/// Those of the source, and a line for a table that is wrong.
pub fn each(header: &Header, cache: &BlockCache, mut each: impl FnMut(Snapshot) -> bool) -> Result<u64, Error> {
    let table = header.snapshots;
    let mut at = table.offset;
    if table.count > 0 && !at.is_multiple_of(header.cluster_size()) {
        return Err(Error::image(format!(
            "the table of snapshots is at {at}, which is not a multiple of a cluster's size"
        )));
    }
    for number in 0..table.count {
        // The table lies within the image, or a read fails: no sum overflows.
        let wrong = |what: String| Err(Error::Image(format!("the snapshot {number} of {}: {what}", table.count)));
        let fixed = cache.array::<FIXED>(at)?;
        let fields = Fields::big(&fixed, "a snapshot");
        let (id_length, name_length) = (fields.u16(12)?, fields.u16(14)?);
        let extra = fields.u32(36)?;
        if extra > MAX_EXTRA {
            return wrong(format!("it has {extra} bytes of extra data, and {MAX_EXTRA} is the most"));
        }
        let id_at = at + FIXED as u64 + u64::from(extra);
        let name_at = id_at + u64::from(id_length);
        let end = name_at + u64::from(name_length);
        if end - table.offset > MAX_TABLE {
            return wrong(format!(
                "it ends {} bytes after the table's start, and {MAX_TABLE} is the most",
                end - table.offset
            ));
        }
        let mut extras = [0; 16];
        let kept = extra.min(16) as usize;
        cache.read(at + FIXED as u64, &mut extras[..kept])?;
        let extras = Fields::big(&extras[..kept], "the extra data");
        let (mut id, mut name) = (vec![0; id_length.into()], vec![0; name_length.into()]);
        cache.read(id_at, &mut id)?;
        cache.read(name_at, &mut name)?;
        let snapshot = Snapshot {
            id,
            name,
            l1: Table { offset: fields.u64(0)?, count: fields.u32(8)? },
            // Version 2 may not say it; then it is the disk's own.
            size: if kept == 16 { extras.u64(8)? } else { header.size },
            seconds: fields.u32(16)?,
            vm_state: if kept >= 8 { extras.u64(0)? } else { fields.u32(32)?.into() },
        };
        at = end.next_multiple_of(8);
        if !each(snapshot) {
            break;
        }
    }
    Ok(at - table.offset)
}

/// The snapshot with this name or ID.
///
/// # Errors
/// Those of [`each`], and a line if there is none, or more than one.
pub fn find(header: &Header, cache: &BlockCache, wanted: &str) -> Result<Snapshot, Error> {
    let mut found = Vec::new();
    let mut others = Vec::new();
    each(header, cache, |snapshot| {
        if snapshot.name == wanted.as_bytes() || snapshot.id == wanted.as_bytes() {
            found.push(snapshot);
        } else if others.len() < NAMED {
            others.push(snapshot.label());
        }
        found.len() < 2
    })?;
    match (found.pop(), found.pop()) {
        (Some(only), None) => Ok(only),
        (Some(second), Some(first)) => Err(Error::image(format!(
            "more than one snapshot has the name or ID {}: {} and {}",
            quoted(wanted.as_bytes()),
            first.label(),
            second.label()
        ))),
        (None, _) if others.is_empty() => {
            Err(Error::image(format!("the image has no snapshots, and none is {}", quoted(wanted.as_bytes()))))
        }
        (None, _) => {
            let more = if header.snapshots.count as usize > others.len() { ", ..." } else { "" };
            Err(Error::image(format!(
                "the image has no snapshot {}; it has {}{more}",
                quoted(wanted.as_bytes()),
                others.join(", ")
            )))
        }
    }
}
