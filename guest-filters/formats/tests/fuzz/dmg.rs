//! DMG images with chunks of all types, and tables in a list and in a fork.

use rbdkit_filter_formats::dmg::INFO;
use rbdkit_filter_formats::testing::dmg::{ADC, BZIP2, DmgLayout, LZFSE, RAW, TablesIn, XZ, ZLIB, made};
use rbdkit_filter_formats::testing::{fuzz, sample};

#[test]
fn dmg_images_never_make_it_panic_or_loop() {
    let mut content = sample(120_000, 1);
    content[20_000..60_000].fill(0);
    let kinds = [RAW, ADC, ZLIB, BZIP2, LZFSE, XZ];
    let mut layouts: Vec<DmgLayout> =
        kinds.iter().map(|kind| DmgLayout { chunk: 16, ..DmgLayout::new(&[*kind]) }).collect();
    layouts.push(DmgLayout { chunk: 16, tables_in: TablesIn::Fork, ..DmgLayout::new(&kinds) });
    layouts.push(DmgLayout { chunk: 16, before: 777, tables: 4, ..DmgLayout::new(&kinds) });
    let seeds: Vec<Vec<u8>> = layouts.iter().map(|layout| made(&content, layout)).collect();
    fuzz("dmg", &seeds, |below| {
        (INFO.probe)(&*below)?;
        (INFO.report)(&below)?;
        (INFO.open)(below)
    });
}
