//! What a request says about us, and which server it may say it to.
//!
//! A server can redirect a request to any other. What is secret goes only to the server of `url=`:
//! the same scheme, host and port. To another server go only what `location-trusted=` names and
//! lines that say nothing secret. A server that is asked over http after an https URL gets no
//! secret at all, because anybody on the way can read it.

use std::sync::Arc;

use crate::address::{Address, Credentials};
use crate::config::Settings;
use crate::line::Line;
use crate::secret::Secret;

/// How a server relates to that of `url=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Relation {
    Same,
    Other,
    /// Another server, over http after https.
    Downgraded,
}

impl Relation {
    fn of(first: &Address, now: &Address) -> Relation {
        match first.origin == now.origin {
            true => Relation::Same,
            false if first.origin.scheme.is_encrypted() && !now.origin.scheme.is_encrypted() => Relation::Downgraded,
            false => Relation::Other,
        }
    }
}

/// All that the parameters say about us.
pub(crate) struct Identity {
    /// The address of `url=`.
    first: Arc<Address>,
    credentials: Option<Arc<Credentials>>,
    headers: Arc<[Line]>,
    cookie: Option<Arc<Secret>>,
    /// Names of headers, in lower case, that other servers get too.
    trusted: Vec<String>,
}

/// What the scripts printed for one request. What is absent comes from the parameters.
#[derive(Clone, Default)]
pub(crate) struct Printed {
    pub(crate) headers: Option<Arc<[Line]>>,
    pub(crate) cookie: Option<Arc<Secret>>,
}

/// What one request says about us.
#[derive(Clone)]
pub(crate) struct Said {
    pub(crate) credentials: Option<Arc<Credentials>>,
    pub(crate) headers: Arc<[Line]>,
    pub(crate) cookie: Option<Arc<Secret>>,
    /// Whether libcurl adds the cookies that it keeps for that host.
    pub(crate) kept_cookies: bool,
}

impl Said {
    /// Whether it says the same, apart from the header lines.
    pub(crate) fn is_same(&self, other: &Said) -> bool {
        fn is_same<T>(one: Option<&Arc<T>>, other: Option<&Arc<T>>) -> bool {
            match (one, other) {
                (Some(one), Some(other)) => Arc::ptr_eq(one, other),
                (one, other) => one.is_none() && other.is_none(),
            }
        }
        is_same(self.credentials.as_ref(), other.credentials.as_ref())
            && is_same(self.cookie.as_ref(), other.cookie.as_ref())
            && self.kept_cookies == other.kept_cookies
    }
}

impl Identity {
    /// For the address of `url=`.
    pub(crate) fn new(settings: &Settings, first: Arc<Address>) -> Identity {
        let of_url = first.credentials.clone().unwrap_or_default();
        let user = settings.user.clone().or(of_url.user);
        let password = settings.password.clone().or(of_url.password);
        let credentials = (user.is_some() || password.is_some()).then(|| Arc::new(Credentials { user, password }));
        Identity {
            first,
            credentials,
            headers: settings.headers.clone().into(),
            cookie: settings.cookie.clone().map(Arc::new),
            trusted: settings.location_trusted.clone(),
        }
    }

    /// The address of `url=`.
    pub(crate) fn first(&self) -> &Arc<Address> {
        &self.first
    }

    /// What the request to this address says.
    pub(crate) fn to(&self, address: &Address, printed: &Printed) -> Said {
        let headers = printed.headers.as_ref().unwrap_or(&self.headers);
        let cookie = printed.cookie.as_ref().or(self.cookie.as_ref());
        let relation = Relation::of(&self.first, address);
        if relation == Relation::Same {
            return Said {
                credentials: self.credentials.clone(),
                headers: Arc::clone(headers),
                cookie: cookie.cloned(),
                kept_cookies: true,
            };
        }
        let trusts = |name: &str| relation == Relation::Other && self.trusted.iter().any(|trusted| trusted == name);
        let lines: Vec<Line> = headers.iter().filter(|line| line.is_public() || trusts(line.name())).cloned().collect();
        let ours = self.credentials.as_ref().filter(|_| trusts("authorization"));
        // A redirect may name a user and a password of its own.
        let credentials = address.credentials.clone().map(Arc::new).or(ours.cloned());
        Said {
            credentials,
            headers: lines.into(),
            cookie: cookie.filter(|_| trusts("cookie")).cloned(),
            kept_cookies: relation == Relation::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> Secret {
        Secret::new(text.as_bytes()).unwrap()
    }

    fn line(text: &str) -> Option<Line> {
        Line::new(secret(text))
    }

    fn identity(trusted: &[&str]) -> Identity {
        let lines = ["X-Token: t", "Accept: a/b", "X-Other: o", "Expect:", "X-Empty;", "Host: h", "Referer: r"];
        let settings = Settings {
            user: Some(secret("me")),
            password: Some(secret("geheim")),
            cookie: Some(secret("a=1")),
            headers: lines.map(|text| line(text).unwrap()).to_vec(),
            location_trusted: trusted.iter().map(|name| (*name).to_string()).collect(),
            ..Settings::default()
        };
        Identity::new(&settings, Arc::new(Address::parse(b"https://first/disk").unwrap()))
    }

    /// What a server is told: the first words of all lines, and marks for the rest.
    fn told(identity: &Identity, url: &str) -> String {
        let said = identity.to(&Address::parse(url.as_bytes()).unwrap(), &Printed::default());
        let mut words: Vec<String> = said.headers.iter().map(|line| line.name().to_string()).collect();
        words.extend(said.credentials.map(|_| "+password".into()));
        words.extend(said.cookie.map(|_| "+cookie".into()));
        words.extend(said.kept_cookies.then(|| "+kept".into()));
        words.join(" ")
    }

    #[test]
    fn only_the_first_server_is_told_secrets_unless_the_user_says_so() {
        let all = "x-token accept x-other expect x-empty host referer +password +cookie +kept";
        let public = "accept expect x-empty";
        for (trusted, url, expected) in [
            (&[][..], "https://first/other?x", all.to_string()),
            (&[], "https://FIRST:443/", all.to_string()),
            (&[], "https://first:444/", format!("{public} +kept")),
            (&[], "https://second/", format!("{public} +kept")),
            (&[], "https://first.second/", format!("{public} +kept")),
            (&[], "http://first/", public.to_string()),
            (&[], "http://first:443/", public.to_string()),
            (&["x-token"], "https://second/", format!("x-token {public} +kept")),
            (&["cookie", "authorization"], "https://second/", format!("{public} +password +cookie +kept")),
            (&["cookie", "authorization", "x-token"], "http://first/", public.to_string()),
            (&["cookie", "authorization", "x-token"], "http://second/", public.to_string()),
        ] {
            assert_eq!(told(&identity(trusted), url), expected, "{trusted:?} {url}");
        }
    }

    #[test]
    fn a_redirect_may_name_a_user_of_its_own() {
        let said = identity(&["authorization"])
            .to(&Address::parse(b"https://other:word@second/").unwrap(), &Printed::default());
        assert_eq!(said.credentials.unwrap().user.as_ref().unwrap().bytes(), b"other");
    }
}
