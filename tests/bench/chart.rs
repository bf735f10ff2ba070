//! The chart. Each case has a bar that is as long as rbdkit's rate divided by nbdkit's, with the
//! spread of the rounds, and marks for qemu-nbd and the bare responder. The chart is SVG text with
//! its own colours for light and dark, and needs no other file.

use std::fmt::Write;

use crate::cases::Program;
use crate::results::{Line, Sample, Spread};

const WIDTH: f64 = 920.0;
/// Where the bars begin. The names are left of it.
const LEFT: f64 = 330.0;
/// Where the bars end. The numbers are right of it.
const RIGHT: f64 = WIDTH - 70.0;
const TOP: f64 = 84.0;
const ROW: f64 = 22.0;
/// Longer bars are cut off at this ratio. The numbers are not.
const MAX_RATIO: f64 = 5.0;

const STYLE: &str = "\
    text{font:12px system-ui,sans-serif;fill:#24292f}.title{font-size:16px;font-weight:600}.soft{fill:#57606a}\
    .back{fill:#fff}.faster{fill:#2da44e}.slower{fill:#d4762c}.grid{stroke:#d0d7de}\
    .one{stroke:#24292f;stroke-width:1.5}\
    .spread{stroke:#24292f;stroke-width:1;opacity:.6}.qemu{fill:#0969da}.bare{fill:#8250df}\
    @media(prefers-color-scheme:dark){text{fill:#e6edf3}.soft{fill:#8d96a0}.back{fill:#0d1117}.faster{fill:#2ea043}\
    .slower{fill:#db6d28}.grid{stroke:#30363d}.one{stroke:#e6edf3}.spread{stroke:#e6edf3}\
    .qemu{fill:#4493f8}.bare{fill:#ab7df8}}";

/// What is drawn for a case.
struct Bar {
    name: String,
    ours: Spread,
    qemu: Option<f64>,
    bare: Option<f64>,
}

impl Bar {
    fn of(line: &Line) -> Option<Bar> {
        let rate = |sample: &Sample| sample.rate;
        let ratio = |program| line.ratio(program, Program::Nbdkit, rate);
        let qemu = line.best(&[Program::QemuThreads, Program::QemuUring]).and_then(ratio);
        Some(Bar {
            name: line.case.name(),
            ours: ratio(Program::Rbdkit)?,
            qemu: qemu.map(|spread| spread.median),
            bare: ratio(Program::Bare).map(|spread| spread.median),
        })
    }
}

/// Text escaped for XML.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The chart of these measurements.
pub fn svg(lines: &[Line], subtitle: &str) -> String {
    let bars: Vec<Bar> = lines.iter().filter_map(Bar::of).collect();
    let values = |bar: &Bar| [Some(bar.ours.greatest), bar.qemu, bar.bare].into_iter().flatten().fold(0.0, f64::max);
    let most = bars.iter().map(values).fold(2.0, f64::max).min(MAX_RATIO).ceil();
    let x = |ratio: f64| LEFT + (RIGHT - LEFT) * (ratio / most).min(1.0);
    let bottom = TOP + ROW * bars.len() as f64;
    let height = bottom + 28.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         width=\"{WIDTH}\" height=\"{height}\" role=\"img\">\n\
         <title>rbdkit's rate over nbdkit's</title>\n<style>{STYLE}</style>\n\
         <rect class=\"back\" width=\"{WIDTH}\" height=\"{height}\"/>\n\
         <text class=\"title\" x=\"16\" y=\"26\">rbdkit's rate over nbdkit's: longer is faster</text>\n\
         <text class=\"soft\" x=\"16\" y=\"46\">{}</text>\n",
        escaped(subtitle)
    );
    for (at, class, what) in
        [(16.0, "qemu", "qemu-nbd, the better of its two"), (230.0, "bare", "bare responder: the limit")]
    {
        let _ =
            writeln!(svg, "{}<text class=\"soft\" x=\"{}\" y=\"68\">{what}</text>", mark(class, at, 64.0), at + 10.0);
    }
    for step in 0..=(most * 2.0) as u32 {
        let ratio = f64::from(step) / 2.0;
        let class = if step == 2 { "one" } else { "grid" };
        let at = x(ratio);
        let _ = write!(
            svg,
            "<line class=\"{class}\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{bottom}\"/>\n\
             <text class=\"soft\" x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{ratio}</text>\n",
            bottom + 16.0
        );
    }
    for (nth, bar) in bars.iter().enumerate() {
        draw(&mut svg, bar, TOP + ROW * nth as f64, &x);
    }
    svg.push_str("</svg>\n");
    svg
}

fn draw(svg: &mut String, bar: &Bar, top: f64, x: &dyn Fn(f64) -> f64) {
    let middle = top + ROW / 2.0;
    let class = if bar.ours.median >= 1.0 { "faster" } else { "slower" };
    let _ = write!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\n\
         <rect class=\"{class}\" x=\"{LEFT}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" rx=\"2\"/>\n\
         <line class=\"spread\" x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{middle:.1}\" y2=\"{middle:.1}\"/>\n",
        LEFT - 8.0,
        middle + 4.0,
        escaped(&bar.name),
        top + 4.0,
        x(bar.ours.median) - LEFT,
        ROW - 8.0,
        x(bar.ours.least),
        x(bar.ours.greatest),
    );
    for (class, ratio) in [("qemu", bar.qemu), ("bare", bar.bare)] {
        if let Some(ratio) = ratio {
            svg.push_str(&mark(class, x(ratio), middle));
            svg.push('\n');
        }
    }
    let _ = writeln!(svg, "<text x=\"{:.1}\" y=\"{:.1}\">{:.2}</text>", RIGHT + 12.0, middle + 4.0, bar.ours.median);
}

/// A small diamond at this place.
fn mark(class: &str, x: f64, y: f64) -> String {
    let (left, right, over, under) = (x - 4.5, x + 4.5, y - 4.5, y + 4.5);
    format!("<path class=\"{class}\" d=\"M{left:.1} {y:.1}L{x:.1} {over:.1}L{right:.1} {y:.1}L{x:.1} {under:.1}Z\"/>")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases::cases;

    #[test]
    fn each_case_with_both_programs_has_a_bar_and_every_element_ends() {
        let measured = |case: crate::cases::Case| {
            let programs = case.programs.clone();
            let mut line = Line::new(case);
            programs.iter().for_each(|&one| line.push(one, Some(Sample { rate: 9.0, ..Sample::default() })));
            line
        };
        let lines: Vec<Line> = cases(false).into_iter().map(measured).collect();
        let text = svg(&lines, "5 rounds of 2 s & more");
        let both = lines.iter().filter(|line| line.case.programs.contains(&Program::Nbdkit));
        assert_eq!(text.matches("class=\"faster\"").count(), both.count());
        assert!(text.contains("2 s &amp; more") && text.contains("prefers-color-scheme:dark"));
        assert!(!text.contains("NaN") && !text.contains("inf"));
        for element in ["svg", "text", "title", "style"] {
            let (begins, ends) = (format!("<{element}"), format!("</{element}>"));
            assert_eq!(text.matches(&begins).count(), text.matches(&ends).count(), "{element}");
        }
        for element in ["rect", "line", "path"] {
            let begin = format!("<{element} ");
            let mut tags = text.split(&begin).skip(1).filter_map(|rest| rest.split('>').next());
            assert!(tags.all(|tag| tag.ends_with('/')), "{element}");
        }
    }

    #[test]
    fn without_measurements_there_is_a_chart_without_bars() {
        let text = svg(&[], "nothing");
        assert!(text.starts_with("<svg ") && text.ends_with("</svg>\n") && !text.contains("faster\" x"));
    }
}
