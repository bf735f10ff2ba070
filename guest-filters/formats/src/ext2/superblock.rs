//! The superblock: sizes, and which features the file system has.

use rbdkit_filter_sdk::image::{self, Error, Fields, Source};

/// Where the superblock is, in bytes.
const OFFSET: u64 = 1024;

pub const COMPRESSION: u32 = 0x1;
pub const RECOVER: u32 = 0x4;
pub const JOURNAL_DEVICE: u32 = 0x8;
const META_BG: u32 = 0x10;
const BIT64: u32 = 0x80;
pub const MMP: u32 = 0x100;
const DIRDATA: u32 = 0x1000;

/// Features without which a file cannot be read, by bit: a name, and whether this decoder knows
/// them.
const INCOMPATIBLE: [(u32, &str, bool); 16] = [
    (COMPRESSION, "compression", false),
    (0x2, "filetype", true),
    (RECOVER, "needs_recovery", true),
    (JOURNAL_DEVICE, "journal_dev", false),
    (META_BG, "meta_bg", true),
    (0x40, "extent", true),
    (BIT64, "64bit", true),
    (MMP, "mmp", true),
    (0x200, "flex_bg", true),
    (0x400, "ea_inode", true),
    (DIRDATA, "dirdata", false),
    (0x2000, "metadata_csum_seed", true),
    (0x4000, "large_dir", true),
    (0x8000, "inline_data", true),
    (0x1_0000, "encrypt", true),
    (0x2_0000, "casefold", true),
];

/// Features that matter for writing, by bit: a name, and whether data may be written in place.
const READ_ONLY: [(u32, &str, bool); 15] = [
    (0x1, "sparse_super", true),
    (0x2, "large_file", true),
    (0x8, "huge_file", true),
    (0x10, "uninit_bg", true),
    (0x20, "dir_nlink", true),
    (0x40, "extra_isize", true),
    (0x80, "snapshot", false),
    (0x100, "quota", true),
    (0x200, "bigalloc", true),
    (0x400, "metadata_csum", true),
    (0x1000, "read-only", false),
    (0x2000, "project", true),
    (0x4000, "shared_blocks", false),
    (0x8000, "verity", true),
    (0x1_0000, "orphan_present", true),
];

/// What the superblock says, checked.
#[derive(Clone, Debug)]
pub struct Superblock {
    pub block_size: u64,
    pub blocks: u64,
    pub inodes: u32,
    pub inode_size: u64,
    pub inodes_per_group: u32,
    blocks_per_group: u32,
    first_data_block: u32,
    descriptor_size: u64,
    first_meta_group: u32,
    compatible: u32,
    pub incompatible: u32,
    read_only: u32,
    backups: [u32; 2],
    pub state: u16,
    pub label: Vec<u8>,
    pub last_mounted: Vec<u8>,
    pub uuid: [u8; 16],
}

/// Whether the image has the magic number of a superblock.
pub fn has_magic(source: &dyn Source) -> Result<bool, Error> {
    if source.size() < OFFSET + 1024 {
        return Ok(false);
    }
    let bytes = image::read(source, OFFSET, 128)?;
    let fields = Fields::little(&bytes, "the superblock");
    // The block size keeps other data apart that has the two bytes by chance.
    Ok(fields.u16(56)? == 0xef53 && fields.u32(24)? <= 6)
}

impl Superblock {
    /// Reads and checks it.
    pub fn read(source: &dyn Source) -> Result<Superblock, Error> {
        if !has_magic(source)? {
            return Err(Error::image("it is not an ext2, ext3 or ext4 file system: it has no superblock at 1024"));
        }
        let bytes = image::read(source, OFFSET, 1024)?;
        let fields = Fields::little(&bytes, "the superblock");
        let has_more = fields.u32(76)? > 0;
        let incompatible = if has_more { fields.u32(96)? } else { 0 };
        let is_64bit = incompatible & BIT64 != 0;
        let high = if is_64bit { fields.u32(336)? } else { 0 };
        let superblock = Superblock {
            block_size: 1024 << fields.u32(24)?,
            blocks: u64::from(high) << 32 | u64::from(fields.u32(4)?),
            inodes: fields.u32(0)?,
            inode_size: if has_more { fields.u16(88)?.into() } else { 128 },
            inodes_per_group: fields.u32(40)?,
            blocks_per_group: fields.u32(32)?,
            first_data_block: fields.u32(20)?,
            descriptor_size: if is_64bit { fields.u16(254)?.into() } else { 32 },
            first_meta_group: fields.u32(260)?,
            compatible: if has_more { fields.u32(92)? } else { 0 },
            incompatible,
            read_only: if has_more { fields.u32(100)? } else { 0 },
            backups: [fields.u32(0x24c)?, fields.u32(0x250)?],
            state: fields.u16(58)?,
            label: fields.text(120, 16)?.to_vec(),
            last_mounted: fields.text(136, 64)?.to_vec(),
            uuid: fields.bytes(104, 16)?.try_into().unwrap_or_default(),
        };
        superblock.check()?;
        Ok(superblock)
    }

    fn check(&self) -> Result<(), Error> {
        let fail = |line: String| Err(Error::image(line));
        let wrong = |what: &str, value: u64, right: String| {
            Err(Error::image(format!("the superblock is damaged: {what} is {value}, and has to be {right}")))
        };
        let block = self.block_size;
        let inode = self.inode_size;
        if !inode.is_power_of_two() || !(128..=block).contains(&inode) {
            return wrong("the size of an inode", inode, format!("a power of two from 128 to {block}"));
        }
        if !self.descriptor_size.is_power_of_two() || !(32..=1024).contains(&self.descriptor_size) {
            let right = "a power of two from 32 to 1024".to_string();
            return wrong("the size of a group descriptor", self.descriptor_size, right);
        }
        if !(1..=8 * block).contains(&self.inodes_per_group.into()) {
            return wrong(
                "the number of inodes in a group",
                self.inodes_per_group.into(),
                format!("1 to {}", 8 * block),
            );
        }
        if self.blocks_per_group < 8 {
            return wrong("the number of blocks in a group", self.blocks_per_group.into(), "at least 8".to_string());
        }
        if self.first_data_block > 1 {
            return wrong("the first data block", self.first_data_block.into(), "0 or 1".to_string());
        }
        if self.blocks <= self.first_data_block.into() || self.blocks > u64::MAX / block {
            let right = format!("from {} to {}", self.first_data_block + 1, u64::MAX / block);
            return wrong("the number of blocks", self.blocks, right);
        }
        let unknown = self.unknown();
        if !unknown.is_empty() {
            return fail(format!("the file system has features that are not supported: {}", unknown.join(", ")));
        }
        Ok(())
    }

    /// Features without which a file cannot be read.
    fn unknown(&self) -> Vec<String> {
        let mut unknown = Vec::new();
        for bit in (0..32).map(|shift| 1 << shift).filter(|bit| self.incompatible & bit != 0) {
            match INCOMPATIBLE.iter().find(|(known, ..)| *known == bit) {
                Some((.., true)) => {}
                Some((_, name, false)) => unknown.push((*name).to_string()),
                None => unknown.push(format!("incompatible {bit:#x}")),
            }
        }
        unknown
    }

    /// The features that make it unsafe to write data of files in place.
    pub fn why_read_only(&self) -> Option<String> {
        for bit in (0..32).map(|shift| 1 << shift).filter(|bit| self.read_only & bit != 0) {
            match READ_ONLY.iter().find(|(known, ..)| *known == bit) {
                Some((.., true)) => {}
                Some((_, name, false)) => return Some((*name).to_string()),
                None => return Some(format!("read-only {bit:#x}")),
            }
        }
        None
    }

    /// The names of the features that people know.
    pub fn features(&self) -> Vec<&'static str> {
        let has = |bit: u32, of: u32| bit != 0 && of & bit != 0;
        let one = INCOMPATIBLE.iter().filter(|(bit, ..)| has(*bit, self.incompatible)).map(|(_, name, _)| *name);
        let other = READ_ONLY.iter().filter(|(bit, ..)| has(*bit, self.read_only)).map(|(_, name, _)| *name);
        let journal = (self.compatible & 4 != 0).then_some("has_journal");
        journal.into_iter().chain(one).chain(other).collect()
    }

    /// Whether the file system is in use, or was when the machine stopped.
    pub fn needs_recovery(&self) -> bool {
        self.incompatible & RECOVER != 0
    }

    /// What people call it.
    pub fn version(&self) -> &'static str {
        const OF_EXT4: u32 = 0x40 | BIT64 | 0x200 | 0x8000 | META_BG;
        match () {
            () if self.incompatible & OF_EXT4 != 0 || self.read_only & 0x478 != 0 => "ext4",
            () if self.compatible & 4 != 0 => "ext3",
            () => "ext2",
        }
    }

    /// Where an inode is, in bytes: in the table that the descriptor of its group names. The
    /// descriptor is read with `read`.
    pub fn inode_offset(
        &self,
        number: u32,
        read: impl FnOnce(u64, &mut [u8]) -> Result<(), Error>,
    ) -> Result<u64, Error> {
        if number == 0 || number > self.inodes {
            return Err(Error::image(format!("there is no inode {number}: the file system has {}", self.inodes)));
        }
        let (group, nth) = ((number - 1) / self.inodes_per_group, (number - 1) % self.inodes_per_group);
        let groups = (self.blocks - u64::from(self.first_data_block)).div_ceil(self.blocks_per_group.into());
        if u64::from(group) >= groups {
            let line = format!("inode {number} is in group {group}, and the file system has {groups} groups");
            return Err(Error::image(line));
        }
        let mut bytes = [0; 64];
        let wanted = self.descriptor_size.min(64) as usize;
        read(self.descriptor_offset(group), &mut bytes[..wanted])?;
        let fields = Fields::little(&bytes, "the group descriptor");
        // Without the feature 64bit the descriptor has 32 bytes, and the rest is zero here.
        let table = u64::from(fields.u32(40)?) << 32 | u64::from(fields.u32(8)?);
        let offset = u64::from(nth) * self.inode_size;
        let last = table.checked_add(offset / self.block_size);
        if table == 0 || last.is_none_or(|last| last >= self.blocks) {
            let blocks = self.blocks;
            let line = format!("the descriptor of group {group} has inodes at block {table}, and there are {blocks}");
            return Err(Error::image(line));
        }
        // The number of blocks was checked: their bytes fit into 64 bits.
        Ok(table * self.block_size + offset)
    }

    /// Where the descriptor of a group is. The group is one that there is.
    fn descriptor_offset(&self, group: u32) -> u64 {
        let group = u64::from(group);
        let in_block = self.block_size / self.descriptor_size;
        let (meta_group, nth) = (group / in_block, group % in_block);
        let superblock = OFFSET / self.block_size;
        let block = if self.incompatible & META_BG == 0 || meta_group < self.first_meta_group.into() {
            superblock + 1 + meta_group
        } else {
            // Each meta group has its descriptors in its first group.
            let first = meta_group * in_block;
            let start = u64::from(self.first_data_block) + first * u64::from(self.blocks_per_group);
            // The first superblock is in block 1 if blocks have 1024 bytes and block 0 belongs to
            // the group.
            let shift = if first == 0 { superblock - u64::from(self.first_data_block).min(superblock) } else { 0 };
            start + shift + u64::from(self.has_superblock(first))
        };
        block * self.block_size + nth * self.descriptor_size
    }

    /// Whether a group begins with a copy of the superblock.
    fn has_superblock(&self, group: u64) -> bool {
        const SPARSE: u32 = 0x1;
        const SPARSE_2: u32 = 0x200;
        if group == 0 {
            return true;
        }
        if self.compatible & SPARSE_2 != 0 {
            return self.backups.iter().any(|backup| u64::from(*backup) == group);
        }
        if self.read_only & SPARSE == 0 || group == 1 {
            return true;
        }
        [3, 5, 7].into_iter().any(|base| {
            let mut power: u64 = base;
            while power < group {
                power *= base;
            }
            power == group
        })
    }
}
