//! Making a new image, which has no data of its own: everything is read from its backing file.

use rbdkit_filter_sdk::image::{Error, quoted};

use super::header::{MAGIC, MAX_BACKING_FORMAT, MAX_BACKING_NAME, MAX_L1};
use super::write::MAX_TABLE;

/// The length of a header of version 3 in bytes.
const HEADER: usize = 104;
/// The type of the header extension with the format of the backing file.
const BACKING_FORMAT: u32 = 0xe279_2aca;
/// A reference count has two to this power bits: 16, as in the images of qemu-img.
const REFCOUNT_ORDER: u32 = 4;

/// What a new image is like.
#[derive(Clone, Debug)]
pub struct NewImage {
    /// The size of the disk in bytes.
    pub size: u64,
    /// A cluster has two to this power bytes: 9 to 21.
    pub cluster_bits: u32,
    /// The name and the format of the backing file, as the image names them.
    pub backing: Option<(String, String)>,
    /// How large the image file may become, in bytes. The table of reference counts is made for it.
    pub largest: u64,
}

/// The bytes of a new image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Created {
    /// What is not zero, each with its offset. The header, at offset 0, is the last one.
    pub parts: Vec<(u64, Vec<u8>)>,
    /// The length of the image file in bytes.
    pub length: u64,
}

impl NewImage {
    /// Makes it.
    ///
    /// # Errors
    /// A line if the clusters are too small for a disk of that size, or the name of the backing
    /// file is too long.
    pub fn create(&self) -> Result<Created, Error> {
        let cluster = 1u64 << self.cluster_bits;
        // An L2 table has 8 bytes for each cluster.
        let entries = self.size.div_ceil(cluster * (cluster / 8)).max(1);
        let per_block = (cluster * 8) >> REFCOUNT_ORDER;
        let table = (self.largest.div_ceil(cluster).div_ceil(per_block).max(1) * 8).div_ceil(cluster);
        if entries > MAX_L1 / 8 || table * cluster > MAX_TABLE {
            return Err(Error::image(format!(
                "clusters of {cluster} bytes are too small for a disk of {} bytes",
                self.size
            )));
        }
        let l1 = (entries * 8).div_ceil(cluster);
        let mut blocks = 1;
        while (1 + table + blocks + l1).div_ceil(per_block) > blocks {
            blocks += 1;
        }
        // The header, the table of reference counts, its blocks, the L1 table.
        let used = 1 + table + blocks + l1;
        let place = |number: u64| number << self.cluster_bits;
        let names: Vec<u8> = (0..blocks).flat_map(|n| place(1 + table + n).to_be_bytes()).collect();
        let mut parts = vec![(place(1), names)];
        for n in 0..blocks {
            let count = (used - n * per_block).min(per_block);
            parts.push((place(1 + table + n), 1u16.to_be_bytes().repeat(count as usize)));
        }
        parts.push((0, self.header(entries as u32, place(1 + table + blocks), table as u32)?));
        Ok(Created { parts, length: place(used) })
    }

    fn header(&self, l1_entries: u32, l1: u64, table_clusters: u32) -> Result<Vec<u8>, Error> {
        let cluster = 1u64 << self.cluster_bits;
        let mut bytes = MAGIC.to_vec();
        let word = |bytes: &mut Vec<u8>, value: u32| bytes.extend(value.to_be_bytes());
        let long = |bytes: &mut Vec<u8>, value: u64| bytes.extend(value.to_be_bytes());
        word(&mut bytes, 3);
        // The place and the length of the backing file's name.
        long(&mut bytes, 0);
        word(&mut bytes, 0);
        word(&mut bytes, self.cluster_bits);
        long(&mut bytes, self.size);
        // Not encrypted.
        word(&mut bytes, 0);
        word(&mut bytes, l1_entries);
        long(&mut bytes, l1);
        // The table of reference counts begins in cluster 1.
        long(&mut bytes, cluster);
        word(&mut bytes, table_clusters);
        // No snapshots, and no features.
        word(&mut bytes, 0);
        for _ in 0..4 {
            long(&mut bytes, 0);
        }
        word(&mut bytes, REFCOUNT_ORDER);
        word(&mut bytes, HEADER as u32);
        if let Some((name, format)) = &self.backing {
            if format.len() > MAX_BACKING_FORMAT as usize {
                return Err(Error::image(format!(
                    "the format {} has more than {MAX_BACKING_FORMAT} bytes",
                    quoted(format.as_bytes())
                )));
            }
            word(&mut bytes, BACKING_FORMAT);
            word(&mut bytes, format.len() as u32);
            bytes.extend(format.as_bytes());
            bytes.resize(bytes.len().next_multiple_of(8), 0);
            // The end of the extensions.
            long(&mut bytes, 0);
            let at = bytes.len() as u64;
            if name.len() > MAX_BACKING_NAME as usize || at + name.len() as u64 > cluster {
                return Err(Error::image(format!(
                    "the name of the backing file has {} bytes, and {} is the most",
                    name.len(),
                    u64::from(MAX_BACKING_NAME).min(cluster - at)
                )));
            }
            bytes.extend(name.as_bytes());
            bytes[8..16].copy_from_slice(&at.to_be_bytes());
            bytes[16..20].copy_from_slice(&(name.len() as u32).to_be_bytes());
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qcow2::{Image, Options};
    use crate::testing::{Dir, run, source};
    use rbdkit_filter_sdk::image::Source;
    use std::rc::Rc;

    fn bytes(created: &Created) -> Vec<u8> {
        let mut bytes = vec![0; created.length as usize];
        for (offset, part) in &created.parts {
            bytes[*offset as usize..][..part.len()].copy_from_slice(part);
        }
        bytes
    }

    fn new(size: u64, cluster_bits: u32) -> NewImage {
        NewImage { size, cluster_bits, backing: None, largest: size + size / 64 + (16 << 20) }
    }

    #[test]
    fn a_new_image_is_one_in_which_a_check_finds_nothing() {
        let dir = Dir::new("qcow2-create");
        for (size, bits) in [(0, 16), (1, 16), (1_000_000, 12), (100 << 20, 9), (5 << 40, 16), (1 << 40, 12), (7, 21)] {
            let path = dir.file("new.qcow2", &bytes(&new(size, bits).create().unwrap()));
            run("qemu-img", &["check", "-q", "-f", "qcow2", &path]);
            let info = String::from_utf8(run("qemu-img", &["info", "--output=json", "-f", "qcow2", &path])).unwrap();
            assert!(
                info.contains(&format!("\"virtual-size\": {}", size.next_multiple_of(512))) || size % 512 != 0,
                "{info}"
            );
        }
    }

    #[test]
    fn a_new_image_reads_what_its_backing_file_has() {
        let dir = Dir::new("qcow2-create-backing");
        let base = dir.file("base", &[7; 10_000]);
        let image = NewImage { backing: Some((base.clone(), "raw".into())), ..new(10_240, 16) };
        let bytes = bytes(&image.create().unwrap());
        let path = dir.file("new.qcow2", &bytes);
        let raw = dir.path("raw");
        run("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", &path, &raw]);
        let expected = [vec![7; 10_000], vec![0; 240]].concat();
        assert!(std::fs::read(&raw).unwrap() == expected);
        let options = Options { backing: Some(source(&[7; 10_000])), ..Options::default() };
        let opened = Image::open(Rc::new(bytes), options).unwrap();
        assert_eq!(opened.header().backing.as_deref(), Some(base.as_bytes()));
        assert_eq!(opened.header().backing_format.as_deref(), Some(&b"raw"[..]));
        let mut read = vec![1; 10_240];
        opened.read(0, &mut read).unwrap();
        assert!(read == expected);
    }

    #[test]
    fn what_cannot_be_an_image_is_refused_in_a_line() {
        let line = |image: NewImage| image.create().unwrap_err().to_string();
        assert_eq!(line(new(1 << 45, 12)), "clusters of 4096 bytes are too small for a disk of 35184372088832 bytes");
        let named = |name: &str, format: &str| NewImage { backing: Some((name.into(), format.into())), ..new(1, 16) };
        assert_eq!(
            line(named(&"x".repeat(1024), "raw")),
            "the name of the backing file has 1024 bytes, and 1023 is the most"
        );
        assert_eq!(line(named("x", "0123456789abcdef")), "the format '0123456789abcdef' has more than 15 bytes");
    }
}
