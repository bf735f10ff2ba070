//! URLs for messages, without what may be a secret: user, password, query and fragment.
//!
//! A query often carries a token (a signed URL of S3). Messages go to the log and, in a structured
//! reply, to the client.

use rbdkit_plugin_api::text::one_line_within;

/// The longest text of a server or of libcurl in a message, in bytes.
pub(crate) const MAX_SHOWN: usize = 300;

/// What stands for a secret.
const HIDDEN: &str = "***";

/// A URL, which need not be valid, without its secrets.
pub(crate) fn url(text: &str) -> String {
    let (scheme, rest) = match text.split_once("://") {
        Some((scheme, rest)) => (scheme, rest),
        // Without a scheme it may be `USER:PASSWORD@HOST`.
        None if text.contains('@') => return HIDDEN.into(),
        None => return shown(before_query(text)),
    };
    let is_scheme = scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
    let scheme = if is_scheme && scheme.len() <= 20 { scheme } else { HIDDEN };
    let (authority, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    if tail.contains('@') {
        // A password that is not escaped may contain a slash. Then only the last @ ends it.
        return format!("{scheme}://{HIDDEN}");
    }
    let authority = match authority.rsplit_once('@') {
        Some((_, host)) => format!("{HIDDEN}@{host}"),
        None => authority.to_string(),
    };
    shown(&format!("{scheme}://{authority}{}", before_query(tail)))
}

/// A message of libcurl, in which each word that is a URL is replaced by [`url`].
pub(crate) fn message(text: &str) -> String {
    let words: Vec<String> = text
        .split(' ')
        .map(|word| if word.contains("://") { url(word.trim_matches(['\'', '"'])) } else { word.to_string() })
        .collect();
    shown(&words.join(" "))
}

/// Untrusted text as a part of one line.
pub(crate) fn shown(text: &str) -> String {
    one_line_within(text, MAX_SHOWN)
}

/// The text before the query or fragment.
fn before_query(text: &str) -> &str {
    text.split(['?', '#']).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_part_of_a_url_that_may_be_a_secret_is_shown() {
        for (text, expected) in [
            ("ftp://u:SECRET@h/x", "ftp://***@h/x"),
            ("http://SECRET@h:80/x?token=SECRET#SECRET", "http://***@h:80/x"),
            ("http://h/x?mail=a@b&token=SECRET", "http://***"),
            ("http://u:SEC/RET@h/x", "http://***"),
            ("http://u:SEC?RET@h/x", "http://***"),
            ("http://u:SEC#RET@h/x", "http://***"),
            ("http://u:SEC@RET@h/x", "http://***@h/x"),
            ("u:SECRET@h/x", "***"),
            ("u:SECRET@://h/x", "***://h/x"),
            ("disk.img?SECRET", "disk.img"),
            ("http://h/a\nb", "http://h/a\\nb"),
        ] {
            assert_eq!(url(text), expected);
            assert!(!url(text).contains("SEC"), "{text}");
        }
        assert_eq!(
            message("Unsupported proxy scheme for 'ftp://u:SECRET@h?SECRET'"),
            "Unsupported proxy scheme for ftp://***@h"
        );
        assert!(shown(&"x".repeat(1000)).len() < 400);
    }
}
