//! The parameters.

use super::*;

#[test]
fn parameters_that_do_not_go_together_are_refused_in_one_line() {
    for (params, wrong) in [
        (vec![], "the other server has to be given"),
        (vec!["port=1"], "the other server has to be given"),
        (vec!["socket=/s", "hostname=h"], "socket= and hostname= cannot be used at the same time"),
        (vec!["uri=nbd://h", "command=c"], "uri= and command= cannot be used at the same time"),
        (vec!["uri=nbd://h", "port=1"], "port= can only be used with hostname="),
        (vec!["socket=/s", "arg=a"], "arg= can only be used with command="),
        (vec!["socket=/s", "dynamic-export=1", "export=e"], "dynamic-export=true and export="),
        (vec!["socket=/s", "dynamic-export=1", "shared=1"], "dynamic-export=true needs a connection for each client"),
        (vec!["command=c", "dynamic-export=1"], "dynamic-export=true needs a connection for each client"),
        (vec!["command=c", "shared=0"], "shared=false cannot be used"),
        (vec!["uri=nbd://h/a", "export=b"], "the URI names another export"),
        (vec!["socket="], "is not the path of a socket"),
        (vec!["hostname="], "is not the name of a host"),
        (vec!["hostname=h", "port=0"], "is not a port"),
        (vec!["hostname=h", "port=65536"], "is not a port"),
        (vec!["hostname=h", "port=no-such-service"], "is neither a port nor a service"),
        (vec!["socket-fd=2"], "has to be greater than 2"),
        (vec!["retry=-1"], "is not a number of attempts"),
        (vec!["shared=maybe"], "is neither true"),
        (vec!["vsock=2"], "does not connect to vsock"),
        (vec!["tls=perhaps"], "is not one of off, on, require"),
        (vec!["hostname=h", "tls-psk=/nonexistent"], "tls-psk=/nonexistent: No such file"),
        (vec!["hostname=h", "tls-certificates=/nonexistent"], "tls-certificates=/nonexistent: ca-cert.pem: No such"),
        (vec!["uri=nbds://h", "tls=off"], "the URI asks for TLS and tls=off does not"),
        (vec!["no=1"], "unknown parameter 'no'"),
    ] {
        let pairs: Vec<(&str, &OsStr)> =
            params.iter().map(|param| param.split_once('=').unwrap()).map(|(k, v)| (k, OsStr::new(v))).collect();
        let error = plugin(&pairs).map(|_| ()).unwrap_err();
        assert!(error.contains(wrong) && !error.contains('\n'), "{params:?}: {error}");
    }
    let long = format!("/{}", "s".repeat(107));
    assert!(plugin(&[("socket", OsStr::new(&long))]).map(|_| ()).unwrap_err().contains("longer than 107 bytes"));
    assert!(plugin(&[("hostname", OsStr::new("h")), ("port", OsStr::new("nbd")), ("tls", OsStr::new("off"))]).is_ok());
}
