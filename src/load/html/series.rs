//! What the page draws: the seconds of a report, joined to at most some hundred points, with the fleet on them.
//!
//! **Invariant**: every series has one value a point. Where seconds are joined, counts are means a second and
//! percentiles the worst of them.
use crate::draw::rounded;
use crate::load::report::{Report, Second};
use serde_json::json;
use std::collections::BTreeSet;

/// Most points; more would be finer than the pixels of a screen.
const POINTS_MAX: usize = 900;

/// The series of a page.
#[derive(Debug)]
pub(super) struct Series {
    /// Seconds that a point stands for.
    pub(super) step_s: usize,
    /// How long the time axis is, seconds.
    pub(super) length_s: f64,
    pub(super) planned: Vec<f64>,
    pub(super) sent: Vec<f64>,
    pub(super) ok: Vec<f64>,
    pub(super) p50_ms: Vec<Option<f64>>,
    pub(super) p99_ms: Vec<Option<f64>>,
    /// Failed and shed requests by kind, `shed` first.
    pub(super) kinds: Vec<(String, Vec<f64>)>,
    pub(super) ready: Vec<Option<f64>>,
    pub(super) starting: Vec<Option<f64>>,
}

impl Series {
    pub(super) fn new(report: &Report) -> Self {
        let seconds = report.seconds.len().max(report.plan.duration_s.ceil() as usize).max(1);
        let step_s = seconds.div_ceil(POINTS_MAX);
        let points = seconds.div_ceil(step_s);
        let chunk = |at: usize| {
            let end = ((at + 1) * step_s).min(report.seconds.len());
            report.seconds.get(at * step_s..end).unwrap_or_default()
        };
        let mean = |of: &dyn Fn(&Second) -> f64| -> Vec<f64> {
            (0..points).map(|at| chunk(at).iter().map(of).sum::<f64>() / step_s as f64).collect()
        };
        let worst = |of: &dyn Fn(&Second) -> Option<f64>| -> Vec<Option<f64>> {
            (0..points).map(|at| chunk(at).iter().filter_map(of).reduce(f64::max)).collect()
        };
        let mut kinds = Vec::new();
        if report.shed > 0 {
            kinds.push(("shed".to_owned(), mean(&|second| second.shed as f64)));
        }
        let names: BTreeSet<&String> = report.failures.keys().collect();
        for name in names {
            let of = |second: &Second| second.failures.get(name).copied().unwrap_or(0) as f64;
            kinds.push((name.clone(), mean(&of)));
        }
        let (ready, starting) = fleet(report, points, step_s);
        Self {
            step_s,
            length_s: (points * step_s) as f64,
            planned: mean(&|second| second.planned),
            sent: mean(&|second| second.sent as f64),
            ok: mean(&|second| second.ok as f64),
            p50_ms: worst(&|second| second.p50_ms),
            p99_ms: worst(&|second| second.p99_ms),
            kinds,
            ready,
            starting,
        }
    }

    /// Points.
    pub(super) fn len(&self) -> usize {
        self.sent.len()
    }

    /// What the script reads: for each chart the names and values of its series.
    pub(super) fn to_json(&self) -> String {
        let kinds: serde_json::Map<_, _> =
            self.kinds.iter().map(|(kind, counts)| (kind.clone(), json!(rounded(counts)))).collect();
        json!({
            "step_s": self.step_s,
            "points": self.len(),
            "rate": {
                "planned": rounded(&self.planned), "sent": rounded(&self.sent), "answered": rounded(&self.ok),
            },
            "latency": { "p99": self.p99_ms, "p50": self.p50_ms },
            "misses": kinds,
            "replicas": { "ready": self.ready, "starting": self.starting },
        })
        .to_string()
    }
}

/// The last numbers of replicas seen in each point; `None` before the first.
fn fleet(report: &Report, points: usize, step_s: usize) -> (Vec<Option<f64>>, Vec<Option<f64>>) {
    let (mut ready, mut starting) = (vec![None; points], vec![None; points]);
    let Some(fleet) = &report.fleet else { return (ready, starting) };
    let mut seen = fleet.replicas.iter().peekable();
    let mut last = None;
    for at in 0..points {
        let end_s = ((at + 1) * step_s) as f64;
        while let Some(replicas) = seen.next_if(|replicas| replicas.t <= end_s) {
            last = Some(replicas);
        }
        ready[at] = last.map(|replicas| f64::from(replicas.ready));
        starting[at] = last.map(|replicas| f64::from(replicas.starting));
    }
    (ready, starting)
}

/// The values there are.
pub(super) fn known(values: &[Option<f64>]) -> Vec<f64> {
    values.iter().copied().flatten().collect()
}

/// 0 where nothing is known.
pub(super) fn filled(values: &[Option<f64>]) -> Vec<f64> {
    values.iter().map(|value| value.unwrap_or(0.0)).collect()
}

/// The colour of a kind of miss, as a class; kinds that have none of their own take turns.
pub(super) fn colour(kind: &str, index: usize) -> &'static str {
    match kind {
        "shed" => "shed",
        "timeout" => "timeout",
        "cap" | "aborted" => "cap",
        _ => ["other-0", "other-1", "other-2", "other-3"][index % 4],
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A second like `like`, with its number as its 99th percentile.
    pub(in crate::load::html) fn second(like: &Second, t: usize) -> Second {
        Second { t, p99_ms: Some(t as f64), ..like.clone() }
    }
}
