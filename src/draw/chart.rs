//! One chart: an SVG that stretches to any width, with its labels as HTML beside it.
//!
//! **Invariant**: every line that is drawn lies within the chart, whatever the values.
use crate::draw::escape;
use std::fmt::Write as _;

/// Size of the drawing; it is stretched to the page.
const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 200.0;

/// From values to heights, with the ticks of the axis.
#[derive(Debug)]
pub(crate) struct Scale {
    low: f64,
    high: f64,
    logarithmic: bool,
    ticks: Vec<f64>,
}

impl Scale {
    /// From 0 to the largest value.
    pub(crate) fn linear(series: &[&[f64]]) -> Self {
        let largest = series.iter().flat_map(|values| values.iter()).copied().fold(0.0, f64::max);
        Self::up_to(largest, 1e-9)
    }

    /// From 0 to the largest value, in whole steps.
    pub(crate) fn whole(values: &[f64]) -> Self {
        Self::up_to(values.iter().copied().fold(1.0, f64::max), 1.0)
    }

    /// Milliseconds: from 0, or by powers where the slow ones would flatten the rest.
    pub(crate) fn latency(values: &[f64], promise: Option<f64>) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.get(sorted.len() / 2).copied().unwrap_or(0.0);
        let largest = sorted.last().copied().unwrap_or(0.0).max(promise.unwrap_or(0.0));
        if middle <= 0.0 || largest < 8.0 * middle {
            return Self::up_to(largest, 1e-9);
        }
        let smallest = sorted.first().copied().unwrap_or(1.0).clamp(0.01, middle) / 2.0;
        let low = 10f64.powf(smallest.log10().floor());
        let high = largest * 1.15;
        let mut ticks = Vec::new();
        let mut power = low;
        while power <= high {
            ticks.extend([1.0, 3.0].map(|step| step * power).into_iter().filter(|tick| *tick <= high));
            power *= 10.0;
        }
        Self { low, high, logarithmic: true, ticks }
    }

    fn up_to(largest: f64, step_min: f64) -> Self {
        let largest = if largest > 0.0 { largest } else { 1.0 };
        // About four ticks, 1, 2 or 5 times a power of ten apart.
        let rough = largest / 4.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power);
        let step = step.into_iter().find(|step| *step >= rough).unwrap_or(rough).max(step_min);
        let count = (largest / step).ceil();
        let ticks = (0..=count as u32).map(|index| f64::from(index) * step).collect();
        Self { low: 0.0, high: count * step, logarithmic: false, ticks }
    }

    /// From the top, as a share of the height.
    fn share(&self, value: f64) -> f64 {
        let place = if self.logarithmic {
            (value.max(self.low) / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        1.0 - place.clamp(0.0, 1.0)
    }

    fn y(&self, value: f64) -> f64 {
        self.share(value) * HEIGHT
    }
}

/// A named series; the class gives its colour.
#[derive(Debug)]
pub(crate) struct Line<'a> {
    name: &'a str,
    class: &'static str,
    values: Vec<Option<f64>>,
}

impl<'a> Line<'a> {
    /// A value everywhere.
    pub(crate) fn new(name: &'a str, class: &'static str, values: &[f64]) -> Self {
        Self { name, class, values: values.iter().copied().map(Some).collect() }
    }

    /// Gaps where nothing is known.
    pub(crate) fn of(name: &'a str, class: &'static str, values: &[Option<f64>]) -> Self {
        Self { name, class, values: values.to_vec() }
    }
}

/// A moment worth a mark; `text` is escaped.
#[derive(Debug)]
pub(crate) struct Mark {
    pub(crate) t: f64,
    pub(crate) up: bool,
    pub(crate) text: String,
}

/// One chart.
#[derive(Debug)]
pub(crate) struct Panel<'a> {
    /// Under which the script finds the values.
    pub(crate) id: &'a str,
    pub(crate) title: &'a str,
    /// Points on the axis of time; every line and bar has as many values.
    pub(crate) points: usize,
    /// How long the axis of time is, seconds.
    pub(crate) length_s: f64,
    pub(crate) scale: Scale,
    pub(crate) lines: &'a [Line<'a>],
    /// Drawn as bars on top of each other.
    pub(crate) bars: &'a [Line<'a>],
    pub(crate) marks: &'a [Mark],
    /// A level that must not be passed.
    pub(crate) limit: Option<(&'static str, f64)>,
}

impl Panel<'_> {
    pub(crate) fn html(&self) -> String {
        let mut html = format!(
            "<figure class=\"card\" data-chart=\"{}\">\n<figcaption><h2>{}</h2><ul class=\"legend\">",
            self.id, self.title
        );
        for line in self.lines.iter().chain(self.bars) {
            let name = escape(line.name);
            let _ = write!(html, "<li class=\"{}\" data-name=\"{name}\">{name} <b></b></li>", line.class);
        }
        if let Some((name, value)) = self.limit {
            let _ = write!(html, "<li class=\"limit\">{name} {value}</li>");
        }
        html += "</ul></figcaption>\n<div class=\"plot\">\n";
        for tick in &self.scale.ticks {
            let top = self.scale.share(*tick) * 100.0;
            let _ = write!(html, "<span class=\"y\" style=\"top:{top:.2}%\">{}</span>", number(*tick));
        }
        let _ = write!(
            html,
            "\n<div class=\"area\"><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" preserveAspectRatio=\"none\" role=\"img\" \
             aria-label=\"{}\">\n",
            self.title
        );
        html += &self.drawing();
        html += "</svg>";
        for mark in self.marks {
            let (class, sign) = if mark.up { ("up", "▲") } else { ("down", "▼") };
            let left = (mark.t / self.length_s).clamp(0.0, 1.0) * 100.0;
            let _ = write!(
                html,
                "<span class=\"mark {class}\" style=\"left:{left:.2}%\" title=\"{} {}\">{sign}</span>",
                clock(mark.t),
                mark.text
            );
        }
        html += "<i class=\"cursor\"></i></div>\n<div class=\"times\">";
        for t in times(self.length_s) {
            let left = t / self.length_s * 100.0;
            let _ = write!(html, "<span style=\"left:{left:.2}%\">{}</span>", clock(t));
        }
        html + "</div>\n</div>\n</figure>\n"
    }

    fn drawing(&self) -> String {
        let mut svg = String::new();
        for tick in &self.scale.ticks {
            let y = self.scale.y(*tick);
            let _ = writeln!(svg, "<path class=\"grid\" d=\"M0 {y:.1}H{WIDTH}\"/>");
        }
        let mut below = vec![0.0; self.points];
        for bar in self.bars {
            let _ = writeln!(
                svg,
                "<path class=\"bar {}\" d=\"{}\"/>",
                bar.class,
                self.bars_path(bar, &mut below)
            );
        }
        if let Some((_, value)) = self.limit {
            let y = self.scale.y(value);
            let _ = writeln!(svg, "<path class=\"line limit\" d=\"M0 {y:.1}H{WIDTH}\"/>");
        }
        for line in self.lines {
            let _ = writeln!(svg, "<path class=\"line {}\" d=\"{}\"/>", line.class, self.line_path(line));
        }
        svg
    }

    /// Where a point is, from the left.
    fn x(&self, point: f64) -> f64 {
        point / self.points as f64 * WIDTH
    }

    fn line_path(&self, line: &Line) -> String {
        let mut path = String::new();
        let mut drawing = false;
        for (at, value) in line.values.iter().enumerate() {
            let Some(value) = value else {
                drawing = false;
                continue;
            };
            let (x, y) = (self.x(at as f64 + 0.5), self.scale.y(*value));
            let _ = if drawing {
                write!(path, "L{x:.1} {y:.1}")
            } else {
                // A point between two gaps is a dot: the line has round ends.
                write!(path, "M{x:.1} {y:.1}h.1")
            };
            drawing = true;
        }
        path
    }

    /// Bars on what is `below`, which they raise. Equal neighbours are one bar.
    fn bars_path(&self, bar: &Line, below: &mut [f64]) -> String {
        let mut path = String::new();
        let mut at = 0;
        while at < below.len() {
            let (base, value) = (below[at], bar.values[at].unwrap_or(0.0));
            let mut end = at;
            while end < below.len() && same(below[end], base) && same(bar.values[end].unwrap_or(0.0), value) {
                below[end] = base + value;
                end += 1;
            }
            if value > 0.0 {
                let (left, right) = (self.x(at as f64), self.x(end as f64));
                let (top, bottom) = (self.scale.y(base + value), self.scale.y(base));
                let _ = write!(path, "M{left:.1} {bottom:.1}V{top:.1}H{right:.1}V{bottom:.1}Z");
            }
            at = end;
        }
        path
    }
}

fn same(one: f64, other: f64) -> bool {
    (one - other).abs() < 1e-9
}

/// A tick's number without needless digits.
fn number(value: f64) -> String {
    if value >= 1000.0 && value % 100.0 < 1e-6 {
        return format!("{}k", value / 1000.0);
    }
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Minutes and seconds, and hours where there are any.
pub(crate) fn clock(t_s: f64) -> String {
    let seconds = t_s.round().max(0.0) as u64;
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}

/// Round times, at most six, from 0.
fn times(length_s: f64) -> impl Iterator<Item = f64> {
    const STEPS_S: [f64; 17] = [
        1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 900.0, 1800.0, 3600.0, 7200.0, 21_600.0,
        43_200.0, 86_400.0,
    ];
    let step_s = STEPS_S.into_iter().find(|step_s| length_s / step_s <= 5.0).unwrap_or(172_800.0);
    (0..).map(move |index| f64::from(index) * step_s).take_while(move |t| *t <= length_s * 0.96)
}

#[cfg(test)]
#[allow(clippy::float_cmp)] // exact by construction
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_reach_the_largest_value() {
        for (largest, expected) in
            [(49.0, "0 20 40 60"), (7.0, "0 2 4 6 8"), (0.0, "0 0.5 1"), (4000.0, "0 1k 2k 3k 4k")]
        {
            let ticks: Vec<String> = Scale::linear(&[&[largest]]).ticks.into_iter().map(number).collect();
            assert_eq!(ticks.join(" "), expected);
        }
        let whole: Vec<String> = Scale::whole(&[1.0]).ticks.into_iter().map(number).collect();
        assert_eq!(whole.join(" "), "0 1");
    }

    #[test]
    fn slow_seconds_do_not_flatten_the_rest() {
        let even = Scale::latency(&[100.0, 120.0, 140.0], Some(500.0));
        assert!(!even.logarithmic && even.high >= 500.0);
        let stalled = Scale::latency(&[100.0, 100.0, 5000.0], Some(500.0));
        assert!(stalled.logarithmic && (0.4..0.9).contains(&stalled.share(100.0)), "{stalled:?}");
        let empty = Scale::latency(&[], None);
        assert!(empty.share(0.0) == 1.0 && empty.high == 1.0);
    }

    #[test]
    fn values_never_leave_the_chart() {
        let scale = Scale::linear(&[&[10.0]]);
        assert_eq!([-5.0, 0.0, 10.0, 1e9].map(|value| scale.share(value)), [1.0, 1.0, 0.0, 0.0]);
    }

    #[test]
    fn times_are_few_and_round() {
        let shown = |length_s| times(length_s).map(clock).collect::<Vec<_>>().join(" ");
        assert_eq!(shown(600.0), "0:00 2:00 4:00 6:00 8:00");
        assert_eq!(shown(3.0), "0:00 0:01 0:02");
        assert_eq!(shown(3600.0), "0:00 15:00 30:00 45:00");
        assert_eq!(shown(7200.0), "0:00 0:30:00 1:00:00 1:30:00".replace("0:30:00", "30:00"));
        assert!(times(604_800.0).count() <= 6);
    }
}
