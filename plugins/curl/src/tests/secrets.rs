//! Who is told what is secret, and that nothing else prints it.

use std::os::unix::ffi::OsStrExt;

use rbdkit_slow_server::Identity;

use super::*;

/// The lines of a request's head that say who we are.
fn told(head: &str) -> Vec<&str> {
    let secrets = ["authorization:", "cookie:", "x-token:", "referer:"];
    head.lines().filter(|line| secrets.iter().any(|name| line.to_ascii_lowercase().starts_with(name))).collect()
}

const SECRETS: &[(&str, &str)] = &[
    ("user", "me"),
    ("password", "SECRET"),
    ("cookie", "a=SECRET"),
    ("header", "X-Token: SECRET"),
    ("header", "Referer: http://SECRET/"),
    ("header", "Accept: application/x-disk"),
];

#[test]
fn a_server_that_redirects_to_another_does_not_give_it_our_secrets() {
    for trusted in ["", "cookie,X-Token", "Cookie,X-TOKEN,authorization,referer"] {
        let (first, second) = (plain(), plain());
        let from = format!("{}/elsewhere?{}", first.url(), url(&second));
        let mut params = vec![("url", from.as_str())];
        params.extend(SECRETS);
        if !trusted.is_empty() {
            params.push(("location-trusted", trusted));
        }
        run(reads_right(&serving(&params)));
        let number = match trusted.split(',').count() {
            4 => 4,
            2 => 2,
            _ => 0,
        };
        for head in first.heads() {
            assert_eq!(told(&head).len(), 4, "{head}");
        }
        assert_eq!(second.heads().len(), 2);
        for head in second.heads() {
            assert_eq!(told(&head).len(), number, "{trusted}: {head}");
            assert!(head.contains("Accept: application/x-disk\r\n"), "{head}");
        }
    }
}

#[test]
fn another_port_and_another_scheme_are_other_servers() {
    let dir = tempfile::tempdir().unwrap();
    let identity = Identity::create(dir.path(), "localhost").unwrap();
    let content = || Content::Pattern { seed: SEED, size: SIZE };
    let secure = SlowServer::start(content(), Rules::default(), Some(&identity)).unwrap();
    let open_to_all = plain();
    let trust = identity.certificate.to_str().unwrap();
    let jar = dir.path().join("cookies");
    std::fs::write(&jar, "Set-Cookie: kept=SECRET\nlocalhost\tFALSE\t/\tFALSE\t0\tours\tSECRET\n").unwrap();
    let secret = |from: String, name: &str| {
        let from = format!("{from}/elsewhere?{name}");
        let mut params = vec![("url", from.as_str()), ("cainfo", trust), ("cookiefile", jar.to_str().unwrap())];
        params.extend(SECRETS);
        params.push(("location-trusted", "cookie,x-token,authorization,referer"));
        run(reads_right(&serving(&params)));
    };
    // From https to http nothing goes, whatever the user says, not even to the same host.
    let lower = url(&open_to_all).replace("127.0.0.1", "localhost");
    secret(secure.url(), &lower);
    for head in open_to_all.heads() {
        assert!(told(&head).is_empty() && !head.contains("SECRET"), "{head}");
    }
    assert!(secure.heads().iter().all(|head| head.contains("kept=SECRET") && told(head).len() >= 4));
    // From http to https goes what the user says, and no cookie of another server.
    let before = secure.heads().len();
    secret(open_to_all.url(), &url(&secure));
    for head in &secure.heads()[before..] {
        assert_eq!(told(head).len(), 4, "{head}");
        assert!(!head.contains("kept="), "{head}");
    }
}

#[test]
fn tokens_of_scripts_stay_with_the_first_server() {
    let (first, second) = (plain(), plain());
    let from = format!("{}/elsewhere?{}", first.url(), url(&second));
    let plugin = serving(&[
        ("url", &from),
        ("header-script", "echo Authorization: Bearer SECRET; echo Accept: x/y"),
        ("cookie-script", "echo a=SECRET"),
    ]);
    run(reads_right(&plugin));
    assert!(first.heads().iter().all(|head| told(head).len() == 2), "{:?}", first.heads());
    assert!(second.heads().iter().all(|head| told(head).is_empty() && head.contains("Accept: x/y")));
}

#[test]
fn a_cookie_that_names_no_server_goes_to_the_first_one_only() {
    let (first, second) = (plain(), plain());
    let dir = tempfile::tempdir().unwrap();
    let jar = dir.path().join("jar");
    std::fs::write(&jar, "Set-Cookie: a=SECRET\n").unwrap();
    let second_url = url(&second).replace("127.0.0.1", "localhost");
    let from = format!("{}/elsewhere?{second_url}", first.url());
    run(reads_right(&serving(&[("url", &from), ("cookiefile", jar.to_str().unwrap())])));
    assert!(first.heads().iter().all(|head| head.contains("Cookie: a=SECRET\r\n")));
    assert!(second.heads().iter().all(|head| !head.contains("SECRET")), "{:?}", second.heads());
}

fn bytes_configured(params: &[(&str, &[u8])]) -> Result<Curl, ConfigError> {
    let mut plugin = Curl::default();
    for (key, value) in params {
        plugin.config(Param { key, value: OsStr::from_bytes(value) })?;
    }
    plugin.config_complete()?;
    Ok(plugin)
}

#[test]
fn passwords_and_headers_are_bytes() {
    let server = plain();
    let url = url(&server);
    let params: &[(&str, &[u8])] = &[
        ("url", url.as_bytes()),
        ("user", b"m\xfc"),
        ("password", b"\xffx"),
        ("cookie", b"a=\xe9"),
        ("header", b"X-Name: \xe4"),
        ("user-agent", b"\xf6"),
    ];
    let mut plugin = bytes_configured(params).unwrap();
    plugin.after_fork().unwrap();
    run(reads_right(&plugin));
    let head = &server.raw_heads()[0];
    // The base64 of "m\xfc:\xffx".
    for line in
        [&b"Authorization: Basic bfw6/3g=\r\n"[..], b"Cookie: a=\xe9\r\n", b"X-Name: \xe4\r\n", b"User-Agent: \xf6\r\n"]
    {
        assert!(head.windows(line.len()).any(|window| window == line), "{line:?}");
    }
    let scripts: &[(&str, &[u8])] = &[
        ("url", url.as_bytes()),
        ("header-script", b"printf 'X-A: \\344\\n'"),
        ("cookie-script", b"printf 'b=\\351'"),
    ];
    let mut plugin = bytes_configured(scripts).unwrap();
    plugin.after_fork().unwrap();
    run(reads_right(&plugin));
    let head = server.raw_heads().pop().unwrap();
    for line in [&b"X-A: \xe4\r\n"[..], b"Cookie: b=\xe9\r\n"] {
        assert!(head.windows(line.len()).any(|window| window == line), "{line:?}");
    }
}

#[test]
fn nothing_becomes_a_header_line_of_its_own() {
    let url = ("url", &b"http://localhost/disk"[..]);
    for key in ["cookie", "header", "user-agent", "user", "password", "proxy-user", "proxy-password", "proxy", "url"] {
        for breaks in ["\r\n", "\n", "\r"] {
            let value = format!("http://x: y{breaks}X-Evil: SECRET");
            let error = bytes_configured(&[url, (key, value.as_bytes())]).err().expect(key).to_string();
            assert!(error.starts_with(&format!("{key}: contains ")), "{error}");
            assert!(!error.contains("SECRET") && !error.contains(['\n', '\r']), "{error}");
        }
    }
    for escaped in ["http://u%0d%0aX:p@h/", "http://u:p%0aX@h/", "http://u%00@h/"] {
        assert!(bytes_configured(&[("url", escaped.as_bytes())]).is_err(), "{escaped}");
    }
    for text in [&b"a=b\r\nX-Evil: c"[..], b"a=b\0c", b"a\rb"] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        std::fs::write(&path, text).unwrap();
        let from = format!("+{}", path.display());
        // The first line of the file counts. Nothing in it may break it.
        match bytes_configured(&[url, ("cookie", from.as_bytes())]) {
            Ok(_) => assert!(text.starts_with(b"a=b\r\n")),
            Err(error) => assert!(error.to_string().starts_with("cookie: contains "), "{error}"),
        }
    }
    let server = plain();
    for script in [r"printf 'X: a\rX-Evil: b\n'", r"printf 'X: a\000b'"] {
        for key in ["header-script", "cookie-script"] {
            let error = run(refused(&plugin_for(&server, &[(key, script)])));
            assert!(error.contains(&format!("{key}: line 1 of its output contains control characters")), "{error}");
        }
    }
    assert_eq!(server.counts().requests, 0);
}

#[test]
fn no_error_line_shows_a_secret() {
    let server = plain();
    let gone = { plain().address() };
    for params in [
        &[("url", "ftp://u:SECRET@h/x?SECRET")][..],
        &[("url", "http://u:SECRET@h:99999/x")],
        &[("url", "u:SECRET@h/x")],
        &[("url", "http://u:SEC/RET@h/SECRET")],
        &[("url", "http://h/x"), ("proxy", "ftp://u:SECRET@h")],
        &[("url", "http://h/x"), ("proxy-password", "-SECRET")],
        &[("url", "http://h/x"), ("header", "SECRET")],
    ] {
        let error = configured(params).err().expect("an error").to_string();
        assert!(!error.contains("SEC"), "{error}");
    }
    for params in [
        vec![("url", format!("http://u:SECRET@{gone}/x?SECRET"))],
        vec![("url", format!("{}?SECRET&habit=status-404,range-ignored", url(&server).replace("//", "//u:SECRET@")))],
        vec![("url", format!("{}?SECRET&habit=redirect-ftp", url(&server)))],
        vec![("url", format!("{}/elsewhere?http://u:SECRET@{gone}/?SECRET", server.url()))],
        vec![("url", url(&server)), ("proxy", format!("http://u:SECRET@{gone}"))],
        vec![("url", url(&server)), ("cookie-script", "echo SECRET; exit 1".into())],
    ] {
        let params: Vec<(&str, &str)> = params.iter().map(|(key, value)| (*key, value.as_str())).collect();
        let error = run(refused(&serving(&params)));
        assert!(!error.contains("SECRET") && !error.contains('\n'), "{params:?}: {error}");
    }
}
