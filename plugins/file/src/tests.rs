use std::ffi::OsStr;
use std::future::Future;
use std::io::{Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rbdkit_plugin_api::{Buffer, Client, Extents, Flags, Op, Peer, Span, Support};
use tempfile::TempDir;

use super::*;

/// No multiple of a page, and long enough for requests that go to threads.
const SIZE: u64 = (3 << 20) + 777;

/// A directory that is removed at the end.
struct TestDir(TempDir);

impl TestDir {
    fn new() -> TestDir {
        TestDir(tempfile::tempdir().unwrap())
    }

    fn within(parent: &Path) -> TestDir {
        TestDir(tempfile::tempdir_in(parent).unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A file of `size` bytes that is all hole.
    fn file(&self, name: &str, size: u64) -> PathBuf {
        let path = self.path(name);
        std::fs::File::create(&path).unwrap().set_len(size).unwrap();
        path
    }
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

fn plugin(params: &[(&str, &OsStr)]) -> Result<File, ConfigError> {
    let mut plugin = File::default();
    for (key, value) in params {
        plugin.config(Param { key, value })?;
    }
    plugin.config_complete()?;
    plugin.get_ready()?;
    Ok(plugin)
}

fn serving(path: &Path) -> File {
    plugin(&[("file", path.as_os_str())]).unwrap()
}

fn config_error(params: &[(&str, &OsStr)]) -> String {
    plugin(params).err().unwrap().to_string()
}

fn client() -> Arc<Client> {
    Arc::new(Client::new(1, Peer::Unknown, None, false))
}

async fn open(plugin: &File, exportname: &str, readonly: bool) -> Result<Arc<dyn Handle>> {
    plugin.open(OpenArgs { readonly, exportname: exportname.to_string(), client: client() }).await
}

async fn write(handle: &dyn Handle, bytes: Vec<u8>, offset: u64, flags: Flags) -> Result<()> {
    let buffer = Buffer::from_vec(bytes);
    let span = buffer.span();
    handle.pwrite(buffer, span, offset, flags).await.1
}

async fn read(handle: &dyn Handle, length: u32, offset: u64) -> Result<Vec<u8>> {
    let span = Span::new(7, length);
    let (mut buffer, result) = handle.pread(Buffer::new(length + 9), span, offset).await;
    result?;
    Ok(buffer.bytes(span).to_vec())
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % limit
    }
}

async fn check_extents(handle: &dyn Handle, model: &[u8], offset: u64, length: u64, req_one: bool) {
    let answer = handle.extents(offset, length, Flags { req_one, ..Flags::NONE }).await.unwrap();
    let list = Extents::check(answer.as_slice().iter().copied(), offset, length, u64::MAX, req_one).unwrap();
    if !req_one {
        assert!((offset + length..=model.len() as u64).contains(&list.next_offset()));
    }
    for extent in list.as_slice().iter().filter(|extent| extent.zero) {
        assert!(model[extent.offset as usize..extent.end() as usize].iter().all(|byte| *byte == 0), "{extent:?}");
    }
}

async fn agrees_with_a_plain_model(dir: &TestDir, params: &[(&str, &str)], seed: u64) {
    let path = dir.file(&format!("model-{seed}-{}", params.len()), SIZE);
    file_agrees_with_a_plain_model(&path, params, seed).await;
    assert_eq!(std::fs::metadata(&path).unwrap().len(), SIZE);
}

/// The file is all zeroes and at least of [`SIZE`].
async fn file_agrees_with_a_plain_model(path: &Path, params: &[(&str, &str)], seed: u64) {
    println!("file {path:?} parameters {params:?} seed {seed}");
    let mut all: Vec<(&str, &OsStr)> = vec![("file", path.as_os_str())];
    all.extend(params.iter().map(|(key, value)| (*key, OsStr::new(*value))));
    let plugin = plugin(&all).unwrap();
    let handles = [open(&plugin, "", false).await.unwrap(), open(&plugin, "", false).await.unwrap()];
    let mut model = vec![0; SIZE as usize];
    let mut random = Random(seed);
    for step in 0..1500 {
        let handle = &*handles[random.below(2) as usize];
        let aligned = random.below(2) == 0;
        let mut offset = random.below(SIZE);
        if aligned {
            offset = offset / 4096 * 4096;
        }
        let longest = (SIZE - offset).min(if random.below(10) == 0 { 2 << 20 } else { 70 << 10 });
        let mut length = 1 + random.below(longest);
        if aligned && length > 4096 {
            length = length / 4096 * 4096;
        }
        let range = offset as usize..(offset + length) as usize;
        let flags = Flags { fua: random.below(20) == 0, may_trim: random.below(2) == 0, ..Flags::NONE };
        match random.below(7) {
            0 | 1 => {
                let byte = random.below(3) as u8;
                model[range].fill(byte);
                write(handle, vec![byte; length as usize], offset, flags).await.unwrap();
            }
            2 => match handle.zero(offset, length, flags).await {
                Ok(()) => model[range].fill(0),
                Err(error) => assert_eq!(error.errno(), Errno::Enotsup),
            },
            3 => {
                handle.trim(offset, length, flags).await.unwrap();
                let now = read(handle, length as u32, offset).await.unwrap();
                // What could not be punched, such as parts of a device's blocks, is as it was.
                let before = &model[range.clone()];
                assert!(now.iter().zip(before).all(|(now, before)| *now == 0 || now == before), "step {step}");
                model[range].copy_from_slice(&now);
            }
            4 => check_extents(handle, &model, offset, length, step % 2 == 0).await,
            5 if step % 50 == 0 => handle.flush().await.unwrap(),
            5 => handle.cache(offset, length).await.unwrap(),
            _ => assert!(read(handle, length as u32, offset).await.unwrap() == model[range], "step {step}"),
        }
    }
    assert!(read(&*handles[0], SIZE as u32, 0).await.unwrap() == model);
    check_extents(&*handles[0], &model, 0, SIZE, false).await;
    let mut stored = vec![0; SIZE as usize];
    std::fs::File::open(path).unwrap().read_exact(&mut stored).unwrap();
    assert!(stored == model);
}

#[test]
fn it_agrees_with_a_plain_model() {
    let here = TestDir::new();
    run(async {
        for seed in [1, 2] {
            agrees_with_a_plain_model(&here, &[], seed).await;
            agrees_with_a_plain_model(&here, &[("reduce-memory-pressure", "true")], seed).await;
        }
    });
    // Another kind of file system, with other abilities, where there is one.
    if Path::new("/dev/shm").is_dir() {
        let shm = TestDir::within(Path::new("/dev/shm"));
        run(agrees_with_a_plain_model(&shm, &[("fadvise", "random")], 3));
    }
}

/// For example: `losetup --find --show some-file`, then RBDKIT_TEST_DEVICE=/dev/loop0 cargo test --
/// --ignored
#[test]
#[ignore = "overwrites the block device that RBDKIT_TEST_DEVICE names"]
fn a_block_device_agrees_with_a_plain_model() {
    let device =
        PathBuf::from(std::env::var_os("RBDKIT_TEST_DEVICE").expect("RBDKIT_TEST_DEVICE names a block device"));
    let plugin = serving(&device);
    run(async {
        let handle = open(&plugin, "", false).await.unwrap();
        let size = handle.get_size().await.unwrap();
        assert!(size >= SIZE);
        println!("{:?}", handle.can().await.unwrap());
        for fast_zero in [true, false] {
            let flags = Flags { may_trim: true, fast_zero, ..Flags::NONE };
            println!("zero with {flags:?}: {:?}", handle.zero(0, size, flags).await);
        }
        write(&*handle, vec![0; SIZE as usize], 0, Flags::FUA).await.unwrap();
        file_agrees_with_a_plain_model(&device, &[], 4).await;
    });
}

#[test]
fn what_is_in_the_page_cache_is_answered_at_once() {
    let dir = TestDir::new();
    let path = dir.file("disk", SIZE);
    std::fs::write(&path, vec![7; SIZE as usize]).unwrap();
    let plugin = serving(&path);
    run(async {
        let handle = open(&plugin, "", false).await.unwrap();
        // The file was just written, but nothing promises that it is still in memory: warm it up
        // until it is.
        let mut ready = false;
        for _ in 0..1000 {
            match handle.pread(Buffer::new(4096), Span::new(0, 4096), 8192) {
                Op::Ready((mut buffer, result)) => {
                    result.unwrap();
                    assert_eq!(buffer.bytes(Span::new(0, 4096)), [7; 4096]);
                    ready = true;
                    break;
                }
                later => later.await.1.unwrap(),
            }
        }
        assert!(ready);
    });
}

/// Whether a file's first page is in the page cache.
fn is_cached(path: &Path) -> bool {
    let file = std::fs::File::open(path).unwrap();
    let mut byte = [0];
    let mut slices = [std::io::IoSliceMut::new(&mut byte)];
    rustix::io::preadv2(&file, &mut slices, 0, rustix::io::ReadWriteFlags::NOWAIT).is_ok()
}

#[test]
fn what_is_to_reduce_memory_pressure_leaves_nothing_in_the_page_cache() {
    for (key, value) in [("cache", "none"), ("reduce-memory-pressure", "true")] {
        leaves_nothing_in_the_page_cache(key, value);
    }
}

fn leaves_nothing_in_the_page_cache(key: &str, value: &str) {
    let dir = TestDir::new();
    // A file system in memory has nowhere else to keep its pages.
    if rustix::fs::statfs(dir.0.path()).unwrap().f_type == 0x0102_1994 {
        return;
    }
    let path = dir.file("disk", 1 << 20);
    let plugin = plugin(&[("file", path.as_os_str()), (key, OsStr::new(value))]).unwrap();
    run(async {
        let handle = open(&plugin, "", false).await.unwrap();
        // Dropping a page is only asked for: somebody else may be looking at it just now.
        let mut dropped = false;
        for _ in 0..1000 {
            write(&*handle, vec![5; 8192], 0, Flags::NONE).await.unwrap();
            handle.flush().await.unwrap();
            dropped |= !is_cached(&path);
            if dropped {
                break;
            }
        }
        assert!(dropped, "after a write");
        let mut dropped = false;
        for _ in 0..1000 {
            assert_eq!(read(&*handle, 100, 10).await.unwrap(), [5; 100]);
            dropped |= !is_cached(&path);
            if dropped {
                break;
            }
        }
        assert!(dropped, "after a read");
    });
}

#[test]
fn many_requests_at_once_all_complete() {
    let dir = TestDir::new();
    let path = dir.file("disk", 64 << 20);
    let plugin = serving(&path);
    run(async {
        let handle = open(&plugin, "", false).await.unwrap();
        let mut writes = Vec::new();
        for block in 0..256u64 {
            let buffer = Buffer::from_vec(vec![block as u8; 128 << 10]);
            let span = buffer.span();
            writes.push(handle.pwrite(buffer, span, block * (128 << 10), Flags::NONE));
        }
        for write in writes {
            write.await.1.unwrap();
        }
        let mut reads = Vec::new();
        for block in 0..256u64 {
            reads.push(handle.pread(Buffer::new(128 << 10), Span::new(0, 128 << 10), block * (128 << 10)));
        }
        for (block, read) in reads.into_iter().enumerate() {
            let (mut buffer, result) = read.await;
            result.unwrap();
            let span = buffer.span();
            assert!(buffer.bytes(span).iter().all(|byte| *byte == block as u8));
        }
    });
}

#[test]
fn it_offers_what_nbdkit_offers() {
    let dir = TestDir::new();
    let plugin = serving(&dir.file("disk", SIZE));
    run(async {
        let handle = open(&plugin, "any name", false).await.unwrap();
        assert_eq!(handle.get_size().await.unwrap(), SIZE);
        let can = handle.can().await.unwrap();
        assert!(can.write && can.flush && can.trim && can.multi_conn && !can.rotational);
        assert_eq!((can.zero, can.fua, can.cache), (Support::Native, Support::Native, Support::Native));
        let readonly = open(&plugin, "", true).await.unwrap();
        assert!(!readonly.can().await.unwrap().write);
    });
}

#[test]
fn trim_makes_holes_and_zero_without_may_trim_does_not() {
    let dir = TestDir::new();
    let path = dir.file("disk", 4 << 20);
    std::fs::write(&path, vec![1; 4 << 20]).unwrap();
    let plugin = serving(&path);
    run(async {
        let handle = open(&plugin, "", false).await.unwrap();
        if !handle.can().await.unwrap().extents {
            return;
        }
        handle.trim(1 << 20, 1 << 20, Flags::NONE).await.unwrap();
        let holes = |extents: Extents| -> Vec<(u64, u64)> {
            extents.as_slice().iter().filter(|e| e.hole).map(|e| (e.offset, e.length)).collect()
        };
        let found = holes(handle.extents(0, 4 << 20, Flags::NONE).await.unwrap());
        assert_eq!(found, [(1 << 20, 1 << 20)]);
        handle.zero(3 << 20, 1 << 20, Flags { may_trim: true, ..Flags::NONE }).await.unwrap();
        let found = holes(handle.extents(0, 4 << 20, Flags::NONE).await.unwrap());
        assert_eq!(found, [(1 << 20, 1 << 20), (3 << 20, 1 << 20)]);
        let blocks = |path: &Path| rustix::fs::stat(path).unwrap().st_blocks;
        let before = blocks(&path);
        handle.zero(0, 1 << 20, Flags::NONE).await.unwrap();
        assert_eq!(blocks(&path), before);
        assert_eq!(read(&*handle, 4096, 0).await.unwrap(), [0; 4096]);
    });
}

#[test]
fn a_request_for_extents_in_the_middle_of_a_run_begins_there_and_the_answer_runs_on() {
    let dir = TestDir::new();
    let path = dir.file("disk", 4 << 20);
    let plugin = serving(&path);
    run(async {
        let handle = open(&plugin, "", false).await.unwrap();
        let extents = handle.extents(12345, 1000, Flags::NONE).await.unwrap();
        let [extent] = extents.as_slice() else { panic!("{extents:?}") };
        // Without holes the kernel says that the data reaches to the end.
        assert_eq!((extent.offset, extent.length), (12345, (4 << 20) - 12345));
    });
}

#[test]
fn a_file_that_became_smaller_gives_an_error_and_not_old_bytes() {
    let dir = TestDir::new();
    let path = dir.file("disk", 1 << 20);
    let plugin = serving(&path);
    run(async {
        let handle = open(&plugin, "", false).await.unwrap();
        std::fs::File::options().write(true).open(&path).unwrap().set_len(1000).unwrap();
        assert_eq!(read(&*handle, 4096, 8192).await.unwrap_err().errno(), Errno::Eio);
        assert_eq!(read(&*handle, 4096, 0).await.unwrap_err().errno(), Errno::Eio);
        check_extents(&*handle, &[0; 1 << 20], 0, 1 << 20, false).await;
    });
}

#[test]
fn a_file_that_may_not_be_written_is_served_read_only() {
    let dir = TestDir::new();
    let path = dir.file("disk", 4096);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o444)).unwrap();
    // Root may write all the same.
    let writable = std::fs::File::options().write(true).open(&path).is_ok();
    let plugin = serving(&path);
    run(async {
        let handle = open(&plugin, "", false).await.unwrap();
        assert_eq!(handle.can().await.unwrap().write, writable);
    });
}

#[test]
fn a_directory_serves_its_files_sorted_and_nothing_else() {
    let dir = TestDir::new();
    std::fs::create_dir(dir.path("served")).unwrap();
    for (name, size) in [("b", 2048), ("a", 1024), (".hidden", 1)] {
        dir.file(&format!("served/{name}"), size);
    }
    dir.file("outside", 4096);
    std::fs::create_dir(dir.path("served/subdirectory")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        dir.path("served/pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    symlink("a", dir.path("served/link")).unwrap();
    symlink("nowhere", dir.path("served/dangling")).unwrap();
    symlink("loop", dir.path("served/loop")).unwrap();
    symlink("subdirectory", dir.path("served/to directory")).unwrap();

    let served = dir.path("served");
    let descriptor = std::fs::File::open(&served).unwrap();
    rustix::io::fcntl_setfd(&descriptor, rustix::io::FdFlags::empty()).unwrap();
    let number = descriptor.as_raw_fd().to_string();
    for params in [("dir", served.as_os_str()), ("dirfd", OsStr::new(&number))] {
        let plugin = plugin(&[params]).unwrap();
        run(async {
            let names: Vec<String> = plugin
                .list_exports(&client(), false)
                .await
                .unwrap()
                .unwrap()
                .into_iter()
                .map(|entry| entry.name)
                .collect();
            assert_eq!(names, [".hidden", "a", "b", "link"]);
            assert_eq!(plugin.default_export(&client(), false).await.unwrap(), "");
            for (name, size) in [("a", 1024), ("b", 2048), ("link", 1024)] {
                let handle = open(&plugin, name, false).await.unwrap();
                assert_eq!(handle.get_size().await.unwrap(), size, "{name}");
            }
            for (name, errno) in [
                ("", Errno::Enoent),
                ("nothing", Errno::Enoent),
                ("subdirectory", Errno::Enoent),
                ("pipe", Errno::Enoent),
                ("dangling", Errno::Enoent),
                ("loop", Errno::Enoent),
                ("to directory", Errno::Enoent),
                (".", Errno::Enoent),
                ("..", Errno::Enoent),
                ("../outside", Errno::Einval),
                ("a/", Errno::Einval),
                ("a\0", Errno::Einval),
            ] {
                let error = open(&plugin, name, false).await.err().unwrap_or_else(|| panic!("{name:?} was opened"));
                assert_eq!(error.errno(), errno, "{name:?}");
            }
        });
    }
}

#[test]
fn a_link_out_of_the_directory_is_followed_unless_somebody_else_could_have_made_it() {
    use std::os::unix::fs::{PermissionsExt, chown, lchown};
    let dir = TestDir::new();
    let served = dir.path("served");
    std::fs::create_dir(&served).unwrap();
    let mode = |mode| std::fs::set_permissions(&served, std::fs::Permissions::from_mode(mode)).unwrap();
    mode(0o755);
    let outside = dir.file("outside", 4096);
    let plugin = plugin(&[("dir", served.as_os_str())]).unwrap();
    // The links are made later than the plugin.
    symlink("../outside", dir.path("served/relative")).unwrap();
    symlink(&outside, dir.path("served/absolute")).unwrap();
    symlink("relative", dir.path("served/twice")).unwrap();
    symlink("/proc/self/exe", dir.path("served/process")).unwrap();
    symlink("/dev/null", dir.path("served/device")).unwrap();
    symlink(dir.path("none"), dir.path("served/dangling")).unwrap();
    let followed = ["absolute", "relative", "twice"];
    let listed = || {
        let exports = run(plugin.list_exports(&client(), false)).unwrap();
        exports.unwrap_or_default().into_iter().map(|entry| entry.name).collect::<Vec<_>>()
    };
    let refused = |name: &str| {
        let error = run(open(&plugin, name, false)).err().unwrap_or_else(|| panic!("{name} was opened"));
        assert_eq!(error.errno(), Errno::Enoent, "{error}");
        error.to_string()
    };
    assert_eq!(listed(), followed);
    run(async {
        for name in followed {
            let handle = open(&plugin, name, false).await.unwrap();
            assert_eq!(handle.get_size().await.unwrap(), 4096, "{name}");
            assert!(
                handle.can().await.unwrap().write
                    && !open(&plugin, name, true).await.unwrap().can().await.unwrap().write
            );
        }
    });
    assert!(refused("process").contains("process leads in a loop of links, or to a link of /proc"));
    assert!(refused("device").contains("device is neither a regular file nor a block device"));
    assert!(refused("dangling").contains("No such file"));
    for open_to in [0o775, 0o757, 0o1777] {
        mode(open_to);
        assert!(refused("absolute").contains("because others than the server's user may write to the directory"));
        assert_eq!(listed(), [""; 0]);
    }
    mode(0o755);
    if rustix::process::geteuid().is_root() {
        lchown(dir.path("served/absolute"), Some(1), None).unwrap();
        assert!(refused("absolute").contains("because it belongs to user 1"));
        assert_eq!(listed(), ["relative", "twice"]);
        chown(&served, Some(1), None).unwrap();
        assert!(refused("relative").contains("because the directory belongs to user 1"));
        assert_eq!(listed(), [""; 0]);
    }
}

#[test]
fn an_inherited_descriptor_is_served_as_it_was_opened() {
    let dir = TestDir::new();
    let path = dir.file("disk", 8192);
    let inherit = |file: std::fs::File| {
        rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty()).unwrap();
        file
    };
    let both = inherit(std::fs::File::options().read(true).write(true).open(&path).unwrap());
    let reading = inherit(std::fs::File::open(&path).unwrap());
    let writing = inherit(std::fs::File::options().write(true).open(&path).unwrap());
    let appending = inherit(std::fs::File::options().read(true).append(true).open(&path).unwrap());
    let ours = std::fs::File::open(&path).unwrap();
    let serve = |file: &std::fs::File| plugin(&[("fd", OsStr::new(&file.as_raw_fd().to_string()))]);

    // The name is not needed any more.
    std::fs::remove_file(&path).unwrap();
    run(async {
        let plugin = serve(&both).unwrap();
        let handle = open(&plugin, "", false).await.unwrap();
        write(&*handle, vec![5; 4096], 4096, Flags::FUA).await.unwrap();
        let mut byte = [0];
        both.read_exact_at(&mut byte, 5000).unwrap();
        assert_eq!(byte, [5]);
        assert!(!open(&plugin, "", true).await.unwrap().can().await.unwrap().write);

        let handle = open(&serve(&reading).unwrap(), "", false).await.unwrap();
        assert!(!handle.can().await.unwrap().write);
        assert_eq!(read(&*handle, 1, 5000).await.unwrap(), [5]);
    });
    assert!(serve(&writing).err().unwrap().to_string().contains("writing only"));
    assert!(serve(&appending).err().unwrap().to_string().contains("appending"));
    assert!(serve(&ours).err().unwrap().to_string().contains("inherited"));
}

#[test]
fn configuration_errors_say_what_would_be_right() {
    let dir = TestDir::new();
    let path = dir.file("disk", 4096);
    let file = ("file", path.as_os_str());
    let text = OsStr::new;
    assert!(config_error(&[]).contains("[file=]FILENAME"));
    assert!(config_error(&[("file", dir.0.path().as_os_str())]).contains("dir="));
    assert!(config_error(&[("dir", path.as_os_str())]).contains("not a directory"));
    assert!(config_error(&[("file", text("/nonexistent/disk"))]).starts_with("file=/nonexistent/disk: "));
    assert!(config_error(&[("file", text("/dev/null"))]).contains("neither a regular file"));
    assert!(config_error(&[file, ("dir", dir.0.path().as_os_str())]).contains("file= and dir= cannot"));
    assert!(config_error(&[("fd", text("0"))]).contains("greater than 2"));
    assert!(config_error(&[("fd", text("-5"))]).contains("not the number"));
    assert!(config_error(&[("fd", text("x"))]).contains("not the number"));
    assert!(config_error(&[("fd", text("999999"))]).contains("not an open descriptor"));
    assert!(config_error(&[("dirfd", text("999999"))]).contains("not an open descriptor"));
    assert!(config_error(&[file, ("cache", text("foo"))]).contains("default, none"));
    assert!(config_error(&[file, ("fadvise", text("foo"))]).contains("normal, random, sequential"));
    assert!(config_error(&[file, ("rdelay", text("1"))]).contains("--filter=delay"));
    assert!(config_error(&[file, ("foo", text("1"))]).contains("unknown parameter 'foo'"));
    for (key, value) in [file, ("dir", dir.0.path().as_os_str()), ("fd", text("3")), ("dirfd", text("3"))] {
        assert_eq!(config_error(&[(key, value), (key, value)]), format!("file: {key}= can be given only once"));
    }
    assert!(plugin(&[file, ("cache", text("none")), ("fadvise", text("sequential"))]).is_ok());
    assert!(plugin(&[("directory", dir.0.path().as_os_str())]).is_ok());
}

#[test]
fn an_error_of_the_disk_reaches_the_client() {
    // The simplest error to have from the system: a descriptor that is not open for writing.
    let dir = TestDir::new();
    let plugin = serving(&dir.file("disk", 8192));
    run(async {
        let handle = open(&plugin, "", true).await.unwrap();
        assert!(write(&*handle, vec![1; 4096], 0, Flags::NONE).await.is_err());
        assert!(write(&*handle, vec![1; 100], 0, Flags::FUA).await.is_err());
        assert!(handle.zero(0, 4096, Flags::NONE).await.is_err());
    });
}

#[test]
fn the_offset_of_a_shared_descriptor_does_not_matter() {
    let dir = TestDir::new();
    let path = dir.file("disk", 8192);
    let mut file = std::fs::File::options().read(true).write(true).open(&path).unwrap();
    rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty()).unwrap();
    file.write_all(&[9; 8192]).unwrap();
    file.seek(std::io::SeekFrom::Start(100)).unwrap();
    let plugin = plugin(&[("fd", OsStr::new(&file.as_raw_fd().to_string()))]).unwrap();
    run(async {
        let handle = open(&plugin, "", false).await.unwrap();
        write(&*handle, vec![1; 10], 0, Flags::NONE).await.unwrap();
        handle.extents(0, 8192, Flags::NONE).await.unwrap();
        assert_eq!(read(&*handle, 12, 0).await.unwrap(), [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 9, 9]);
    });
    file.rewind().unwrap();
    let mut byte = [0];
    file.read_exact(&mut byte).unwrap();
    assert_eq!(byte, [1]);
}

#[test]
fn a_read_that_does_not_fit_a_pipe_goes_to_a_thread_though_it_is_in_memory() {
    let dir = TestDir::new();
    let path = dir.path("disk");
    std::fs::write(&path, vec![7; SIZE as usize]).unwrap();
    run(async {
        let handle = open(&serving(&path), "", true).await.unwrap();
        let buffer = Buffer::new((1 << 20) + 1);
        let span = buffer.span();
        let long = handle.pread(buffer, span, 0);
        assert!(matches!(long, Op::Later(_)));
        let (mut buffer, result) = long.await;
        result.unwrap();
        assert!(buffer.bytes(span).iter().all(|byte| *byte == 7));
    });
}
