//! The files and network ports that requests open.

use std::path::PathBuf;

use rbdkit_plugin_api::{AccessRights, DNS_PORT, Network};

use crate::config::{Service, Settings};

/// Environment variables with the address of a service that gives out credentials.
const ADDRESSES: &[&str] =
    &["AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_METADATA_ENDPOINT", "IDENTITY_ENDPOINT", "AZURE_MSI_ENDPOINT"];

/// Environment variables with the file of a token, which is replaced from time to time.
const TOKENS: &[&str] =
    &["AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "AZURE_FEDERATED_TOKEN_FILE"];

/// Environment variables with the address of a store.
const ENDPOINTS: &[&str] =
    &["AWS_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "GOOGLE_BASE_URL", "AZURE_ENDPOINT"];

/// What a server with these settings opens once it is confined.
pub(crate) fn access_rights(settings: &Settings) -> AccessRights {
    if settings.service == Service::File {
        return AccessRights { read: vec![PathBuf::from(&settings.bucket)], ..AccessRights::default() };
    }
    let is_set = |name: &&&str| std::env::var_os(name).is_some();
    let port = settings.endpoint.as_deref().map(port);
    let elsewhere = ADDRESSES.iter().any(|name| is_set(&name))
        || (port.is_none()
            && (ENDPOINTS.iter().any(|name| is_set(&name)) || settings.service == Service::S3 && has_profile()));
    let network = match elsewhere {
        true => Network::Any,
        // The services for credentials: those of the provider, and those of the machine.
        false => Network::Ports(vec![port.unwrap_or(443), 443, 80, DNS_PORT]),
    };
    // A token that is replaced is another file, so its directory may be read.
    let tokens = TOKENS.iter().filter_map(std::env::var_os).map(PathBuf::from);
    let read = tokens.filter_map(|path| path.parent().map(PathBuf::from)).collect();
    AccessRights { read, network, ..AccessRights::default() }.with_name_lookup().with_certificates()
}

/// Whether a profile may name another address.
fn has_profile() -> bool {
    crate::store::profile_endpoint().is_some()
}

/// The port of an address.
fn port(address: &str) -> u16 {
    let uri = address.parse::<http::Uri>().ok();
    let is_plain = address.starts_with("http://");
    uri.and_then(|uri| uri.port_u16()).unwrap_or(if is_plain { 80 } else { 443 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_that_of_the_address() {
        assert_eq!(port("http://127.0.0.1:9000"), 9000);
        assert_eq!(port("http://[::1]:9000/x"), 9000);
        assert_eq!(port("https://host"), 443);
        assert_eq!(port("http://host"), 80);
    }
}
