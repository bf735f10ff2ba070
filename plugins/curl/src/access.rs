//! The files and network ports that requests open.

use std::path::{Path, PathBuf};

use rbdkit_plugin_api::{AccessRights, DNS_PORT, Network};

use crate::config::Settings;
use crate::scheme::Scheme;

/// Environment variables that name a proxy.
const PROXIES: &[&str] = &["http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"];

/// What a server with these settings opens once it is confined.
pub(crate) fn access_rights(settings: &Settings) -> AccessRights {
    let files = [&settings.cainfo, &settings.capath, &settings.proxy_cainfo, &settings.proxy_capath];
    let disk = settings.address.as_ref().and_then(|address| address.path.as_ref());
    let read: Vec<PathBuf> =
        files.into_iter().flatten().chain(disk).filter(|path| *path != Path::new("")).cloned().collect();
    let proxy = settings.proxy.is_some() || PROXIES.iter().any(|name| std::env::var_os(name).is_some());
    let port = settings.address.as_ref().map(|address| address.origin.port);
    let scheme = settings.address.as_ref().map(|address| address.origin.scheme);
    // The data of FTP come over a port that the server names.
    let any = settings.followlocation || proxy || matches!(scheme, Some(Scheme::Ftp | Scheme::Ftps));
    let network = match (&settings.unix_socket_path, any, port) {
        _ if scheme == Some(Scheme::File) => Network::None,
        (Some(_), _, _) => Network::None,
        // Only the server knows where its redirects lead.
        (None, false, Some(port)) => Network::Ports(vec![port, DNS_PORT]),
        (None, _, _) => Network::Any,
    };
    // The public suffix list tells libcurl for which domains a server may set cookies.
    AccessRights { read, network, ..AccessRights::default() }
        .with_name_lookup()
        .with_certificates()
        .with_read(&["/usr/share/publicsuffix"])
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::address::Address;

    fn network(change: impl FnOnce(&mut Settings)) -> Network {
        let address = Address::parse(b"https://me:p@host/disk?at=1:2").ok().map(Arc::new);
        let mut settings = Settings { address, ..Settings::default() };
        // A proxy in the environment of the tests would count.
        settings.followlocation = false;
        change(&mut settings);
        access_rights(&settings).network
    }

    #[test]
    fn only_what_may_lead_anywhere_may_connect_to_anybody() {
        if PROXIES.iter().all(|name| std::env::var_os(name).is_none()) {
            assert_eq!(network(|_| {}), Network::Ports(vec![443, DNS_PORT]));
        }
        assert_eq!(network(|settings| settings.followlocation = true), Network::Any);
        assert_eq!(network(|settings| settings.proxy = Some("http://proxy:3128".into())), Network::Any);
        assert_eq!(network(|settings| settings.unix_socket_path = Some("/run/web".into())), Network::None);
    }
}
