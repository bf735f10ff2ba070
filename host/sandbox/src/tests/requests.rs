//! Which requests enter the guest, which bypass it, and which are refused.

use rbdkit_plugin_api::{Errno, Flags, Support};

use super::support::{Guest, READS, Stack, WRITES, read, write};

#[tokio::test]
async fn a_read_passes_through_the_guest_without_a_byte_crossing() {
    let stack = Stack::new(&[Guest::new(&["reads"], READS)]).await;
    let top = stack.open().await;
    let bytes = read(&top, 5000, 10_000).await.unwrap();
    assert_eq!(bytes, stack.disk.bytes.lock().unwrap()[5000..15_000]);
    assert_eq!(stack.disk.seen(), ["pread 5000 10000"]);
    assert_eq!(stack.counters().bytes_crossed(), 0);
    assert!(stack.counters().calls.load(std::sync::atomic::Ordering::SeqCst) >= 1);
}

#[tokio::test]
async fn what_an_opaque_filter_does_not_export_is_withdrawn_or_substituted() {
    let guest = Guest::new(&["reads", "writes"], &format!("{READS}{WRITES}"));
    let stack = Stack::new(&[guest]).await;
    let top = stack.open().await;
    let can = top.can();
    assert!(can.write && can.flush && !can.trim && !can.extents);
    assert_eq!((can.zero, can.fua, can.cache), (Support::Emulate, Support::Emulate, Support::Emulate));
    top.zero(0, 8192, Flags::NONE).await.unwrap();
    assert_eq!(stack.disk.seen(), ["pwrite 0 8192"]);
    write(&top, 100, b"hello", Flags::FUA).await.unwrap();
    assert_eq!(stack.disk.seen(), ["pwrite 100 5", "flush"]);
    top.cache(0, 100).await.unwrap();
    assert_eq!(stack.disk.seen(), ["pread 0 100"]);
    assert_eq!(top.trim(0, 100, Flags::NONE).await.unwrap_err().errno(), Errno::Einval);
    top.flush().await.unwrap();
    assert_eq!(stack.disk.seen(), ["flush"]);
}

#[tokio::test]
async fn what_a_transparent_filter_does_not_export_passes_by() {
    let stack = Stack::new(&[Guest::new(&["reads"], READS).transparent()]).await;
    let top = stack.open().await;
    assert_eq!(top.can(), stack.disk.can);
    top.zero(0, 8192, Flags::NONE).await.unwrap();
    top.trim(0, 4096, Flags::FUA).await.unwrap();
    top.cache(0, 100).await.unwrap();
    write(&top, 100, b"hello", Flags::FUA).await.unwrap();
    top.extents(0, 16384, Flags::NONE).await.unwrap();
    assert_eq!(
        stack.disk.seen(),
        ["zero 0 8192", "trim 0 4096 fua", "cache 0 100", "pwrite 100 5 fua", "extents 0 16384"]
    );
    assert_eq!(stack.counters().calls.load(std::sync::atomic::Ordering::SeqCst), 1, "configure, and nothing since");
}

#[tokio::test]
async fn an_error_from_below_keeps_its_words() {
    let stack = Stack::new(&[Guest::new(&["reads"], READS)]).await;
    let top = stack.open().await;
    stack.disk.broken.store(true, std::sync::atomic::Ordering::SeqCst);
    let error = read(&top, 0, 512).await.unwrap_err();
    assert_eq!((error.errno(), error.context()), (Errno::Enospc, Some("the disk is broken")));
}
