//! The body of an answer.

use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use object_store::client::{HttpError, HttpErrorKind};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep, sleep};

/// A body that ends with an error if the server is silent for too long, or sends more than it may.
/// At its end the connection is kept.
pub(super) struct AnswerBody {
    incoming: Incoming,
    silence: Duration,
    deadline: Pin<Box<Sleep>>,
    /// The bytes that may still come; none: any number, because the reader takes them as they come.
    room: Option<u64>,
    /// Keeps the connection for the next request.
    keep: Option<Box<dyn FnOnce() + Send + Sync>>,
    _permit: OwnedSemaphorePermit,
}

impl AnswerBody {
    pub(super) fn new(
        incoming: Incoming,
        silence: Duration,
        room: Option<u64>,
        keep: Box<dyn FnOnce() + Send + Sync>,
        permit: OwnedSemaphorePermit,
    ) -> AnswerBody {
        let mut body = AnswerBody {
            incoming,
            silence,
            deadline: Box::pin(sleep(silence)),
            room,
            keep: Some(keep),
            _permit: permit,
        };
        if body.incoming.is_end_stream() {
            body.keep();
        }
        body
    }

    fn keep(&mut self) {
        if let Some(keep) = self.keep.take() {
            keep();
        }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        let body = self.get_mut();
        match Pin::new(&mut body.incoming).poll_frame(cx) {
            Poll::Pending => match body.deadline.as_mut().poll(cx) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(()) => {
                    let silent = io::Error::new(ErrorKind::TimedOut, "the store sent nothing for too long");
                    Poll::Ready(Some(Err(HttpError::new(HttpErrorKind::Timeout, silent))))
                }
            },
            Poll::Ready(Some(Ok(frame))) => {
                body.deadline.as_mut().reset(Instant::now() + body.silence);
                let count = frame.data_ref().map_or(0, Bytes::len) as u64;
                match body.room.map(|room| room.checked_sub(count)) {
                    Some(None) => {
                        let long = io::Error::new(ErrorKind::InvalidData, "the store sent an answer that is too long");
                        return Poll::Ready(Some(Err(HttpError::new(HttpErrorKind::Decode, long))));
                    }
                    Some(room) => body.room = room,
                    None => {}
                }
                if body.incoming.is_end_stream() {
                    body.keep();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                body.keep = None;
                Poll::Ready(Some(Err(HttpError::new(HttpErrorKind::Interrupted, error))))
            }
            Poll::Ready(None) => {
                body.keep();
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
