use rbdkit_parameters::Target;

use super::super::listen::Families;
use super::*;

fn parsed(line: &str, inherited: Inherited) -> Result<Plan, ConfigError> {
    let no_file = |_: &std::path::Path| Err(std::io::ErrorKind::NotFound.into());
    parse(line.split_whitespace().map(OsString::from).collect(), inherited, &no_file)
}

fn plan(line: &str) -> Plan {
    parsed(line, Inherited::default()).unwrap()
}

fn mistake(line: &str) -> String {
    parsed(line, Inherited::default()).unwrap_err().to_string()
}

fn activated(line: &str, fds: &str) -> Result<Plan, String> {
    let inherited = Inherited { pid: Some("7".into()), fds: Some(fds.into()), own_pid: 7 };
    parsed(line, inherited).map_err(|error| error.to_string())
}

#[test]
fn without_options_it_serves_on_the_nbd_port_in_the_background() {
    let plan = plan("file disk.img x=1");
    assert_eq!(plan.action, Action::Serve);
    assert_eq!(plan.listen, Listen::Tcp { address: None, port: "10809".into(), families: Families::Both });
    assert!(!plan.foreground && !plan.readonly && plan.structured_replies && plan.multi_conn);
    assert_eq!(plan.plugin.as_deref(), Some("file"));
    assert_eq!(plan.params, [Parameter::Bare("disk.img".into()), Parameter::Keyed("x".into(), "1".into())]);
}

#[test]
fn what_implies_the_foreground_does() {
    for line in ["-f null", "--no-fork null", "-s null", "--exit-with-parent null", "--run true null"] {
        assert!(plan(line).foreground, "{line}");
    }
    assert!(activated("null", "1").unwrap().foreground);
}

#[test]
fn ways_to_listen_exclude_each_other() {
    for (line, message) in [
        ("-p 1 -U x null", "-p and -U cannot be used together"),
        ("-p 1 -s null", "-p and -s cannot be used together"),
        ("-s -U - null", "-s and -U cannot be used together"),
        ("-s --run true null", "-s and --run cannot be used together"),
        ("-s --dump-plugin null", "-s and --dump-plugin cannot be used together"),
        ("--vsock -U x null", "-U and --vsock cannot be used together"),
        ("--vsock -s null", "-s and --vsock cannot be used together"),
        ("--vsock -i localhost null", "-i and --vsock cannot be used together"),
    ] {
        assert_eq!(mistake(line), message);
    }
    for (line, option) in
        [("-p 1", "-p"), ("-i x", "-i"), ("-U x", "-U"), ("-s", "-s"), ("--run true", "--run"), ("--vsock", "--vsock")]
    {
        let message = format!("{option} cannot be used with socket activation (LISTEN_FDS is set)");
        assert_eq!(activated(&format!("{line} null"), "1").unwrap_err(), message);
    }
}

#[test]
fn a_command_gets_a_private_socket_unless_an_option_says_where_to_listen() {
    assert_eq!(plan("--run true null").listen, Listen::PrivateUnix);
    assert_eq!(plan("--run true -U x null").listen, Listen::Unix("x".into()));
    for options in ["-p 10809", "-i 127.0.0.1", "-4", "-6"] {
        let listen = plan(&format!("--run true {options} null")).listen;
        assert!(matches!(listen, Listen::Tcp { .. }), "{options}: {listen:?}");
    }
    assert!(matches!(plan("null").listen, Listen::Tcp { .. }));
}

#[test]
fn a_vsock_port_has_32_bits_and_a_default() {
    assert_eq!(plan("--vsock null").listen, Listen::Vsock(10809));
    assert_eq!(plan("--vsock -p 4294967295 null").listen, Listen::Vsock(u32::MAX));
    // The host's captive programs reach vsock only where the kernel has its loopback.
    assert_eq!(plan("--vsock --run true null").listen, Listen::Vsock(10809));
}

#[test]
fn the_names_of_nbdkits_options_mean_what_they_mean_there() {
    assert!(!plan("--no-mc null").meta_contexts && !plan("--no-meta-contexts null").meta_contexts);
    assert!(plan("--no-mc null").multi_conn && !plan("--no-multi-conn null").multi_conn);
    assert!(!plan("--no-sr null").structured_replies && !plan("--no-structured-replies null").structured_replies);
    assert_eq!(plan("-o null").handshake_style, HandshakeStyle::Oldstyle);
    assert_eq!(plan("-o --newstyle null").handshake_style, HandshakeStyle::Newstyle);
    assert_eq!(plan("--log=default null").log, LogTo::Default);
    assert_eq!(plan("--log=/var/log/x null").log, LogTo::File("/var/log/x".into()));
    assert_eq!(plan("--log=fd:5 null").log, LogTo::Descriptor(5));
}

#[test]
fn a_plugin_is_dumped_whatever_says_where_to_listen() {
    for line in ["-p 1 --dump-plugin null", "-U - --run true --dump-plugin null", "--run true --dump-plugin null"] {
        assert_eq!(plan(line).action, Action::DumpPlugin, "{line}");
    }
}

#[test]
fn sockets_are_inherited_only_by_the_process_they_are_meant_for() {
    assert_eq!(activated("null", "2").unwrap().listen, Listen::Inherited(2));
    let other = Inherited { pid: Some("8".into()), fds: Some("1".into()), own_pid: 7 };
    assert!(matches!(parsed("null", other).unwrap().listen, Listen::Tcp { .. }));
    for fds in ["0", "17", "x", "", "-1"] {
        assert!(activated("null", fds).unwrap_err().starts_with("LISTEN_FDS: "), "{fds}");
    }
}

#[test]
fn values_out_of_range_are_named() {
    for (line, message) in [
        ("-p 65536 null", "--port: '65536' is not a port from 0 to 65535, nor the name of a service"),
        ("-t x null", "--threads: 'x' is not a whole number from 0 to 4294967295"),
        ("-t -1 null", "--threads: '-1' is not a whole number from 0 to 4294967295"),
        ("--log=x null", "--log=x: is not one of default, stderr, syslog, null, /PATH, fd:N"),
        ("--log=fd:x null", "--log=fd:N: 'x' is not a whole number from 0 to 2147483647"),
        ("--name= null", "--name: the name has 0 bytes, it has to have 1 to 64"),
        ("--selinux-label= null", "--selinux-label: the label is empty"),
        ("--vsock -p x null", "--port (with --vsock): 'x' is not a whole number from 0 to 4294967295"),
        ("--mask-handshake=x null", "--mask-handshake: 'x' is not a whole number from 0 to 4294967295"),
        ("--limit=x null", "--limit: 'x' is not RESOURCE=VALUE, for example connections=100"),
        ("--limit=x= null", "--limit: 'x=' is not RESOURCE=VALUE, for example connections=100"),
        ("--timeout=0 null", "--timeout=0: has to be more than 0"),
        ("-D x null", "-D x: must have the form NAME.FLAG=N, N a whole number"),
        ("-D x.y=z null", "-D x.y=z: must have the form NAME.FLAG=N, N a whole number"),
        ("--unix= null", "--unix: the name of the file is empty"),
        ("--pidfile= null", "--pidfile: the name of the file is empty"),
        ("--filter= null", "--filter: the name of the filter is empty"),
        ("--plugin-param=1G null", "--plugin-param: '1G' is not KEY=VALUE, for example size=1G"),
        ("--filter-param=x null", "--filter-param: 'x' is not FILTER:KEY=VALUE, for example cow:cow-on-read=true"),
        ("--filter-param=x#0:k=v null", "--filter-param: 'x#0' does not name a filter: NAME, or NAME#2 for the second"),
        ("--filter-key= null", "--filter-key: the name of the file is empty"),
        ("--wasm-filter=oci://h null", "--wasm-filter: 'oci://h' names no component: oci://host/name:tag"),
        ("--wasm-filter=x@sha256:12 null", "--wasm-filter: '12' is not a SHA-256 digest: 64 hexadecimal digits"),
    ] {
        assert_eq!(mistake(line), message);
    }
}

#[test]
fn what_this_version_does_not_have_is_refused_in_one_line() {
    for (line, message) in [
        ("--tls=maybe null", "--tls=maybe: is not one of off, on, require"),
        ("-o --tls=require null", "--oldstyle and --tls=require cannot be used together: oldstyle has no TLS"),
        ("--tls-psk= null", "--tls-psk: the name of the file is empty"),
        (
            "--tls-priority=@SYSTEM null",
            "--tls-priority: '@SYSTEM' names a file of the system's policy, which is not read",
        ),
    ] {
        assert_eq!(mistake(line), message);
    }
    assert_eq!(plan("--tls=off null").action, Action::Serve);
}

#[test]
fn a_plugin_that_is_a_program_gets_everything_but_its_name() {
    let rest = |line: &str| -> String {
        let args: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
        without_plugin(&args).unwrap().join(std::ffi::OsStr::new(" ")).into_string().unwrap()
    };
    assert_eq!(rest("-f x -U s k=v"), "-f -U s k=v");
    assert_eq!(rest("-e x -r x x k=v"), "-e x -r x k=v");
    assert_eq!(rest("--filter=x --filter x -- x -y"), "--filter=x --filter x -- -y");
    assert_eq!(rest("-f"), "-f");
}

#[test]
fn what_cdi_and_virt_v2v_ask_of_vddk_is_a_plan() {
    let plan = plan(
        "--foreground --readonly --exit-with-parent -U /tmp/nbd.sock --pidfile /tmp/nbd.pid --filter=retry \
         --filter=cacheextents vddk libdir=/opt/vmware-vix-disklib-distrib server=h user=u password=-3 thumbprint=t \
         vm=moref=vm-1 snapshot=s transports=file:nbdssl:nbd --verbose -D nbdkit.backend.datapath=0 \
         -D vddk.datapath=0 -D vddk.stats=1 file=[ds]/x.vmdk",
    );
    assert_eq!((plan.plugin.as_deref(), plan.verbose, plan.readonly), (Some("vddk"), true, true));
    assert_eq!(plan.params.len(), 9);
    assert_eq!(plan.params[5], Parameter::Keyed("vm".into(), "moref=vm-1".into()));
    let flags: Vec<String> =
        plan.debug_flags.iter().map(|flag| format!("{}.{}={}", flag.name, flag.flag, flag.value)).collect();
    assert_eq!(flags, ["nbdkit.backend.datapath=0", "vddk.datapath=0", "vddk.stats=1"]);
    let asked = self::plan("--dump-plugin vddk libdir=/opt/vmware-vix-disklib-distrib");
    assert_eq!((asked.action, asked.params.len()), (Action::DumpPlugin, 1));
}

#[test]
fn plugins_of_nbdkit_are_taken_and_its_filters_are_refused_by_name() {
    for line in ["./nbdkit-x-plugin.so", "/usr/lib/x", "x.so"] {
        assert_eq!(plan(line).plugin.as_deref(), Some(line));
    }
    assert_eq!(plan("--plugindir=/opt python x").plugindir.as_deref(), Some("/opt".as_ref()));
    assert!(mistake("--filter=./x.so null").contains("filters of nbdkit cannot be loaded"));
    let url = mistake("https://me:secret@host/disk.img");
    assert!(url.contains("the name of a plugin has to stand before a URL") && !url.contains("secret"), "{url}");
}

#[test]
fn a_filter_in_a_registry_is_no_file() {
    let plan = plan("--wasm-filter oci://h/x:1 --filter-key me.pub --plain-http null");
    let [FilterSource::Registry(reference)] = &plan.filters[..] else { panic!("{:?}", plan.filters) };
    assert_eq!(reference.to_string(), "oci://h/x:1");
    assert_eq!(plan.registries.filter_key, Some(PathBuf::from("me.pub")));
    assert_eq!(plan.registries.plain_http, rbdkit_oci::PlainHttp::Allowed);
}

#[test]
fn filters_of_both_kinds_keep_their_order() {
    let digest = "0123456789abcdefABCDEF0123456789".repeat(2);
    let plan =
        plan(&format!("--filter=cow --wasm-filter x.wasm@sha256:{digest} null --filter=./y.wasm --filter delay"));
    let FilterSource::File { path, sha256: Some(sha256) } = &plan.filters[1] else {
        panic!("{:?}", plan.filters);
    };
    assert_eq!(path, &PathBuf::from("x.wasm"));
    assert_eq!(sha256[..4], [0x01, 0x23, 0x45, 0x67]);
    assert_eq!(plan.filters[0], FilterSource::Named("cow".into()));
    assert_eq!(plan.filters[2], FilterSource::File { path: "./y.wasm".into(), sha256: None });
    assert_eq!(plan.filters[3], FilterSource::Named("delay".into()));
}

#[test]
fn parameters_and_limits_are_aimed_at_a_filter() {
    let plan = plan("--filter-param cow#2:cow-on-read=/a:b=c --filter-limit cow:memory=1M --filter-limit cpu=2s null");
    let target = Target { name: "cow".into(), instance: 2 };
    assert_eq!(plan.filter_params, [TargetedParameter { target, key: "cow-on-read".into(), value: "/a:b=c".into() }]);
    let target = Some(Target { name: "cow".into(), instance: 1 });
    assert_eq!(
        plan.filter_limits,
        [
            FilterLimit { target, resource: "memory".into(), value: "1M".into() },
            FilterLimit { target: None, resource: "cpu".into(), value: "2s".into() }
        ]
    );
}

#[test]
fn powers_are_granted_to_a_filter() {
    let plan = plan("--filter-allow mine#2:shutdown,disconnect --filter-allow other:shutdown null");
    let target = |name: &str, instance| Target { name: name.into(), instance };
    assert_eq!(
        plan.filter_allows,
        [
            FilterAllow { target: target("mine", 2), powers: vec!["shutdown".into(), "disconnect".into()] },
            FilterAllow { target: target("other", 1), powers: vec!["shutdown".into()] }
        ]
    );
    for wrong in ["mine", "mine:", "mine:shutdown,", ":shutdown", "mine#0:shutdown"] {
        let line = mistake(&format!("--filter-allow {wrong} null"));
        assert!(line.starts_with("--filter-allow: '"), "{line}");
    }
}

#[test]
fn a_plugin_is_needed_to_serve_and_to_dump_but_not_for_help() {
    assert_eq!(mistake("-f"), "no plugin given, for example: rbdkit file disk.img (see --help)");
    assert_eq!(mistake("--dump-plugin"), "--dump-plugin needs the name of a plugin: rbdkit PLUGIN --dump-plugin");
    for line in ["--help", "-h", "-V", "--dump-config", "--short-options", "--long-options"] {
        assert_eq!(plan(line).plugin, None, "{line}");
    }
}
