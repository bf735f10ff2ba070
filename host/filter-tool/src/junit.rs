//! JUnit files, which continuous integration reads.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use rbdkit_plugin_api::text::one_line;

use crate::error::{Error, Result};

/// Writes a JUnit file about a component: the test cases of this command.
///
/// # Errors
/// The file cannot be written.
pub fn write(file: &Path, command: &str, component: &str, cases: &[Case<'_>]) -> Result<()> {
    std::fs::write(file, junit(command, component, cases)).map_err(Error::file("cannot write", file))
}

/// A test case: its name, the time that it took, and its failure with details.
pub type Case<'a> = (&'a str, Duration, Option<(&'a str, &'a str)>);

fn junit(command: &str, suite: &str, cases: &[Case<'_>]) -> String {
    let failures = cases.iter().filter(|(_, _, failure)| failure.is_some()).count();
    let seconds: f64 = cases.iter().map(|(_, took, _)| took.as_secs_f64()).sum();
    let suite = xml(&one_line(suite));
    let mut text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n<testsuite name=\"rbdkit-filter {command}\" \
         tests=\"{}\" failures=\"{failures}\" errors=\"0\" time=\"{seconds:.3}\">\n",
        cases.len()
    );
    for (name, took, failure) in cases {
        let seconds = took.as_secs_f64();
        let _ = write!(text, "<testcase classname=\"{suite}\" name=\"{}\" time=\"{seconds:.3}\"", xml(name));
        text.push_str(&match failure {
            None => "/>\n".to_string(),
            Some((message, details)) => {
                format!(">\n<failure message=\"{}\">{}</failure>\n</testcase>\n", xml(&one_line(message)), xml(details))
            }
        });
    }
    text.push_str("</testsuite>\n</testsuites>\n");
    text
}

/// Escapes text for XML.
fn xml(text: &str) -> String {
    let mut escaped = String::new();
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&apos;"),
            '\n' => escaped.push('\n'),
            // XML has no way to say these.
            other if other.is_control() || matches!(other, '\u{fffe}' | '\u{ffff}') => escaped.push('?'),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_junit_file_names_the_failure_and_holds_no_markup_of_others() {
        let cases: [Case<'_>; 2] =
            [("a", Duration::from_millis(1500), None), ("b", Duration::ZERO, Some(("<&\"\u{1}", "1 x\n")))];
        let expected = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n\
            <testsuite name=\"rbdkit-filter check\" tests=\"2\" failures=\"1\" errors=\"0\" time=\"1.500\">\n\
            <testcase classname=\"f&gt;\" name=\"a\" time=\"1.500\"/>\n\
            <testcase classname=\"f&gt;\" name=\"b\" time=\"0.000\">\n\
            <failure message=\"&lt;&amp;&quot;\\u{1}\">1 x\n</failure>\n</testcase>\n</testsuite>\n</testsuites>\n";
        assert_eq!(junit("check", "f>", &cases), expected);
    }
}
