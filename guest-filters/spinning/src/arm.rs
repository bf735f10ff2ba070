//! A simulated hard disk: where its heads are, and how long a head takes to another place.

/// How many slots the host has.
const SLOTS: u32 = 16;

/// How many heads can move on their own: each has a word of a slot.
pub const MOST_SEPARATE_HEADS: u32 = SLOTS * 4;

/// Whether the heads move together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heads {
    /// On one arm.
    Together(u32),
    /// Each on its own arm.
    Separate(u32),
}

/// A place on the disk: the arm, and where the arm has to be, in bytes from the start of the part
/// of each head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// From 0.
    pub arm: u32,
    /// In bytes.
    pub position: u64,
}

impl Heads {
    /// # Errors
    /// One line for the user.
    pub fn new(count: u32, are_separate: bool) -> Result<Heads, String> {
        match (count, are_separate) {
            (0, _) => Err("heads=0: a disk has at least one head".to_string()),
            (count, true) if count > MOST_SEPARATE_HEADS => {
                Err(format!("heads={count}: at most {MOST_SEPARATE_HEADS} heads can be separate"))
            }
            (count, true) => Ok(Heads::Separate(count)),
            (count, false) => Ok(Heads::Together(count)),
        }
    }

    /// How many bytes of a disk of `size` bytes each head serves. At least 1.
    pub fn part(self, size: u64) -> u64 {
        let (Heads::Together(count) | Heads::Separate(count)) = self;
        size.div_ceil(count.max(1).into()).max(1)
    }

    /// Where `offset` is on a disk of `size` bytes.
    pub fn place(self, size: u64, offset: u64) -> Place {
        let part = self.part(size);
        let arm = match self {
            Heads::Together(_) => 0,
            // Less than the number of heads, because offset is less than size.
            Heads::Separate(count) => u32::try_from(offset / part).unwrap_or(u32::MAX).min(count - 1),
        };
        Place { arm, position: offset % part }
    }

    /// Where the arm of `at` is after an access of `length` bytes that begins there.
    pub fn after(self, size: u64, at: Place, length: u64) -> u64 {
        let part = self.part(size);
        match self {
            // The access goes on under the next head, from the start of its part.
            Heads::Together(_) => at.position.saturating_add(length) % part,
            Heads::Separate(_) => at.position.saturating_add(length).min(part),
        }
    }
}

/// The time of a seek as a function of its distance: a parabola through three points. Times are in
/// nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeekTimes {
    /// To the adjacent track.
    pub min: u64,
    /// Across half of the disk.
    pub half: u64,
    /// Across the whole disk.
    pub max: u64,
}

impl SeekTimes {
    /// How long it takes to move by `distance` of `part` bytes. No distance takes no time.
    pub fn seek(&self, distance: u64, part: u64) -> u64 {
        if distance == 0 {
            return 0;
        }
        let d = (distance as f64 / part.max(1) as f64).min(1.0);
        let (min, half, max) = (self.min as f64, self.half as f64, self.max as f64);
        // t(0) = min, t(1/2) = half, t(1) = max.
        let square = 2.0 * (max - min) - 4.0 * (half - min);
        let linear = max - min - square;
        // Rounded, and not negative: a cast of a negative number is 0.
        (square * d * d + linear * d + min + 0.5) as u64
    }
}

/// The slot and the word in it (0 to 3) that hold the position of an arm.
pub fn word(arm: u32) -> (u32, usize) {
    (arm / 4 % SLOTS, arm as usize % 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULT: SeekTimes = SeekTimes { min: 10_000_000, half: 200_000_000, max: 500_000_000 };

    #[test]
    fn the_curve_goes_through_the_three_times_and_staying_takes_none() {
        assert_eq!(DEFAULT.seek(0, 1000), 0);
        assert_eq!(DEFAULT.seek(500, 1000), 200_000_000);
        assert_eq!(DEFAULT.seek(1000, 1000), 500_000_000);
        let near = DEFAULT.seek(1, 1_000_000_000);
        assert!((10_000_000..10_100_000).contains(&near), "{near}");
        let quarter = DEFAULT.seek(250, 1000);
        assert!((10_000_000..200_000_000).contains(&quarter), "{quarter}");
        let straight = SeekTimes { min: 0, half: 500_000_000, max: 1_000_000_000 };
        assert_eq!(straight.seek(300, 1000), 300_000_000);
    }

    #[test]
    fn times_that_fall_with_the_distance_never_become_negative() {
        let odd = SeekTimes { min: 1_000_000_000, half: 0, max: 0 };
        for distance in 0..=1000 {
            assert!(odd.seek(distance, 1000) <= 1_000_000_000);
        }
        let none = SeekTimes { min: 0, half: 0, max: 0 };
        assert_eq!((none.seek(7, 0), none.seek(u64::MAX, 1)), (0, 0));
        let longest = SeekTimes { min: u64::MAX, half: u64::MAX, max: u64::MAX };
        assert_eq!(longest.seek(1, 2), u64::MAX);
    }

    #[test]
    fn heads_on_one_arm_are_at_the_same_place_of_their_parts() {
        let heads = Heads::new(4, false).unwrap();
        assert_eq!(heads.part(1000), 250);
        assert_eq!(heads.place(1000, 10), heads.place(1000, 260));
        assert_eq!(heads.place(1000, 999), Place { arm: 0, position: 249 });
        assert_eq!(heads.after(1000, heads.place(1000, 240), 20), 10);
    }

    #[test]
    fn each_separate_head_keeps_to_its_part() {
        let heads = Heads::new(4, true).unwrap();
        assert_eq!(heads.place(1000, 260), Place { arm: 1, position: 10 });
        assert_eq!(heads.place(1000, 999), Place { arm: 3, position: 249 });
        assert_eq!(heads.after(1000, Place { arm: 3, position: 240 }, 100), 250);
        assert_eq!(heads.place(3, 2).arm, 2, "fewer bytes than heads");
        assert_eq!(heads.place(0, 0), Place { arm: 0, position: 0 });
    }

    #[test]
    fn a_disk_has_a_head_and_only_so_many_that_are_separate() {
        assert!(Heads::new(0, false).is_err() && Heads::new(0, true).is_err());
        assert!(Heads::new(64, true).is_ok() && Heads::new(65, true).is_err() && Heads::new(65, false).is_ok());
        let words: std::collections::BTreeSet<_> = (0..MOST_SEPARATE_HEADS).map(word).collect();
        assert_eq!(words.len(), 64, "each head has a word of its own");
        assert!(words.iter().all(|(slot, word)| *slot < SLOTS && *word < 4));
    }
}
