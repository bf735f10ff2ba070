//! Lines in the log, which the test reads.

use crate::testing::call::{ALL, with};

fn line(level: &str, message: &str) {
    with("log", &ALL, |call| call.world().log.push(format!("{level}: {message}")));
}

pub(crate) fn error(message: &str) {
    line("error", message);
}

pub(crate) fn warn(message: &str) {
    line("warning", message);
}

pub(crate) fn info(message: &str) {
    line("info", message);
}

pub(crate) fn debug(message: &str) {
    line("debug", message);
}
