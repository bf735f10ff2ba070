//! Mistakes in parameters.

use super::*;

fn config_error(params: &[(&str, &str)]) -> String {
    configured(params).err().expect("an error").to_string()
}

#[test]
fn mistakes_in_parameters_are_named() {
    let url = ("url", "http://localhost/disk.img");
    for (params, error) in [
        (&[][..], "curl: what to serve has to be given: [url=]URL"),
        (&[("url", "ftp://x/y")], "curl: ftp is served only with protocols=ftp"),
        (
            &[("url", "file:///x")],
            "curl: file is served only with protocols=file (the file plugin serves files better)",
        ),
        (
            &[("url", "file:///no/such"), ("protocols", "file")],
            "url=file:///no/such: No such file or directory (os error 2)",
        ),
        (&[("url", "file:///dev/null"), ("protocols", "file")], "url=file:///dev/null: is not a regular file"),
        (&[("url", "scp://x/y")], "url=scp://x/y: for ssh use the ssh plugin"),
        (&[("url", "gopher://x/y")], "url=gopher://x/y: only http, https, ftp, ftps and file are served, not gopher"),
        (
            &[("url", "ftp://x/y"), ("protocols", "ftp"), ("proxy", "http://p")],
            "curl: ftp and ftps go only through a socks proxy",
        ),
        (&[("url", "disk.img")], "url=disk.img: is not a URL: http://HOST/PATH or https://HOST/PATH"),
        (&[("url", "http:///x")], "url=http:///x: names no host"),
        (&[("url", "http://x/\n")], "url: contains control characters"),
        (&[url, ("colour", "red")], "curl: unknown parameter 'colour' (rbdkit curl --help lists those it has)"),
        (&[url, ("timeout", "-1")], "timeout=-1: is not a whole number from 0 to 4294967295"),
        (&[url, ("connections", "0")], "connections=0: has to be from 1 to 1024"),
        (
            &[url, ("password", "-2")],
            "password: the descriptor has to be greater than 2: 0 to 2 are standard input, output and error",
        ),
        (&[url, ("password", "+/no/such")], "password: the file after '+' cannot be read: No such file or directory"),
        (
            &[url, ("header", "a: b"), ("header-script", "x")],
            "curl: header= and header-script= cannot be used at the same time",
        ),
        (&[url, ("cookie-script-renew", "5")], "curl: cookie-script-renew= cannot be used without cookie-script="),
        (&[url, ("protocols", "")], "protocols=: an empty list of protocols is not allowed"),
        (
            &[url, ("protocols", "http,gpher")],
            "protocols=http,gpher: 'gpher' is not the name of a protocol (of use here are http, https, file, ftp, \
                ftps)",
        ),
        (&[url, ("protocols", "https,ftp")], "curl: protocols= does not allow the protocol of url="),
        (&[url, ("ssl-version", "sslv3")], "ssl-version=sslv3: is broken and no longer spoken: tlsv1.2 or tlsv1.3"),
        (
            &[url, ("ssl-version", "max-tlsv1")],
            "ssl-version=max-tlsv1: is none of default, tlsv1, tlsv1.0, tlsv1.1, tlsv1.2, tlsv1.3, nor max- and such a \
                version",
        ),
        (
            &[url, ("http-version", "4")],
            "http-version=4: is not one of none, 1.0, 1.1, 2.0, 2TLS, 2-prior-knowledge, 3, 3only",
        ),
        (&[url, ("cookiejar", "-")], "cookiejar=-: cookies cannot come from standard input: give a file"),
        (&[url, ("proxy-capath", "/no/such")], "proxy-capath=/no/such: No such file or directory (os error 2)"),
        (&[url, ("cainfo", "/no/such")], "cainfo=/no/such: No such file or directory (os error 2)"),
    ] {
        assert_eq!(config_error(params), error);
    }
    for params in [
        &[url, ("protocols", "ftp,http"), ("cookiefile", ""), ("cainfo", ""), ("tcp-keepalive", "true")][..],
        &[url, ("tcp-nodelay", "0"), ("http-version", "1.1"), ("tls13-ciphers", "TLS_AES_128_GCM_SHA256")],
        &[url, ("interface", "lo"), ("proxy-cainfo", ""), ("proxy-capath", "/"), ("ssl-version", "max-tlsv1.2")],
        &[url, ("ssl-version", "default"), ("ssl-version", "max-default"), ("http-version", "2")],
        &[("url", "HTTPS://localhost"), ("ssl-cipher-list", "ECDHE+AESGCM"), ("unix-socket-path", "x")],
    ] {
        configured(params).unwrap();
    }
}
