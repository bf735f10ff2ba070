//! The end of a session, with a server that answers and with one that does not.

use std::sync::mpsc::channel;

use rbdkit_plugin_api::StopScope;

use super::*;

#[test]
fn a_stop_ends_reads_and_a_write_still_gets_its_answer() {
    block_on(async {
        let (tell, all_are_there) = channel();
        let (stopped, wait) = channel();
        let (opened, thread) = open_session(move |server| {
            server.opening();
            // Two pieces of a read, and a write.
            let requests = [server.request(), server.request(), server.request()];
            tell.send(()).unwrap();
            wait.recv_timeout(DEADLINE).unwrap();
            for request in &requests {
                match request.kind {
                    kind::READ => server.data(request.id, &vec![1; request.range().1 as usize]),
                    _ => server.status(request.id, status::OK, b""),
                }
            }
            let flush = server.request();
            server.status(flush.id, status::OK, b"");
            server.wait_for_end();
        })
        .await;
        let (session, handle) = opened.unwrap();
        let (reader, writer) = (Arc::clone(&handle), Arc::clone(&handle));
        let read = tokio::spawn(async move { pread(&reader, 0, 10_000).await });
        let write = tokio::spawn(async move {
            let buffer = Buffer::from_vec(vec![9; 100]);
            let span = buffer.span();
            writer.pwrite(buffer, span, 0, Flags::NONE).await.1
        });
        tokio::task::spawn_blocking(move || all_are_there.recv_timeout(DEADLINE)).await.unwrap().unwrap();
        session.stop(StopScope::Reads);
        assert_eq!(read.await.unwrap().unwrap_err().errno(), Errno::Eshutdown);
        assert_eq!(pread(&handle, 0, 1).await.unwrap_err().errno(), Errno::Eshutdown);
        stopped.send(()).unwrap();
        write.await.unwrap().unwrap();
        handle.flush().await.unwrap();
        handle.close().await;
        thread.join().unwrap();
    });
}

#[test]
fn a_read_that_is_dropped_leaves_the_session_to_the_other_requests() {
    block_on(async {
        let (tell, is_there) = channel();
        let (dropped, wait) = channel();
        let (opened, thread) = open_session(move |server| {
            server.opening();
            // Two pieces.
            let requests = [server.request(), server.request()];
            tell.send(()).unwrap();
            wait.recv_timeout(DEADLINE).unwrap();
            for request in &requests {
                server.data(request.id, &vec![1; request.range().1 as usize]);
            }
            let flush = server.request();
            server.status(flush.id, status::OK, b"");
            server.wait_for_end();
        })
        .await;
        let (_session, handle) = opened.unwrap();
        let reader = Arc::clone(&handle);
        let read = tokio::spawn(async move { pread(&reader, 0, 10_000).await });
        tokio::task::spawn_blocking(move || is_there.recv_timeout(DEADLINE)).await.unwrap().unwrap();
        read.abort();
        assert!(read.await.unwrap_err().is_cancelled());
        dropped.send(()).unwrap();
        handle.flush().await.unwrap();
        handle.close().await;
        thread.join().unwrap();
    });
}

#[test]
fn a_file_that_cannot_be_closed_is_an_error() {
    block_on(async {
        let (opened, thread) = open_session(|server| {
            server.opening();
            let close = server.request();
            assert_eq!(close.kind, kind::CLOSE);
            server.status(close.id, 4, b"Disk quota exceeded");
            // The second one gets no answer.
            server.request();
            server.wait_for_end();
        })
        .await;
        let (session, handle) = opened.unwrap();
        let error = session.close_file(b"h").await.unwrap_err();
        assert_eq!(error.context(), Some("ssh: far: cannot close the file: the server says \"Disk quota exceeded\""));
        handle.close().await;
        thread.join().unwrap();
    });
}
