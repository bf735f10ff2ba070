use std::ffi::OsStr;

use rbdkit_plugin_api::{Buffer, Client, Extents, Fill, Flags, Op, Peer, Span};

use super::*;

/// Several pages and a leaf and a half of them, and no multiple of anything.
const SIZE: u64 = 700 * rbdkit_ram_disk::PAGE as u64 + 1234;

fn ready<T>(op: Op<T>) -> T {
    match op {
        Op::Ready(answer) => answer,
        _ => panic!("the memory plugin never waits"),
    }
}

fn plugin(params: &[(&str, &str)]) -> Result<Memory, ConfigError> {
    let mut plugin = Memory::default();
    for (key, value) in params {
        plugin.config(Param { key, value: OsStr::new(value) })?;
    }
    plugin.config_complete()?;
    plugin.get_ready()?;
    Ok(plugin)
}

fn open(plugin: &Memory) -> Arc<dyn Handle> {
    let client = Arc::new(Client::new(1, Peer::Unknown, None, false));
    let args = OpenArgs { readonly: false, exportname: String::new(), client };
    let mut opening = plugin.open(args);
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    match opening.as_mut().poll(&mut cx) {
        std::task::Poll::Ready(handle) => handle.unwrap(),
        std::task::Poll::Pending => panic!("open never waits"),
    }
}

fn write(handle: &dyn Handle, bytes: Vec<u8>, offset: u64) {
    let buffer = Buffer::from_vec(bytes);
    let span = buffer.span();
    ready(handle.pwrite(buffer, span, offset, Flags::NONE)).1.unwrap();
}

fn read(handle: &dyn Handle, length: u32, offset: u64) -> Vec<u8> {
    // An odd place in the buffer, so that its bookkeeping is seen to be right as well.
    let span = Span::new(7, length);
    let (mut buffer, result) = ready(handle.pread(Buffer::new(length + 9), span, offset));
    result.unwrap();
    buffer.bytes(span).to_vec()
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % limit
    }
}

/// Extents cover the range, and what is called a hole is zero in the model.
fn check_extents(handle: &dyn Handle, model: &[u8], offset: u64, length: u64, req_one: bool) {
    let flags = Flags { req_one, ..Flags::NONE };
    let answer = ready(handle.extents(offset, length, flags)).unwrap();
    let list = Extents::check(answer.as_slice().iter().copied(), offset, length, u64::MAX, req_one).unwrap();
    if !req_one {
        assert!((offset + length..=model.len() as u64).contains(&list.next_offset()));
    }
    for extent in list.as_slice().iter().filter(|extent| extent.zero) {
        assert!(model[extent.offset as usize..extent.end() as usize].iter().all(|byte| *byte == 0), "{extent:?}");
    }
}

fn agrees_with_a_plain_model(allocator: &str, seed: u64) {
    println!("allocator {allocator} seed {seed}");
    let plugin = plugin(&[("size", &SIZE.to_string()), ("allocator", allocator)]).unwrap();
    let handle = &*open(&plugin);
    let mut model = vec![0; SIZE as usize];
    let mut random = Random(seed);
    for step in 0..3000 {
        let offset = random.below(SIZE);
        let longest = (SIZE - offset).min(if random.below(10) == 0 { 4 << 20 } else { 70 << 10 });
        let length = 1 + random.below(longest);
        let range = offset as usize..(offset + length) as usize;
        match random.below(6) {
            0 | 1 => {
                let byte = random.below(3) as u8;
                model[range].fill(byte);
                write(handle, vec![byte; length as usize], offset);
            }
            2 => {
                model[range].fill(0);
                ready(handle.zero(offset, length, Flags { may_trim: step % 2 == 0, ..Flags::NONE })).unwrap();
            }
            3 => {
                model[range].fill(0);
                ready(handle.trim(offset, length, Flags::NONE)).unwrap();
            }
            4 => check_extents(handle, &model, offset, length, step % 2 == 0),
            _ => assert!(read(handle, length as u32, offset) == model[range], "step {step} offset {offset}"),
        }
    }
    assert!(read(handle, SIZE as u32, 0) == model);
    check_extents(handle, &model, 0, SIZE, false);
}

#[test]
fn every_allocator_agrees_with_a_plain_model() {
    for seed in [1, 2, 3] {
        agrees_with_a_plain_model("sparse", seed);
        agrees_with_a_plain_model("malloc", seed);
        agrees_with_a_plain_model("zstd", seed);
    }
}

#[test]
fn all_connections_see_one_disk() {
    let plugin = plugin(&[("size", "1M")]).unwrap();
    let (one, two) = (open(&plugin), open(&plugin));
    write(&*one, vec![5; 10], 100);
    assert_eq!(read(&*two, 12, 99), [0, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 0]);
}

#[test]
fn holes_are_known_without_looking_at_bytes() {
    let plugin = plugin(&[("size", "1M")]).unwrap();
    let handle = open(&plugin);
    let page = rbdkit_ram_disk::PAGE as u32;
    write(&*handle, vec![1], u64::from(page));
    let (buffer, result) = ready(handle.pread(Buffer::new(3 * page), Span::new(0, 3 * page), 0));
    result.unwrap();
    let fills: Vec<_> = buffer.fills().map(|(span, fill)| (span.len, fill)).collect();
    assert_eq!(fills, [(page, Fill::Zero), (page, Fill::Data), (page, Fill::Zero)]);
}

/// Each thread has its own bytes of every page, so pages are shared and bytes are not: nothing that
/// one thread wrote may be lost or torn by what the others do on the same page.
#[test]
fn concurrent_writers_of_one_page_do_not_lose_each_others_bytes() {
    for allocator in ["sparse", "zstd", "malloc"] {
        let plugin = plugin(&[("size", "4M"), ("allocator", allocator)]).unwrap();
        let stripe = 1000;
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let handle = open(&plugin);
                scope.spawn(move || {
                    let mut random = Random(thread);
                    let mut model = vec![0; 1024];
                    for _ in 0..20_000 {
                        let index = random.below(1024);
                        let offset = (index * 4 + thread) * stripe;
                        let expected = read(&*handle, stripe as u32, offset);
                        assert!(expected.iter().all(|byte| *byte == model[index as usize]), "thread {thread}");
                        let byte = random.below(4) as u8;
                        model[index as usize] = byte;
                        if byte == 0 {
                            ready(handle.zero(offset, stripe, Flags::NONE)).unwrap();
                        } else {
                            write(&*handle, vec![byte; stripe as usize], offset);
                        }
                    }
                });
            }
        });
    }
}

#[test]
fn configuration_errors_say_what_would_be_right() {
    let error = |params: &[(&str, &str)]| plugin(params).err().unwrap().to_string();
    assert!(error(&[]).contains("size=SIZE"));
    assert!(error(&[("size", "1X")]).starts_with("size=1X: "));
    assert!(error(&[("size", "1M"), ("allocator", "foo")]).contains("sparse, zstd, malloc"));
    assert!(error(&[("size", "1M"), ("allocator", "sparse,mlock=1")]).contains("takes no options"));
    assert!(error(&[("size", "1M"), ("allocator", "malloc,mlock=maybe")]).contains("mlock"));
    assert!(error(&[("size", "1M"), ("allocator", "malloc,foo=1")]).contains("mlock=true"));
    assert!(error(&[("size", "1M"), ("allocator", "zstd,level=3")]).contains("zstd takes no options"));
    assert!(error(&[("size", "9223372036854775807"), ("allocator", "malloc")]).contains("no memory"));
    assert!(error(&[("foo", "1")]).contains("unknown parameter 'foo'"));
}

#[test]
fn the_last_value_of_a_parameter_counts() {
    let plugin = plugin(&[("size", "1M"), ("allocator", "zzz")]);
    assert!(plugin.is_err());
    let mut plugin = Memory::default();
    for (key, value) in [("size", "1M"), ("size", "2M"), ("allocator", "malloc,mlock=off"), ("allocator", "sparse")] {
        plugin.config(Param { key, value: OsStr::new(value) }).unwrap();
    }
    assert_eq!((plugin.size, plugin.allocator), (Some(2 << 20), Allocator::Sparse));
}

#[test]
fn clients_are_told_the_size_that_costs_least() {
    for (allocator, preferred) in [("sparse", 32768), ("zstd", 32768), ("malloc", 4096)] {
        let handle = open(&plugin(&[("size", "1M"), ("allocator", allocator)]).unwrap());
        let sizes = ready(handle.block_size()).unwrap().unwrap();
        assert_eq!((sizes.minimum, sizes.preferred, sizes.maximum), (1, preferred, u32::MAX), "{allocator}");
        assert!(sizes.is_valid());
    }
}

#[test]
fn a_small_disk_can_be_locked_into_memory() {
    // 16 KiB are within every usual limit.
    let plugin = plugin(&[("size", "16k"), ("allocator", "malloc,mlock")]).unwrap();
    let handle = open(&plugin);
    write(&*handle, vec![3; 16 << 10], 0);
    assert_eq!(read(&*handle, 16 << 10, 0), vec![3; 16 << 10]);
}

#[test]
fn a_disk_of_no_bytes_is_fine() {
    for allocator in ["sparse", "zstd", "malloc"] {
        let plugin = plugin(&[("size", "0"), ("allocator", allocator)]).unwrap();
        assert_eq!(ready(open(&plugin).get_size()).unwrap(), 0);
    }
}
