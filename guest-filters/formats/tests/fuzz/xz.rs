//! Files of xz, with several blocks.

use std::rc::Rc;

use rbdkit_filter_formats::checksum::crc32;
use rbdkit_filter_formats::testing::{fuzz, piped, read_all, sample, source};
use rbdkit_filter_formats::xz::INFO;
use rbdkit_filter_sdk::image::{Error, Source};

/// Writes the checksum of a range behind it, if both are there.
fn seal(bytes: &mut [u8], from: usize, to: usize, at: usize) {
    if let Some(crc) = bytes.get(from..to).map(crc32)
        && let Some(place) = bytes.get_mut(at..at + 4)
    {
        place.copy_from_slice(&crc.to_le_bytes());
    }
}

/// The file with right checksums in the headers of the first stream and block, and in the last
/// index and its footer, so that what is behind them is reached.
fn with_checksums(image: &dyn Source) -> Result<Rc<dyn Source>, Error> {
    let mut bytes = read_all(image)?;
    let size = bytes.len();
    if size >= 64 {
        seal(&mut bytes, 6, 8, 8);
        let block = 12 + usize::from(bytes[12]) * 4;
        seal(&mut bytes, 12, block, block);
        let words = u32::from_le_bytes([bytes[size - 8], bytes[size - 7], bytes[size - 6], bytes[size - 5]]);
        let index = (words as usize + 1) * 4;
        seal(&mut bytes, (size - 12).saturating_sub(index), size - 16, size - 16);
        seal(&mut bytes, size - 8, size - 2, size - 12);
    }
    Ok(source(&bytes))
}

#[test]
fn xz_files_never_make_it_panic_or_loop() {
    let first = piped("xz", &["--block-size=64KiB"], &sample(200_000, 1));
    let both = [first.clone(), piped("xz", &["--block-size=64KiB"], &sample(50_000, 2))].concat();
    let filters = piped("xz", &["--x86", "--delta=dist=3", "--lzma2=preset=0"], &sample(20_000, 3));
    let number = std::cell::Cell::new(0);
    fuzz("xz", &[first, both, filters], |image| {
        number.set(number.get() + 1);
        let image = if number.get() % 3 == 0 { image } else { with_checksums(&*image)? };
        (INFO.report)(&image)?;
        (INFO.open)(image)
    });
}
