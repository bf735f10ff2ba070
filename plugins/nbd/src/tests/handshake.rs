//! The negotiation: servers that make no sense, that refuse, and old ones.

use std::io::Write;

use rbdkit_plugin_api::{Capabilities, Errno, Support};

use super::*;
use crate::wire::{cmd, opt, rep};

/// The error of opening what this server serves.
fn refused(script: impl FnOnce(&mut Server) + Send + 'static) -> (Errno, String) {
    let (place, thread) = serve(script);
    let plugin = plugin(&[("socket", place.path.as_os_str()), ("export", OsStr::new("disk"))]).unwrap();
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
    says(answer(reply(MAGIC + 1, opt::EXTENDED_HEADERS, 0)), Errno::Eio, "malformed option reply");
    says(answer(reply(MAGIC, opt::GO, 0)), Errno::Eio, "malformed option reply");
    says(answer(reply(MAGIC, opt::EXTENDED_HEADERS, u32::MAX)), Errno::Eio, "malformed option reply");
    let endless = |server: &mut Server| {
        server.greet(3);
        server.option();
        while server.0.write_all(&[0; 0]).is_ok() {
            let data = [
                &0x0003_e889_0455_65a9_u64.to_be_bytes()[..],
                &11_u32.to_be_bytes(),
                &rep::INFO.to_be_bytes(),
                &[0; 4],
            ];
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
    let ack = || (rep::ACK, vec![]);
    says(go_answers(vec![ack()]), Errno::Eio, "the export's size is missing");
    says(go_answers(vec![(rep::INFO, vec![0]), ack()]), Errno::Eio, "malformed piece of information");
    says(go_answers(vec![(rep::INFO, vec![0; 5]), ack()]), Errno::Eio, "malformed export's size");
    says(go_answers(vec![export(1 << 63), ack()]), Errno::Eoverflow, "its size is 9223372036854775808");
    // What the specification does not let a server say before it is asked.
    let early = |server: &mut Server| {
        server.greet(3);
        for option in [opt::EXTENDED_HEADERS, opt::STRUCTURED_REPLY] {
            assert_eq!(server.option().0, option);
            server.reply(option, rep::ERR_UNSUP, &[]);
        }
        server.option();
        server.export(1, 0);
        server.reply(opt::GO, rep::ACK, &[]);
        server.send(&[0; 100]);
        server.wait_for_end();
    };
    // It may come after the handshake was read to its end; then the first request finds it.
    let (place, thread) = serve(early);
    block_on(async {
        if let Ok(handle) = open(&*at(&place.path), "").await {
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
        let plugin = plugin(&[("socket", place.path.as_os_str()), ("export", OsStr::new("x"))]).unwrap();
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
        server.reply(opt::LIST, rep::ACK, &[]);
        assert_eq!(server.option().0, opt::ABORT);
    });
    let list = block_on(async { dynamic(&place.path).list_exports(&client(), false).await.unwrap().unwrap() });
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
    let error = block_on(async { dynamic(&place.path).list_exports(&client(), false).await.unwrap_err() });
    thread.join().unwrap();
    assert!(error.to_string().contains("too many exports"), "{error}");

    // A name that no client could ask for.
    let long = [&4097_u32.to_be_bytes()[..], &[b'x'; 4097]].concat();
    for bad in [vec![0, 0, 0, 1, 0xff], long] {
        let (place, thread) = serve(move |server| {
            server.greet(3);
            server.option();
            server.reply(opt::LIST, rep::SERVER, &bad);
            server.reply(opt::LIST, rep::ACK, &[]);
            server.wait_for_end();
        });
        let error = block_on(async { dynamic(&place.path).list_exports(&client(), false).await.unwrap_err() });
        thread.join().unwrap();
        assert!(error.to_string().contains("whose name is longer than 4096 bytes or not UTF-8"), "{error}");
    }

    // A server that does not list has its default export.
    let (place, thread) = serve(|server| {
        server.greet(3);
        server.option();
        server.reply(opt::LIST, rep::ERR_UNSUP, &[]);
        assert_eq!(server.option().0, opt::ABORT);
    });
    let list = block_on(async { dynamic(&place.path).list_exports(&client(), false).await.unwrap() });
    thread.join().unwrap();
    assert_eq!(list, None);

    // Its default export by name.
    let (place, thread) = serve(|server| {
        server.greet(3);
        assert_eq!(server.option().0, opt::INFO);
        server.reply(opt::INFO, rep::INFO, b"\0\x01the default");
        server.reply(opt::INFO, rep::ACK, &[]);
        server.option();
    });
    let name = block_on(async { dynamic(&place.path).default_export(&client(), false).await.unwrap() });
    thread.join().unwrap();
    assert_eq!(name, "the default");
}

#[test]
fn option_replies_that_are_too_many_or_too_long_end_the_negotiation() {
    let replies = |count: usize, length: usize| {
        block_on(async move {
            let (place, thread) = serve(move |server| {
                server.greet(3);
                server.option();
                for _ in 0..count {
                    server.reply(opt::EXTENDED_HEADERS, rep::INFO, &vec![b'x'; length]);
                }
                server.wait_for_end();
            });
            let error = open(&*at(&place.path), "").await.map(|_| ()).unwrap_err().to_string();
            thread.join().unwrap();
            error
        })
    };
    for (count, length) in [(65, 0), (2, 33_000)] {
        let error = replies(count, length);
        assert!(error.contains("does not come to an end with its option replies"), "{count} {length}: {error}");
    }
    assert!(replies(1, 70_000).contains("malformed option reply"));
}
