//! The client of a registry: the OCI distribution specification, as far as components need it.
//!
//! This runs in the child process, because everything here may come from a hostile server.
//! Credentials go to the registry itself, and to the server of tokens that it names. They do not
//! follow a redirect to another server.

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::credentials::Credentials;
use crate::error::shown;
use crate::frame::{PlainHttp, Session};
use crate::http::{Answer, Failure, Http, Method};
use crate::manifest::{BUNDLE, INDEX, MANIFEST, MAX_MANIFEST_BYTES};
use crate::reference::is_loopback;
use crate::url::Url;

/// How many redirects of a request are followed. Registries redirect once, to their storage.
const MAX_REDIRECTS: usize = 5;

/// The largest answer of a server of tokens, in bytes.
const MAX_TOKEN_BYTES: usize = 64 << 10;

/// The largest page of an error that is read, in bytes.
const MAX_PAGE_BYTES: usize = 64 << 10;

/// How long a server on this machine may take to say that it has no TLS.
const TLS_PROBE: Duration = Duration::from_secs(10);

/// A registry, for one name in it.
pub(crate) struct Registry {
    http: Http,
    /// The registry's address.
    base: Url,
    name: String,
    /// What may be done: `pull`, or `pull,push`.
    actions: &'static str,
    credentials: Option<Credentials>,
    /// What the `Authorization` line of further requests says.
    authorization: Option<String>,
    plain_http: PlainHttp,
}

/// Why the registry does not do what it was asked for. One line.
pub(crate) type Result<T> = std::result::Result<T, String>;

impl Registry {
    /// Finds out how the registry is spoken to.
    ///
    /// # Errors
    /// It cannot be reached.
    pub(crate) fn open(session: Session) -> Result<Registry> {
        let deadline = Instant::now() + Duration::from_millis(session.timeout_ms);
        let host = match session.host.as_str() {
            // The name that everybody uses is not the address.
            "docker.io" => "registry-1.docker.io".to_owned(),
            _ => session.host,
        };
        let https = match session.plain_http {
            PlainHttp::Allowed => false,
            PlainHttp::Refused => !is_loopback(&host) || has_tls(&host, deadline)?,
        };
        Ok(Registry {
            http: Http::new(deadline),
            base: Url { https, host, path: "/".into() },
            name: session.name,
            actions: if session.push { "pull,push" } else { "pull" },
            credentials: session.credentials,
            authorization: None,
            plain_http: session.plain_http,
        })
    }

    fn url(&self, kind: &str, which: &str) -> Url {
        Url { path: format!("/v2/{}/{kind}/{which}", self.name), ..self.base.clone() }
    }

    /// Gets a manifest by its tag or digest. None if there is none.
    pub(crate) fn manifest(&mut self, which: &str) -> Result<Option<Answer>> {
        let url = self.url("manifests", which);
        let accept = [format!("Accept: {MANIFEST}")];
        let answer = self.fetch(&url, &accept, MAX_MANIFEST_BYTES)?;
        match answer.status {
            200 => Ok(Some(answer)),
            404 => Ok(None),
            _ => Err(self.refusal(&answer)),
        }
    }

    /// Gets the index of the manifests with bundles that are about the one with this digest. If the
    /// registry makes no such index, somebody may have put it under this tag. None if nobody has.
    pub(crate) fn referrers(&mut self, digest: &str, tag: &str) -> Result<Option<Answer>> {
        let accept = [format!("Accept: {INDEX}")];
        let url = self.url("referrers", digest).with("artifactType", BUNDLE);
        let answer = self.fetch(&url, &accept, MAX_MANIFEST_BYTES)?;
        let is_index = |answer: &Answer| answer.header("content-type").is_some_and(|found| media_type(found) == INDEX);
        match answer.status {
            200 if is_index(&answer) => return Ok(Some(answer)),
            // The registry does not know this address, or answers with a page.
            200 | 400 | 404 | 405 => {}
            _ => return Err(self.refusal(&answer)),
        }
        let answer = self.fetch(&self.url("manifests", tag), &accept, MAX_MANIFEST_BYTES)?;
        match answer.status {
            200 if is_index(&answer) => Ok(Some(answer)),
            // The tag may be of something else.
            200 | 404 => Ok(None),
            _ => Err(self.refusal(&answer)),
        }
    }

    /// Gets a blob, whose size is known.
    pub(crate) fn blob(&mut self, digest: &str, size: usize) -> Result<Answer> {
        let url = self.url("blobs", digest);
        let answer = self.fetch(&url, &[], size)?;
        match answer.status {
            200 => Ok(answer),
            404 => Err(format!("{} does not have the blob {digest} that the manifest names", self.base.host)),
            _ => Err(self.refusal(&answer)),
        }
    }

    /// Puts a blob, unless it is there.
    pub(crate) fn put_blob(&mut self, digest: &str, bytes: &[u8]) -> Result<()> {
        let there = self.authorized(Method::Head, &self.url("blobs", digest), &[], 0)?;
        if there.status == 200 {
            return Ok(());
        }
        let begun = self.authorized(Method::Post, &self.url("blobs", "uploads/"), &[], MAX_PAGE_BYTES)?;
        let location = match (begun.status, begun.header("location")) {
            (202, Some(location)) => location,
            _ => return Err(self.refusal(&begun)),
        };
        let host = &self.base.host;
        let target = self.base.lead(location).map_err(|why| format!("{host} sends uploads to a place {why}"))?;
        if !target.is_with(&self.base) {
            return Err(format!("{host} sends uploads to another server, {}", target.origin()));
        }
        let headers = ["Content-Type: application/octet-stream".to_owned()];
        let put = self.authorized(Method::Put(bytes), &target.with("digest", digest), &headers, MAX_PAGE_BYTES)?;
        if put.status == 201 { Ok(()) } else { Err(self.refusal(&put)) }
    }

    /// Puts a manifest under a tag.
    pub(crate) fn put_manifest(&mut self, tag: &str, bytes: &[u8]) -> Result<()> {
        let headers = [format!("Content-Type: {MANIFEST}")];
        let put = self.authorized(Method::Put(bytes), &self.url("manifests", tag), &headers, MAX_PAGE_BYTES)?;
        if put.status == 201 { Ok(()) } else { Err(self.refusal(&put)) }
    }

    /// A GET that follows redirects.
    fn fetch(&mut self, url: &Url, headers: &[String], limit: usize) -> Result<Answer> {
        let mut answer = self.authorized(Method::Get, url, headers, limit.max(MAX_PAGE_BYTES))?;
        let mut at = url.clone();
        for left in (0..=MAX_REDIRECTS).rev() {
            if !matches!(answer.status, 301 | 302 | 303 | 307 | 308) {
                let too_long = answer.status == 200 && answer.body.len() > limit;
                return if too_long { Err(format!("{} sends more than {limit} bytes", at.host)) } else { Ok(answer) };
            }
            if left == 0 {
                break;
            }
            let to = self.redirect(&at, &answer)?;
            answer = match to.is_with(&self.base) {
                true => self.authorized(Method::Get, &to, headers, limit.max(MAX_PAGE_BYTES))?,
                false => self.send(Method::Get, &to, headers, limit.max(MAX_PAGE_BYTES))?,
            };
            at = to;
        }
        Err(format!("{} redirects more than {MAX_REDIRECTS} times", self.base.host))
    }

    /// Where an answer leads.
    fn redirect(&self, from: &Url, answer: &Answer) -> Result<Url> {
        let host = &from.host;
        let location = answer.header("location").ok_or_else(|| format!("{host} redirects to nowhere"))?;
        let to = from.lead(location).map_err(|why| {
            format!("{host} redirects to '{}', {why}", shown(location.split('?').next().unwrap_or("")))
        })?;
        if !to.https && (from.https || self.base.https) {
            return Err(format!("{host} redirects from https to http, to {}", to.host));
        }
        if !to.https && self.plain_http == PlainHttp::Refused && !is_loopback(&to.host) {
            return Err(format!("{host} redirects to plain http on another machine, {}", to.host));
        }
        Ok(to)
    }

    /// Sends a request to the registry. If the registry asks who we are, says so and sends it
    /// again.
    fn authorized(&mut self, method: Method<'_>, url: &Url, headers: &[String], limit: usize) -> Result<Answer> {
        let with = |authorization: &Option<String>| {
            let own = authorization.iter().map(|value| format!("Authorization: {value}"));
            headers.iter().cloned().chain(own).collect::<Vec<_>>()
        };
        let answer = self.send(method, url, &with(&self.authorization), limit)?;
        if answer.status != 401 || !self.authorize(&answer)? {
            return Ok(answer);
        }
        self.send(method, url, &with(&self.authorization), limit)
    }

    fn send(&mut self, method: Method<'_>, url: &Url, headers: &[String], limit: usize) -> Result<Answer> {
        let sent = self.http.send(method, url, headers, limit);
        sent.map_err(|failure| format!("{} {}", url.host, failure.why()))
    }

    /// Does what a challenge asks for. Whether there is something new to send.
    fn authorize(&mut self, answer: &Answer) -> Result<bool> {
        let challenges: Vec<&str> = answer.headers("www-authenticate").collect();
        if let Some(bearer) = challenges.iter().find_map(|each| parameters(each, "bearer")) {
            let token = self.token(bearer)?;
            self.authorization = Some(format!("Bearer {token}"));
            return Ok(true);
        }
        match (challenges.iter().any(|each| parameters(each, "basic").is_some()), self.basic()) {
            (true, Some(basic)) if self.authorization.as_ref() != Some(&basic) => {
                self.authorization = Some(basic);
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    fn basic(&self) -> Option<String> {
        let Credentials { user, password } = self.credentials.as_ref()?;
        Some(format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
    }

    /// Gets a token from the server that the registry names.
    fn token(&mut self, challenge: &str) -> Result<String> {
        let host = self.base.host.clone();
        let realm = parameter(challenge, "realm").ok_or_else(|| format!("{host} does not say where tokens are"))?;
        let mut url = self.base.lead(&realm).map_err(|why| format!("{host} names a place for tokens {why}"))?;
        if !url.https && (self.base.https || (self.plain_http == PlainHttp::Refused && !is_loopback(&url.host))) {
            return Err(format!("{host} wants tokens from {} by plain http", url.host));
        }
        if let Some(service) = parameter(challenge, "service") {
            url = url.with("service", &service);
        }
        // Not the registry's own words: they could ask for more than is needed.
        url = url.with("scope", &format!("repository:{}:{}", self.name, self.actions));
        let headers: Vec<String> = self.basic().iter().map(|basic| format!("Authorization: {basic}")).collect();
        let answer = self.send(Method::Get, &url, &headers, MAX_TOKEN_BYTES)?;
        if answer.status != 200 {
            return Err(format!("{} gives no token for {host}: {}", url.host, self.refusal(&answer)));
        }
        #[derive(Deserialize)]
        struct Token {
            token: Option<String>,
            access_token: Option<String>,
        }
        let token = serde_json::from_slice::<Token>(&answer.body).ok().and_then(|it| it.token.or(it.access_token));
        let token = token.filter(|token| !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic()));
        token.ok_or_else(|| format!("{} answers without a token", url.host))
    }

    /// What an answer says that is no success.
    fn refusal(&self, answer: &Answer) -> String {
        #[derive(Deserialize)]
        struct Page {
            errors: Vec<Why>,
        }
        #[derive(Deserialize)]
        struct Why {
            code: String,
            message: Option<String>,
        }
        let page = serde_json::from_slice::<Page>(&answer.body).ok();
        let why = page.and_then(|page| page.errors.into_iter().next()).map(|why| match why.message {
            Some(message) => format!(": {} ({})", shown(&message), shown(&why.code)),
            None => format!(": {}", shown(&why.code)),
        });
        let hint = match (answer.status, &self.credentials) {
            (401 | 403, None) => "; docker's config.json has no credentials for it",
            (401 | 403, Some(_)) => "; the credentials in docker's config.json do not suffice",
            _ => "",
        };
        format!("{} answers {}{}{hint}", self.base.host, answer.status, why.unwrap_or_default())
    }
}

/// A media type without its parameters.
pub(crate) fn media_type(header: &str) -> &str {
    header.split(';').next().unwrap_or_default().trim()
}

/// Whether a server on this machine speaks TLS.
fn has_tls(host: &str, deadline: Instant) -> Result<bool> {
    let url = Url { https: true, host: host.to_owned(), path: "/v2/".into() };
    let mut http = Http::new(deadline.min(Instant::now() + TLS_PROBE));
    match http.send(Method::Get, &url, &[], MAX_PAGE_BYTES) {
        Err(Failure::NoTls(_)) => Ok(false),
        Err(Failure::Other(why)) => Err(format!("{host} {why}")),
        Ok(_) => Ok(true),
    }
}

/// The parameters of a challenge, if it is of this scheme.
fn parameters<'a>(challenge: &'a str, scheme: &str) -> Option<&'a str> {
    let (first, rest) = challenge.split_once(' ').unwrap_or((challenge, ""));
    first.eq_ignore_ascii_case(scheme).then_some(rest)
}

/// A parameter of a challenge: `key="value"`. Values have commas in them.
fn parameter(parameters: &str, key: &str) -> Option<String> {
    let mut rest = parameters;
    while let Some((name, behind)) = rest.split_once('=') {
        let name = name.trim_matches([' ', ',']);
        let (value, behind) = match behind.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => behind.split_once(',').unwrap_or((behind, "")),
        };
        if name.eq_ignore_ascii_case(key) {
            return Some(value.to_owned());
        }
        rest = behind;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parameters_of_a_challenge_are_found() {
        let bearer = r#"Bearer realm="https://a/t",service="s", scope="repository:x:pull,push",error=none"#;
        let all = parameters(bearer, "bearer").unwrap();
        assert_eq!(parameter(all, "realm").as_deref(), Some("https://a/t"));
        assert_eq!(parameter(all, "Scope").as_deref(), Some("repository:x:pull,push"));
        assert_eq!(parameter(all, "error").as_deref(), Some("none"));
        assert_eq!(parameter(all, "x"), None);
        assert_eq!(parameter("realm=\"open", "realm"), None);
        assert_eq!(parameters(bearer, "basic"), None);
    }
}
