//! Files of lz4.

use rbdkit_filter_formats::testing::{fuzz, piped, sample};

#[test]
fn lz4_files_never_make_it_panic_or_loop() {
    let data = sample(200_000, 1);
    let kinds = [&["-1", "-B4"][..], &["-1", "-B4", "-BD", "-BX"], &["-l"], &["-1", "--no-frame-crc"]];
    let mut files: Vec<Vec<u8>> = kinds.iter().map(|args| piped("lz4", args, &data)).collect();
    files.push(files.concat());
    fuzz("lz4", &files, rbdkit_filter_formats::lz4::INFO.open);
}
