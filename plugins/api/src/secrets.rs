//! Keeps secrets out of messages.

/// A value for a message: user and password of a URL are replaced by `***`.
///
/// A URL with a mistake may have them at a wrong place. So everything is replaced up to the last
/// `@`, except the scheme. Without an `@`, what stands in place of the port is replaced if it is no
/// number.
#[must_use]
pub fn without_userinfo(value: &str) -> String {
    let scheme = value.find("://").map_or(0, |at| at + 3);
    match value.rfind('@') {
        // A name with an '@' in it, such as that of a systemd unit, is no URL.
        Some(at) if scheme > at || scheme == 0 && !value[..at].contains(':') => return value.to_owned(),
        Some(at) => return format!("{}***{}", &value[..scheme], &value[at..]),
        None if scheme == 0 || value[scheme..].starts_with('[') => return value.to_owned(),
        None => {}
    }
    let end = value[scheme..].find(['/', '?', '#']).map_or(value.len(), |at| scheme + at);
    match value[scheme..end].split_once(':') {
        Some((host, port)) if !port.bytes().all(|byte| byte.is_ascii_digit()) => {
            format!("{}{host}:***{}", &value[..scheme], &value[end..])
        }
        _ => value.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_and_password_are_not_shown_wherever_they_stand_in_a_url() {
        for (value, shown) in [
            ("nbd://user:hush@host/disk", "nbd://***@host/disk"),
            ("nbd://hush@host:0/disk", "nbd://***@host:0/disk"),
            ("nbd://user:hu/sh@host/disk", "nbd://***@host/disk"),
            ("nbd://user:hu@sh@host", "nbd://***@host"),
            ("nbd:user:hush@host", "***@host"),
            ("user:hush@host", "***@host"),
            ("nbd://user:hush", "nbd://user:***"),
            ("nbd://user:hush/disk?a:b", "nbd://user:***/disk?a:b"),
            ("nbd://host:10809/a:b", "nbd://host:10809/a:b"),
            ("nbd://[::1]:x/disk", "nbd://[::1]:x/disk"),
            ("nbd://host/disk", "nbd://host/disk"),
            ("/images/disk@1.img", "/images/disk@1.img"),
            ("", ""),
        ] {
            assert_eq!(without_userinfo(value), shown, "{value}");
        }
    }
}
