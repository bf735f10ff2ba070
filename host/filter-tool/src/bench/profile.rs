//! Writes samples as a file of V8's CPU profiler, which Speedscope, Firefox's profiler and Chrome's
//! tools open.
//!
//! The format has a time for each sample and no weight. The importers take the time until the next
//! sample as the time that was spent in a sample's function. A guest is sampled only while it runs,
//! so between two samples the host may have worked for long. Without more that time would count
//! for the guest's function. So a sample of V8's `(idle)` follows each sample after which nothing
//! was sampled for a while, and the last one: Speedscope gives the last sample no time.

use std::time::Duration;

use rbdkit_plugin_api::text::one_line;
use rbdkit_sandbox::{Profile, Samples};
use serde_json::{Value, json};

/// The number of the root, whose children are what the host calls.
const ROOT: usize = 1;

/// The number of the node for the time in which no guest was sampled.
const IDLE: usize = 2;

/// The number of the first function. Firefox needs each caller before those that it calls.
const FIRST: usize = 3;

/// A guest that runs is sampled again within this time, in microseconds. Two intervals, because
/// the thread that ticks and the guest both run late on a busy machine.
const MAX_BUSY: u64 = 2 * INTERVAL;

/// The time between two samples in microseconds.
const INTERVAL: u64 = Profile::INTERVAL.as_micros() as u64;

/// The profile. Times are in microseconds.
pub fn profile(samples: &Samples) -> Value {
    let (taken, end) = with_idle(samples);
    let count = samples.nodes.len() + FIRST;
    let (mut children, mut hits) = (vec![Vec::new(); count], vec![0u64; count]);
    for (index, node) in samples.nodes.iter().enumerate() {
        children[node.caller.map_or(ROOT, |caller| caller + FIRST)].push(index + FIRST);
    }
    children[ROOT].push(IDLE);
    taken.iter().for_each(|(_, node)| hits[*node] += 1);
    let names = samples.nodes.iter().map(|node| one_line(&node.name));
    let names = ["(root)".to_string(), "(idle)".to_string()].into_iter().chain(names);
    let node = |(id, name): (usize, String)| {
        json!({
            "id": id,
            "callFrame":
                {"functionName": name, "scriptId": "0", "url": "", "lineNumber": -1, "columnNumber": -1},
            "hitCount": hits[id],
            "children": children[id],
        })
    };
    let nodes: Vec<Value> = (ROOT..).zip(names).map(node).collect();
    let begin = taken.first().map_or(0, |(time, _)| *time);
    let befores = std::iter::once(begin).chain(taken.iter().map(|(time, _)| *time));
    json!({
        "nodes": nodes,
        "startTime": begin,
        "endTime": end,
        "samples": taken.iter().map(|(_, node)| *node).collect::<Vec<_>>(),
        "timeDeltas": taken.iter().zip(befores).map(|((time, _), before)| time - before).collect::<Vec<_>>(),
    })
}

/// The samples in the order of their times, with the idle ones between them, and the end.
fn with_idle(samples: &Samples) -> (Vec<(u64, usize)>, u64) {
    let microseconds = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let mut real: Vec<(u64, usize)> =
        samples.samples.iter().map(|(time, at)| (microseconds(*time), at + FIRST)).collect();
    // Stable, so that samples of one microsecond keep their order.
    real.sort_by_key(|(time, _)| *time);
    let mut taken = Vec::with_capacity(real.len() + 1);
    for (index, (time, node)) in real.iter().enumerate() {
        taken.push((*time, *node));
        if real.get(index + 1).is_none_or(|(next, _)| next - time > MAX_BUSY) {
            taken.push((time.saturating_add(INTERVAL), IDLE));
        }
    }
    let end = taken.last().map_or(0, |(time, _)| *time);
    (taken, end)
}

#[cfg(test)]
mod tests {
    use rbdkit_sandbox::ProfileNode;

    use super::*;

    fn node(name: &str, caller: Option<usize>) -> ProfileNode {
        ProfileNode { name: name.into(), caller }
    }

    fn samples(taken: &[(u64, usize)]) -> Samples {
        Samples {
            nodes: vec![node("pread", None), node("sum", Some(0)), node("pwrite", None)],
            samples: taken.iter().map(|(time, index)| (Duration::from_micros(*time), *index)).collect(),
        }
    }

    #[test]
    fn nodes_name_their_children_and_samples_their_nodes() {
        let value = profile(&samples(&[(100, 1), (350, 1), (400, 2)]));
        assert_eq!(value["nodes"][0]["children"], json!([3, 5, 2]));
        assert_eq!(value["nodes"][2]["children"], json!([4]));
        assert_eq!((&value["nodes"][3]["hitCount"], &value["nodes"][2]["hitCount"]), (&json!(2), &json!(0)));
        assert_eq!(value["samples"], json!([4, 4, 5, 2]));
        assert_eq!(value["timeDeltas"], json!([0, 250, 50, 1000]));
        assert_eq!((&value["startTime"], &value["endTime"]), (&json!(100), &json!(1400)));
    }

    #[test]
    fn the_time_in_which_no_guest_was_sampled_counts_for_no_function() {
        // As samples: 2 ms, then a pause of 90 ms, and two samples of which the later came first.
        let value = profile(&samples(&[(1000, 0), (2000, 0), (92_500, 1), (91_500, 2)]));
        assert_eq!(value["samples"], json!([3, 3, 2, 5, 4, 2]));
        assert_eq!(value["timeDeltas"], json!([0, 1000, 1000, 88_500, 1000, 1000]));
        assert_eq!(value["nodes"][1]["callFrame"]["functionName"], "(idle)");
        assert_eq!(value["nodes"][1]["hitCount"], 2);
    }

    #[test]
    fn a_profile_without_samples_is_a_profile() {
        let value = profile(&Samples::default());
        assert_eq!((&value["samples"], &value["timeDeltas"]), (&json!([]), &json!([])));
        assert_eq!(value["nodes"].as_array().unwrap().len(), 2);
    }
}
