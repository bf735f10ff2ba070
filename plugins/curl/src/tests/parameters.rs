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
        (&[("url", "ftp://x/y")], "url=ftp://x/y: only http and https are served, not ftp"),
        (&[("url", "file:///x")], "url=file:///x: only http and https are served: for a file use the file plugin"),
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
            "protocols=http,gpher: 'gpher' is not the name of a protocol (of use here are http and https)",
        ),
        (&[url, ("protocols", "https,ftp")], "curl: protocols= does not allow the protocol of url="),
        (&[url, ("ssl-version", "sslv3")], "ssl-version=sslv3: is broken and no longer spoken: tlsv1.2 or tlsv1.3"),
        (&[url, ("cainfo", "/no/such")], "cainfo=/no/such: No such file or directory (os error 2)"),
    ] {
        assert_eq!(config_error(params), error);
    }
    for params in [
        &[url, ("protocols", "ftp,http"), ("cookiefile", ""), ("cainfo", ""), ("tcp-keepalive", "true")][..],
        &[url, ("tcp-nodelay", "0"), ("http-version", "1.1"), ("tls13-ciphers", "TLS_AES_128_GCM_SHA256")],
        &[("url", "HTTPS://localhost"), ("ssl-cipher-list", "ECDHE+AESGCM"), ("unix-socket-path", "x")],
    ] {
        configured(params).unwrap();
    }
}
