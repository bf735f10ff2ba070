//! The end of the server while the other server does not answer.

use std::sync::mpsc::channel;

use rbdkit_plugin_api::{Errno, StopScope};

use super::fake_server::data_chunk;
use super::*;
use crate::wire::{cmd, reply_type};

#[test]
fn a_stop_ends_requests_that_only_read_and_a_write_still_gets_its_answer() {
    for structured in [false, true] {
        block_on(async {
            let (tell, both_are_there) = channel();
            let (stopped, wait) = channel();
            let (place, thread) = serve(move |server| {
                server.handshake(structured, 1);
                let (mut read, mut write) = (None, None);
                while read.is_none() || write.is_none() {
                    let request = server.request();
                    match request.kind {
                        cmd::READ => read = Some(request.cookie),
                        _ => {
                            server.receive_vec(request.length);
                            write = Some(request.cookie);
                        }
                    }
                }
                tell.send(()).unwrap();
                wait.recv_timeout(DEADLINE).unwrap();
                // The reply to the read comes too late, and the connection survives it.
                match structured {
                    true => server.chunk(true, reply_type::OFFSET_DATA, read.unwrap(), &data_chunk(0, &[1; 100])),
                    false => {
                        server.simple(read.unwrap(), 0);
                        server.send(&[1; 100]);
                    }
                }
                server.simple(write.unwrap(), 0);
                let flush = server.request();
                server.simple(flush.cookie, 0);
                server.wait_for_end();
            });
            let plugin = at(&place.path);
            let handle = open(&*plugin, "").await.unwrap();
            let (reader, writer) = (Arc::clone(&handle), Arc::clone(&handle));
            let read = tokio::spawn(async move { pread(&*reader, 0, 100).await });
            let write = tokio::spawn(async move { pwrite(&*writer, 0, &[2; 100], Flags::NONE).await });
            tokio::task::spawn_blocking(move || both_are_there.recv_timeout(DEADLINE)).await.unwrap().unwrap();
            plugin.stop(StopScope::Reads);
            assert_eq!(read.await.unwrap().unwrap_err().errno(), Errno::Eshutdown);
            assert_eq!(pread(&*handle, 0, 1).await.unwrap_err().errno(), Errno::Eshutdown);
            let extents = handle.extents(0, 512, Flags::NONE).await;
            assert_eq!(extents.unwrap_err().errno(), Errno::Eshutdown);
            stopped.send(()).unwrap();
            write.await.unwrap().unwrap();
            handle.flush().await.unwrap();
            handle.close().await;
            thread.join().unwrap();
        });
    }
}

#[test]
fn a_stop_ends_an_open_and_every_request() {
    block_on(async {
        let (tell, asked) = channel();
        let (place, thread) = serve(move |server| {
            server.greet(3);
            tell.send(()).unwrap();
            server.wait_for_end();
        });
        let plugin: Arc<dyn Plugin> = Arc::from(at(&place.path));
        let opening = tokio::spawn({
            let plugin = Arc::clone(&plugin);
            async move { open(&*plugin, "").await.err().map(|error| error.errno()) }
        });
        tokio::task::spawn_blocking(move || asked.recv_timeout(DEADLINE)).await.unwrap().unwrap();
        plugin.stop(StopScope::Reads);
        assert_eq!(opening.await.unwrap(), Some(Errno::Eshutdown));
        thread.join().unwrap();

        let (tell, asked) = channel();
        let (place, thread) = serve(move |server| {
            server.handshake(true, 1);
            server.request();
            tell.send(()).unwrap();
            server.wait_for_end();
        });
        let plugin = at(&place.path);
        let handle = open(&*plugin, "").await.unwrap();
        let writer = Arc::clone(&handle);
        let write = tokio::spawn(async move { pwrite(&*writer, 0, &[2; 100], Flags::NONE).await });
        tokio::task::spawn_blocking(move || asked.recv_timeout(DEADLINE)).await.unwrap().unwrap();
        plugin.stop(StopScope::Everything);
        assert_eq!(write.await.unwrap().unwrap_err().errno(), Errno::Eio);
        handle.close().await;
        thread.join().unwrap();
    });
}
