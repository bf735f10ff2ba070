//! Times on the command line.

use std::time::Duration;

use rbdkit_plugin_api::units::parse_duration;

const DAY: Duration = Duration::from_secs(86400);

/// # Errors
/// A line for a time of 0, and for what is no time.
pub fn more_than_zero(text: &str) -> Result<Duration, String> {
    let time = Duration::from_nanos(parse_duration(text)?);
    if time.is_zero() { Err("has to be more than 0".to_string()) } else { Ok(time) }
}

/// # Errors
/// A line for a time that is not from 1 ms to a day, and for what is no time.
pub fn up_to_a_day(text: &str) -> Result<Duration, String> {
    match Duration::from_nanos(parse_duration(text)?) {
        time if time >= Duration::from_millis(1) && time <= DAY => Ok(time),
        _ => Err("a time from 1ms to a day".to_string()),
    }
}
