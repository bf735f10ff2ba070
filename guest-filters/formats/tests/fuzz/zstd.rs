//! Files of zstd.

use rbdkit_filter_formats::testing::{fuzz, piped, sample, seekable_zstd};

#[test]
fn zstd_files_never_make_it_panic_or_loop() {
    let data = sample(200_000, 1);
    let plain = piped("zstd", &["-1"], &data);
    let both = [plain.clone(), piped("zstd", &["-19", "--no-check"], &data)].concat();
    let seekable = seekable_zstd(&data, 60_000, &["-1"], true);
    fuzz("zstd", &[plain, both, seekable], rbdkit_filter_formats::zstd::INFO.open);
}
