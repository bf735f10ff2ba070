//! Files of xz, with several blocks.

use rbdkit_filter_formats::testing::{fuzz, piped, sample};

#[test]
fn xz_files_never_make_it_panic_or_loop() {
    let first = piped("xz", &["--block-size=64KiB"], &sample(200_000, 1));
    let both = [first.clone(), piped("xz", &["--block-size=64KiB"], &sample(50_000, 2))].concat();
    fuzz("xz", &[first, both], rbdkit_filter_formats::xz::INFO.open);
}
