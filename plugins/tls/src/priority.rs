//! GnuTLS's priority strings (`--tls-priority`), as far as they have a counterpart here.
//!
//! A string is a keyword, then items: `NORMAL:-VERS-ALL:+VERS-TLS1.3`. A keyword sets all
//! algorithms. `+` adds one, `-` and `!` remove one, `%` sets an option. What this crate cannot do
//! may be removed, but not added.

use crate::error::TlsError;

/// The algorithms that a session may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Priority {
    pub(crate) tls12: bool,
    pub(crate) tls13: bool,
    pub(crate) aes128: bool,
    pub(crate) aes256: bool,
    pub(crate) chacha20: bool,
    pub(crate) x25519: bool,
    pub(crate) secp256r1: bool,
    pub(crate) secp384r1: bool,
    /// The server's order of ciphers counts, and not the client's.
    pub(crate) server_order: bool,
}

/// The longest string, in bytes.
const MAX_LENGTH: usize = 4096;

/// What every session here has.
const ALWAYS: [&str; 14] = [
    "AEAD",
    "MAC-ALL",
    "SHA256",
    "SHA384",
    "SIGN-ALL",
    "COMP-ALL",
    "COMP-NULL",
    "CTYPE-ALL",
    "CTYPE-X509",
    "KX-ALL",
    "ECDHE-RSA",
    "ECDHE-ECDSA",
    "ECDHE-PSK",
    "CTYPE-X.509",
];

/// What no session here has, so that it is removed already.
const NEVER: [&str; 39] = [
    "VERS-SSL3.0",
    "VERS-TLS1.0",
    "VERS-TLS1.1",
    "VERS-DTLS-ALL",
    "VERS-DTLS0.9",
    "VERS-DTLS1.0",
    "VERS-DTLS1.2",
    "AES-128-CBC",
    "AES-192-CBC",
    "AES-256-CBC",
    "AES-128-CCM",
    "AES-256-CCM",
    "AES-128-CCM-8",
    "AES-256-CCM-8",
    "CAMELLIA-128-CBC",
    "CAMELLIA-256-CBC",
    "CAMELLIA-128-GCM",
    "CAMELLIA-256-GCM",
    "3DES-CBC",
    "ARCFOUR-128",
    "NULL",
    "RSA",
    "RSA-PSK",
    "DHE-RSA",
    "DHE-DSS",
    "DHE-PSK",
    "PSK",
    "SRP",
    "ANON-DH",
    "ANON-ECDH",
    "MD5",
    "SHA1",
    "CTYPE-RAWPK",
    "CTYPE-OPENPGP",
    "GROUP-SECP192R1",
    "GROUP-SECP224R1",
    "GROUP-SECP521R1",
    "GROUP-X448",
    "GROUP-DH-ALL",
];

impl Priority {
    const NONE: Priority = Priority {
        tls12: false,
        tls13: false,
        aes128: false,
        aes256: false,
        chacha20: false,
        x25519: false,
        secp256r1: false,
        secp384r1: false,
        server_order: false,
    };

    const NORMAL: Priority = Priority {
        tls12: true,
        tls13: true,
        aes128: true,
        aes256: true,
        chacha20: true,
        x25519: true,
        secp256r1: true,
        secp384r1: true,
        server_order: false,
    };

    /// Reads a priority string.
    ///
    /// # Errors
    /// One line that names the item that has no counterpart, or says what is missing.
    pub fn parse(text: &str) -> Result<Priority, TlsError> {
        if text.len() > MAX_LENGTH {
            return Err(TlsError::new("is longer than 4096 bytes"));
        }
        let mut items = text.split(':');
        let keyword = items.next().unwrap_or_default();
        let mut priority = Priority::of_keyword(keyword)?;
        items.try_for_each(|item| priority.apply(item))?;
        for (has, what) in [
            (priority.tls12 || priority.tls13, "no version of TLS"),
            (priority.aes128 || priority.aes256 || priority.chacha20, "no cipher"),
            (priority.x25519 || priority.secp256r1 || priority.secp384r1, "no group for the exchange of keys"),
        ] {
            if !has {
                return Err(TlsError::new(format!("leaves {what}")));
            }
        }
        Ok(priority)
    }

    fn of_keyword(keyword: &str) -> Result<Priority, TlsError> {
        match keyword {
            "NORMAL" | "PERFORMANCE" | "PFS" | "SECURE128" => Ok(Priority::NORMAL),
            "SECURE192" | "SECURE256" => {
                Ok(Priority { aes128: false, x25519: false, secp256r1: false, ..Priority::NORMAL })
            }
            "NONE" => Ok(Priority::NONE),
            _ if keyword.starts_with('@') => Err(TlsError::new(format!(
                "'{}' names a file of the system's policy, which is not read",
                shown(keyword)
            ))),
            _ => Err(TlsError::new(format!(
                "'{}' is none of NORMAL, PERFORMANCE, PFS, SECURE128, SECURE192, SECURE256 and NONE",
                shown(keyword)
            ))),
        }
    }

    fn apply(&mut self, item: &str) -> Result<(), TlsError> {
        let unknown = || TlsError::new(format!("'{}' has no counterpart here", shown(item)));
        let (add, name) = match item.split_at_checked(1) {
            Some(("+", name)) => (true, name),
            Some(("-" | "!", name)) => (false, name),
            Some(("%", "SERVER_PRECEDENCE")) => {
                self.server_order = true;
                return Ok(());
            }
            // There are no tickets and no renegotiation.
            Some(("%", "NO_TICKETS" | "NO_SESSION_TICKETS" | "SAFE_RENEGOTIATION" | "NO_TICKETS_TLS12")) => {
                return Ok(());
            }
            _ => return Err(unknown()),
        };
        let flags: &mut [&mut bool] = match name {
            "VERS-ALL" | "VERS-TLS-ALL" => &mut [&mut self.tls12, &mut self.tls13],
            "VERS-TLS1.2" => &mut [&mut self.tls12],
            "VERS-TLS1.3" => &mut [&mut self.tls13],
            "CIPHER-ALL" => &mut [&mut self.aes128, &mut self.aes256, &mut self.chacha20],
            "AES-128-GCM" => &mut [&mut self.aes128],
            "AES-256-GCM" => &mut [&mut self.aes256],
            "CHACHA20-POLY1305" => &mut [&mut self.chacha20],
            "GROUP-ALL" | "GROUP-EC-ALL" | "CURVE-ALL" => {
                &mut [&mut self.x25519, &mut self.secp256r1, &mut self.secp384r1]
            }
            "GROUP-X25519" | "CURVE-X25519" => &mut [&mut self.x25519],
            "GROUP-SECP256R1" | "CURVE-SECP256R1" => &mut [&mut self.secp256r1],
            "GROUP-SECP384R1" | "CURVE-SECP384R1" => &mut [&mut self.secp384r1],
            // Taken away and given back, as in `-KX-ALL:+ECDHE-RSA`, it stays.
            _ if ALWAYS.contains(&name) => &mut [],
            _ if !add && (NEVER.contains(&name) || name.starts_with("GROUP-FFDHE")) => &mut [],
            _ => return Err(unknown()),
        };
        flags.iter_mut().for_each(|flag| **flag = add);
        Ok(())
    }
}

impl Default for Priority {
    fn default() -> Priority {
        Priority::NORMAL
    }
}

/// An item for a message: cut, and without control characters.
fn shown(item: &str) -> String {
    item.chars().take(60).map(|c| if rbdkit_plugin_api::text::is_hidden(c) { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn strings_of_gnutls_are_understood() {
        let parse = |text| Priority::parse(text).unwrap();
        assert_eq!(parse("NORMAL"), Priority::default());
        let only_13 = Priority { tls12: false, ..Priority::default() };
        assert_eq!(parse("NORMAL:-VERS-ALL:+VERS-TLS1.3"), only_13);
        assert_eq!(parse("NORMAL:-VERS-TLS1.2"), only_13);
        assert_eq!(parse("NORMAL:+ECDHE-PSK:-VERS-TLS1.1:-GROUP-FFDHE2048:!SHA1"), Priority::default());
        assert!(parse("NORMAL:%SERVER_PRECEDENCE").server_order);
        let secure = parse("SECURE256");
        assert!(!secure.aes128 && secure.aes256 && secure.secp384r1 && !secure.x25519);
        let own = parse("NONE:+VERS-TLS1.3:+AES-256-GCM:+AEAD:+GROUP-X25519:+KX-ALL");
        let expected = Priority { tls13: true, aes256: true, x25519: true, ..Priority::NONE };
        assert_eq!(own, expected);
    }

    #[test]
    fn what_has_no_counterpart_is_refused_in_one_line() {
        for (text, wrong) in [
            ("", "'' is none of NORMAL"),
            ("LEGACY", "'LEGACY' is none of"),
            ("@SYSTEM", "'@SYSTEM' names a file"),
            ("NORMAL:+VERS-TLS1.1", "'+VERS-TLS1.1' has no counterpart"),
            ("NORMAL:+DHE-PSK", "'+DHE-PSK' has no counterpart"),
            ("NORMAL:%COMPAT", "'%COMPAT' has no counterpart"),
            ("NORMAL:", "'' has no counterpart"),
            ("NORMAL:AES-128-GCM", "'AES-128-GCM' has no counterpart"),
            ("NORMAL:-SIGN-RSA-SHA256", "'-SIGN-RSA-SHA256' has no counterpart"),
            ("NORMAL:-VERS-ALL", "leaves no version of TLS"),
            ("NORMAL:-CIPHER-ALL", "leaves no cipher"),
            ("NORMAL:-GROUP-ALL", "leaves no group"),
        ] {
            let error = Priority::parse(text).unwrap_err().to_string();
            assert!(error.starts_with(wrong), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_priority_or_one_line(
            text in "(NORMAL|NONE|SECURE256|.{0,8})(:[-+!%]?[A-Z0-9.-]{0,12}|:.{0,9}){0,6}",
        ) {
            match Priority::parse(&text) {
                Ok(priority) => prop_assert!(priority.tls12 || priority.tls13),
                Err(error) => prop_assert!(error.to_string().chars().all(|c| !c.is_control())),
            }
        }
    }
}
