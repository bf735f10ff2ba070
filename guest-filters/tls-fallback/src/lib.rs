//! Serves a message to clients without TLS, and the layer below to the others.

mod message;

use message::SIZE;
use rbdkit_filter_sdk::prelude::*;

params! {
    /// The parameters.
    pub struct Settings {
        /// The text that clients without TLS read.
        tlsreadme: Option<String>,
    }
}

/// The filter.
pub struct TlsFallback {
    disk: [u8; SIZE],
}

/// The handle of a connection with TLS. The other handle is 0, and its next is never open.
const WITH_TLS: u64 = 1;

/// Whether the connection uses TLS.
fn has_tls() -> bool {
    request::handle() == WITH_TLS
}

impl Filter for TlsFallback {
    type Params = Settings;

    fn describe() -> Description {
        Description::new("tls-fallback", env!("CARGO_PKG_VERSION"), "serves a message to clients without TLS")
            .help("Clients with TLS get the layer below. Put this filter first.")
            .thread_model(ThreadModel::Parallel)
            .transparent()
    }

    fn configure(settings: Settings) -> Result<Self, String> {
        Ok(TlsFallback { disk: message::disk(settings.tlsreadme.as_deref().unwrap_or(message::DEFAULT)) })
    }
}

impl Lifecycle for TlsFallback {
    fn get_ready(&self) -> Result<(), String> {
        match server::thread_model_below() {
            ThreadModel::SerializeConnections => Err("the plugin serves one connection at a time, so that a client \
                                                      without TLS could keep all others out"
                .to_string()),
            _ => Ok(()),
        }
    }
}

impl Names for TlsFallback {
    fn list_exports(&self, readonly: bool, is_tls: bool) -> Result<Vec<ExportEntry>, Errno> {
        match is_tls {
            true => next_open::list_exports(readonly),
            false => Ok(vec![ExportEntry { name: String::new(), description: None }]),
        }
    }

    fn default_export(&self, readonly: bool, is_tls: bool) -> Result<String, Errno> {
        if is_tls { next_open::default_export(readonly) } else { Ok(String::new()) }
    }
}

impl Connection for TlsFallback {
    fn open(&self, readonly: bool, exportname: &str, is_tls: bool, _replayed: bool) -> Result<u64, Errno> {
        if !is_tls {
            return Ok(0);
        }
        next_open::open(readonly, exportname)?;
        Ok(WITH_TLS)
    }
}

impl Info for TlsFallback {
    fn get_size(&self) -> Result<u64, Errno> {
        if has_tls() { next::get_size() } else { Ok(SIZE as u64) }
    }

    fn block_size(&self) -> Result<BlockSizes, Errno> {
        if has_tls() { next::block_size() } else { Err(Errno::Enotsup) }
    }

    fn export_description(&self) -> Option<String> {
        if has_tls() { next::export_description() } else { None }
    }
}

impl Features for TlsFallback {
    fn can(&self, below: Capabilities) -> Result<Capabilities, Errno> {
        if has_tls() {
            return Ok(below);
        }
        let (no, none) = (false, Support::None);
        Ok(Capabilities {
            write: no,
            flush: no,
            rotational: no,
            trim: no,
            fast_zero: no,
            extents: no,
            multi_conn: no,
            zero: none,
            fua: none,
            cache: none,
        })
    }
}

impl Reads for TlsFallback {
    fn pread(&self, offset: u64, length: u32, _flags: CommandFlags) -> Result<(), Errno> {
        if has_tls() {
            return next::pread(offset, length, PAYLOAD, 0);
        }
        // The host has checked the range against the size.
        let begin = usize::try_from(offset).map_err(|_| Errno::Einval)?;
        let bytes = self.disk.get(begin..begin.saturating_add(length as usize)).ok_or(Errno::Einval)?;
        buffer::write(PAYLOAD, 0, bytes);
        Ok(())
    }
}

rbdkit_filter_sdk::export!(TlsFallback: lifecycle, names, connection, info, features, reads);

#[cfg(test)]
mod tests {
    use super::*;
    use rbdkit_filter_sdk::testing::{Disk, Host};

    #[test]
    fn a_client_without_tls_reads_the_message_and_opens_nothing() {
        let host = Host::new(Disk::pattern(8192)).serve::<TlsFallback>(&["tlsreadme=Use TLS."]).unwrap();
        let client = host.connect_to("secret").unwrap();
        assert_eq!(client.size(), 512);
        let read = client.pread(0, 512).unwrap();
        assert_eq!((&read[..8], &read[8..]), (&b"Use TLS."[..], &[0; 504][..]));
        assert_eq!(client.pread(4, 3).unwrap(), b"TLS");
        assert_eq!(client.pwrite(0, b"x", CommandFlags::empty()), Err(Errno::Erofs));
        assert_eq!(client.trim(0, 1, CommandFlags::empty()), Err(Errno::Erofs));
        assert_eq!(client.block_size().err(), Some(Errno::Enotsup));
        assert_eq!((host.list_exports().unwrap().len(), host.default_export()), (1, Ok(String::new())));
        assert_eq!(host.take_calls(), Vec::<String>::new());
    }
}
