//! The parameters, and the disk that clients see.

use rbdkit_plugin_api::{Buffer, Extent, Extents, Flags};

use super::*;

async fn pread(handle: &dyn Handle, length: u32, offset: u64) -> Vec<u8> {
    let buffer = Buffer::new(length);
    let span = buffer.span();
    let (mut buffer, result) = handle.pread(buffer, span, offset).await;
    result.unwrap();
    buffer.bytes(span).to_vec()
}

async fn pwrite(handle: &dyn Handle, bytes: &[u8], offset: u64) {
    let buffer = Buffer::from_vec(bytes.to_vec());
    let span = buffer.span();
    handle.pwrite(buffer, span, offset, Flags::NONE).await.1.unwrap();
}

#[test]
fn the_parameters_are_checked() {
    let error = |params: &[(&str, &str)]| start(params).err().expect("an error").to_string();
    assert_eq!(error(&[]), "data: one of data=, base64= and raw= has to be given");
    assert_eq!(error(&[("size", "5")]), "data: one of data=, base64= and raw= has to be given");
    let twice = "data: exactly one of data=, base64= and raw= has to be given, and once";
    assert_eq!(error(&[("raw", "abc"), ("base64", "MTIz")]), twice);
    assert_eq!(error(&[("data", "1"), ("data", "1")]), twice);
    assert_eq!(error(&[("raw", "abc"), ("foo", "1")]), "data: unknown parameter foo: only data= has variables to set");
    assert!(error(&[("base64", "MTI")]).starts_with("base64=MTI: is not base64"));
    assert!(error(&[("data", "1"), ("size", "-1")]).starts_with("size=-1: "));
    for allocator in ["", "foo", "zstd,x=y", "sparse,x=y", "malloc,x=y", "malloc,mlock=maybe"] {
        assert!(error(&[("data", "1"), ("allocator", allocator)]).starts_with("allocator="), "{allocator}");
    }
    assert_eq!(error(&[("data", "1 M")]).lines().count(), 1);
    let huge = [("data", "@0x7fffffffffffff00 1"), ("allocator", "malloc")];
    assert!(error(&huge).starts_with("data: allocator=malloc: no memory for 9223372036854775553 bytes"));
}

#[tokio::test]
async fn variables_are_parameters_first() {
    let handle = open(&[("data", "$HOME $x"), ("HOME", "1 2"), ("x", "3"), ("x", "4")]).await;
    assert_eq!(pread(&*handle, 3, 0).await, [1, 2, 3]);
}

#[tokio::test]
async fn zeroes_that_are_written_to_a_hole_leave_it_a_hole() {
    let handle = open(&[("data", "@64k 1*64k"), ("size", "1M")]).await;
    pwrite(&*handle, &[0; 100 << 10], 10).await;
    pwrite(&*handle, &[0; 8192], 512 << 10).await;
    let extents = handle.extents(0, 1 << 20, Flags::NONE).await.unwrap();
    let holes: Vec<_> = extents.as_slice().iter().map(|extent| (extent.offset >> 10, extent.hole)).collect();
    assert_eq!(holes, [(0, true), (64, false), (128, true)]);
    assert_eq!(pread(&*handle, 20, (100 << 10) + 4).await, [[0; 6].as_slice(), &[1; 14]].concat());
    // A byte that is not zero makes a page, and zeroes after it are data of that page.
    pwrite(&*handle, &[7, 0], 512 << 10).await;
    pwrite(&*handle, &[0; 2], 512 << 10).await;
    assert!(!handle.extents(512 << 10, 4096, Flags::NONE).await.unwrap().as_slice()[0].hole);
}

#[tokio::test]
async fn the_size_is_the_contents_unless_it_is_given() {
    for (params, expected) in [
        (&[("raw", "Hello, world!")][..], &b"Hello, world!"[..]),
        (&[("base64", "MTIz"), ("size", "5")], b"123\0\0"),
        (&[("data", "(\"Hello\")*2000"), ("size", "8")], b"HelloHel"),
        (&[("raw", "abc"), ("allocator", "malloc"), ("size", "4")], b"abc\0"),
        (&[("raw", "abc"), ("allocator", "zstd"), ("size", "4")], b"abc\0"),
        (&[("raw", "abc"), ("allocator", "malloc"), ("size", "2")], b"ab"),
    ] {
        let handle = open(params).await;
        assert_eq!(handle.get_size().await.unwrap(), expected.len() as u64, "{params:?}");
        assert_eq!(pread(&*handle, expected.len() as u32, 0).await, expected, "{params:?}");
    }
    assert_eq!(open(&[("data", "1"), ("size", "0")]).await.get_size().await.unwrap(), 0);
}

#[tokio::test]
async fn what_is_not_described_is_a_hole() {
    let handle = open(&[("data", "1 @1048576 2 @3145728")]).await;
    let extents = handle.extents(0, 3 << 20, Flags::NONE).await.unwrap();
    let extent = |offset, length, hole| Extent { offset, length, hole, zero: hole };
    let expected = [
        extent(0, 32768, false),
        extent(32768, 1015808, true),
        extent(1048576, 32768, false),
        extent(1081344, 2064384, true),
    ];
    assert_eq!(extents.as_slice(), expected);

    let one = handle.extents(4096, 3 << 20, Flags { req_one: true, ..Flags::NONE }).await.unwrap();
    assert_eq!(Extents::check(one.as_slice().iter().copied(), 4096, 3 << 20, 3 << 20, true).unwrap(), one);

    pwrite(&*handle, &[5; 100], 70_000).await;
    handle.trim(1 << 20, 1 << 20, Flags::NONE).await.unwrap();
    let extents = handle.extents(0, 3 << 20, Flags::NONE).await.unwrap();
    let expected = [
        extent(0, 32768, false),
        extent(32768, 32768, true),
        extent(65536, 32768, false),
        extent(98304, (3 << 20) - 98304, true),
    ];
    assert_eq!(extents.as_slice(), expected);
}

#[tokio::test]
async fn the_last_extent_runs_on_beyond_the_request() {
    let extent = |offset, length, hole| Extent { offset, length, hole, zero: hole };
    let handle = open(&[("data", "@0x100000 1 @0x80000000 1"), ("size", "4G")]).await;
    let extents = handle.extents(512, 512, Flags::NONE).await.unwrap();
    assert_eq!(extents.as_slice(), [extent(512, (1 << 20) - 512, true)]);
    let extents = handle.extents(1 << 20, 512, Flags::NONE).await.unwrap();
    assert_eq!(extents.as_slice(), [extent(1 << 20, 32768, false)]);
    let extents = handle.extents((1 << 20) + 32768, 512, Flags::NONE).await.unwrap();
    assert_eq!(extents.as_slice(), [extent((1 << 20) + 32768, (2 << 30) - (1 << 20) - 32768, true)]);
}

#[tokio::test]
async fn extents_of_an_endless_pattern_end_early_or_in_one() {
    for text in ["(0 1)*4000000000000000000", "(1 @33000)*200000000000000"] {
        let handle = open(&[("data", text)]).await;
        let length = handle.get_size().await.unwrap();
        let extents = handle.extents(0, length, Flags::NONE).await.unwrap();
        Extents::check(extents.as_slice().iter().copied(), 0, length, length, false).unwrap();
    }
}

#[tokio::test]
async fn the_end_of_the_largest_disk_can_be_written() {
    let handle = open(&[("data", "@0x7fffffffffffff00 1"), ("size", "9223372036854775807")]).await;
    let last = i64::MAX as u64 - 4;
    pwrite(&*handle, &[1, 2, 3, 4], last).await;
    assert_eq!(pread(&*handle, 4, last).await, [1, 2, 3, 4]);
    assert_eq!(pread(&*handle, 2, 0x7fff_ffff_ffff_ff00).await, [1, 0]);
    handle.zero(0, i64::MAX as u64, Flags::NONE).await.unwrap();
    assert_eq!(pread(&*handle, 4, last).await, [0; 4]);
    let extents = handle.extents(0, i64::MAX as u64, Flags::NONE).await.unwrap();
    assert_eq!(extents.as_slice(), [Extent { offset: 0, length: i64::MAX as u64, hole: true, zero: true }]);
}
