//! What an NBD URI says of TLS: `nbds://USER@HOST?tls-psk-file=FILE`, for example.

use std::path::PathBuf;

use rbdkit_plugin_api::units;

use crate::tls_parameters::{TlsMode, TlsParameters};
use crate::uri::{UriError, decode};

/// Reads what a URI says of TLS. Without the scheme `nbds` it says nothing.
pub(crate) fn parse(uri: &str) -> Result<TlsParameters, UriError> {
    let mut parameters = TlsParameters::default();
    let (scheme, rest) = uri.split_once(':').ok_or(UriError::NotAUri)?;
    if !scheme.to_ascii_lowercase().starts_with("nbds") {
        return Ok(parameters);
    }
    parameters.mode = Some(TlsMode::Require);
    let rest = rest.trim_start_matches('/').split('#').next().unwrap_or_default();
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let authority = place.split('/').next().unwrap_or_default();
    if let Some((user, _)) = authority.rsplit_once('@') {
        // What follows the colon would be a password, which NBD does not have.
        parameters.username = Some(text(user.split(':').next().unwrap_or_default())?);
    }
    for pair in query.split(['&', ';']) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        match key {
            "tls-certificates" => parameters.certificates = Some(PathBuf::from(text(value)?)),
            "tls-psk-file" => parameters.psk = Some(PathBuf::from(text(value)?)),
            "tls-username" => parameters.username = Some(text(value)?),
            "tls-hostname" => parameters.hostname = Some(text(value)?),
            "tls-verify-peer" => {
                let value = text(value)?;
                let verify = units::parse_bool(&value).map_err(|_| UriError::NotABool(value))?;
                parameters.verify = Some(verify);
            }
            _ => {}
        }
    }
    Ok(parameters)
}

fn text(value: &str) -> Result<String, UriError> {
    String::from_utf8(decode(value)?).map_err(|_| UriError::TlsNotUtf8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_names_the_user_and_the_files_of_tls() {
        let none = TlsParameters::default();
        assert_eq!(parse("nbd://alice@host?tls-psk-file=/k").unwrap(), none);
        let required = TlsParameters { mode: Some(TlsMode::Require), ..none };
        assert_eq!(parse("nbds://host").unwrap(), required);
        let keys = TlsParameters { username: Some("al ice".into()), psk: Some("/k&".into()), ..required.clone() };
        assert_eq!(parse("NBDS+unix://al%20ice:secret@/e?socket=/s&tls-psk-file=/k%26#x").unwrap(), keys);
        let certificates = TlsParameters {
            certificates: Some("/c".into()),
            hostname: Some("h".into()),
            verify: Some(false),
            ..required
        };
        let uri = "nbds://host/a@b?tls-certificates=/c;tls-hostname=h;tls-verify-peer=false";
        assert_eq!(parse(uri).unwrap(), certificates);
        assert_eq!(parse("nbds://h?tls-verify-peer=perhaps"), Err(UriError::NotABool("perhaps".into())));
        assert_eq!(parse("nbds://h?tls-hostname=%ff"), Err(UriError::TlsNotUtf8));
    }
}
