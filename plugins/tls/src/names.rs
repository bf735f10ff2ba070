//! The names of subject and issuer in a certificate, as RFC 4514 writes them: the most specific
//! part first, `CN=client,O=Company,C=DE`. GnuTLS writes them in the same form.
//!
//! A certificate comes from the client. rustls has verified it, but has not looked at its names. So
//! the reader takes nothing for granted: a name that it does not understand is none.

use std::fmt::Write;

/// The longest name, in bytes of text.
const MAX_NAME: usize = 4096;

/// The most parts of a name.
const MAX_PARTS: usize = 64;

const INTEGER: u8 = 0x02;
const OBJECT_IDENTIFIER: u8 = 0x06;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
/// The version of a certificate, which only certificates of version 1 lack.
const VERSION: u8 = 0xa0;

/// A reader of DER: tags with lengths.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The next value: its tag, its content, and all of its bytes.
    fn next(&mut self) -> Option<(u8, &'a [u8], &'a [u8])> {
        let whole = self.0;
        let (&tag, rest) = whole.split_first()?;
        let (&first, mut rest) = rest.split_first()?;
        // Tags of more than one byte do not occur in names.
        if tag & 0x1f == 0x1f {
            return None;
        }
        let length = match first {
            0..=0x7f => usize::from(first),
            0x81..=0x84 => {
                let (bytes, after) = rest.split_at_checked(usize::from(first & 0x7f))?;
                rest = after;
                bytes.iter().fold(0_usize, |length, byte| length << 8 | usize::from(*byte))
            }
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, content, &whole[..whole.len() - rest.len()]))
    }

    /// The content of the next value, which has to have this tag.
    fn expect(&mut self, tag: u8) -> Option<&'a [u8]> {
        let (found, content, _) = self.next()?;
        (found == tag).then_some(content)
    }
}

/// The names of subject and issuer of a certificate.
pub(crate) fn subject_and_issuer(certificate: &[u8]) -> Option<(String, String)> {
    let (subject, issuer) = raw_names(certificate)?;
    Some((name(subject)?, name(issuer)?))
}

/// The parts of the names of subject and issuer, as they stand in a certificate.
fn raw_names(certificate: &[u8]) -> Option<(&[u8], &[u8])> {
    let signed = Der(certificate).expect(SEQUENCE)?;
    let mut fields = Der(Der(signed).expect(SEQUENCE)?);
    if fields.0.first() == Some(&VERSION) {
        fields.next()?;
    }
    let _serial_number = fields.expect(INTEGER)?;
    let _algorithm = fields.expect(SEQUENCE)?;
    let issuer = fields.expect(SEQUENCE)?;
    let _validity = fields.expect(SEQUENCE)?;
    let subject = fields.expect(SEQUENCE)?;
    Some((subject, issuer))
}

/// The common names of a certificate's subject, for one that names its server in no other way.
pub(crate) fn common_names(certificate: &[u8]) -> Vec<String> {
    let mut names = Vec::new();
    let mut parts = Der(raw_names(certificate).map_or(&[], |(subject, _)| subject));
    while let Some(part) = parts.expect(SET) {
        let Some(pair) = Der(part).expect(SEQUENCE) else { continue };
        let mut pair = Der(pair);
        if pair.expect(OBJECT_IDENTIFIER) == Some(&[0x55, 4, 3])
            && let Some((tag, content, _)) = pair.next()
        {
            names.extend(text(tag, content));
        }
    }
    names
}

fn name(parts: &[u8]) -> Option<String> {
    let mut reader = Der(parts);
    let mut written = Vec::new();
    while !reader.0.is_empty() {
        let mut part = Der(reader.expect(SET)?);
        let mut pairs = Vec::new();
        while !part.0.is_empty() {
            let mut pair = Der(part.expect(SEQUENCE)?);
            let kind = pair.expect(OBJECT_IDENTIFIER)?;
            let (tag, content, all) = pair.next()?;
            pairs.push(attribute(kind, tag, content, all)?);
        }
        written.push(pairs.join("+"));
        if written.len() > MAX_PARTS {
            return None;
        }
    }
    written.reverse();
    let name = written.join(",");
    (name.len() <= MAX_NAME).then_some(name)
}

fn attribute(kind: &[u8], tag: u8, content: &[u8], all: &[u8]) -> Option<String> {
    let known = short_name(kind);
    let mut written = match known {
        Some(short) => short.to_string(),
        None => dotted(kind)?,
    };
    written.push('=');
    match text(tag, content).filter(|_| known.is_some()) {
        Some(text) => escape(&text, &mut written),
        // What is no text is written as its bytes.
        None => {
            written.push('#');
            all.iter().try_for_each(|byte| write!(written, "{byte:02x}")).ok()?;
        }
    }
    Some(written)
}

/// The short names that GnuTLS writes.
fn short_name(kind: &[u8]) -> Option<&'static str> {
    Some(match kind {
        [0x55, 4, 3] => "CN",
        [0x55, 4, 4] => "surName",
        [0x55, 4, 5] => "serialNumber",
        [0x55, 4, 6] => "C",
        [0x55, 4, 7] => "L",
        [0x55, 4, 8] => "ST",
        [0x55, 4, 9] => "street",
        [0x55, 4, 10] => "O",
        [0x55, 4, 11] => "OU",
        [0x55, 4, 12] => "title",
        [0x55, 4, 13] => "description",
        [0x55, 4, 17] => "postalCode",
        [0x55, 4, 41] => "name",
        [0x55, 4, 42] => "givenName",
        [0x55, 4, 43] => "initials",
        [0x55, 4, 65] => "pseudonym",
        [0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 1] => "UID",
        [0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 25] => "DC",
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 1] => "EMAIL",
        _ => return None,
    })
}

/// An object identifier in numbers with dots.
fn dotted(kind: &[u8]) -> Option<String> {
    let mut numbers = Vec::new();
    let mut number = 0_u64;
    for byte in kind {
        number = number.checked_mul(128)? | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            match numbers.is_empty() {
                true => numbers.extend([(number / 40).min(2), number - 40 * (number / 40).min(2)]),
                false => numbers.push(number),
            }
            number = 0;
        }
    }
    let ended = kind.last().is_some_and(|byte| byte & 0x80 == 0);
    ended.then(|| numbers.iter().map(u64::to_string).collect::<Vec<_>>().join("."))
}

/// The text of a string value.
fn text(tag: u8, content: &[u8]) -> Option<String> {
    match tag {
        // UTF8String, NumericString, PrintableString, IA5String.
        0x0c | 0x12 | 0x13 | 0x16 => String::from_utf8(content.to_vec()).ok(),
        // TeletexString, which everybody writes as Latin 1.
        0x14 => Some(content.iter().map(|byte| char::from(*byte)).collect()),
        // BMPString.
        0x1e => {
            let (pairs, []) = content.as_chunks::<2>() else { return None };
            String::from_utf16(&pairs.iter().map(|pair| u16::from_be_bytes(*pair)).collect::<Vec<_>>()).ok()
        }
        _ => None,
    }
}

/// Escapes what is special in a name. A control character becomes its bytes in hexadecimal digits,
/// so that a name is always one line.
fn escape(text: &str, to: &mut String) {
    let last = text.chars().count().saturating_sub(1);
    for (at, c) in text.chars().enumerate() {
        let special = matches!(c, ',' | '+' | '"' | '\\' | '<' | '>' | ';')
            || (c == '#' && at == 0)
            || (c == ' ' && (at == 0 || at == last));
        if special {
            to.push('\\');
            to.push(c);
        } else if c.is_control() {
            let mut bytes = [0; 4];
            for byte in c.encode_utf8(&mut bytes).bytes() {
                let _ = write!(to, "\\{byte:02x}");
            }
        } else {
            to.push(c);
        }
    }
}

#[cfg(test)]
mod tests {
    use openssl::asn1::Asn1Time;
    use openssl::ec::{EcGroup, EcKey};
    use openssl::hash::MessageDigest;
    use openssl::nid::Nid;
    use openssl::pkey::PKey;
    use openssl::x509::{X509Builder, X509NameBuilder};
    use proptest::prelude::*;

    use super::*;

    fn certificate(subject: &[(&str, &str)], issuer: &[(&str, &str)]) -> Vec<u8> {
        let name = |parts: &[(&str, &str)]| {
            let mut name = X509NameBuilder::new().unwrap();
            parts.iter().for_each(|(kind, text)| name.append_entry_by_text(kind, text).unwrap());
            name.build()
        };
        let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
        let key = PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap();
        let mut builder = X509Builder::new().unwrap();
        builder.set_version(2).unwrap();
        builder.set_subject_name(&name(subject)).unwrap();
        builder.set_issuer_name(&name(issuer)).unwrap();
        builder.set_pubkey(&key).unwrap();
        builder.set_not_before(&Asn1Time::days_from_now(0).unwrap()).unwrap();
        builder.set_not_after(&Asn1Time::days_from_now(1).unwrap()).unwrap();
        builder.sign(&key, MessageDigest::sha256()).unwrap();
        builder.build().to_der().unwrap()
    }

    #[test]
    fn names_are_written_as_in_the_example_of_nbdkit() {
        let subject =
            [("C", "US"), ("ST", "New York"), ("L", "New York"), ("O", "BigCo"), ("CN", "client.example.com")];
        let der = certificate(&subject, &[("CN", "BigCo")]);
        let expected = ("CN=client.example.com,O=BigCo,L=New York,ST=New York,C=US", "CN=BigCo");
        assert_eq!(subject_and_issuer(&der), Some((expected.0.to_string(), expected.1.to_string())));
        assert_eq!(common_names(&der), ["client.example.com"]);
    }

    #[test]
    fn what_is_special_is_escaped() {
        let der = certificate(&[("CN", " a,b+c=\"d\" #\\ "), ("O", "#x\ny"), ("OU", "é")], &[]);
        let (subject, issuer) = subject_and_issuer(&der).unwrap();
        assert_eq!(subject, "OU=é,O=\\#x\\0ay,CN=\\ a\\,b\\+c=\\\"d\\\" #\\\\\\ ");
        assert_eq!(issuer, "");
    }

    #[test]
    fn an_unknown_kind_is_written_in_numbers() {
        assert_eq!(dotted(&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 2]).unwrap(), "1.2.840.113549.1.9.2");
        assert_eq!(dotted(&[0x88, 0x37, 3]).unwrap(), "2.999.3");
        assert_eq!((dotted(&[0x2a, 0x86]), dotted(&[0xff; 20])), (None, None));
    }

    proptest! {
        #[test]
        fn any_change_of_a_certificate_is_a_name_or_none(at in 0usize..600, byte in any::<u8>(), cut in 0usize..600) {
            let mut der = certificate(&[("CN", "a"), ("O", "b")], &[("CN", "c")]);
            let length = der.len();
            der[at % length] = byte;
            der.truncate(if cut % 2 == 0 { length } else { cut.min(length) });
            if let Some((subject, issuer)) = subject_and_issuer(&der) {
                prop_assert!(subject.len() + issuer.len() <= 2 * MAX_NAME);
                prop_assert!(!subject.contains('\n') && !issuer.contains('\n'));
            }
        }
    }
}
