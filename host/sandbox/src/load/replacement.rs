//! Whether a component may replace another one in a running server.

use rbdkit_plugin_api::schema::{ParamKind, ParamValue};

use super::describe::Description;
use super::error::LoadError;

/// A parameter that was given when the server started: the kind that its value was read as, and the
/// value.
#[derive(Clone, Debug)]
pub(crate) struct Given {
    pub(crate) name: String,
    pub(crate) kind: ParamKind,
    pub(crate) value: ParamValue,
}

/// Checks the description of a component that is to replace a running one.
///
/// # Errors
/// One line: it is another filter, it keeps its state in another format, or the parameters that
/// were given do not fit it.
pub(crate) fn check(running: &Description, new: &Description, given: &[Given]) -> Result<(), LoadError> {
    if new.name != running.name {
        return Err(refused(format!("it is the filter {}, and {} is running", new.name, running.name)));
    }
    if new.state_version != running.state_version {
        return Err(refused(format!(
            "its state-version is {}, and that of the running version is {}: the server has to be started again",
            new.state_version, running.state_version
        )));
    }
    for (index, Given { name, kind, value }) in given.iter().enumerate() {
        let Some(spec) = new.params.iter().find(|spec| spec.name == *name) else {
            return Err(refused(format!("it has no parameter {name}, which was given when the server was started")));
        };
        if spec.kind != *kind {
            return Err(refused(format!(
                "its parameter {name} is of the kind {}, and was of the kind {} when the server was started",
                spec.kind.name(),
                kind.name()
            )));
        }
        if spec.kind == ParamKind::Choice && !spec.choices.contains(&value.text) {
            return Err(refused(format!("{name}={}: is not one of {}", value.text, spec.choices.join(", "))));
        }
        if !spec.repeat && given[..index].iter().any(|earlier| earlier.name == *name) {
            return Err(refused(format!("its parameter {name} cannot be given more than once, and was")));
        }
    }
    let lacking = new.params.iter().find(|spec| spec.required && given.iter().all(|given| given.name != spec.name));
    match lacking {
        Some(spec) => Err(refused(format!(
            "it requires the parameter {}, which was not given when the server was started",
            spec.name
        ))),
        None => Ok(()),
    }
}

fn refused(why: String) -> LoadError {
    LoadError::Replacement(why)
}

#[cfg(test)]
mod tests {
    use rbdkit_plugin_api::ThreadModel;
    use rbdkit_plugin_api::schema::ParamSpec;

    use super::*;

    fn description(params: Vec<ParamSpec>) -> Description {
        Description {
            name: "f".into(),
            version: String::new(),
            longname: String::new(),
            help: String::new(),
            thread_model: ThreadModel::Parallel,
            transparent: true,
            recovery: "stateless",
            state_version: 1,
            params,
            exports: Vec::new(),
            imports: Vec::new(),
        }
    }

    fn given(name: &str, kind: ParamKind, text: &str) -> Given {
        Given { name: name.into(), kind, value: ParamValue { text: text.into(), path: None } }
    }

    #[test]
    fn the_parameters_that_were_given_have_to_fit_the_new_version() {
        let running = description(Vec::new());
        let int = || ParamSpec::new("n", ParamKind::Int);
        let choice = || ParamSpec::choice("mode", &["a", "b"]);
        let n = || given("n", ParamKind::Int, "1");
        for (params, given, why) in [
            (vec![int()], vec![n()], None),
            (vec![], vec![n()], Some("it has no parameter n, which was given when the server was started")),
            (
                vec![ParamSpec::size("n")],
                vec![n()],
                Some("its parameter n is of the kind size, and was of the kind int when the server was started"),
            ),
            (vec![choice()], vec![given("mode", ParamKind::Choice, "c")], Some("mode=c: is not one of a, b")),
            (vec![int()], vec![n(), n()], Some("its parameter n cannot be given more than once, and was")),
            (vec![int().repeat()], vec![n(), n()], None),
            (
                vec![int(), choice().required()],
                vec![n()],
                Some("it requires the parameter mode, which was not given when the server was started"),
            ),
        ] {
            let said = check(&running, &description(params), &given).err().map(|why| why.to_string());
            assert_eq!(said.as_deref(), why);
        }
    }

    #[test]
    fn another_filter_and_another_state_version_are_refused() {
        let running = description(Vec::new());
        let other = Description { name: "g".into(), ..running.clone() };
        let why = check(&running, &other, &[]).unwrap_err();
        assert_eq!(why.to_string(), "it is the filter g, and f is running");
        let other = Description { state_version: 2, ..running.clone() };
        let why = check(&running, &other, &[]).unwrap_err().to_string();
        assert!(why.starts_with("its state-version is 2, and that of the running version is 1"), "{why}");
    }
}
