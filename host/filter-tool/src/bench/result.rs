//! What `bench` measured: as JSON, which a later run reads again, and as a table.

use std::path::Path;

use rbdkit_plugin_api::text::one_line_within;
use serde_json::{Value, json};

use super::workload::Workload;
use crate::error::{Error, Result};

/// The version of the JSON's format.
const FORMAT: u64 = 1;

/// The largest result that is read, in bytes.
const MAX_RESULT: u64 = 16 << 20;

/// One workload. Times are in nanoseconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    pub workload: Workload,
    /// The filter takes no writes.
    pub refused: bool,
    pub requests: u64,
    pub failed: u64,
    /// Why all requests failed.
    pub error: Option<String>,
    pub p50: f64,
    pub p99: f64,
    /// Bytes a second.
    pub throughput: f64,
    /// The median time of a request in each round: through the filter, through nofilter, and
    /// without a filter. The three alternate.
    pub filter: Vec<f64>,
    pub nofilter: Vec<f64>,
    pub none: Vec<f64>,
    /// WebAssembly instructions, and calls of the host, in a request.
    pub instructions: Option<u64>,
    pub host_calls: Option<u64>,
}

/// The middle of values that were measured. 0 if there are none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

impl Cell {
    /// The time that the filter adds to a request. None if it is within the noise.
    pub fn layer(&self) -> Option<f64> {
        added(&self.filter, &self.none)
    }

    /// The time that nofilter adds to a request. None if it is within the noise, or was not
    /// measured.
    pub fn nofilter_layer(&self) -> Option<f64> {
        added(&self.nofilter, &self.none)
    }

    /// How many times as much the filter adds as nofilter. None if one of them is not known.
    pub fn ratio(&self) -> Option<f64> {
        Some(self.layer()? / self.nofilter_layer()?)
    }

    /// The times of the filter's rounds, in times of the same round without a filter. So a machine
    /// that is slower at another time changes little.
    pub fn relative(&self) -> Vec<f64> {
        self.filter
            .iter()
            .zip(&self.none)
            .filter(|(_, none)| **none > 0.0)
            .map(|(filter, none)| filter / none)
            .collect()
    }

    fn json(&self) -> Value {
        json!({
            "operation": self.workload.operation.name(),
            "length": self.workload.length,
            "depth": self.workload.depth,
            "refused": self.refused,
            "requests": self.requests,
            "failed": self.failed,
            "error": self.error,
            "p50": self.p50,
            "p99": self.p99,
            "throughput": self.throughput,
            "layer": self.layer(),
            "nofilter-layer": self.nofilter_layer(),
            "ratio": self.ratio(),
            "instructions": self.instructions,
            "host-calls": self.host_calls,
            "rounds": {"filter": self.filter, "nofilter": self.nofilter, "none": self.none},
        })
    }
}

/// The median of the differences of rounds, if all of them are more than nothing.
fn added(with: &[f64], without: &[f64]) -> Option<f64> {
    let differences: Vec<f64> = with.iter().zip(without).map(|(with, without)| with - without).collect();
    (!differences.is_empty() && differences.iter().all(|more| *more > 0.0)).then(|| median(&differences))
}

/// How long a filter takes to start, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ColdStart {
    /// Checks and compiles the component, and asks for its description.
    pub compile: f64,
    /// The same with compiled code in the cache.
    pub load: f64,
    /// Makes an instance and configures it.
    pub configure: f64,
    /// Opens a connection and reads 4 KiB.
    pub first_read: f64,
}

/// What was measured of a filter.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    pub filter: String,
    pub params: Vec<String>,
    pub seconds: f64,
    pub cells: Vec<Cell>,
    /// Bytes of memory and tables of an instance after a request of 1 MiB.
    pub memory: u64,
    pub cold: ColdStart,
}

impl Measured {
    /// The result for programs, and for [`Old::read`].
    pub fn json(&self) -> Value {
        json!({
            "format": FORMAT,
            "filter": self.filter,
            "parameters": self.params,
            "seconds": self.seconds,
            "unit": "times are in nanoseconds, throughput is in bytes a second, instructions are those of WebAssembly \
                     in the guest",
            "memory": self.memory,
            "cold-start": {
                "compile": self.cold.compile,
                "load": self.cold.load,
                "configure": self.cold.configure,
                "first-read": self.cold.first_read,
            },
            "workloads": self.cells.iter().map(Cell::json).collect::<Vec<_>>(),
        })
    }

    /// Prints the result for people.
    pub fn print(&self) {
        say!("{}: {:.1} s of measuring", self.filter, self.seconds);
        say!(
            "{:<14} {:>5} {:>10} {:>10} {:>11} {:>13} {:>6} {:>10} {:>10} {:>6}",
            "request",
            "depth",
            "p50",
            "p99",
            "throughput",
            "instructions",
            "calls",
            "layer",
            "nofilter's",
            "ratio"
        );
        for cell in &self.cells {
            let Workload { depth, .. } = cell.workload;
            let request = cell.workload.request();
            if cell.refused {
                say!("{request:<14} {depth:>5} refused: the filter takes no writes");
                continue;
            }
            if let Some(error) = &cell.error {
                say!("{request:<14} {depth:>5} all {} requests failed: {}", cell.failed, one_line_within(error, 200));
                continue;
            }
            let count = |count: Option<u64>| count.map_or("-".to_string(), |count| count.to_string());
            let ratio = cell.ratio().map_or("-".to_string(), |ratio| format!("{ratio:.1}"));
            let layer = |layer: Option<f64>| layer.map_or("-".to_string(), time);
            say!(
                "{request:<14} {depth:>5} {:>10} {:>10} {:>11} {:>13} {:>6} {:>10} {:>10} {ratio:>6}",
                time(cell.p50),
                time(cell.p99),
                rate(cell.throughput),
                count(cell.instructions),
                count(cell.host_calls),
                layer(cell.layer()),
                layer(cell.nofilter_layer())
            );
            if cell.failed > 0 {
                say!("{:<14} {:>5} {} of {} requests failed", "", "", cell.failed, cell.requests);
            }
        }
        say!(
            "instructions are those of WebAssembly in the guest, calls are the guest's calls of the host, in a request"
        );
        say!("layer is the time that the filter adds to a request; nofilter's is what a filter that does nothing adds");
        say!("- is a time within the noise of the rounds");
        say!("memory of an instance: {} KiB", self.memory >> 10);
        say!(
            "cold start: compile {}, or load from the cache {}; configure an instance {}; open and read 4 KiB {}",
            time(self.cold.compile),
            time(self.cold.load),
            time(self.cold.configure),
            time(self.cold.first_read)
        );
    }
}

/// A time for people.
pub fn time(nanoseconds: f64) -> String {
    match nanoseconds {
        n if n.abs() < 1e3 => format!("{n:.0} ns"),
        n if n.abs() < 1e6 => format!("{:.2} us", n / 1e3),
        n if n.abs() < 1e9 => format!("{:.2} ms", n / 1e6),
        n => format!("{:.2} s", n / 1e9),
    }
}

/// Bytes a second for people.
fn rate(bytes: f64) -> String {
    match bytes {
        n if n < 1e9 => format!("{:.0} MB/s", n / 1e6),
        n => format!("{:.1} GB/s", n / 1e9),
    }
}

/// What an earlier run measured, as far as it is compared.
#[derive(Clone, Debug, PartialEq)]
pub struct Old {
    pub filter: String,
    pub params: Vec<String>,
    pub cells: Vec<OldCell>,
}

/// One workload of an earlier run.
#[derive(Clone, Debug, PartialEq)]
pub struct OldCell {
    pub operation: String,
    pub length: u64,
    pub depth: u64,
    pub relative: Vec<f64>,
    pub instructions: Option<u64>,
}

impl Old {
    /// Reads a file that `bench --json` wrote.
    ///
    /// # Errors
    /// One line that says why it is none.
    pub fn read(path: &Path) -> Result<Old> {
        use std::io::Read as _;
        let about = std::fs::metadata(path).map_err(Error::file("cannot open", path))?;
        if !about.is_file() {
            return Err(Error::Call(format!("--compare {}: is not a regular file", path.display())));
        }
        let file = std::fs::File::open(path).map_err(Error::file("cannot open", path))?;
        let mut text = Vec::new();
        file.take(MAX_RESULT).read_to_end(&mut text).map_err(Error::file("cannot read", path))?;
        let value = serde_json::from_slice(&text).ok();
        value.and_then(|value| Old::from_json(&value)).ok_or_else(|| {
            Error::Call(format!("--compare {}: is not a result of rbdkit-filter bench --json", path.display()))
        })
    }

    fn from_json(value: &Value) -> Option<Old> {
        if value["format"].as_u64() != Some(FORMAT) {
            return None;
        }
        let numbers = |value: &Value| -> Option<Vec<f64>> {
            let numbers: Option<Vec<f64>> = value.as_array()?.iter().map(Value::as_f64).collect();
            numbers.filter(|numbers| numbers.iter().all(|number| number.is_finite() && *number >= 0.0))
        };
        let cells =
            value["workloads"].as_array()?.iter().filter(|cell| cell["refused"] != true && cell["error"].is_null());
        let cells = cells.map(|cell| {
            let (filter, none) = (numbers(&cell["rounds"]["filter"])?, numbers(&cell["rounds"]["none"])?);
            let both = filter.iter().zip(&none).filter(|(_, none)| **none > 0.0);
            Some(OldCell {
                operation: cell["operation"].as_str()?.to_string(),
                length: cell["length"].as_u64()?,
                depth: cell["depth"].as_u64()?,
                relative: both.map(|(filter, none)| filter / none).collect(),
                instructions: cell["instructions"].as_u64(),
            })
        });
        let params = value["parameters"].as_array()?.iter().map(|word| Some(word.as_str()?.to_string()));
        Some(Old {
            filter: one_line_within(value["filter"].as_str()?, 200),
            params: params.collect::<Option<_>>()?,
            cells: cells.collect::<Option<_>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(in crate::bench) fn measured(filter: Vec<f64>) -> Measured {
        let none = vec![100.0; filter.len()];
        let cell = Cell {
            workload: Workload::all()[0],
            refused: false,
            requests: 10,
            failed: 0,
            error: None,
            p50: 1.0,
            p99: 2.0,
            throughput: 1e9,
            nofilter: vec![150.0; filter.len()],
            filter,
            none,
            instructions: Some(50),
            host_calls: Some(2),
        };
        Measured {
            filter: "f 1.0".into(),
            params: vec!["key=1".into()],
            seconds: 1.0,
            cells: vec![cell],
            memory: 65536,
            cold: ColdStart::default(),
        }
    }

    #[test]
    fn a_layer_is_what_it_adds_in_the_same_round() {
        let measured = measured(vec![200.0, 300.0, 250.0]);
        let cell = &measured.cells[0];
        assert_eq!((cell.layer(), cell.nofilter_layer(), cell.ratio()), (Some(150.0), Some(50.0), Some(3.0)));
        let noise = Cell { nofilter: vec![150.0, 150.0, 99.0], ..cell.clone() };
        assert_eq!((noise.nofilter_layer(), noise.ratio()), (None, None));
        let unknown = Cell { nofilter: Vec::new(), ..cell.clone() };
        assert_eq!(unknown.ratio(), None);
    }

    #[test]
    fn a_result_is_read_again_and_nothing_else() {
        let measured = measured(vec![200.0, 300.0]);
        let old = Old::from_json(&measured.json()).unwrap();
        assert_eq!((old.filter.as_str(), old.params.as_slice()), ("f 1.0", &["key=1".to_string()][..]));
        assert_eq!(old.cells[0].relative, [2.0, 3.0]);
        assert_eq!(old.cells[0].instructions, Some(50));
        for wrong in ["{}", "[]", r#"{"format": 2}"#, r#"{"format": 1, "filter": "x", "parameters": [1]}"#] {
            assert_eq!(Old::from_json(&serde_json::from_str(wrong).unwrap()), None, "{wrong}");
        }
        let mut negative = measured.json();
        negative["workloads"][0]["rounds"]["filter"] = json!([-1.0]);
        assert_eq!(Old::from_json(&negative), None);
    }
}
