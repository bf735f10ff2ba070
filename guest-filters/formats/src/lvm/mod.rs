//! Logical volumes of LVM2 that are on one physical volume, linear or striped.

mod label;
mod text;
mod volume;

#[cfg(test)]
mod tests;

use std::rc::Rc;

use rbdkit_filter_sdk::image::{Error, Source, quoted};

use crate::{FormatInfo, Opened, Report};

use label::Label;
use text::{Section, Value, parse};
use volume::{Segment, Volume};

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
    match Group::read(&**image) {
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
    open_volume(image, None)
}

/// Opens a logical volume: `VG/LV` or `LV`, or the only one if no name is given.
///
/// # Errors
/// A line if the metadata is wrong, there is no such volume, or it is not on this physical volume
/// alone.
pub fn open_volume(image: Rc<dyn Source>, name: Option<&str>) -> Opened {
    let group = Group::read(&*image)?;
    let segments = group.segments(group.volume(name)?, image.size())?;
    Ok(Rc::new(Volume::new(image, segments)))
}

/// A volume group as the metadata on one physical volume describes it.
struct Group {
    name: String,
    /// The bytes of an extent.
    extent: u64,
    /// The physical volumes, and which of them this is.
    physical: Vec<(String, Section)>,
    this: usize,
    volumes: Vec<(String, Section)>,
    dangers: Vec<String>,
}

impl Group {
    fn read(image: &dyn Source) -> Result<Group, Error> {
        let label = Label::read(image)?;
        let mut newest: Option<(u64, String, Section)> = None;
        let mut dangers = Vec::new();
        for text in label.texts(image)? {
            let whole = parse(&text)?;
            let (name, group) =
                whole.sections().next().ok_or_else(|| Error::image("the metadata of LVM has no volume group"))?;
            let sequence = group.number("seqno", "the volume group")?;
            if let Some((other, ..)) = &newest {
                if *other != sequence {
                    dangers.push(format!(
                        "two areas have metadata of different age, {other} and {sequence}: the newer counts"
                    ));
                }
                if *other >= sequence {
                    continue;
                }
            }
            newest = Some((sequence, name.to_string(), group.clone()));
        }
        let (_, name, group) = newest.ok_or_else(|| Error::image("the metadata of LVM is empty"))?;
        let owned = |key: &str| -> Vec<(String, Section)> {
            let sections = group.section(key).map(|all| all.sections().map(|(name, of)| (name.into(), of.clone())));
            sections.map(Iterator::collect).unwrap_or_default()
        };
        let physical = owned("physical_volumes");
        let is_this = |of: &Section| of.text("id", "a physical volume").is_ok_and(|id| id.replace('-', "") == label.id);
        let this = physical.iter().position(|(_, of)| is_this(of)).ok_or_else(|| {
            Error::image(format!(
                "the metadata of LVM does not name this physical volume, {}",
                quoted(label.id.as_bytes())
            ))
        })?;
        let extent = group.number("extent_size", "the volume group")?.checked_mul(SECTOR).filter(|extent| *extent > 0);
        let extent =
            extent.ok_or_else(|| Error::image("the metadata of LVM has an extent_size that is not possible"))?;
        Ok(Group { name, extent, physical, this, volumes: owned("logical_volumes"), dangers })
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

    fn segments(&self, (name, volume): &(String, Section), size: u64) -> Result<Vec<Segment>, Error> {
        let name = quoted(name.as_bytes());
        let wrong = |why: String| Error::image(format!("the volume {name} {why}"));
        let count = volume.number("segment_count", &name)?;
        if count == 0 || count > MOST_SEGMENTS {
            return Err(wrong(format!("has {count} segments; 1 to {MOST_SEGMENTS} are supported")));
        }
        let mut segments: Vec<Segment> = Vec::new();
        for number in 1..=count {
            let of = format!("segment {number} of {name}");
            let segment =
                volume.section(&format!("segment{number}")).ok_or_else(|| wrong(format!("has no segment {number}")))?;
            let start = segments.last().map_or(0, |last| last.start + last.size);
            let segment = self.segment(segment, &of, start, size)?;
            segments.push(segment);
        }
        Ok(segments)
    }

    fn segment(&self, segment: &Section, of: &str, start: u64, size: u64) -> Result<Segment, Error> {
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
            let (this, description) = &self.physical[self.this];
            if physical != this {
                return Err(wrong(format!(
                    "is on the physical volume {}, and this is {}: volumes on several are not supported",
                    quoted(physical.as_bytes()),
                    quoted(this.as_bytes())
                )));
            }
            let first = description.number("pe_start", this)?.checked_mul(SECTOR);
            let place = first.zip(extent.checked_mul(self.extent)).and_then(|(first, skip)| first.checked_add(skip));
            let fits = |place: &u64| place.checked_add(bytes / count).is_some_and(|end| end <= size);
            stripes.push(place.filter(fits).ok_or_else(|| {
                wrong(format!("has {} bytes at extent {extent}, beyond the end of the physical volume", bytes / count))
            })?);
        }
        Ok(Segment { start, size: bytes, stripes, stripe })
    }
}
