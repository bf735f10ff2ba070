use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;

use rbdkit_plugin_api::{
    Buffer, Capabilities, Client, Errno, Extent, Flags, Handle, OpenArgs, Param, Peer, Plugin, Result, Span, Support,
};

use crate::wire::{cmd, info, opt, rep, reply_type};

/// A socket's path for a fake server.
struct Place(PathBuf);

impl Place {
    fn new() -> Place {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let nth = NEXT.fetch_add(1, Ordering::Relaxed);
        Place(std::env::temp_dir().join(format!("rbdkit-nbd-test-{}-{nth}", std::process::id())))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The server's side of one connection.
struct Server(UnixStream);

struct Request {
    flags: u16,
    kind: u16,
    cookie: u64,
    offset: u64,
    length: u32,
}

impl Server {
    /// Whoever is at the other end may have had enough.
    fn send(&mut self, bytes: &[u8]) {
        let _ = self.0.write_all(bytes);
    }

    fn receive<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.0.read_exact(&mut bytes).expect("the client's bytes");
        bytes
    }

    fn receive_vec(&mut self, length: u32) -> Vec<u8> {
        let mut bytes = vec![0; length as usize];
        self.0.read_exact(&mut bytes).expect("the client's bytes");
        bytes
    }

    fn greet(&mut self, flags: u16) {
        self.send(b"NBDMAGICIHAVEOPT");
        self.send(&flags.to_be_bytes());
        assert_eq!(u32::from_be_bytes(self.receive()), u32::from(flags));
    }

    fn option(&mut self) -> (u32, Vec<u8>) {
        assert_eq!(&self.receive::<8>(), b"IHAVEOPT");
        let option = u32::from_be_bytes(self.receive());
        let length = u32::from_be_bytes(self.receive());
        (option, self.receive_vec(length))
    }

    fn reply(&mut self, option: u32, kind: u32, data: &[u8]) {
        self.send(&0x0003_e889_0455_65a9_u64.to_be_bytes());
        self.send(&option.to_be_bytes());
        self.send(&kind.to_be_bytes());
        self.send(&(data.len() as u32).to_be_bytes());
        self.send(data);
    }

    fn export(&mut self, size: u64, flags: u16) {
        let data = [&info::EXPORT.to_be_bytes()[..], &size.to_be_bytes(), &flags.to_be_bytes()].concat();
        self.reply(opt::GO, rep::INFO, &data);
    }

    /// A server of an export of 1 MiB that has everything, up to the transmission.
    fn handshake(&mut self, structured: bool, flags: u16) {
        self.greet(3);
        loop {
            match self.option() {
                (opt::STRUCTURED_REPLY, _) if structured => self.reply(opt::STRUCTURED_REPLY, rep::ACK, &[]),
                (opt::SET_META_CONTEXT, _) => {
                    let context = [&7_u32.to_be_bytes()[..], b"base:allocation"].concat();
                    self.reply(opt::SET_META_CONTEXT, rep::META_CONTEXT, &context);
                    self.reply(opt::SET_META_CONTEXT, rep::ACK, &[]);
                }
                (opt::GO, _) => {
                    self.export(1 << 20, flags);
                    self.reply(opt::GO, rep::ACK, &[]);
                    return;
                }
                (option, _) => self.reply(option, rep::ERR_UNSUP, b"no such thing"),
            }
        }
    }

    fn request(&mut self) -> Request {
        assert_eq!(u32::from_be_bytes(self.receive()), 0x2560_9513);
        Request {
            flags: u16::from_be_bytes(self.receive()),
            kind: u16::from_be_bytes(self.receive()),
            cookie: u64::from_be_bytes(self.receive()),
            offset: u64::from_be_bytes(self.receive()),
            length: u32::from_be_bytes(self.receive()),
        }
    }

    fn simple(&mut self, cookie: u64, error: u32) {
        self.send(&0x6744_6698_u32.to_be_bytes());
        self.send(&error.to_be_bytes());
        self.send(&cookie.to_be_bytes());
    }

    fn chunk(&mut self, done: bool, kind: u16, cookie: u64, payload: &[u8]) {
        self.send(&chunk_header(done, kind, cookie, payload.len() as u32));
        self.send(payload);
    }

    /// Until the client has gone.
    fn wait_for_end(&mut self) {
        let _ = std::io::copy(&mut self.0, &mut std::io::sink());
    }
}

fn chunk_header(done: bool, kind: u16, cookie: u64, length: u32) -> Vec<u8> {
    let mut header = 0x668e_33ef_u32.to_be_bytes().to_vec();
    header.extend_from_slice(&u16::from(done).to_be_bytes());
    header.extend_from_slice(&kind.to_be_bytes());
    header.extend_from_slice(&cookie.to_be_bytes());
    header.extend_from_slice(&length.to_be_bytes());
    header
}

fn data_chunk(offset: u64, data: &[u8]) -> Vec<u8> {
    [&offset.to_be_bytes()[..], data].concat()
}

/// A server for one connection.
fn serve(script: impl FnOnce(&mut Server) + Send + 'static) -> (Place, JoinHandle<()>) {
    let place = Place::new();
    let listener = UnixListener::bind(&place.0).unwrap();
    let thread = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        drop(listener);
        script(&mut Server(stream));
    });
    (place, thread)
}

fn plugin(params: &[(&str, &OsStr)]) -> Result<Box<dyn Plugin>, String> {
    let mut plugin = (crate::INFO.make)();
    for (key, value) in params {
        plugin.config(Param { key, value }).map_err(|error| error.to_string())?;
    }
    plugin.config_complete().map_err(|error| error.to_string())?;
    Ok(plugin)
}

fn at(place: &Path) -> Box<dyn Plugin> {
    plugin(&[("socket", place.as_os_str())]).unwrap()
}

async fn open(plugin: &dyn Plugin, export: &str) -> Result<Arc<dyn Handle>> {
    let client = Arc::new(Client::new(1, Peer::Unix, None, false));
    plugin.open(OpenArgs { readonly: false, exportname: export.to_owned(), client }).await
}

/// Opens the fake server's export.
async fn handle(script: impl FnOnce(&mut Server) + Send + 'static) -> (Arc<dyn Handle>, JoinHandle<()>) {
    let (place, thread) = serve(script);
    (open(&*at(&place.0), "").await.unwrap(), thread)
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(future)
}

async fn pread(handle: &dyn Handle, offset: u64, length: u32) -> Result<Vec<u8>> {
    let (mut buffer, result) = handle.pread(Buffer::new(length + 8), Span::new(4, length), offset).await;
    assert_eq!(buffer.len(), length + 8, "the request's own buffer");
    result.map(|()| buffer.bytes(Span::new(4, length)).to_vec())
}

async fn pwrite(handle: &dyn Handle, offset: u64, bytes: &[u8], flags: Flags) -> Result<()> {
    let buffer = Buffer::from_vec(bytes.to_vec());
    let span = buffer.span();
    handle.pwrite(buffer, span, offset, flags).await.1
}

/// The error of opening what this server serves.
fn refused(script: impl FnOnce(&mut Server) + Send + 'static) -> (Errno, String) {
    let (place, thread) = serve(script);
    let plugin = plugin(&[("socket", place.0.as_os_str()), ("export", OsStr::new("disk"))]).unwrap();
    let error = block_on(async { open(&*plugin, "").await.map(|_| ()).unwrap_err() });
    thread.join().unwrap();
    (error.errno(), error.context().unwrap_or_default().to_owned())
}

fn says(script: impl FnOnce(&mut Server) + Send + 'static, errno: Errno, text: &str) {
    let (got, context) = refused(script);
    assert!(context.starts_with("nbd: server at /") && context.contains(text), "{context}");
    assert!(!context.contains('\n'), "{context}");
    assert_eq!(got, errno, "{context}");
}

#[test]
fn what_is_not_an_nbd_server_is_told() {
    says(|server| server.send(b"SSH-2.0-OpenSSH_9.2 and more"), Errno::Eio, "this is not an NBD server");
    says(|server| server.send(b"NBDMAGICwhatever"), Errno::Eio, "unknown handshake");
    says(|_| {}, Errno::Eio, "the server closed the connection");
}

#[test]
fn a_handshake_that_makes_no_sense_is_refused() {
    let answer = |bytes: Vec<u8>| {
        move |server: &mut Server| {
            server.greet(3);
            server.option();
            server.send(&bytes);
            server.wait_for_end();
        }
    };
    let reply = |magic: u64, option: u32, length: u32| {
        [&magic.to_be_bytes()[..], &option.to_be_bytes(), &rep::ACK.to_be_bytes(), &length.to_be_bytes()].concat()
    };
    const MAGIC: u64 = 0x0003_e889_0455_65a9;
    says(answer(reply(MAGIC + 1, opt::STRUCTURED_REPLY, 0)), Errno::Eio, "malformed option reply");
    says(answer(reply(MAGIC, opt::GO, 0)), Errno::Eio, "malformed option reply");
    says(answer(reply(MAGIC, opt::STRUCTURED_REPLY, u32::MAX)), Errno::Eio, "malformed option reply");
    let endless = |server: &mut Server| {
        server.greet(3);
        server.option();
        while server.0.write_all(&[0; 0]).is_ok() {
            let data =
                [&0x0003_e889_0455_65a9_u64.to_be_bytes()[..], &8_u32.to_be_bytes(), &rep::INFO.to_be_bytes(), &[0; 4]];
            if server.0.write_all(&data.concat()).is_err() {
                break;
            }
        }
    };
    says(endless, Errno::Eio, "does not come to an end");
}

fn go_answers(replies: Vec<(u32, Vec<u8>)>) -> impl FnOnce(&mut Server) + Send + 'static {
    move |server| {
        server.greet(3);
        loop {
            let (option, _) = server.option();
            if option == opt::GO {
                break;
            }
            server.reply(option, rep::ERR_UNSUP, &[]);
        }
        replies.iter().for_each(|(kind, data)| server.reply(opt::GO, *kind, data));
        server.wait_for_end();
    }
}

#[test]
fn an_export_that_makes_no_sense_is_refused() {
    let export = |size: u64| (rep::INFO, [&[0; 2][..], &size.to_be_bytes(), &[0; 2]].concat());
    let sizes = |minimum: u32, preferred: u32, maximum: u32| {
        let sizes = [minimum.to_be_bytes(), preferred.to_be_bytes(), maximum.to_be_bytes()].concat();
        (rep::INFO, [&info::BLOCK_SIZE.to_be_bytes()[..], &sizes].concat())
    };
    let ack = || (rep::ACK, vec![]);
    says(go_answers(vec![ack()]), Errno::Eio, "the export's size is missing");
    says(go_answers(vec![(rep::INFO, vec![0]), ack()]), Errno::Eio, "malformed piece of information");
    says(go_answers(vec![(rep::INFO, vec![0; 5]), ack()]), Errno::Eio, "malformed export's size");
    says(go_answers(vec![export(1 << 63), ack()]), Errno::Eoverflow, "its size is 9223372036854775808");
    says(go_answers(vec![export(1), sizes(3, 4096, 4096), ack()]), Errno::Eio, "impossible block sizes: minimum 3");
    says(go_answers(vec![export(1), sizes(0, 0, 0), ack()]), Errno::Eio, "impossible block sizes");
    // What the specification does not let a server say before it is asked.
    let early = |server: &mut Server| {
        server.greet(3);
        server.option();
        server.reply(opt::STRUCTURED_REPLY, rep::ERR_UNSUP, &[]);
        server.option();
        server.export(1, 0);
        server.reply(opt::GO, rep::ACK, &[]);
        server.send(&[0; 100]);
        server.wait_for_end();
    };
    // It may come after the handshake was read to its end; then the first request finds it.
    let (place, thread) = serve(early);
    block_on(async {
        if let Ok(handle) = open(&*at(&place.0), "").await {
            assert_eq!(handle.flush().await.unwrap_err().errno(), Errno::Eio);
        }
    });
    thread.join().unwrap();
}

#[test]
fn what_the_server_refuses_is_told_with_its_own_words() {
    let refuse = |kind, text: &str| go_answers(vec![(kind, text.as_bytes().to_vec())]);
    says(refuse(rep::ERR_UNKNOWN, ""), Errno::Enoent, "it has no export \"disk\"");
    says(refuse(rep::ERR_UNKNOWN, "no\nway"), Errno::Enoent, "it has no export \"disk\": \"no?way\"");
    says(refuse(rep::ERR_TLS_REQD, ""), Errno::Eperm, "it requires TLS");
    says(refuse(rep::ERR_POLICY, ""), Errno::Eperm, "it refuses by policy");
    says(refuse(rep::ERROR + 77, ""), Errno::Eio, "it refuses with error 0x4d");
}

#[test]
fn old_servers_are_understood() {
    block_on(async {
        // Newstyle before GO: the option that has no reply.
        let (fixed, thread) = handle(|server| {
            server.greet(1);
            loop {
                match server.option() {
                    (opt::EXPORT_NAME, name) => break assert_eq!(name, b""),
                    (option, _) => server.reply(option, rep::ERR_UNSUP, &[]),
                }
            }
            server.send(&[&4096_u64.to_be_bytes()[..], &0b111_u16.to_be_bytes(), &[0; 124]].concat());
            let read = server.request();
            server.simple(read.cookie, 0);
            server.send(&[9; 10]);
            server.wait_for_end();
        })
        .await;
        assert_eq!(fixed.get_size().await.unwrap(), 4096);
        assert!(!fixed.can().await.unwrap().write);
        assert_eq!(pread(&*fixed, 5, 10).await.unwrap(), [9; 10]);
        fixed.close().await;
        thread.join().unwrap();

        // Newstyle that is not fixed: nothing but EXPORT_NAME.
        let (place, thread) = serve(|server| {
            server.greet(0);
            assert_eq!(server.option(), (opt::EXPORT_NAME, b"x".to_vec()));
        });
        let plugin = plugin(&[("socket", place.0.as_os_str()), ("export", OsStr::new("x"))]).unwrap();
        let error = open(&*plugin, "").await.map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("closed the connection when it was asked for export \"x\""), "{error}");
        assert_eq!(error.errno(), Errno::Enoent);
        thread.join().unwrap();

        let (oldstyle, thread) = handle(|server| {
            server.send(b"NBDMAGIC");
            server.send(&0x0000_4202_8186_1253_u64.to_be_bytes());
            server.send(&[&512_u64.to_be_bytes()[..], &0b101_u32.to_be_bytes(), &[0; 124]].concat());
            let flush = server.request();
            server.simple(flush.cookie, 0);
            assert_eq!(server.request().kind, cmd::DISC);
        })
        .await;
        assert_eq!(oldstyle.get_size().await.unwrap(), 512);
        oldstyle.flush().await.unwrap();
        oldstyle.close().await;
        thread.join().unwrap();
    });
}

#[test]
fn capabilities_follow_from_the_transmission_flags() {
    let can = |flags: u16| {
        block_on(async {
            let (handle, thread) = handle(move |server| {
                server.handshake(true, flags);
                server.wait_for_end();
            })
            .await;
            let can = handle.can().await.unwrap();
            handle.close().await;
            thread.join().unwrap();
            can
        })
    };
    let all = can(0xfffd);
    let native = Support::Native;
    let expected = Capabilities {
        write: true,
        flush: true,
        rotational: true,
        trim: true,
        fast_zero: true,
        extents: true,
        multi_conn: true,
        zero: native,
        fua: native,
        cache: native,
    };
    assert_eq!(all, expected);
    let none = can(1);
    assert!(none.write && !none.flush && !none.trim && !none.multi_conn);
    assert_eq!((none.zero, none.fua, none.cache), (Support::Emulate, Support::Emulate, Support::None));
    assert!(!can(3).write);
}

/// A read of 100 bytes at 1000, a flush with it in flight, and what the server does when it has both: everything fails with EIO, and so
/// does what comes after.
fn breaks(what: &str, script: impl FnOnce(&mut Server, u64, u64) + Send + 'static) {
    breaks_for(what, script, |handle| Box::pin(async move { pread(&*handle, 1000, 100).await.map(|_| ()) }));
}

fn breaks_for(
    what: &str,
    script: impl FnOnce(&mut Server, u64, u64) + Send + 'static,
    request: impl Fn(Arc<dyn Handle>) -> rbdkit_plugin_api::BoxFuture<'static, Result<()>>,
) {
    block_on(async {
        let (handle, thread) = handle(|server| {
            server.handshake(true, 0x1ff);
            let (first, second) = (server.request(), server.request());
            let (data, flush) = if first.kind == cmd::FLUSH { (second, first) } else { (first, second) };
            script(server, data.cookie, flush.cookie);
            let _ = server.0.shutdown(std::net::Shutdown::Write);
            server.wait_for_end();
        })
        .await;
        let other = Arc::clone(&handle);
        let flush = tokio::spawn(async move { other.flush().await });
        let error = request(Arc::clone(&handle)).await.unwrap_err();
        assert_eq!(error.errno(), Errno::Eio, "{what}");
        assert!(error.context().is_some_and(|text| text.starts_with("nbd: server at ")), "{what}: {error}");
        assert_eq!(flush.await.unwrap().unwrap_err().errno(), Errno::Eio, "{what}");
        let again = pread(&*handle, 0, 1).await.unwrap_err();
        assert_eq!((again.errno(), again.context()), (Errno::Eio, error.context()), "{what}");
        handle.close().await;
        thread.join().unwrap();
    });
}

#[test]
fn a_reply_that_makes_no_sense_ends_the_connection_and_fails_what_is_in_flight() {
    use reply_type::{BLOCK_STATUS, ERROR, NONE, OFFSET_DATA, OFFSET_HOLE};
    breaks("the end", |_, _, _| {});
    breaks("junk", |server, _, _| server.send(&[0x55; 10_000]));
    breaks("endless junk", |server, _, _| while server.0.write_all(&[0; 4096]).is_ok() {});
    breaks("a foreign cookie", |server, read, _| server.simple(read ^ 0x1000, 0));
    breaks("a simple reply to a read", |server, read, _| server.simple(read, 0));
    breaks("short data", |server, read, _| {
        server.send(&chunk_header(true, OFFSET_DATA, read, 108));
        server.send(&data_chunk(1000, &[1; 50]));
    });
    let chunk = |what: &str, done: bool, kind: u16, payload: Vec<u8>| {
        breaks(what, move |server, read, _| server.chunk(done, kind, read, &payload));
    };
    chunk("data beyond the end", true, OFFSET_DATA, data_chunk(1001, &[1; 100]));
    chunk("data before the beginning", true, OFFSET_DATA, data_chunk(999, &[1; 100]));
    chunk("an overlong chunk", true, OFFSET_DATA, data_chunk(1000, &[1; 101]));
    chunk("an offset that overflows", true, OFFSET_DATA, data_chunk(u64::MAX, &[1; 100]));
    chunk("no data", false, OFFSET_DATA, data_chunk(1000, &[]));
    chunk("half an offset", false, OFFSET_DATA, vec![0; 4]);
    chunk("an end before everything has come", true, OFFSET_DATA, data_chunk(1000, &[1; 99]));
    chunk("an end without anything", true, NONE, vec![]);
    chunk("nothing, and no end", false, NONE, vec![]);
    chunk("a payload of nothing", true, NONE, vec![0]);
    let hole = |offset: u64, length: u32| [&offset.to_be_bytes()[..], &length.to_be_bytes()].concat();
    chunk("a hole beyond the end", true, OFFSET_HOLE, hole(1050, 51));
    chunk("an empty hole", true, OFFSET_HOLE, hole(1000, 0));
    chunk("a hole of 4 GiB", true, OFFSET_HOLE, hole(1000, u32::MAX));
    chunk("half a hole", true, OFFSET_HOLE, vec![0; 8]);
    chunk("extents for a read", true, BLOCK_STATUS, [&7_u32.to_be_bytes()[..], &[0, 0, 0, 100, 0, 0, 0, 0]].concat());
    chunk("an unknown kind", true, 99, vec![0; 8]);
    chunk("half an error", true, ERROR + 1, vec![0, 0, 0]);
    chunk("an error that is none", true, ERROR + 1, vec![0; 6]);
    chunk("a message that is longer than its chunk", true, ERROR + 1, vec![0, 0, 0, 5, 0, 9, b'x']);
    breaks("an endless message", |server, read, _| {
        server.send(&chunk_header(true, ERROR + 1, read, u32::MAX));
        while server.0.write_all(&[1; 4096]).is_ok() {}
    });
    breaks("a byte twice", |server, read, _| {
        server.chunk(false, OFFSET_DATA, read, &data_chunk(1000, &[1; 60]));
        server.chunk(true, OFFSET_DATA, read, &data_chunk(1059, &[1; 41]));
    });
    breaks("data for a flush", |server, _, flush| {
        server.chunk(true, OFFSET_DATA, flush, &data_chunk(1000, &[1; 60]));
    });
}

#[test]
fn an_answer_that_comes_twice_ends_the_connection() {
    block_on(async {
        let (handle, thread) = handle(|server| {
            server.handshake(true, 1);
            let first = server.request();
            server.simple(first.cookie, 0);
            server.simple(first.cookie, 0);
            server.wait_for_end();
        })
        .await;
        handle.flush().await.unwrap();
        let error = handle.flush().await.unwrap_err();
        assert!(error.to_string().contains("that was never made, or that it had answered"), "{error}");
        handle.close().await;
        thread.join().unwrap();
    });
}

#[test]
fn extents_that_make_no_sense_end_the_connection() {
    let status = |what: &str, context: u32, extents: &[[u32; 2]], rest: &[u8]| {
        let mut payload = context.to_be_bytes().to_vec();
        for number in extents.iter().flatten() {
            payload.extend_from_slice(&number.to_be_bytes());
        }
        payload.extend_from_slice(rest);
        breaks_for(
            what,
            move |server, status, _| server.chunk(true, reply_type::BLOCK_STATUS, status, &payload),
            |handle| Box::pin(async move { handle.extents(4096, 8192, Flags::NONE).await.map(|_| ()) }),
        );
    };
    status("a foreign context", 8, &[[8192, 0]], &[]);
    status("none", 7, &[], &[]);
    status("an empty one", 7, &[[4096, 0], [0, 3], [4096, 0]], &[]);
    status("one too many", 7, &[[4096, 0], [4096, 3], [4096, 0]], &[]);
    status("half of one", 7, &[[4096, 0]], &[0; 4]);
    let request = |handle: Arc<dyn Handle>| -> rbdkit_plugin_api::BoxFuture<'static, Result<()>> {
        Box::pin(async move { handle.extents(4096, 8192, Flags::NONE).await.map(|_| ()) })
    };
    let no_end = |server: &mut Server, status: u64, _| {
        server.send(&chunk_header(true, reply_type::BLOCK_STATUS, status, u32::MAX));
        while server.0.write_all(&[1; 4096]).is_ok() {}
    };
    breaks_for("an endless list", no_end, request);
    breaks_for("no list", |server, status, _| server.chunk(true, reply_type::NONE, status, &[]), request);
    let twice = |server: &mut Server, status: u64, _| {
        let one = [&7_u32.to_be_bytes()[..], &8192_u32.to_be_bytes(), &[0; 4]].concat();
        server.chunk(false, reply_type::BLOCK_STATUS, status, &one);
        server.chunk(true, reply_type::BLOCK_STATUS, status, &one);
    };
    breaks_for("two lists", twice, request);
}

#[test]
fn extents_are_carried_through_and_what_goes_past_the_request_is_cut() {
    block_on(async {
        let (handle, thread) = handle(|server| {
            server.handshake(true, 1);
            let request = server.request();
            assert_eq!((request.kind, request.flags, request.offset), (cmd::BLOCK_STATUS, 1 << 3, 4096));
            let list = [7_u32, 4096, 0, 2048, 1, 1 << 30, 3];
            let list: Vec<u8> = list.iter().flat_map(|number| number.to_be_bytes()).collect();
            server.chunk(true, reply_type::BLOCK_STATUS, request.cookie, &list);
            server.wait_for_end();
        })
        .await;
        let flags = Flags { req_one: true, ..Flags::NONE };
        let extents = handle.extents(4096, 8192, flags).await.unwrap();
        let extent = |offset, length, hole, zero| Extent { offset, length, hole, zero };
        let expected =
            [extent(4096, 4096, false, false), extent(8192, 2048, true, false), extent(10240, 2048, true, true)];
        assert_eq!(extents.as_slice(), expected);
        handle.close().await;
        thread.join().unwrap();
    });
}

#[test]
fn requests_in_flight_are_answered_in_any_order() {
    block_on(async {
        let (handle, thread) = handle(|server| {
            server.handshake(true, 1);
            let mut requests: Vec<Request> = (0..50).map(|_| server.request()).collect();
            requests.sort_by_key(|request| request.offset % 7);
            for request in requests {
                // The second half first, and a hole in between.
                let (from, length) = (request.offset, u64::from(request.length));
                let byte = (from / 4096) as u8;
                let kinds = reply_type::OFFSET_DATA;
                server.chunk(
                    false,
                    kinds,
                    request.cookie,
                    &data_chunk(from + 8192, &vec![byte; length as usize - 8192]),
                );
                let hole = [&(from + 4096).to_be_bytes()[..], &4096_u32.to_be_bytes()].concat();
                server.chunk(false, reply_type::OFFSET_HOLE, request.cookie, &hole);
                server.chunk(false, kinds, request.cookie, &data_chunk(from, &[byte; 4096]));
                server.chunk(true, reply_type::NONE, request.cookie, &[]);
            }
            server.wait_for_end();
        })
        .await;
        let reads: Vec<_> = (0..50)
            .map(|nth: u32| {
                let handle = Arc::clone(&handle);
                tokio::spawn(
                    async move { pread(&*handle, u64::from(nth) * 4096, 8192 + nth * 3000 + 1).await.unwrap() },
                )
            })
            .collect();
        for (nth, read) in reads.into_iter().enumerate() {
            let bytes = read.await.unwrap();
            assert_eq!(bytes.len(), 8193 + nth * 3000);
            let right = |at: usize| if (4096..8192).contains(&at) { 0 } else { nth as u8 };
            assert!(bytes.iter().enumerate().all(|(at, &byte)| byte == right(at)), "read {nth}");
        }
        handle.close().await;
        thread.join().unwrap();
    });
}

#[test]
fn flags_are_carried_through_and_errors_come_back() {
    block_on(async {
        let (handle, thread) = handle(|server| {
            server.handshake(true, 0xfff);
            let mut seen = Vec::new();
            for error in [1_u32, 5, 12, 22, 28, 75, 95, 108, 9999] {
                let request = server.request();
                if request.kind == cmd::WRITE {
                    server.receive_vec(request.length);
                }
                seen.push((request.kind, request.flags));
                match error {
                    22 => server.simple(request.cookie, error),
                    _ => {
                        let payload = [&error.to_be_bytes()[..], &3_u16.to_be_bytes(), b"why"].concat();
                        server.chunk(true, reply_type::ERROR + 1, request.cookie, &payload);
                    }
                }
            }
            assert_eq!(seen[..4], [(cmd::WRITE, 1), (cmd::WRITE, 0), (cmd::TRIM, 1), (cmd::WRITE_ZEROES, 0b10)]);
            assert_eq!(seen[4..6], [(cmd::WRITE_ZEROES, 0b10001), (cmd::CACHE, 0)]);
            server.wait_for_end();
        })
        .await;
        let flags = Flags { fua: true, may_trim: true, fast_zero: true, req_one: false };
        let errors = [
            pwrite(&*handle, 0, &[1; 100], Flags::FUA).await,
            pwrite(&*handle, 0, &[1; 100], Flags::NONE).await,
            handle.trim(0, 100, Flags::FUA).await,
            handle.zero(0, 100, Flags::NONE).await,
            handle.zero(0, 100, flags).await,
            handle.cache(0, 100).await,
            handle.flush().await,
            pread(&*handle, 0, 100).await.map(|_| ()),
            handle.extents(0, 100, Flags::NONE).await.map(|_| ()),
        ];
        let errors = errors.map(|result| result.unwrap_err());
        use Errno::*;
        let expected = [Eperm, Eio, Enomem, Einval, Enospc, Eoverflow, Enotsup, Eshutdown, Einval];
        assert_eq!(errors.each_ref().map(|error| error.errno()), expected);
        assert_eq!(errors[0].context(), Some("nbd: the server says \"why\""));
        handle.close().await;
        thread.join().unwrap();
    });
}

#[test]
fn what_is_longer_than_the_server_takes_is_sent_in_pieces() {
    block_on(async {
        let (handle, thread) = handle(|server| {
            server.greet(3);
            while server.option().0 != opt::GO {
                server.reply(opt::STRUCTURED_REPLY, rep::ERR_UNSUP, &[]);
            }
            server.export(1 << 40, 0xfff);
            let sizes = [512_u32.to_be_bytes(), 1024_u32.to_be_bytes(), 1536_u32.to_be_bytes()].concat();
            server.reply(opt::GO, rep::INFO, &[&info::BLOCK_SIZE.to_be_bytes()[..], &sizes].concat());
            server.reply(opt::GO, rep::ACK, &[]);
            for expected in [(512, 1536), (2048, 1536), (3584, 1024)] {
                let request = server.request();
                assert_eq!((request.offset, request.length), expected);
                server.simple(request.cookie, 0);
                server.send(&vec![(request.offset / 512) as u8; request.length as usize]);
            }
            for expected in [(0, 1536), (1536, 512)] {
                let request = server.request();
                assert_eq!((request.offset, request.length), expected);
                let bytes = server.receive_vec(request.length);
                assert!(bytes.iter().all(|&byte| byte == 5));
                server.simple(request.cookie, 0);
            }
            for expected in [(512, 1 << 30), (512 + (1 << 30), 1 << 30), (512 + (2 << 30), 512)] {
                let request = server.request();
                assert_eq!((request.kind, request.offset, request.length), (cmd::TRIM, expected.0, expected.1));
                server.simple(request.cookie, 0);
            }
            server.wait_for_end();
        })
        .await;
        let sizes = handle.block_size().await.unwrap().unwrap();
        assert_eq!((sizes.minimum, sizes.preferred, sizes.maximum), (512, 1024, u32::MAX));
        let read = pread(&*handle, 512, 4096).await.unwrap();
        assert_eq!((read[0], read[1535], read[1536], read[3072], read[4095]), (1, 1, 4, 7, 7));
        pwrite(&*handle, 0, &[5; 2048], Flags::NONE).await.unwrap();
        handle.trim(512, (2 << 30) + 512, Flags::NONE).await.unwrap();
        handle.close().await;
        thread.join().unwrap();
    });
}

#[test]
fn an_answer_that_comes_before_the_request_was_sent_does_no_harm() {
    block_on(async {
        let (handle, thread) = handle(|server| {
            server.handshake(true, 1);
            let first = server.request();
            // The payload is still on its way: it does not fit the socket.
            server.chunk(true, reply_type::ERROR + 1, first.cookie, &[0, 0, 0, 28, 0, 0]);
            let payload = server.receive_vec(first.length);
            assert!(payload.iter().all(|&byte| byte == 3));
            let second = server.request();
            server.simple(second.cookie, 0);
            server.wait_for_end();
        })
        .await;
        let error = pwrite(&*handle, 0, &[3; 1 << 20], Flags::NONE).await.unwrap_err();
        assert_eq!(error.errno(), Errno::Enospc);
        handle.flush().await.unwrap();
        handle.close().await;
        thread.join().unwrap();
    });
}

#[test]
fn a_request_given_up_while_it_is_sent_ends_the_connection() {
    block_on(async {
        let (handle, thread) = handle(|server| {
            server.handshake(true, 1);
            // It does not read on, so the request never fits.
            server.request();
            let mut rest = Vec::new();
            let _ = server.0.read_to_end(&mut rest);
            assert!(rest.len() < 8 << 20);
        })
        .await;
        let span = Span::new(0, 8 << 20);
        let begun = std::future::poll_fn(|cx| {
            let op = handle.pwrite(Buffer::from_vec(vec![3; 8 << 20]), span, 0, Flags::NONE);
            std::task::Poll::Ready(op.poll_now(cx))
        });
        drop(begun.await);
        let error = handle.flush().await.unwrap_err();
        assert!(error.to_string().contains("given up while it was sent"), "{error}");
        handle.close().await;
        thread.join().unwrap();
    });
}

#[test]
fn exports_are_listed_in_the_dynamic_mode() {
    let dynamic = |place: &Path| plugin(&[("socket", place.as_os_str()), ("dynamic-export", OsStr::new("1"))]).unwrap();
    let (place, thread) = serve(|server| {
        server.greet(3);
        assert_eq!(server.option().0, opt::LIST);
        for (name, text) in [("a", ""), ("b", "the second"), ("\u{0}\n", "")] {
            let data = [&(name.len() as u32).to_be_bytes()[..], name.as_bytes(), text.as_bytes()].concat();
            server.reply(opt::LIST, rep::SERVER, &data);
        }
        server.reply(opt::LIST, rep::SERVER, &[0, 0, 0, 1, 0xff]);
        server.reply(opt::LIST, rep::ACK, &[]);
        assert_eq!(server.option().0, opt::ABORT);
    });
    let list = block_on(async { dynamic(&place.0).list_exports(false, false).await.unwrap() });
    thread.join().unwrap();
    assert_eq!(list.iter().map(|export| &export.name[..]).collect::<Vec<_>>(), ["a", "b", "\u{0}\n"]);
    assert_eq!(list[1].description.as_deref(), Some("the second"));

    let (place, thread) = serve(|server| {
        server.greet(3);
        server.option();
        let long = [&4000_u32.to_be_bytes()[..], &[b'x'; 4000]].concat();
        for _ in 0..20_000 {
            server.reply(opt::LIST, rep::SERVER, &long);
        }
    });
    let error = block_on(async { dynamic(&place.0).list_exports(false, false).await.unwrap_err() });
    thread.join().unwrap();
    assert!(error.to_string().contains("too many exports"), "{error}");

    // Its default export by name.
    let (place, thread) = serve(|server| {
        server.greet(3);
        assert_eq!(server.option().0, opt::INFO);
        server.reply(opt::INFO, rep::INFO, b"\0\x01the default");
        server.reply(opt::INFO, rep::ACK, &[]);
        server.option();
    });
    let name = block_on(async { dynamic(&place.0).default_export(false, false).await.unwrap() });
    thread.join().unwrap();
    assert_eq!(name, "the default");
}

#[test]
fn parameters_that_do_not_go_together_are_refused_in_one_line() {
    for (params, wrong) in [
        (vec![], "the other server has to be given"),
        (vec!["port=1"], "the other server has to be given"),
        (vec!["socket=/s", "hostname=h"], "socket= and hostname= cannot be used at the same time"),
        (vec!["uri=nbd://h", "command=c"], "uri= and command= cannot be used at the same time"),
        (vec!["uri=nbd://h", "port=1"], "port= can only be used with hostname="),
        (vec!["socket=/s", "arg=a"], "arg= can only be used with command="),
        (vec!["socket=/s", "dynamic-export=1", "export=e"], "dynamic-export=true and export="),
        (vec!["socket=/s", "dynamic-export=1", "shared=1"], "dynamic-export=true needs a connection for each client"),
        (vec!["command=c", "dynamic-export=1"], "dynamic-export=true needs a connection for each client"),
        (vec!["command=c", "shared=0"], "shared=false cannot be used"),
        (vec!["uri=nbd://h/a", "export=b"], "the URI names another export"),
        (vec!["socket="], "is not the path of a socket"),
        (vec!["hostname="], "is not the name of a host"),
        (vec!["hostname=h", "port=0"], "is not a port"),
        (vec!["hostname=h", "port=65536"], "is not a port"),
        (vec!["hostname=h", "port=no-such-service"], "is neither a port nor a service"),
        (vec!["socket-fd=2"], "has to be greater than 2"),
        (vec!["retry=-1"], "is not a number of attempts"),
        (vec!["shared=maybe"], "is neither true"),
        (vec!["vsock=2"], "does not connect to vsock"),
        (vec!["tls=require"], "does not encrypt"),
        (vec!["tls-psk=/keys"], "does not encrypt"),
        (vec!["uri=nbds://h"], "asks for TLS"),
        (vec!["no=1"], "unknown parameter 'no'"),
    ] {
        let pairs: Vec<(&str, &OsStr)> =
            params.iter().map(|param| param.split_once('=').unwrap()).map(|(k, v)| (k, OsStr::new(v))).collect();
        let error = plugin(&pairs).map(|_| ()).unwrap_err();
        assert!(error.contains(wrong) && !error.contains('\n'), "{params:?}: {error}");
    }
    let long = format!("/{}", "s".repeat(107));
    assert!(plugin(&[("socket", OsStr::new(&long))]).map(|_| ()).unwrap_err().contains("longer than 107 bytes"));
    assert!(plugin(&[("hostname", OsStr::new("h")), ("port", OsStr::new("nbd")), ("tls", OsStr::new("off"))]).is_ok());
}
