//! Logical volumes of LVM2, linear or striped.
//!
//! The image is one physical volume. Those who use the decoder give the others of the volume group.
//! They are told apart by their identifiers; names of devices in the metadata are not looked at.

mod label;
mod text;
mod volume;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::rc::Rc;

use rbdkit_filter_sdk::image::{Error, Source, quoted};

use crate::{FormatInfo, Opened, Report};

use label::Label;
use text::{Section, Value, parse};
use volume::{Segment, Stripe, Volume};

/// Sizes in the metadata are in sectors of this many bytes.
const SECTOR: u64 = 512;

/// A volume has at most this many segments, and a segment this many stripes.
const MOST_SEGMENTS: u64 = 10_000;
const MOST_STRIPES: u64 = 128;

/// Lines name at most this many volumes.
const MOST_NAMED: usize = 16;

/// For those who do not know the format.
pub const INFO: FormatInfo = FormatInfo { name: "lvm", probe, report, open };

fn probe(image: &dyn Source) -> Result<bool, Error> {
    Ok(label::find(image)?.is_some())
}

fn report(image: &Rc<dyn Source>) -> Result<Report, Error> {
    let mut report = Report::default();
    match Group::read(std::slice::from_ref(image)) {
        Ok(group) => {
            report.fact("volume group", quoted(group.name.as_bytes()));
            report.fact("volumes", group.names());
            report.fact("physical volumes", group.physical.len());
            report.dangers = group.dangers;
        }
        Err(Error::Image(line)) => report.danger(line),
        Err(error) => return Err(error),
    }
    Ok(report)
}

fn open(image: Rc<dyn Source>) -> Opened {
    open_volume(image, Vec::new(), None)
}

/// Opens a logical volume: `VG/LV` or `LV`, or the only one if no name is given. `others` are
/// further physical volumes of the group, in any order.
///
/// # Errors
/// A line if the metadata is wrong, there is no such volume, or it needs a physical volume that is
/// not given.
pub fn open_volume(image: Rc<dyn Source>, others: Vec<Rc<dyn Source>>, name: Option<&str>) -> Opened {
    let mut disks = vec![image];
    disks.extend(others);
    let group = Group::read(&disks)?;
    let segments = group.segments(group.volume(name)?, &disks)?;
    Ok(Rc::new(Volume::new(disks, segments)))
}

/// A volume group as the metadata describes it.
struct Group {
    name: String,
    /// The bytes of an extent.
    extent: u64,
    physical: Vec<Physical>,
    volumes: Vec<(String, Section)>,
    dangers: Vec<String>,
}

/// A physical volume of the group.
struct Physical {
    name: String,
    description: Section,
    /// Its number among the disks, if it is one of them.
    disk: Option<usize>,
}

/// What the metadata of one area says.
struct Metadata {
    sequence: u64,
    name: String,
    group: Section,
}

impl Metadata {
    fn parse(text: &[u8]) -> Result<Metadata, Error> {
        let whole = parse(text)?;
        let (name, group) =
            whole.sections().next().ok_or_else(|| Error::image("the metadata of LVM has no volume group"))?;
        let sequence = group.number("seqno", "the volume group")?;
        Ok(Metadata { sequence, name: name.to_string(), group: group.clone() })
    }

    /// # Errors
    /// A line if this is of another group.
    fn check_same(&self, other: &Metadata) -> Result<(), Error> {
        let id = |of: &Metadata| of.group.text("id", "the volume group").map(str::to_string);
        let (one, two) = (id(self)?, id(other)?);
        if one == two {
            return Ok(());
        }
        let group = |of: &Metadata, id: &str| format!("{} ({})", quoted(of.name.as_bytes()), quoted(id.as_bytes()));
        Err(Error::image(format!(
            "the metadata is that of the volume group {}, and other metadata is that of {}",
            group(self, &one),
            group(other, &two)
        )))
    }
}

/// Says of which disk an error is, if it is not the layer below.
fn named(disk: usize, error: Error) -> Error {
    match error {
        Error::Image(line) if disk > 0 => Error::Image(format!("disk {disk} of lvm-pv: {line}")),
        error => error,
    }
}

/// An identifier as the programs of LVM show it: 6-4-4-4-4-4-6 characters.
fn dashed(id: &str) -> String {
    let mut text = String::new();
    for (n, letter) in id.chars().enumerate() {
        if matches!(n, 6 | 10 | 14 | 18 | 22 | 26) {
            text.push('-');
        }
        text.push(letter);
    }
    text
}

impl Group {
    /// Reads the metadata of the group that the first of the disks is in.
    fn read(disks: &[Rc<dyn Source>]) -> Result<Group, Error> {
        let mut newest: Option<Metadata> = None;
        let (mut dangers, mut ids) = (Vec::new(), Vec::new());
        for (number, disk) in disks.iter().enumerate() {
            let label = Label::read(&**disk).map_err(|error| named(number, error))?;
            for text in label.texts(&**disk).map_err(|error| named(number, error))? {
                let metadata = Metadata::parse(&text).map_err(|error| named(number, error))?;
                if let Some(other) = &newest {
                    metadata.check_same(other).map_err(|error| named(number, error))?;
                    if other.sequence != metadata.sequence {
                        dangers.push(format!(
                            "two areas have metadata of different age, {} and {}: the newer counts",
                            other.sequence, metadata.sequence
                        ));
                    }
                    if other.sequence >= metadata.sequence {
                        continue;
                    }
                }
                newest = Some(metadata);
            }
            ids.push(label.id);
        }
        let Some(Metadata { name, group, .. }) = newest else {
            return Err(Error::image(
                "the physical volume has no metadata: it is in no volume group, or others keep it (lvm-pv=DISK gives \
                 them)",
            ));
        };
        let owned = |key: &str| -> Vec<(String, Section)> {
            let sections = group.section(key).map(|all| all.sections().map(|(name, of)| (name.into(), of.clone())));
            sections.map(Iterator::collect).unwrap_or_default()
        };
        let physical = owned("physical_volumes").into_iter();
        let mut physical: Vec<Physical> =
            physical.map(|(name, description)| Physical { name, description, disk: None }).collect();
        for (number, id) in ids.iter().enumerate() {
            Group::claim(&mut physical, id, number).map_err(|error| named(number, error))?;
        }
        let extent = group.number("extent_size", "the volume group")?.checked_mul(SECTOR).filter(|extent| *extent > 0);
        let extent =
            extent.ok_or_else(|| Error::image("the metadata of LVM has an extent_size that is not possible"))?;
        Ok(Group { name, extent, physical, volumes: owned("logical_volumes"), dangers })
    }

    /// Notes that the disk with this number is the physical volume with this identifier.
    fn claim(physical: &mut [Physical], id: &str, number: usize) -> Result<(), Error> {
        let is_it = |of: &&mut Physical| of.id().is_ok_and(|other| other.replace('-', "") == id);
        let shown = quoted(dashed(id).as_bytes());
        let Some(physical) = physical.iter_mut().find(is_it) else {
            return Err(Error::image(format!("the metadata of LVM does not name this physical volume, {shown}")));
        };
        match physical.disk.replace(number) {
            None => Ok(()),
            Some(0) => Err(Error::image(format!("it is the physical volume {shown}, as is the layer below"))),
            Some(other) => Err(Error::image(format!("it is the physical volume {shown}, as is disk {other}"))),
        }
    }

    fn visible(&self) -> impl Iterator<Item = &(String, Section)> {
        let visible = Value::Text("VISIBLE".into());
        self.volumes
            .iter()
            .filter(move |(_, of)| matches!(of.get("status"), Some(Value::List(list)) if list.contains(&visible)))
    }

    fn names(&self) -> String {
        let names: Vec<String> = self.visible().take(MOST_NAMED).map(|(name, _)| quoted(name.as_bytes())).collect();
        match names.len() {
            0 => "none".into(),
            MOST_NAMED => names.join(", ") + ", ...",
            _ => names.join(", "),
        }
    }

    fn volume(&self, name: Option<&str>) -> Result<&(String, Section), Error> {
        let Some(name) = name else {
            let mut visible = self.visible();
            return match (visible.next(), visible.next()) {
                (Some(only), None) => Ok(only),
                _ => Err(Error::image(format!(
                    "the volume group {} does not have exactly one volume: choose with lvm-volume=; there are {}",
                    quoted(self.name.as_bytes()),
                    self.names()
                ))),
            };
        };
        let volume = match name.split_once('/') {
            Some((group, volume)) if group == self.name => Some(volume),
            Some(_) => None,
            None => Some(name),
        };
        self.volumes.iter().find(|(of, _)| Some(of.as_str()) == volume).ok_or_else(|| {
            let (name, group) = (quoted(name.as_bytes()), quoted(self.name.as_bytes()));
            Error::image(format!("there is no volume {name}; the volume group {group} has {}", self.names()))
        })
    }

    fn segments(&self, (name, volume): &(String, Section), disks: &[Rc<dyn Source>]) -> Result<Vec<Segment>, Error> {
        let name = quoted(name.as_bytes());
        let wrong = |why: String| Error::image(format!("the volume {name} {why}"));
        let count = volume.number("segment_count", &name)?;
        if count == 0 || count > MOST_SEGMENTS {
            return Err(wrong(format!("has {count} segments; 1 to {MOST_SEGMENTS} are supported")));
        }
        let mut segments: Vec<Segment> = Vec::new();
        let mut missing = BTreeSet::new();
        for number in 1..=count {
            let of = format!("segment {number} of {name}");
            let segment =
                volume.section(&format!("segment{number}")).ok_or_else(|| wrong(format!("has no segment {number}")))?;
            let start = segments.last().map_or(0, |last| last.start + last.size);
            segments.push(self.segment(segment, &of, start, disks, &mut missing)?);
        }
        if missing.is_empty() {
            return Ok(segments);
        }
        let mut names = Vec::new();
        for physical in missing.iter().take(MOST_NAMED).filter_map(|number| self.physical.get(*number)) {
            names.push(format!("{} ({})", quoted(physical.name.as_bytes()), quoted(physical.id()?.as_bytes())));
        }
        let more = if missing.len() > MOST_NAMED { ", ..." } else { "" };
        Err(wrong(format!(
            "is also on {} other physical volume{}: give {}{more} as lvm-pv=DISK",
            missing.len(),
            if missing.len() == 1 { "" } else { "s" },
            names.join(", ")
        )))
    }

    /// `missing` gets the numbers of the physical volumes that are needed and not given.
    fn segment(
        &self,
        segment: &Section,
        of: &str,
        start: u64,
        disks: &[Rc<dyn Source>],
        missing: &mut BTreeSet<usize>,
    ) -> Result<Segment, Error> {
        let wrong = |why: String| Error::image(format!("{of} {why}"));
        let kind = segment.text("type", of)?;
        if kind != "striped" {
            return Err(wrong(format!(
                "is of the type {}; linear and striped ones are supported",
                quoted(kind.as_bytes())
            )));
        }
        let told = segment.number("start_extent", of)?;
        if told.checked_mul(self.extent) != Some(start) {
            return Err(wrong(format!("begins at extent {told}, and the one before ends at {}", start / self.extent)));
        }
        let extents = segment.number("extent_count", of)?;
        let count = segment.number("stripe_count", of)?;
        let places = segment.list("stripes", of)?;
        if count == 0 || count > MOST_STRIPES || places.len() as u64 != 2 * count {
            return Err(wrong(format!("has {count} stripes and {} values for them", places.len())));
        }
        let bytes = extents.checked_mul(self.extent).filter(|bytes| *bytes > 0 && extents.is_multiple_of(count));
        let bytes = bytes.filter(|bytes| start.checked_add(*bytes).is_some_and(|end| end <= i64::MAX as u64));
        let bytes = bytes.ok_or_else(|| wrong(format!("has {extents} extents on {count} stripes")))?;
        let stripe = match count {
            1 => self.extent,
            _ => segment.number("stripe_size", of)?.saturating_mul(SECTOR),
        };
        if stripe == 0 || !self.extent.is_multiple_of(stripe) {
            return Err(wrong(format!("has stripes of {stripe} bytes, and extents have {}", self.extent)));
        }
        let mut stripes = Vec::new();
        for pair in places.chunks_exact(2) {
            let (Value::Text(physical), Value::Number(extent)) = (&pair[0], &pair[1]) else {
                return Err(wrong("has stripes that are not a name and a number each".into()));
            };
            let number = self.physical.iter().position(|of| of.name == *physical).ok_or_else(|| {
                wrong(format!(
                    "is on the physical volume {}, which the volume group does not have",
                    quoted(physical.as_bytes())
                ))
            })?;
            let physical = &self.physical[number];
            let Some(disk) = physical.disk else {
                missing.insert(number);
                continue;
            };
            let first = physical.description.number("pe_start", &physical.name)?.checked_mul(SECTOR);
            let at = first.zip(extent.checked_mul(self.extent)).and_then(|(first, skip)| first.checked_add(skip));
            let size = disks[disk].size();
            let fits = |at: &u64| at.checked_add(bytes / count).is_some_and(|end| end <= size);
            let at = at.filter(fits).ok_or_else(|| {
                wrong(format!(
                    "has {} bytes at extent {extent}, beyond the end of the physical volume {} of {size} bytes",
                    bytes / count,
                    quoted(physical.name.as_bytes())
                ))
            })?;
            stripes.push(Stripe { disk, at });
        }
        Ok(Segment { start, size: bytes, stripes, stripe })
    }
}

impl Physical {
    /// The identifier, as the metadata has it.
    fn id(&self) -> Result<&str, Error> {
        self.description.text("id", "a physical volume")
    }
}
