//! The oldstyle handshake: the server tells the size and the flags of its only export in one
//! message, and the client begins with requests. The client says nothing and chooses nothing, so
//! there is no error that could be told to it.

use super::handshake::{Export, MetaContext};
use super::option_data::{OpenOption, OpenRequest};
use super::transmission::{ReplyFormat, Session};
use super::wire;

/// What the server opens for an oldstyle client: the default export.
pub fn oldstyle_request() -> OpenRequest {
    OpenRequest {
        // The option of newstyle that cannot be refused either.
        option: OpenOption::ExportName,
        name: String::new(),
        wants_name: false,
        wants_description: false,
        wants_block_size: false,
    }
}

/// Writes the whole handshake. The transmission begins after it.
pub fn oldstyle_greeting(export: &Export, out: &mut Vec<u8>) -> Session {
    out.extend_from_slice(&wire::MAGIC.to_be_bytes());
    out.extend_from_slice(&wire::OLDSTYLE_MAGIC.to_be_bytes());
    out.extend_from_slice(&export.size.to_be_bytes());
    // No handshake flags: they belong to newstyle.
    out.extend_from_slice(&0_u16.to_be_bytes());
    out.extend_from_slice(&export.transmission_flags(ReplyFormat::Simple, MetaContext::None).to_be_bytes());
    out.extend_from_slice(&[0; 124]);
    Session {
        size: export.size,
        can: export.can,
        reply_format: ReplyFormat::Simple,
        base_allocation: false,
        block_sizes: None,
    }
}

#[cfg(test)]
mod tests {
    use rbdkit_plugin_api::Capabilities;

    use super::*;

    #[test]
    fn the_handshake_is_one_message_of_152_bytes() {
        let can = Capabilities::READ_WRITE_FLUSH;
        let export = Export { size: 0x0102_0304_0506, can, name: None, description: None, block_sizes: None };
        let mut out = Vec::new();
        let session = oldstyle_greeting(&export, &mut out);
        let mut expected =
            b"NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53\x00\x00\x01\x02\x03\x04\x05\x06\0\0\0\x4d".to_vec();
        expected.resize(152, 0);
        assert_eq!(out, expected);
        assert!(!session.is_structured() && !session.base_allocation);
        assert!(oldstyle_request().cannot_be_refused() && !oldstyle_request().only_info());
    }
}
