//! What a filter costs in each language: the filter that `rbdkit-filter new` writes, beside
//! nofilter, in processor time for a read of 512 bytes. The filter makes two calls of the host in a
//! read; [`pinned`](crate::pinned) says how it is measured.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rbdkit_tests::wait;

use crate::filters::{Cost, beside_nofilter};

/// The languages of `rbdkit-filter new`, and how many times nofilter's layer a filter may cost.
pub const LANGUAGES: [(&str, f64); 8] =
    [("rust", 1.2), ("c", 1.2), ("c++", 1.2), ("zig", 1.2), ("go", 3.0), ("js", 12.0), ("ts", 12.0), ("python", 12.0)];

/// How long a build may take. The first one compiles the language's standard library.
const BUILD: Duration = Duration::from_secs(600);

/// Builds a filter in each language whose tools are here, and measures them. The result has the
/// failures too.
pub fn measure(program: &Path, turns: u64) -> (Vec<Cost>, Vec<String>) {
    let (mut built, mut failures) = (Vec::new(), Vec::new());
    for (name, _) in LANGUAGES {
        match build(program, name) {
            Ok(component) => built.push((name, vec!["--wasm-filter".to_owned(), component.display().to_string()])),
            Err(why) => failures.push(format!("languages: {name}: {why}")),
        }
    }
    match beside_nofilter(program, &built, turns) {
        Ok(languages) => (languages, failures),
        Err(why) => {
            failures.push(format!("languages: {why}"));
            (Vec::new(), failures)
        }
    }
}

/// Makes a new project in a language, unless an earlier run made it, and builds it.
fn build(program: &Path, language: &'static str) -> Result<PathBuf, String> {
    let tool_path = program.with_file_name("rbdkit-filter");
    let run = |words: &[&str]| match wait::output_within(BUILD, Command::new(&tool_path).args(words)) {
        done if done.status.success() => Ok(()),
        done => Err(format!("rbdkit-filter {}: {}", words[0], String::from_utf8_lossy(&done.stderr))),
    };
    let name = format!("bench-{}", language.replace("++", "pp"));
    let dir = rbdkit_tests::server::root().join("target/bench-languages").join(&name);
    let dir_text = dir.to_str().ok_or("the directory's path is not UTF-8")?;
    if !dir.exists() {
        run(&["new", &name, "--lang", language, "--dir", dir_text])?;
    }
    run(&["build", dir_text])?;
    Ok(dir.join(format!("{name}.wasm")))
}
