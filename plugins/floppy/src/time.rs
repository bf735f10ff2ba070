//! Dates and times as FAT has them: in the time zone of the server, from 1980 to 2107.

/// A date and a time of day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FatTime {
    pub(crate) date: u16,
    /// In steps of two seconds.
    pub(crate) time: u16,
    /// What the steps leave out, in steps of 10 ms.
    pub(crate) rest: u8,
}

/// The parts of a time in a time zone.
#[derive(Clone, Copy, Debug)]
struct Parts {
    year: i32,
    month: i32,
    day: i32,
    hour: i32,
    minute: i32,
    second: i32,
}

/// The earliest time, and the latest.
const FIRST: FatTime = FatTime { date: 1 << 5 | 1, time: 0, rest: 0 };
const LAST: FatTime = FatTime { date: 127 << 9 | 12 << 5 | 31, time: 23 << 11 | 59 << 5 | 29, rest: 100 };

/// The time that is this number of seconds after the beginning of 1970.
pub(crate) fn fat_time(seconds: i64) -> FatTime {
    encode(local(seconds))
}

fn encode(parts: Option<Parts>) -> FatTime {
    match parts {
        Some(Parts { year: ..1980, .. }) | None => FIRST,
        Some(Parts { year: 2108.., .. }) => LAST,
        Some(Parts { year, month, day, hour, minute, second }) => FatTime {
            date: (((year - 1980) << 9) | (month << 5) | day) as u16,
            time: ((hour << 11) | (minute << 5) | (second / 2)) as u16,
            rest: (second % 2 * 100) as u8,
        },
    }
}

/// The time in the time zone of the server. None: the year has too many digits.
fn local(seconds: i64) -> Option<Parts> {
    let mut parts = std::mem::MaybeUninit::<libc::tm>::uninit();
    // SAFETY: the C library reads `seconds`, and fills all of `parts` if it returns a pointer to
    // it. It reads the environment, which no thread of this program changes.
    #[allow(unsafe_code, reason = "only the C library knows the time zone")]
    let parts = unsafe {
        let filled = libc::localtime_r(&seconds, parts.as_mut_ptr());
        if filled.is_null() {
            return None;
        }
        parts.assume_init()
    };
    Some(Parts {
        year: parts.tm_year.checked_add(1900)?,
        month: parts.tm_mon + 1,
        day: parts.tm_mday,
        hour: parts.tm_hour,
        minute: parts.tm_min,
        second: parts.tm_sec.min(59),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_its_bits_in_their_places() {
        let parts = Parts { year: 2026, month: 11, day: 27, hour: 22, minute: 5, second: 31 };
        let time = encode(Some(parts));
        assert_eq!((time.date >> 9, time.date >> 5 & 15, time.date & 31), (46, 11, 27));
        assert_eq!((time.time >> 11, time.time >> 5 & 63, time.time & 31, time.rest), (22, 5, 15, 100));
    }

    #[test]
    fn times_that_fat_does_not_have_are_the_nearest_that_it_has() {
        assert_eq!(fat_time(0), FIRST);
        assert_eq!(fat_time(i64::MIN), FIRST);
        assert_eq!(fat_time(8_000_000_000), LAST);
        assert_eq!(fat_time(i64::MAX), FIRST);
    }

    #[test]
    fn the_time_zone_is_that_of_the_server() {
        // date(1) knows it too.
        let seconds = 1_700_000_000;
        let output = std::process::Command::new("date").args(["-d", &format!("@{seconds}"), "+%Y %m %d %H"]).output();
        let text = String::from_utf8(output.unwrap().stdout).unwrap();
        let expected: Vec<i32> = text.split_whitespace().map(|word| word.parse().unwrap()).collect();
        let parts = local(seconds).unwrap();
        assert_eq!([parts.year, parts.month, parts.day, parts.hour], expected[..]);
    }
}
