//! Pages of a sparse disk, which may be kept compressed (`allocator=zstd`).
//!
//! A page is compressed whenever it has been written, and decompressed to be read or changed. A
//! page that compression does not make smaller is kept as it is, so its length tells which it is.

use std::sync::Mutex;

use rbdkit_plugin_api::{Errno, Error, Result, is_all_zero, lock};
use zstd_safe::{CCtx, DCtx};

/// The size of a page, in bytes. The first write to a page clears all of it, so large pages slow
/// down random writes; with small pages long requests take many locks. 32 KiB, as in nbdkit, take 3
/// us to clear, and a request of 256 KiB takes 8 locks.
pub const PAGE: usize = 32 << 10;

/// The fastest level of compression with a name in zstd. Pages are compressed as they are written,
/// so a client waits for it.
const LEVEL: i32 = 1;

/// How many idle codecs are kept. A codec takes about 1 MiB; each thread that works on pages at the
/// same time needs one.
const MAX_IDLE: usize = 8;

/// A page: [`PAGE`] bytes as they are, or fewer that are compressed.
pub struct Page(Box<[u8]>);

/// Reads and changes pages, in one of two ways.
#[derive(Default)]
pub struct Pages {
    /// None: pages are kept as they are.
    compressed: Option<Mutex<Vec<Codec>>>,
}

impl Pages {
    /// Pages as they are.
    pub fn plain() -> Pages {
        Pages::default()
    }

    /// Compressed pages.
    pub fn compressed() -> Pages {
        Pages { compressed: Some(Mutex::default()) }
    }

    /// Copies the bytes of a page from `from` on into all of `out`.
    ///
    /// # Errors
    /// ENOMEM: no memory to decompress the page.
    pub fn read(&self, page: &Page, from: usize, out: &mut [u8]) -> Result<()> {
        let Some(idle) = self.compressed.as_ref().filter(|_| page.0.len() < PAGE) else {
            out.copy_from_slice(&page.0[from..from + out.len()]);
            return Ok(());
        };
        with_codec(idle, |codec| {
            // A whole page needs no copy.
            if out.len() == PAGE {
                return codec.unpack_into(page, out);
            }
            codec.unpack(page)?;
            out.copy_from_slice(&codec.plain[from..from + out.len()]);
            Ok(())
        })
    }

    /// A page that begins as zeroes and is then changed.
    ///
    /// # Errors
    /// ENOMEM.
    pub fn create(&self, change: impl FnOnce(&mut [u8])) -> Result<Page> {
        let Some(idle) = &self.compressed else {
            let mut bytes = allocate(PAGE)?;
            change(&mut bytes);
            return Ok(Page(bytes));
        };
        with_codec(idle, |codec| {
            codec.plain.fill(0);
            change(&mut codec.plain);
            codec.pack()
        })
    }

    /// Changes a page. The answer says whether it is all zero now.
    ///
    /// # Errors
    /// ENOMEM; the page is as it was.
    pub fn change(&self, page: &mut Page, change: impl FnOnce(&mut [u8])) -> Result<Zero> {
        let Some(idle) = &self.compressed else {
            change(&mut page.0);
            return Ok(Zero::of(&page.0));
        };
        with_codec(idle, |codec| {
            codec.unpack(page)?;
            change(&mut codec.plain);
            let zero = Zero::of(&codec.plain);
            // A page of zeroes is about to be freed; it is small.
            *page = codec.pack()?;
            Ok(zero)
        })
    }

    /// Overwrites a part of a page.
    ///
    /// # Errors
    /// ENOMEM; the page is as it was.
    pub fn write(&self, page: &mut Page, from: usize, bytes: &[u8]) -> Result<()> {
        let Some(idle) = &self.compressed else {
            page.0[from..from + bytes.len()].copy_from_slice(bytes);
            return Ok(());
        };
        with_codec(idle, |codec| {
            if bytes.len() < PAGE {
                codec.unpack(page)?;
            }
            codec.plain[from..from + bytes.len()].copy_from_slice(bytes);
            *page = codec.pack()?;
            Ok(())
        })
    }
}

/// Whether a page is all zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zero {
    /// It is.
    All,
    /// It is not.
    NotAll,
}

impl Zero {
    fn of(bytes: &[u8]) -> Zero {
        if is_all_zero(bytes) { Zero::All } else { Zero::NotAll }
    }
}

/// What one thread needs to work on compressed pages.
struct Codec {
    compressor: CCtx<'static>,
    decompressor: DCtx<'static>,
    /// One page.
    plain: Box<[u8]>,
    /// A page while it is compressed. It is as long as a page: what is not shorter is not kept.
    packed: Box<[u8]>,
}

/// Lets `work` use an idle codec or a new one.
fn with_codec<T>(idle: &Mutex<Vec<Codec>>, work: impl FnOnce(&mut Codec) -> Result<T>) -> Result<T> {
    let kept = lock(idle).pop();
    let mut codec = match kept {
        Some(codec) => codec,
        None => Codec::new()?,
    };
    let result = work(&mut codec);
    let mut idle = lock(idle);
    if idle.len() < MAX_IDLE {
        idle.push(codec);
    }
    result
}

impl Codec {
    fn new() -> Result<Codec> {
        let (Some(compressor), Some(decompressor)) = (CCtx::try_create(), DCtx::try_create()) else {
            return Err(no_memory());
        };
        Ok(Codec { compressor, decompressor, plain: allocate(PAGE)?, packed: allocate(PAGE)? })
    }

    /// Makes `plain` the content of the page.
    fn unpack(&mut self, page: &Page) -> Result<()> {
        match page.0.len() {
            PAGE => self.plain.copy_from_slice(&page.0),
            _ => decompress(&mut self.decompressor, page, &mut self.plain)?,
        }
        Ok(())
    }

    /// Decompresses a page into `out`, which is as long as a page.
    fn unpack_into(&mut self, page: &Page, out: &mut [u8]) -> Result<()> {
        decompress(&mut self.decompressor, page, out)
    }

    /// The page of `plain`. One that does not become smaller, or that zstd cannot compress because
    /// it gets no memory, is kept as it is.
    fn pack(&mut self) -> Result<Page> {
        let packed = self.compressor.compress(&mut self.packed[..PAGE - 1], &self.plain, LEVEL);
        let bytes = packed.map_or(&self.plain[..], |length| &self.packed[..length]);
        let mut page = allocate(bytes.len())?;
        page.copy_from_slice(bytes);
        Ok(Page(page))
    }
}

fn decompress(decompressor: &mut DCtx<'_>, page: &Page, out: &mut [u8]) -> Result<()> {
    match decompressor.decompress(out, &page.0) {
        Ok(PAGE) => Ok(()),
        // Only this plugin writes pages, so the page is good and the memory is not there.
        _ => Err(no_memory()),
    }
}

/// Bytes that are zero.
fn allocate(length: usize) -> Result<Box<[u8]>> {
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(length).map_err(|_| no_memory())?;
    bytes.resize(length, 0);
    Ok(bytes.into_boxed_slice())
}

fn no_memory() -> Error {
    Error::new(Errno::Enomem, "no memory for another page")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that cannot be compressed.
    fn noise() -> Vec<u8> {
        let mut state = 1u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        };
        (0..PAGE).map(|_| next()).collect()
    }

    fn read(pages: &Pages, page: &Page, from: usize, length: usize) -> Vec<u8> {
        let mut out = vec![9; length];
        pages.read(page, from, &mut out).unwrap();
        out
    }

    #[test]
    fn both_kinds_of_pages_hold_what_was_written() {
        for pages in [Pages::plain(), Pages::compressed()] {
            let mut page = pages.create(|bytes| bytes[3..5].fill(7)).unwrap();
            assert_eq!(read(&pages, &page, 2, 4), [0, 7, 7, 0]);
            pages.write(&mut page, PAGE - 2, &[1, 2]).unwrap();
            assert_eq!(read(&pages, &page, PAGE - 3, 3), [0, 1, 2]);
            assert_eq!(read(&pages, &page, 0, PAGE)[3..5], [7, 7]);
            pages.write(&mut page, 0, &noise()).unwrap();
            assert!(read(&pages, &page, 0, PAGE) == noise());
            assert_eq!(pages.change(&mut page, |bytes| bytes[1..].fill(0)).unwrap(), Zero::NotAll);
            assert_eq!(pages.change(&mut page, |bytes| bytes.fill(0)).unwrap(), Zero::All);
        }
    }

    #[test]
    fn compressed_pages_take_less_memory_and_incompressible_ones_no_more_than_a_page() {
        let pages = Pages::compressed();
        let text = b"a page of text that repeats itself. ".repeat(PAGE);
        let page = pages.create(|bytes| bytes.copy_from_slice(&text[..PAGE])).unwrap();
        assert!(page.0.len() < PAGE / 10, "{}", page.0.len());
        let page = pages.create(|bytes| bytes.copy_from_slice(&noise())).unwrap();
        assert_eq!(page.0.len(), PAGE);
    }

    #[test]
    fn idle_codecs_are_few() {
        let pages = Pages::compressed();
        std::thread::scope(|scope| {
            let barrier = std::sync::Arc::new(std::sync::Barrier::new(2 * MAX_IDLE));
            for _ in 0..2 * MAX_IDLE {
                let (pages, barrier) = (&pages, std::sync::Arc::clone(&barrier));
                let together = move |_: &mut [u8]| {
                    barrier.wait();
                };
                scope.spawn(move || pages.create(together).map(drop));
            }
        });
        assert_eq!(lock(pages.compressed.as_ref().unwrap()).len(), MAX_IDLE);
    }
}
