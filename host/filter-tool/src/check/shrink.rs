//! Finds a small script that still fails, by delta debugging: leaves out steps, then makes what is
//! left smaller.

use rbdkit_plugin_api::Flags;

use super::steps::{Request, Step};

/// Leaves out and simplifies steps as long as `fails` says that the rest still fails. `fails` may
/// answer no when there is no more time.
pub async fn smallest(mut steps: Vec<Step>, mut fails: impl AsyncFnMut(&[Step]) -> bool) -> Vec<Step> {
    loop {
        let fewer = fewer(steps.clone(), &mut fails).await;
        let simpler = simpler(fewer, &mut fails).await;
        if simpler == steps {
            return steps;
        }
        steps = simpler;
    }
}

/// Leaves out runs of steps: halves first, then ever shorter ones, at last single steps.
async fn fewer(mut steps: Vec<Step>, fails: &mut impl AsyncFnMut(&[Step]) -> bool) -> Vec<Step> {
    let mut run = steps.len().div_ceil(2);
    while run > 0 && !steps.is_empty() {
        let mut at = 0;
        let mut shorter = false;
        while at < steps.len() {
            let end = (at + run).min(steps.len());
            let rest = [&steps[..at], &steps[end..]].concat();
            if fails(&rest).await {
                steps = rest;
                shorter = true;
            } else {
                at = end;
            }
        }
        if run == 1 && !shorter {
            break;
        }
        run = if run == 1 { 1 } else { run.div_ceil(2).min(steps.len().max(1)) };
    }
    steps
}

/// Simplifies each step.
async fn simpler(mut steps: Vec<Step>, fails: &mut impl AsyncFnMut(&[Step]) -> bool) -> Vec<Step> {
    for at in 0..steps.len() {
        'step: loop {
            for candidate in candidates(&steps[at]) {
                let before = std::mem::replace(&mut steps[at], candidate);
                if fails(&steps).await {
                    continue 'step;
                }
                steps[at] = before;
            }
            break;
        }
    }
    steps
}

/// Simpler steps than this one. None of them leads back to it.
fn candidates(step: &Step) -> Vec<Step> {
    let Step::Operation { connection, joins, operation } = step else { return Vec::new() };
    let with = |operation| Step::Operation { connection: *connection, joins: *joins, operation };
    let mut all = Vec::new();
    if let Some((offset, length)) = operation.range() {
        let half = length / 2;
        let parts = [(offset, 1), (offset, 512), (offset, 4096), (offset, half), (offset + half, length - half)];
        let shorter = parts.into_iter().chain([(offset, length - 1), (offset + 1, length - 1)]);
        all.extend(shorter.filter(|(_, len)| (1..length).contains(len)).map(|(at, len)| with(operation.at(at, len))));
        let nearer = [0, offset / 4096 * 4096, offset / 512 * 512, offset / 2];
        all.extend(nearer.into_iter().filter(|at| *at < offset).map(|at| with(operation.at(at, length))));
    }
    match *operation {
        Request::Pwrite { offset, length, fill, flags } => {
            if flags != Flags::NONE {
                all.push(with(Request::Pwrite { offset, length, fill, flags: Flags::NONE }));
            }
            if fill > 1 {
                all.push(with(Request::Pwrite { offset, length, fill: 1, flags }));
            }
        }
        Request::Zero { offset, length, flags } if flags != Flags::NONE => {
            all.push(with(Request::Zero { offset, length, flags: Flags::NONE }));
        }
        _ => {}
    }
    if *joins {
        all.push(Step::Operation { connection: *connection, joins: false, operation: operation.clone() });
    }
    if *connection > 1 {
        all.push(Step::Operation { connection: 1, joins: *joins, operation: operation.clone() });
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(connection: u8, operation: Request) -> Step {
        Step::Operation { connection, joins: true, operation }
    }

    #[tokio::test]
    async fn only_the_steps_that_matter_are_left_and_as_small_as_possible() {
        let mut steps = Vec::new();
        for offset in 0..200 {
            let flags = Flags::FUA;
            steps.push(step(2, Request::Pwrite { offset: offset * 100, length: 70, fill: 9, flags }));
            steps.push(step(3, Request::Pread { offset: offset * 50, length: 60 }));
            steps.push(Step::Restart);
        }
        let mut runs = 0;
        // It fails if a read follows on a write and both contain byte 5009.
        let has = |step: &Step, name: &str| {
            let Step::Operation { operation, .. } = step else { return false };
            let (offset, length) = operation.range().unwrap_or_default();
            operation.name() == name && (offset..offset + length).contains(&5009)
        };
        let small = smallest(steps, async |steps: &[Step]| {
            runs += 1;
            let write = steps.iter().position(|step| has(step, "pwrite"));
            write.is_some_and(|at| steps[at..].iter().any(|step| has(step, "pread")))
        })
        .await;
        let simple = |operation| Step::Operation { connection: 1, joins: false, operation };
        let write = Request::Pwrite { offset: 5009, length: 1, fill: 1, flags: Flags::NONE };
        assert_eq!(small, [simple(write), simple(Request::Pread { offset: 5009, length: 1 })]);
        assert!(runs < 400, "{runs}");
    }
}
