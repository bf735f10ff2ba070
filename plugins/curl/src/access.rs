//! The files and network ports that requests open.

use std::path::{Path, PathBuf};

use rbdkit_plugin_api::{AccessRights, DNS_PORT, Network};

use crate::config::{Settings, is_https};

/// Environment variables that name a proxy.
const PROXIES: &[&str] = &["http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"];

/// What a server with these settings opens once it is confined.
pub(crate) fn access_rights(settings: &Settings) -> AccessRights {
    let files = [&settings.cainfo, &settings.capath, &settings.cookiefile];
    let read: Vec<PathBuf> = files.into_iter().flatten().filter(|path| *path != Path::new("")).cloned().collect();
    let proxy = settings.proxy.is_some() || PROXIES.iter().any(|name| std::env::var_os(name).is_some());
    let network = match (&settings.unix_socket_path, settings.followlocation || proxy, port(&settings.url)) {
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

/// The port of a URL, if the URL makes sense.
fn port(url: &str) -> Option<u16> {
    let (_, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let after = match host.rsplit_once(']') {
        Some((_, after)) => after,
        None => &host[host.find(':').unwrap_or(host.len())..],
    };
    match after.strip_prefix(':') {
        None | Some("") => Some(if is_https(url) { 443 } else { 80 }),
        Some(digits) => digits.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(change: impl FnOnce(&mut Settings)) -> Network {
        let mut settings = Settings { url: "https://me:p@host/disk?at=1:2".into(), ..Settings::default() };
        // A proxy in the environment of the tests would count.
        settings.followlocation = false;
        change(&mut settings);
        access_rights(&settings).network
    }

    #[test]
    fn the_port_of_a_url_is_known_unless_it_makes_no_sense() {
        for (url, expected) in [
            ("http://host/disk:7", Some(80)),
            ("HTTPS://host", Some(443)),
            ("https://me:secret@host:8443/disk", Some(8443)),
            ("http://[::1]/disk", Some(80)),
            ("http://[::1]:81?x", Some(81)),
            ("http://host:/disk", Some(80)),
            ("http://host:70000/disk", None),
            ("http://host:8%30/disk", None),
        ] {
            assert_eq!(port(url), expected, "{url}");
        }
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
