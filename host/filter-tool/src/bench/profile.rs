//! Writes samples as a file of V8's CPU profiler, which Speedscope, Firefox's profiler and Chrome's
//! tools open.

use std::time::Duration;

use rbdkit_plugin_api::text::one_line;
use rbdkit_sandbox::Samples;
use serde_json::{Value, json};

/// The number of the root, whose children are what the host calls.
const ROOT: usize = 1;

/// The profile. Times are in microseconds.
pub fn profile(samples: &Samples) -> Value {
    let number = |index: usize| index + ROOT + 1;
    let mut children = vec![Vec::new(); samples.nodes.len() + 1];
    for (index, node) in samples.nodes.iter().enumerate() {
        children[node.caller.map_or(0, |caller| caller + 1)].push(number(index));
    }
    let mut hits = vec![0u64; samples.nodes.len()];
    samples.samples.iter().for_each(|(_, at)| hits[*at] += 1);
    let node = |id: usize, name: &str, hits: u64, children: &[usize]| {
        json!({
            "id": id,
            "callFrame":
                {"functionName": name, "scriptId": "0", "url": "", "lineNumber": -1, "columnNumber": -1},
            "hitCount": hits,
            "children": children,
        })
    };
    let mut nodes = vec![node(ROOT, "(root)", 0, &children[0])];
    nodes.extend(
        samples
            .nodes
            .iter()
            .zip(&hits)
            .enumerate()
            .map(|(index, (one, hits))| node(number(index), &one_line(&one.name), *hits, &children[index + 1])),
    );
    let microseconds = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let begin = samples.samples.first().map_or(0, |(time, _)| microseconds(*time));
    let mut last = begin;
    let deltas = samples.samples.iter().map(|(time, _)| {
        let now = microseconds(*time);
        let delta = now.saturating_sub(last);
        last = now.max(last);
        delta
    });
    let deltas: Vec<u64> = deltas.collect();
    json!({
        "nodes": nodes,
        "startTime": begin,
        "endTime": last + 1000,
        "samples": samples.samples.iter().map(|(_, at)| number(*at)).collect::<Vec<_>>(),
        "timeDeltas": deltas,
    })
}

#[cfg(test)]
mod tests {
    use rbdkit_sandbox::ProfileNode;

    use super::*;

    #[test]
    fn nodes_name_their_children_and_samples_their_nodes() {
        let node = |name: &str, caller| ProfileNode { name: name.into(), caller };
        let at = |microseconds, index| (Duration::from_micros(microseconds), index);
        let samples = Samples {
            nodes: vec![node("pread", None), node("sum", Some(0)), node("pwrite", None)],
            samples: vec![at(100, 1), at(350, 1), at(400, 2)],
        };
        let value = profile(&samples);
        assert_eq!(value["nodes"][0]["children"], json!([2, 4]));
        assert_eq!(value["nodes"][1]["children"], json!([3]));
        assert_eq!((&value["nodes"][2]["hitCount"], &value["nodes"][1]["hitCount"]), (&json!(2), &json!(0)));
        assert_eq!(value["samples"], json!([3, 3, 4]));
        assert_eq!((&value["timeDeltas"], &value["startTime"]), (&json!([0, 250, 50]), &json!(100)));
        assert_eq!(profile(&Samples::default())["samples"], json!([]));
    }
}
