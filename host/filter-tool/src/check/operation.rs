//! Carries out one operation of a client.

use std::sync::Arc;

use rbdkit_chain::Hop;
use rbdkit_plugin_api::{Buffer, Extents, Flags, Span};

use super::content;
use super::steps::Request;

/// An answer of an operation.
pub enum Answer {
    Done,
    Data(Buffer),
    Extents(Extents),
}

/// Carries out an operation.
///
/// # Errors
/// Those of the layers.
pub async fn carry_out(hop: Arc<Hop>, operation: Request) -> Result<Answer, rbdkit_plugin_api::Error> {
    match operation {
        Request::Pread { offset, length } => {
            let (buffer, result) = hop.pread(Buffer::new(length), Span::new(0, length), offset).await;
            result.map(|()| Answer::Data(buffer))
        }
        Request::Pwrite { offset, length, fill, flags } => {
            let mut bytes = vec![0; length as usize];
            content::fill(&mut bytes, fill, offset);
            let (_, result) = hop.pwrite(Buffer::from_vec(bytes), Span::new(0, length), offset, flags).await;
            result.map(|()| Answer::Done)
        }
        Request::Zero { offset, length, flags } => hop.zero(offset, length, flags).await.map(|()| Answer::Done),
        Request::Trim { offset, length } => hop.trim(offset, length, Flags::NONE).await.map(|()| Answer::Done),
        Request::Cache { offset, length } => hop.cache(offset, length).await.map(|()| Answer::Done),
        Request::Flush => hop.flush().await.map(|()| Answer::Done),
        Request::Extents { offset, length } => hop.extents(offset, length, Flags::NONE).await.map(Answer::Extents),
    }
}
