//! What `call` prints.

use std::time::Duration;

use rbdkit_plugin_api::hex;
use rbdkit_plugin_api::text::one_line;
use rbdkit_sandbox::{GuestCall, HostCall};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::disk::DiskLog;
use super::operation::OperationReply;

/// What the number of instructions is.
const INSTRUCTIONS: &str = "of WebAssembly in the guest, as wasmtime's fuel counts them, without the host's";

/// An operation that was carried out.
pub struct CallReport {
    pub filter: String,
    pub operation: String,
    /// The function of the contract that the operation calls, and its interface.
    pub function: (&'static str, &'static str),
    /// Whether the filter exports it.
    pub is_exported: bool,
    /// Whether what the filter does not export passes by it.
    pub is_transparent: bool,
    pub guest_calls: Vec<GuestCall>,
    pub below: DiskLog,
    pub log: Vec<String>,
    /// The answer, or the error with its errno.
    pub answer: Result<OperationReply, (String, String)>,
    /// Elapsed time and this thread's processor time. None for what happened while the filter was
    /// loaded.
    pub times: Option<(Duration, Duration)>,
}

impl CallReport {
    fn instructions(&self) -> u64 {
        self.guest_calls.iter().filter_map(|call| call.instructions).sum()
    }

    /// Prints it for people.
    pub fn print(&self) {
        say!("{} through {}", self.operation, self.filter);
        let (function, interface) = self.function;
        if !self.is_exported {
            let then = match self.is_transparent {
                true => "what is below it answers (it is transparent)",
                false => "the host answers for it, with what is below or an emulation (it is opaque)",
            };
            say!("the filter does not export {interface}.{function}: {then}");
        } else if self.guest_calls.is_empty() {
            say!("the guest was not called");
        }
        for call in &self.guest_calls {
            print_guest_call(call);
        }
        if !self.below.operations.is_empty() {
            say!("the disk below got:");
        }
        for operation in &self.below.operations {
            say!("  {operation}");
        }
        if self.below.left_out > 0 {
            say!("  ... and {} more", self.below.left_out);
        }
        if !self.log.is_empty() {
            say!("log:");
        }
        for line in &self.log {
            say!("  {}", one_line(line));
        }
        match &self.answer {
            Ok(OperationReply::Done) => say!("answer: ok"),
            Ok(OperationReply::Value(text, _)) => say!("answer: {}", one_line(text)),
            Ok(OperationReply::Data(bytes)) => {
                say!("answer: ok, {} bytes, sha256 {}", bytes.len(), digest(bytes));
                hexdump(bytes).iter().for_each(|line| say!("  {line}"));
            }
            Err((_, why)) => say!("answer: {}", one_line(why)),
        }
        if let Some((elapsed, processor)) = self.times {
            let (elapsed, processor) = (time(elapsed), time(processor));
            say!("time: {elapsed} elapsed, {processor} of processor time (less without the recording: bench measures)");
        }
        say!("instructions: {} ({INSTRUCTIONS})", self.instructions());
    }

    /// The report for programs. Times are in nanoseconds.
    pub fn json(&self) -> Value {
        let guest_calls = self.guest_calls.iter().map(|call| {
            let host_calls = call.host_calls.iter().map(|host| {
                json!({
                    "name": host.name,
                    "arguments": host.arguments,
                    "result": host.result,
                    "began": nanoseconds(host.began),
                    "took": nanoseconds(host.took),
                })
            });
            json!({
                "name": call.name,
                "arguments": call.arguments,
                "outcome": call.outcome,
                "took": nanoseconds(call.took),
                "instructions": call.instructions,
                "memory": call.memory,
                "host-calls": host_calls.collect::<Vec<_>>(),
                "host-calls-left-out": call.left_out,
            })
        });
        let answer = match &self.answer {
            Ok(OperationReply::Done) => json!({"ok": true}),
            Ok(OperationReply::Value(_, value)) => json!({"ok": true, "value": value}),
            Ok(OperationReply::Data(bytes)) => json!({
                "ok": true,
                "length": bytes.len(),
                "sha256": digest(bytes),
                "first": hex::encode(&bytes[..bytes.len().min(FIRST)]),
            }),
            Err((errno, why)) => json!({"ok": false, "errno": errno, "error": why}),
        };
        json!({
            "filter": self.filter,
            "operation": self.operation,
            "function": format!("{}.{}", self.function.1, self.function.0),
            "exported": self.is_exported,
            "guest-calls": guest_calls.collect::<Vec<_>>(),
            "below": self.below.operations,
            "below-left-out": self.below.left_out,
            "log": self.log,
            "answer": answer,
            "elapsed": self.times.map(|(elapsed, _)| nanoseconds(elapsed)),
            "processor-time": self.times.map(|(_, processor)| nanoseconds(processor)),
            "instructions": self.instructions(),
            "instructions-are": INSTRUCTIONS,
        })
    }
}

fn print_guest_call(call: &GuestCall) {
    let instructions = call.instructions.map(|count| format!(", {count} instructions")).unwrap_or_default();
    say!("guest: {}({}) -> {} in {}{instructions}", call.name, call.arguments, call.outcome, time(call.took));
    for HostCall { name, arguments, result, began, took } in &call.host_calls {
        say!("  {:>9}  {name}({arguments}) -> {result} in {}", format!("+{}", time(*began)), time(*took));
    }
    if call.left_out > 0 {
        say!("  ... and {} more calls of the host", call.left_out);
    }
}

/// How many bytes of a read are shown.
const FIRST: usize = 128;

/// The first bytes as text, 16 in a line.
fn hexdump(bytes: &[u8]) -> Vec<String> {
    let shown = &bytes[..bytes.len().min(FIRST)];
    let lines = shown.chunks(16).zip((0..).step_by(16)).map(|(line, at): (&[u8], usize)| {
        let digits: String = line.iter().map(|byte| format!("{byte:02x} ")).collect();
        let letters = line.iter().map(|&byte| if (0x20..0x7f).contains(&byte) { char::from(byte) } else { '.' });
        format!("{at:08x}  {digits:<48} |{}|", letters.collect::<String>())
    });
    let mut lines: Vec<String> = lines.collect();
    if bytes.len() > FIRST {
        lines.push("...".to_string());
    }
    lines
}

fn digest(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// A time for people.
fn time(time: Duration) -> String {
    match time.as_nanos() {
        0..1_000_000 => format!("{:.1} us", time.as_secs_f64() * 1e6),
        1_000_000..1_000_000_000 => format!("{:.1} ms", time.as_secs_f64() * 1e3),
        _ => format!("{:.1} s", time.as_secs_f64()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bytes_are_dumped() {
        let bytes: Vec<u8> = (60..80).collect();
        assert_eq!(
            hexdump(&bytes),
            [
                "00000000  3c 3d 3e 3f 40 41 42 43 44 45 46 47 48 49 4a 4b  |<=>?@ABCDEFGHIJK|",
                "00000010  4c 4d 4e 4f                                      |LMNO|",
            ]
        );
        assert_eq!(hexdump(&[0; FIRST]).len(), 8);
        assert_eq!(hexdump(&[0; FIRST + 1]).last().unwrap(), "...");
    }
}
