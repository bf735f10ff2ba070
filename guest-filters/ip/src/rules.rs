//! Which clients the rules let in.

use std::net::IpAddr;

use crate::address::{Range, decimal};

/// Who a client is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// It connected over TCP.
    Ip(IpAddr),
    /// It connected over a Unix socket. The security context is None if the system does not report
    /// one.
    Unix { credentials: Credentials, security: Option<String> },
    /// It connected over AF_VSOCK.
    Vsock { cid: u32, port: u32 },
    /// The system does not say.
    Unknown,
}

/// What the filter knows of the client's TLS certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Certificate {
    /// Nothing yet: the client has just connected.
    NotYet,
    /// The client showed none.
    None,
    /// The names of its subject and issuer.
    Names { subject: String, issuer: String },
}

/// Process, user and group of a client on a Unix socket. None if the system does not report them.
pub type Credentials = Option<(i64, i64, i64)>;

/// What entries with names begin with.
const SUBJECT: &str = "dn:";
const ISSUER: &str = "issuer-dn:";

/// What one entry of a list matches.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Rule {
    Any,
    AnyIpv4,
    AnyIpv6,
    AnyUnix,
    AnyVsock,
    Range(Range),
    Process(i64),
    User(i64),
    Group(i64),
    VsockCid(u32),
    VsockPort(u32),
    Security(String),
    Subject(String),
    Issuer(String),
}

/// Whether a rule matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Match {
    Yes,
    No,
    /// The rule is about something that the system does not say.
    Unknown,
    /// The rule is about a certificate, which the client may still show.
    NotYet,
}

/// What follows from the rules for a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    LetIn,
    Refused(Refusal),
    /// It depends on the client's certificate.
    NotYet,
}

/// The lists `allow` and `deny`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    allow: Vec<Rule>,
    deny: Vec<Rule>,
}

/// Why a client is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A rule of `deny` matches.
    Denied,
    /// A rule of `deny` may match, but the system does not say who the client is.
    Unknown,
}

impl Rules {
    /// Parses the values of `allow` and of `deny`, which are lists with commas.
    ///
    /// # Errors
    /// One line for the user that begins with the parameter.
    pub fn parse(allow: &[String], deny: &[String]) -> Result<Rules, String> {
        Ok(Rules { allow: parse_lists("allow", allow)?, deny: parse_lists("deny", deny)? })
    }

    /// Whether no client has to be looked at.
    pub fn let_everybody_in(&self) -> bool {
        self.deny.is_empty()
    }

    /// Whether a rule is about certificates.
    pub fn ask_for_certificates(&self) -> bool {
        let all = self.allow.iter().chain(&self.deny);
        all.into_iter().any(|rule| matches!(rule, Rule::Subject(_) | Rule::Issuer(_)))
    }

    /// Lets a client in or refuses it. `allow` comes first, then `deny`. A client that neither
    /// matches is let in.
    pub fn check(&self, source: &Source, certificate: &Certificate) -> Verdict {
        let all =
            |rules: &[Rule]| -> Vec<Match> { rules.iter().map(|rule| rule.matches(source, certificate)).collect() };
        let (allowed, denied) = (all(&self.allow), all(&self.deny));
        if allowed.contains(&Match::Yes) {
            Verdict::LetIn
        } else if allowed.contains(&Match::NotYet) && !self.deny.is_empty() {
            Verdict::NotYet
        } else if denied.contains(&Match::Yes) {
            Verdict::Refused(Refusal::Denied)
        } else if denied.contains(&Match::Unknown) {
            Verdict::Refused(Refusal::Unknown)
        } else if denied.contains(&Match::NotYet) {
            Verdict::NotYet
        } else {
            Verdict::LetIn
        }
    }
}

impl Rule {
    fn parse(text: &str) -> Result<Rule, String> {
        let lower = text.to_ascii_lowercase();
        let word = match lower.as_str() {
            "all" | "any" => Some(Rule::Any),
            "allipv4" | "anyipv4" => Some(Rule::AnyIpv4),
            "allipv6" | "anyipv6" => Some(Rule::AnyIpv6),
            "allunix" | "anyunix" => Some(Rule::AnyUnix),
            "allvsock" | "anyvsock" => Some(Rule::AnyVsock),
            _ => None,
        };
        if let Some(rule) = word {
            return Ok(rule);
        }
        let id = |what: &str, least: i64| {
            let digits = lower.strip_prefix(what)?;
            let number = digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok()).flatten();
            let most = i64::from(u32::MAX);
            Some(
                number
                    .filter(|id| (least..=most).contains(id))
                    .ok_or_else(|| format!("{what} takes a number from {least} to {most}")),
            )
        };
        let id32 = |what: &str| {
            let number = lower.strip_prefix(what).map(decimal)?;
            Some(number.ok_or_else(|| format!("{what} takes a number from 0 to {}", u32::MAX)))
        };
        if let Some(process) = id("pid:", 1) {
            return process.map(Rule::Process);
        }
        if let Some(user) = id("uid:", 0) {
            return user.map(Rule::User);
        }
        if let Some(group) = id("gid:", 0) {
            return group.map(Rule::Group);
        }
        if let Some(cid) = id32("vsock-cid:") {
            return cid.map(Rule::VsockCid);
        }
        if let Some(port) = id32("vsock-port:") {
            return port.map(Rule::VsockPort);
        }
        for (prefix, rule) in [(SUBJECT, Rule::Subject as fn(String) -> Rule), (ISSUER, Rule::Issuer)] {
            if lower.starts_with(prefix) {
                return match &text[prefix.len()..] {
                    "" => Err(format!("{prefix} takes the name in a certificate")),
                    name => Ok(rule(name.to_string())),
                };
            }
        }
        if lower.starts_with("security:") {
            return match &text["security:".len()..] {
                "" => Err("security: takes a security context".to_string()),
                context => Ok(Rule::Security(context.to_string())),
            };
        }
        Range::parse(text).map(Rule::Range)
    }

    fn matches(&self, source: &Source, certificate: &Certificate) -> Match {
        let credential = |pick: fn((i64, i64, i64)) -> i64, wanted: i64| match source {
            Source::Unix { credentials: Some(all), .. } => Match::from(pick(*all) == wanted),
            Source::Unix { credentials: None, .. } | Source::Unknown => Match::Unknown,
            _ => Match::No,
        };
        match (self, source) {
            (Rule::Any, _) => Match::Yes,
            (Rule::Subject(wanted) | Rule::Issuer(wanted), _) => match (self, certificate) {
                (_, Certificate::NotYet) => Match::NotYet,
                (_, Certificate::None) => Match::Unknown,
                (Rule::Subject(_), Certificate::Names { subject, .. }) => (subject == wanted).into(),
                (_, Certificate::Names { issuer, .. }) => (issuer == wanted).into(),
            },
            (Rule::Process(wanted), _) => credential(|(process, _, _)| process, *wanted),
            (Rule::User(wanted), _) => credential(|(_, user, _)| user, *wanted),
            (Rule::Group(wanted), _) => credential(|(_, _, group)| group, *wanted),
            (Rule::Security(wanted), Source::Unix { security, .. }) => match security {
                Some(context) => (context == wanted).into(),
                None => Match::Unknown,
            },
            (_, Source::Unknown) => Match::Unknown,
            (Rule::AnyIpv4, Source::Ip(address)) => address.is_ipv4().into(),
            (Rule::AnyIpv6, Source::Ip(address)) => address.is_ipv6().into(),
            (Rule::Range(range), Source::Ip(address)) => range.contains(*address).into(),
            (Rule::AnyUnix, Source::Unix { .. }) | (Rule::AnyVsock, Source::Vsock { .. }) => Match::Yes,
            (Rule::VsockCid(wanted), Source::Vsock { cid, .. }) => (wanted == cid).into(),
            (Rule::VsockPort(wanted), Source::Vsock { port, .. }) => (wanted == port).into(),
            _ => Match::No,
        }
    }
}

impl From<bool> for Match {
    fn from(matches: bool) -> Match {
        if matches { Match::Yes } else { Match::No }
    }
}

/// An empty value is an empty list.
fn parse_lists(name: &str, lists: &[String]) -> Result<Vec<Rule>, String> {
    let mut rules = Vec::new();
    for list in lists.iter().filter(|list| !list.is_empty()) {
        for entry in entries(list) {
            let rule = match entry {
                "" => Err("an entry of the list is empty".to_string()),
                // An entry that is the whole list stands in the line already.
                entry if entry == list => Rule::parse(entry),
                entry => Rule::parse(entry).map_err(|error| format!("{entry}: {error}")),
            };
            rules.push(rule.map_err(|error| format!("{name}={list}: {error}"))?);
        }
    }
    Ok(rules)
}

/// The entries of a list. A name has commas itself, so an entry with a name reaches to the end.
fn entries(list: &str) -> Vec<&str> {
    let mut entries = Vec::new();
    let mut rest = list;
    loop {
        let has_name = [SUBJECT, ISSUER]
            .iter()
            .any(|prefix| rest.get(..prefix.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(prefix)));
        match rest.split_once(',') {
            Some((entry, after)) if !has_name => {
                entries.push(entry);
                rest = after;
            }
            _ => {
                entries.push(rest);
                return entries;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the rules say of a client without a certificate.
    trait Check {
        fn decide(&self, source: &Source) -> Result<(), Refusal>;
    }

    impl Check for Rules {
        fn decide(&self, source: &Source) -> Result<(), Refusal> {
            match self.check(source, &Certificate::None) {
                Verdict::LetIn => Ok(()),
                Verdict::Refused(why) => Err(why),
                Verdict::NotYet => panic!("there is no certificate"),
            }
        }
    }

    #[test]
    fn a_certificate_is_waited_for_if_the_rules_depend_on_it() {
        let named = |subject: &str, issuer: &str| Certificate::Names { subject: subject.into(), issuer: issuer.into() };
        let me = named("CN=me,O=x", "CN=CA");
        let (let_in, denied) = (Verdict::LetIn, Verdict::Refused(Refusal::Denied));
        let only_me = rules("anyipv6,DN:CN=me,O=x", "all");
        assert!(only_me.ask_for_certificates() && !rules("uid:0", "all").ask_for_certificates());
        let check = |rules: &Rules, certificate: &Certificate| rules.check(&ME, certificate);
        assert_eq!(check(&only_me, &Certificate::NotYet), Verdict::NotYet);
        assert_eq!(check(&only_me, &me), let_in);
        for other in [named("CN=me", "CN=CA"), named("CN=ME,O=x", "CN=CA"), named("CN=CA", "CN=me,O=x")] {
            assert_eq!(check(&only_me, &other), denied, "{other:?}");
        }
        assert_eq!(check(&only_me, &Certificate::None), denied);
        assert_eq!(only_me.check(&ip("::1"), &Certificate::NotYet), let_in);
        let not_of_ca = rules("", "uid:7,issuer-dn:CN=CA");
        assert_eq!(check(&not_of_ca, &Certificate::NotYet), Verdict::NotYet);
        assert_eq!((check(&not_of_ca, &me), check(&not_of_ca, &named("CN=me", "CN=x"))), (denied, let_in));
        // It could leave out its certificate to be let in.
        assert_eq!(check(&not_of_ca, &Certificate::None), Verdict::Refused(Refusal::Unknown));
        // Refused at once, whatever comes.
        assert_eq!(check(&rules("anyipv4", "issuer-dn:CN=CA"), &me), denied);
        assert_eq!(check(&rules("", "uid:1000,dn:CN=you"), &Certificate::NotYet), denied);
    }

    fn rules(allow: &str, deny: &str) -> Rules {
        Rules::parse(&[allow.to_string()], &[deny.to_string()]).unwrap()
    }

    fn ip(text: &str) -> Source {
        Source::Ip(text.parse().unwrap())
    }

    const ME: Source = Source::Unix { credentials: Some((77, 1000, 100)), security: None };
    const NOBODY: Source = Source::Unix { credentials: None, security: None };

    #[test]
    fn allow_comes_before_deny_and_the_rest_is_let_in() {
        let some = rules("127.0.0.1,::1", "all");
        assert!(some.decide(&ip("127.0.0.1")).is_ok() && some.decide(&ip("::1")).is_ok());
        assert_eq!(some.decide(&ip("127.0.0.2")), Err(Refusal::Denied));
        assert_eq!(some.decide(&ME), Err(Refusal::Denied));
        let others = rules("", "8.0.0.0/8");
        assert_eq!(others.decide(&ip("8.8.8.8")), Err(Refusal::Denied));
        assert!(others.decide(&ip("9.8.8.8")).is_ok() && others.decide(&ME).is_ok());
        assert!(rules("1.2.3.4", "").decide(&ip("4.3.2.1")).is_ok());
        assert!(rules("anyunix", "").let_everybody_in() && !others.let_everybody_in());
    }

    #[test]
    fn each_kind_of_rule_matches_its_clients_and_no_others() {
        let vsock = Source::Vsock { cid: 3, port: 1234 };
        let sources = [ip("1.2.3.4"), ip("fe80::1"), ME, vsock];
        for (rule, expected) in [
            ("all", [true; 4]),
            ("ANY", [true; 4]),
            ("anyipv4", [true, false, false, false]),
            ("allipv6", [false, true, false, false]),
            ("AnyUnix", [false, false, true, false]),
            ("allvsock", [false, false, false, true]),
            ("1.2.0.0/16", [true, false, false, false]),
            ("fe80::/10", [false, true, false, false]),
            ("pid:77", [false, false, true, false]),
            ("uid:1000", [false, false, true, false]),
            ("GID:100", [false, false, true, false]),
            ("gid:1000", [false; 4]),
            ("vsock-cid:3", [false, false, false, true]),
            ("vsock-port:1234", [false, false, false, true]),
            ("vsock-port:3", [false; 4]),
        ] {
            let denied = sources.each_ref().map(|source| rules("", rule).decide(source) == Err(Refusal::Denied));
            assert_eq!(denied, expected, "{rule}");
        }
    }

    #[test]
    fn a_client_about_whom_a_rule_cannot_decide_is_refused() {
        assert_eq!(rules("", "uid:0").decide(&NOBODY), Err(Refusal::Unknown));
        assert_eq!(rules("uid:0", "all").decide(&NOBODY), Err(Refusal::Denied));
        assert!(rules("anyunix", "uid:0").decide(&NOBODY).is_ok());
        for rule in ["8.0.0.0/8", "anyipv6", "anyunix", "uid:0", "vsock-cid:1"] {
            assert_eq!(rules("", rule).decide(&Source::Unknown), Err(Refusal::Unknown), "{rule}");
            assert_eq!(rules(rule, "all").decide(&Source::Unknown), Err(Refusal::Denied), "{rule}");
        }
        assert!(rules("all", "anyunix").decide(&Source::Unknown).is_ok());
    }

    #[test]
    fn a_security_context_matches_as_a_whole_and_a_missing_one_is_not_let_in() {
        let labelled = |text: &str| Source::Unix { credentials: None, security: Some(text.to_string()) };
        let some = rules("Security:u:r:Virt_t", "all");
        assert!(some.decide(&labelled("u:r:Virt_t")).is_ok());
        for source in [labelled("u:r:virt_t"), labelled("u:r:Virt_t:s0"), NOBODY, ip("1.2.3.4")] {
            assert_eq!(some.decide(&source), Err(Refusal::Denied), "{source:?}");
        }
        let others = rules("", "security:unconfined");
        assert_eq!(others.decide(&labelled("unconfined")), Err(Refusal::Denied));
        assert_eq!(others.decide(&NOBODY), Err(Refusal::Unknown));
        assert!(others.decide(&labelled("virt")).is_ok() && others.decide(&ip("1.2.3.4")).is_ok());
    }

    #[test]
    fn what_is_no_rule_is_refused_in_one_line() {
        let wrong = |list: &str| Rules::parse(&[], &[list.to_string()]).unwrap_err();
        assert_eq!(wrong("1.2.3.4,,::1"), "deny=1.2.3.4,,::1: an entry of the list is empty");
        assert_eq!(wrong("1.2.3.4,"), "deny=1.2.3.4,: an entry of the list is empty");
        assert_eq!(wrong("foo"), "deny=foo: 'foo' is not an IP address");
        assert_eq!(wrong("pid:0"), "deny=pid:0: pid: takes a number from 1 to 4294967295");
        for rule in ["uid:", "uid:x", "uid:-1", "gid:4294967296", "vsock-cid:4294967296", "vsock-port:", "1.2.3.4, ::1"]
        {
            wrong(rule);
        }
        assert_eq!(wrong("dn:"), "deny=dn:: dn: takes the name in a certificate");
        assert_eq!(
            wrong("1.2.3.4,issuer-dn:"),
            "deny=1.2.3.4,issuer-dn:: issuer-dn:: issuer-dn: takes the name in a certificate"
        );
        assert_eq!(wrong("security:"), "deny=security:: security: takes a security context");
    }
}
