//! What of the system a request opens: files, and whom it connects to.

use std::path::{Path, PathBuf};

use rbdkit_plugin_api::{DNS, Network, Reach};

use crate::config::{Settings, is_https};

/// Variables that lead requests to a proxy.
const PROXIES: &[&str] = &["http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"];

pub(crate) fn of(settings: &Settings) -> Reach {
    let files = [&settings.cainfo, &settings.capath, &settings.cookiefile];
    let read: Vec<PathBuf> = files.into_iter().flatten().filter(|path| *path != Path::new("")).cloned().collect();
    let proxy = settings.proxy.is_some() || PROXIES.iter().any(|name| std::env::var_os(name).is_some());
    let network = match (&settings.unix_socket_path, settings.followlocation || proxy, port(&settings.url)) {
        (Some(_), _, _) => Network::Nobody,
        // Where redirects lead, only the server knows.
        (None, false, Some(port)) => Network::Ports(vec![port, DNS]),
        (None, _, _) => Network::Anybody,
    };
    // The third says to whom a server may set cookies.
    Reach { read, network, ..Reach::default() }.to_names().to_certificates().and(&["/usr/share/publicsuffix"])
}

/// The port of a URL, if it is certain.
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
        // The proxy of whoever runs the tests would count.
        settings.followlocation = false;
        change(&mut settings);
        of(&settings).network
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
            assert_eq!(network(|_| {}), Network::Ports(vec![443, DNS]));
        }
        assert_eq!(network(|settings| settings.followlocation = true), Network::Anybody);
        assert_eq!(network(|settings| settings.proxy = Some("http://proxy:3128".into())), Network::Anybody);
        assert_eq!(network(|settings| settings.unix_socket_path = Some("/run/web".into())), Network::Nobody);
    }
}
