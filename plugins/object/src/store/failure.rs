//! Why a request to a store failed, and whether to try it again.

use http::StatusCode;
use rbdkit_plugin_api::text::one_line_within;
use rbdkit_plugin_api::{Errno, Error};

use crate::http::attempt::Seen;

/// The longest text of a store in a message, in bytes.
const MAX_SHOWN: usize = 300;

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// There is no such object.
    Missing,
    /// The object is not the one that the request's condition names.
    Changed,
    /// The object has no bytes in the range.
    NoSuchRange,
    /// It may work the next time.
    Transient(String),
    /// The credentials have expired: new ones may work.
    Expired(String),
    /// The bucket is in another region.
    Elsewhere(String),
    /// It will not work.
    Final(Errno, String),
}

impl Failure {
    /// The failure of a call of object_store. `seen` is what the HTTP client saw of it.
    pub(crate) fn new(error: &object_store::Error, seen: &Seen) -> Failure {
        use object_store::Error as E;
        let text = error.to_string();
        let said = said(&text, seen);
        if let Some(status) = seen.status {
            return of_answer(status, seen, &text, said);
        }
        match error {
            E::NotFound { .. } => Failure::Missing,
            E::Precondition { .. } | E::AlreadyExists { .. } => Failure::Changed,
            E::NotSupported { .. } | E::NotImplemented { .. } => Failure::Final(Errno::Enotsup, said),
            E::PermissionDenied { .. } | E::Unauthenticated { .. } => Failure::Final(Errno::Eperm, said),
            E::InvalidPath { .. } | E::UnknownConfigurationKey { .. } => Failure::Final(Errno::Einval, said),
            // Nothing came back: the connection failed, or the credentials could not be had.
            _ => Failure::Transient(said),
        }
    }

    /// The error of a request. `what` is what was to be done.
    pub(crate) fn into_error(self, what: &str) -> Error {
        let (errno, text) = match self {
            Failure::Missing => (Errno::Enoent, "there is no such object, or no such bucket".to_owned()),
            Failure::Changed => (Errno::Eio, "the object has changed at the store".to_owned()),
            Failure::NoSuchRange => (Errno::Eio, "the object is shorter than it was".to_owned()),
            Failure::Transient(text) => (Errno::Eio, text),
            Failure::Expired(text) => (Errno::Eperm, text),
            Failure::Elsewhere(region) => {
                (Errno::Eio, format!("the bucket is in the region {region}: region={region} would be right"))
            }
            Failure::Final(errno, text) => (errno, text),
        };
        Error::new(errno, format!("object: {what}: {text}"))
    }
}

/// The failure of a request that was answered.
fn of_answer(status: StatusCode, seen: &Seen, text: &str, said: String) -> Failure {
    let has = |code: &str| text.contains(code);
    match status.as_u16() {
        _ if has("ExpiredToken") || has("TokenRefreshRequired") => Failure::Expired(said),
        _ if has("RequestTimeTooSkewed") => {
            Failure::Final(Errno::Eperm, format!("{said} (the clock of this machine differs from the store's)"))
        }
        _ if has("NoSuchBucket") || has("ContainerNotFound") => Failure::Final(Errno::Enoent, said),
        301 | 302 | 307 | 308 | 400 if seen.region.is_some() => {
            Failure::Elsewhere(one_line_within(seen.region.as_deref().unwrap_or_default(), 64))
        }
        // The store was busy with another conditional request for this object.
        409 if has("ConditionalRequestConflict") || has("OperationAborted") => Failure::Transient(said),
        404 => Failure::Missing,
        409 | 412 => Failure::Changed,
        416 => Failure::NoSuchRange,
        401 | 403 => Failure::Final(Errno::Eperm, said),
        501 => Failure::Final(Errno::Enotsup, said),
        400 if has("RequestTimeout") || has("SlowDown") => Failure::Transient(said),
        // The answer to a HEAD has no body that would say so.
        400 if !has("<Code>") => Failure::Expired(said),
        408 | 429 | 500..=599 => Failure::Transient(said),
        // The head was fine and the rest was not: the connection broke, or what came makes no
        // sense.
        200..=299 => Failure::Transient(said),
        _ => Failure::Final(Errno::Eio, said),
    }
}

/// What a store says of its error, in one line. Of a long answer only code and message are shown.
fn said(text: &str, seen: &Seen) -> String {
    let element = |name: &str| {
        let from = text.find(&format!("<{name}>"))? + name.len() + 2;
        let rest = text.get(from..)?;
        rest.get(..rest.find('<')?)
    };
    let status = seen.status.filter(|status| !status.is_success());
    let status = status.map(|status| format!("the store answers {status}")).unwrap_or_default();
    let text = match (element("Code"), element("Message")) {
        (Some(code), Some(message)) => format!("{status}: {code}: {message}"),
        (Some(code), None) => format!("{status}: {code}"),
        _ if !status.is_empty() => status,
        // The layers of an error each repeat the one below.
        _ => text.rsplit("HTTP error: ").next().unwrap_or(text).to_owned(),
    };
    one_line_within(text.trim_start_matches(": "), MAX_SHOWN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(status: u16, text: &'static str) -> Failure {
        let error = object_store::Error::Generic { store: "S3", source: text.into() };
        Failure::new(&error, &Seen { status: StatusCode::from_u16(status).ok(), ..Seen::default() })
    }

    #[test]
    fn what_may_pass_is_tried_again_and_what_will_not_is_said_in_a_line() {
        for status in [408, 429, 500, 502, 503, 504] {
            assert!(matches!(failure(status, ""), Failure::Transient(_)), "{status}");
        }
        assert_eq!(failure(404, ""), Failure::Missing);
        assert_eq!(failure(412, ""), Failure::Changed);
        assert_eq!(failure(416, ""), Failure::NoSuchRange);
        let conflict = "<Code>ConditionalRequestConflict</Code>";
        assert!(matches!(failure(409, conflict), Failure::Transient(_)));
        let denied = "no\n<Error><Code>AccessDenied</Code><Message>Not\u{1b}[1m you</Message></Error>";
        let said = "the store answers 403 Forbidden: AccessDenied: Not\\u{1b}[1m you".to_owned();
        assert_eq!(failure(403, denied), Failure::Final(Errno::Eperm, said));
        for text in ["<Code>ExpiredToken</Code>", ""] {
            assert!(matches!(failure(400, text), Failure::Expired(_)), "{text}");
        }
        assert!(matches!(failure(400, "<Code>InvalidRequest</Code>"), Failure::Final(Errno::Eio, _)));
        let line = failure(404, "<Code>NoSuchBucket</Code>").into_error("reading s3://b/k").to_string();
        assert_eq!(line, "object: reading s3://b/k: the store answers 404 Not Found: NoSuchBucket (ENOENT)");
    }

    #[test]
    fn a_bucket_in_another_region_is_named() {
        let error = object_store::Error::Generic { store: "S3", source: "moved".into() };
        let seen = Seen { status: Some(StatusCode::MOVED_PERMANENTLY), region: Some("eu-1".into()), ..Seen::default() };
        assert_eq!(Failure::new(&error, &seen), Failure::Elsewhere("eu-1".into()));
    }
}
