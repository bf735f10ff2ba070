//! The info plugin: a small disk that tells its client about the client and the server.
//!
//! What a client sends comes back at most once, so a client gets no more than it sent.
#![forbid(unsafe_code)]

mod mode;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rbdkit_plugin_api::schema::ParamSpec;
use rbdkit_plugin_api::{
    AccessRights, BoxFuture, Buffer, Capabilities, ConfigError, Disk, DiskId, Done, Handle, Op, OpenArgs, Param,
    Plugin, PluginInfo, Result, Span, Support, ThreadModel,
};

use mode::{Mode, Told};

/// What the registry needs to know.
pub const INFO: PluginInfo = PluginInfo {
    name: "info",
    longname: "rbdkit info plugin",
    description: "A disk that tells about the client and the server",
    params,
    other_keys: None,
    max_thread_model: ThreadModel::Parallel,
    make: || Box::new(Info { mode: Mode::ExportName, started: Instant::now() }),
};

fn params() -> Vec<ParamSpec> {
    vec![
        ParamSpec::string("mode")
            .magic()
            .placeholder("MODE")
            .default_value("exportname")
            .help("What the disk tells: exportname, base64exportname, address, time, uptime, conntime or version"),
    ]
}

struct Info {
    mode: Mode,
    started: Instant,
}

impl Plugin for Info {
    fn config(&mut self, param: Param<'_>) -> Result<(), ConfigError> {
        match param.key {
            "mode" => self.mode = Mode::parse(param.text()?).ok_or_else(|| param.not_one_of(&Mode::NAMES))?,
            _ => return Err(param.unknown("info")),
        }
        Ok(())
    }

    fn optional_functions(&self) -> Vec<&'static str> {
        vec!["load", "dump_plugin", "close", "can_multi_conn", "can_cache"]
    }

    fn dump_plugin(&self) -> Vec<(String, String)> {
        ["info_address", "info_base64"].map(|key| (key.to_string(), "yes".to_string())).into()
    }

    fn access_rights(&self) -> Option<AccessRights> {
        Some(AccessRights::default())
    }

    fn open(&self, args: OpenArgs) -> BoxFuture<'_, Result<Arc<dyn Handle>>> {
        let content = match self.mode.told(&args.exportname, &args.client.peer) {
            Ok(Told::Bytes(bytes)) => Ok(Content::Bytes(bytes)),
            Ok(Told::Time) => Ok(Content::Time),
            Ok(Told::SinceStart) => Ok(Content::Since(self.started)),
            Ok(Told::SinceOpen) => Ok(Content::Since(Instant::now())),
            Err(error) => Err(error),
        };
        let mode = self.mode;
        Box::pin(async move { Ok(Arc::new(InfoHandle { content: content?, mode }) as Arc<dyn Handle>) })
    }
}

/// What one connection reads.
enum Content {
    Bytes(Vec<u8>),
    /// The time of day, in 12 bytes.
    Time,
    /// The time since then, in 12 bytes.
    Since(Instant),
}

struct InfoHandle {
    content: Content,
    mode: Mode,
}

/// Seconds in 64 bits and microseconds in 32 bits, both big endian.
fn encode(time: Duration) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&time.as_secs().to_be_bytes());
    bytes[8..].copy_from_slice(&time.subsec_micros().to_be_bytes());
    bytes
}

impl Handle for InfoHandle {
    fn get_size(&self) -> Op<Result<u64>> {
        Op::Ready(Ok(match &self.content {
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::Time | Content::Since(_) => 12,
        }))
    }

    fn can(&self) -> Op<Result<Capabilities>> {
        // Two connections of a client agree only on its export name and on the version.
        let multi_conn = matches!(self.mode, Mode::ExportName | Mode::Base64ExportName | Mode::Version);
        Op::Ready(Ok(Capabilities { multi_conn, cache: Support::Native, ..Capabilities::READ_ONLY }))
    }

    fn disk(&self) -> BoxFuture<'_, Result<Disk>> {
        Box::pin(async {
            Ok(match (&self.content, self.mode) {
                (_, Mode::ExportName | Mode::Base64ExportName) => Disk::ByName(DiskId::DEFAULT),
                (Content::Bytes(bytes), Mode::Address) => Disk::Is(DiskId::named(&String::from_utf8_lossy(bytes))),
                _ => Disk::Is(DiskId::DEFAULT),
            })
        })
    }

    fn pread(&self, mut buffer: Buffer, span: Span, offset: u64) -> Op<Done> {
        let time;
        let bytes: &[u8] = match &self.content {
            Content::Bytes(bytes) => bytes,
            Content::Time => {
                time = encode(SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default());
                &time
            }
            Content::Since(begin) => {
                time = encode(begin.elapsed());
                &time
            }
        };
        // The gate has checked that the range lies within the disk.
        buffer.put(span.at, &bytes[offset as usize..][..span.len as usize]);
        Op::Ready((buffer, Ok(())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_big_endian_and_whole_microseconds() {
        let time = Duration::new(0x5d8f_24c7, 271_361_999);
        assert_eq!(encode(time), [0, 0, 0, 0, 0x5d, 0x8f, 0x24, 0xc7, 0, 0x04, 0x24, 0x01]);
    }

    #[test]
    fn an_unknown_mode_is_answered_with_those_there_are() {
        let mut info = Info { mode: Mode::ExportName, started: Instant::now() };
        let error = info.config(Param { key: "mode", value: "x".as_ref() }).unwrap_err().to_string();
        let modes = "exportname, base64exportname, address, time, uptime, conntime, version";
        assert_eq!(error, format!("mode=x: is not one of {modes}"));
    }

    #[test]
    fn a_part_of_the_bytes_can_be_read() {
        let handle = InfoHandle { content: Content::Bytes(b"hello".to_vec()), mode: Mode::ExportName };
        let span = Span::new(2, 3);
        let Op::Ready((mut buffer, result)) = handle.pread(Buffer::new(8), span, 1) else { panic!("it does not wait") };
        result.unwrap();
        assert_eq!(buffer.bytes(span), b"ell");
    }
}
