use rbdkit_plugin_api::schema::ParamKind;

use super::*;

fn spec(name: &str, kind: ParamKind) -> ParamSpec {
    ParamSpec::new(name, kind).help("What it is")
}

fn memory() -> PluginSide<'static> {
    let specs = vec![
        spec("size", ParamKind::Size).magic(),
        spec("allocator", ParamKind::String).alias("alloc"),
        ParamSpec::hidden("rdelay"),
    ];
    PluginSide { name: "memory", specs, undeclared: Undeclared::Refused, first_key: None }
}

fn stack<'a>(filters: &[(&'a str, &'a [ParamSpec])]) -> Stack<'a> {
    let filters = filters.iter().map(|(name, specs)| FilterSide { name, specs }).collect();
    Stack { filters, plugin: memory() }
}

/// `key=value` and bare words, and `FILTER:key=value` for one filter.
fn words(line: &str) -> (Vec<Parameter>, Vec<TargetedParameter>) {
    let (mut params, mut targeted) = (Vec::new(), Vec::new());
    for word in line.split_whitespace() {
        match TargetedParameter::split(OsStr::new(word)) {
            Some((target, key, value)) => {
                let target = Target::parse(&target).unwrap();
                targeted.push(TargetedParameter { target, key, value });
            }
            None => params.push(Parameter::new(word.into())),
        }
    }
    (params, targeted)
}

fn assigned(stack: &Stack<'_>, line: &str) -> Result<Assignment, String> {
    let (params, targeted) = words(line);
    assign(stack, &params, &targeted, Missing::Refused).map_err(|error| error.to_string())
}

/// What each filter gets, and after `|` what the plugin gets.
fn shown(assignment: &Assignment) -> String {
    let filter = |params: &Vec<(String, ParamValue)>| {
        let params: Vec<String> = params.iter().map(|(key, value)| format!("{key}={}", value.text)).collect();
        params.join(" ")
    };
    let filters: Vec<String> = assignment.filters.iter().map(filter).collect();
    let plugin: Vec<String> =
        assignment.plugin.iter().map(|(key, value)| format!("{key}={}", value.to_string_lossy())).collect();
    format!("{} | {}", filters.join(" , "), plugin.join(" "))
}

/// Serving, `--dump-plugin` and `rbdkit-filter check` each had rules of their own before.
#[test]
fn serving_dumping_and_checking_agree() {
    let filter = [
        ParamSpec { pass_on: true, ..spec("size", ParamKind::Size) },
        spec("delay", ParamKind::Duration).alias("wait"),
        spec("add", ParamKind::Int).repeat(),
    ];
    let stack = stack(&[("f", &filter)]);
    for (line, outcome) in [
        // --dump-plugin and check kept what is passed on from the plugin.
        ("size=1k", "size=1024 | size=1k"),
        // --dump-plugin did not look at values for filters.
        (
            "delay=soon",
            "delay=soon: is not a duration: a number and ns, us, ms, s (the default), m or h, for example 50ms or 1.5",
        ),
        // --dump-plugin did not look at --filter-param.
        ("delay=1ns f:delay=2ns", "delay=2 | "),
        ("f:size=1k", "size=1024 | "),
        ("g:delay=1", "--filter-param g: there is no such filter here, only f"),
        // check gave a filter every value of a key, not the last one.
        ("delay=1ns wait=2ns", "delay=2 | "),
        ("add=1 add=2", "add=1 add=2 | "),
        // Each had an error of its own for a key that no layer has.
        (
            "colour=red",
            "memory: unknown parameter 'colour' (rbdkit memory --help lists those it has; the filters have size, \
                delay, add)",
        ),
        ("dleay=1", "memory: unknown parameter 'dleay': did you mean delay of the f filter?"),
        ("alocator=sparse", "memory: unknown parameter 'alocator': did you mean allocator?"),
        // check did not know bare words, and values for the plugin were checked by the plugin
        // alone.
        ("1M", " | size=1M"),
        ("big", "size=big: is not a size: digits and one of b, s, k, M, G, T, P, E, for example 512, 64k or 1G"),
    ] {
        let got = assigned(&stack, line).map_or_else(|error| error, |assignment| shown(&assignment));
        assert_eq!(got, outcome, "{line}");
    }
}

#[test]
fn a_required_parameter_is_required_to_serve_and_to_check_but_not_to_dump() {
    let filter = [spec("offset", ParamKind::Size).required()];
    let stack = stack(&[("offset", &filter)]);
    assert_eq!(assigned(&stack, "").unwrap_err(), "offset: the parameter offset=<SIZE> is required: What it is");
    assert!(assigned(&stack, "offset:offset=1").is_ok());
    assert!(assign(&stack, &[], &[], Missing::Allowed).is_ok());
}

#[test]
fn the_outermost_filter_that_declares_a_key_takes_it() {
    let specs = [spec("delay", ParamKind::Duration)];
    let stack = stack(&[("a", &[]), ("b", &specs), ("c", &specs)]);
    assert_eq!(shown(&assigned(&stack, "delay=1ns allocator=sparse").unwrap()), " , delay=1 ,  | allocator=sparse");
}

#[test]
fn pass_on_hands_a_key_to_the_layers_below_as_well() {
    let passing = [ParamSpec { pass_on: true, ..spec("size", ParamKind::Size) }];
    let keeping = [spec("size", ParamKind::Size)];
    let both = assigned(&stack(&[("a", &passing), ("b", &keeping)]), "size=1k").unwrap();
    assert_eq!(shown(&both), "size=1024 , size=1024 | ");
    let one = assigned(&stack(&[("a", &passing)]), "size=1k").unwrap();
    assert_eq!(shown(&one), "size=1024 | size=1k");
    assert!(one.warnings.is_empty());
}

#[test]
fn a_filter_that_hides_a_parameter_of_the_plugin_is_worth_a_warning() {
    let specs = [spec("size", ParamKind::Size), spec("alloc", ParamKind::Int), spec("rdelay", ParamKind::Int)];
    let stack = stack(&[("a", &specs)]);
    let assignment = assigned(&stack, "rdelay=1 size=1k alloc=1").unwrap();
    let warning = |key| {
        format!(
            "{key}=: taken by the a filter, the memory plugin's parameter of that name is hidden \
                (--plugin-param {key}=... reaches it)"
        )
    };
    assert_eq!(assignment.warnings, ["size", "alloc"].map(warning));
}

#[test]
fn a_parameter_for_the_plugin_passes_the_filters_by() {
    let specs = [spec("size", ParamKind::Size)];
    let stack = stack(&[("a", &specs)]);
    let assigned = |word: &str| {
        let params = [Parameter::new("size=1k".into()), Parameter::for_plugin(OsStr::new(word)).unwrap()];
        assign(&stack, &params, &[], Missing::Refused).map_err(|error| error.to_string())
    };
    let assignment = assigned("size=2k").unwrap();
    assert_eq!(shown(&assignment), "size=1024 | size=2k");
    let unknown = "memory: unknown parameter 'sise': did you mean size?";
    assert_eq!(assigned("sise=2k").unwrap_err(), unknown);
    assert_eq!(Parameter::for_plugin(OsStr::new("1G")), None);
}

#[test]
fn bare_words_go_to_the_plugins_magic_key_even_if_a_filter_declares_it() {
    let specs = [spec("size", ParamKind::Size)];
    let mut stack = stack(&[("a", &specs)]);
    assert_eq!(shown(&assigned(&stack, "1G 2G").unwrap()), " | size=1G size=2G");
    stack.plugin = PluginSide { name: "eval", specs: vec![], undeclared: Undeclared::Taken, first_key: None };
    let error = assigned(&stack, "1G").unwrap_err();
    assert_eq!(error, "eval: expecting key=value on the command line but got: 1G");
}

#[test]
fn a_plugin_that_takes_other_keys_gets_them() {
    let mut stack = stack(&[]);
    stack.plugin.undeclared = Undeclared::Taken;
    assert_eq!(shown(&assigned(&stack, "colour=red size=1").unwrap()), " | colour=red size=1");
}

#[test]
fn a_targeted_parameter_reaches_only_its_filter_and_wins() {
    let specs = [spec("size", ParamKind::Size)];
    let stack = stack(&[("x", &specs), ("x", &specs)]);
    let assignment = assigned(&stack, "x#2:size=2k x:size=3k size=1k").unwrap();
    assert_eq!(shown(&assignment), "size=3072 , size=2048 | ");
    for (line, message) in [
        ("x#3:size=1", "--filter-param x#3: there is no such filter here, only x, x"),
        ("x:sise=1", "x: unknown parameter 'sise': did you mean size?"),
        ("x:colour=1", "x: unknown parameter 'colour': it has size"),
    ] {
        assert_eq!(assigned(&stack, line).unwrap_err(), message);
    }
    let nobody = assigned(&Stack { filters: vec![], plugin: memory() }, "x#2:size=1").unwrap_err();
    assert_eq!(nobody, "--filter-param x#2: no filter is given");
}

#[test]
fn a_secret_is_not_shown_in_an_error() {
    let mut stack = stack(&[]);
    stack.plugin.specs = vec![spec("password", ParamKind::Int).secret()];
    let error = assigned(&stack, "password=hush").unwrap_err();
    assert_eq!(error, "password: is not a whole number from 0 to 18446744073709551615");
}
