//! The measurements round by round, and what follows from them: medians, and ratios within rounds.

use crate::cases::{Case, Program};

/// What one program did in one round.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sample {
    /// Operations or MiB a second.
    pub rate: f64,
    /// The median latency of an operation in microseconds. 0 if it is not known.
    pub p50: f64,
    /// The 99th percentile of the latency in microseconds. 0 if it is not known.
    pub p99: f64,
    /// Seconds of the server's processor time for a million requests, in the server and in the
    /// kernel on its behalf.
    pub cpu: f64,
    /// The most MiB that the server had resident.
    pub peak: f64,
    /// How many cores were busy with neither the server nor the client.
    pub others: f64,
}

/// A function that takes a number out of a sample.
pub type Field = fn(&Sample) -> f64;

/// A median with the least and the greatest value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    pub median: f64,
    pub least: f64,
    pub greatest: f64,
}

impl Spread {
    /// The spread of the values that are numbers. `None` if there is none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Spread> {
        let mut values: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
        values.sort_by(f64::total_cmp);
        let (least, greatest) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = match values.len() % 2 {
            1 => values[middle],
            _ => f64::midpoint(values[middle - 1], values[middle]),
        };
        Some(Spread { median, least, greatest })
    }
}

/// The measurements of one case. Each program has a sample for each round, or `None` where it
/// failed.
pub struct Line {
    pub case: Case,
    samples: Vec<Vec<Option<Sample>>>,
}

impl Line {
    /// A case without measurements.
    pub fn new(case: Case) -> Line {
        let samples = vec![Vec::new(); case.programs.len()];
        Line { case, samples }
    }

    /// Adds the program's sample of the next round.
    pub fn push(&mut self, program: Program, sample: Option<Sample>) {
        if let Some(place) = self.case.programs.iter().position(|&other| other == program) {
            self.samples[place].push(sample);
        }
    }

    /// The samples of a program, round by round.
    pub fn samples(&self, program: Program) -> &[Option<Sample>] {
        let place = self.case.programs.iter().position(|&other| other == program);
        place.map_or(&[], |place| &self.samples[place])
    }

    /// The spread of a number. `None` if it was not measured or is not known.
    pub fn spread(&self, program: Program, field: Field) -> Option<Spread> {
        let known = self.samples(program).iter().flatten().map(field).filter(|&value| value > 0.0);
        Spread::of(known)
    }

    /// The median of a number.
    pub fn median(&self, program: Program, field: Field) -> Option<f64> {
        self.spread(program, field).map(|spread| spread.median)
    }

    /// The ratios within the rounds in which both programs were measured.
    pub fn ratio(&self, program: Program, to: Program, field: Field) -> Option<Spread> {
        ratios((self, program), (self, to), field)
    }

    /// The program with the best median rate.
    pub fn best(&self, programs: &[Program]) -> Option<Program> {
        let rate = |program: Program| self.median(program, |sample| sample.rate);
        let measured = programs.iter().copied().filter(|&program| rate(program).is_some());
        measured.max_by(|&a, &b| rate(a).unwrap_or(0.0).total_cmp(&rate(b).unwrap_or(0.0)))
    }
}

/// The ratios, round by round, of one program in one case to another program or case.
pub fn ratios(of: (&Line, Program), to: (&Line, Program), field: Field) -> Option<Spread> {
    Spread::of(round_ratios(of, to, field).into_iter().flatten())
}

/// The same with an entry for each round.
pub fn round_ratios(of: (&Line, Program), to: (&Line, Program), field: Field) -> Vec<Option<f64>> {
    let pairs = of.0.samples(of.1).iter().zip(to.0.samples(to.1));
    let ratio = |pair: (&Option<Sample>, &Option<Sample>)| match pair {
        (Some(of), Some(to)) if field(of) > 0.0 && field(to) > 0.0 => Some(field(of) / field(to)),
        _ => None,
    };
    pairs.map(ratio).collect()
}

/// How much a number grows with each step: the slope of the least-squares line through points `(x,
/// y)`. `None` if there are no two different `x`.
pub fn slope(points: &[(f64, f64)]) -> Option<f64> {
    let count = points.len() as f64;
    let mean_x = points.iter().map(|point| point.0).sum::<f64>() / count;
    let mean_y = points.iter().map(|point| point.1).sum::<f64>() / count;
    let across: f64 = points.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum();
    let along: f64 = points.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
    (along > 0.0).then(|| across / along)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases::{Job, Plugin, Stack};

    fn line(ours: &[Option<f64>], theirs: &[Option<f64>]) -> Line {
        let job = Job::Fio { pattern: "randread", block: "4k", depth: 1, connections: 1 };
        let programs = vec![Program::Rbdkit, Program::Nbdkit];
        let mut line = Line::new(Case { stack: Stack::Plain, plugin: Plugin::File, job, programs });
        let sample = |rate: &Option<f64>| rate.map(|rate| Sample { rate, ..Sample::default() });
        ours.iter().for_each(|rate| line.push(Program::Rbdkit, sample(rate)));
        theirs.iter().for_each(|rate| line.push(Program::Nbdkit, sample(rate)));
        line
    }

    #[test]
    fn a_spread_has_the_median_of_an_odd_and_of_an_even_number_of_values() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Some(Spread { median: 2.0, least: 1.0, greatest: 3.0 }));
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 3.0]), Some(Spread { median: 2.5, least: 1.0, greatest: 4.0 }));
        assert_eq!(Spread::of([7.0]), Some(Spread { median: 7.0, least: 7.0, greatest: 7.0 }));
        assert_eq!(Spread::of([]), None);
        assert_eq!(Spread::of([f64::NAN, f64::INFINITY]), None);
    }

    #[test]
    fn ratios_are_taken_within_rounds_and_not_of_medians() {
        let line = line(&[Some(10.0), Some(40.0), Some(90.0)], &[Some(10.0), Some(20.0), Some(30.0)]);
        let ratio = line.ratio(Program::Rbdkit, Program::Nbdkit, |sample| sample.rate).unwrap();
        assert_eq!(ratio, Spread { median: 2.0, least: 1.0, greatest: 3.0 });
    }

    #[test]
    fn a_round_in_which_one_failed_counts_for_neither() {
        let line = line(&[Some(10.0), None, Some(90.0)], &[Some(10.0), Some(1.0), None]);
        let ratio = line.ratio(Program::Rbdkit, Program::Nbdkit, |sample| sample.rate).unwrap();
        assert_eq!(ratio, Spread { median: 1.0, least: 1.0, greatest: 1.0 });
        assert_eq!(line.ratio(Program::Rbdkit, Program::Bare, |sample| sample.rate), None);
        assert_eq!(line.median(Program::Rbdkit, |sample| sample.p99), None, "0 means unknown");
    }

    #[test]
    fn the_best_is_who_has_the_best_median() {
        let line = line(&[Some(10.0), Some(10.0), Some(90.0)], &[Some(11.0), Some(11.0), Some(11.0)]);
        let both = [Program::Rbdkit, Program::Nbdkit, Program::Bare];
        assert_eq!(line.best(&both), Some(Program::Nbdkit));
        assert_eq!(line.best(&[Program::Bare]), None);
    }

    #[test]
    fn a_slope_is_what_each_step_adds() {
        let close = |a: Option<f64>, b: f64| a.is_some_and(|a| (a - b).abs() < 1e-9);
        assert!(close(slope(&[(0.0, 5.0), (1.0, 5.5), (5.0, 7.5), (10.0, 10.0)]), 0.5));
        assert!(close(slope(&[(0.0, 1.0), (2.0, 0.0)]), -0.5));
        assert_eq!(slope(&[(1.0, 2.0), (1.0, 3.0)]), None);
        assert_eq!(slope(&[]), None);
    }
}
