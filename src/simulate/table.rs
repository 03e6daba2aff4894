//! The runs beside each other, for people.
use crate::simulate::Report;
use crate::simulate::summary::{Row, Run};
use std::fmt::Write as _;

/// Heads of the columns; those of the first two are words.
pub(super) const HEADS: [&str; 9] =
    ["policy", "dispatch", "missed", "bad minutes", "replicas", "most", "replica-s", "changes/h", "× bound"];

/// A run's cells under [`HEADS`].
pub(super) fn cells(row: &Row) -> [String; 9] {
    let number = |value: Option<f64>, digits: usize| {
        value.map_or_else(|| "–".to_owned(), |value| format!("{value:.digits$}"))
    };
    let percent = |share: Option<f64>, digits: usize| {
        let text = number(share.map(|share| share * 100.0), digits);
        if share.is_some() { text + " %" } else { text }
    };
    [
        row.policy.clone(),
        row.dispatch.clone(),
        percent(row.missed_share, 3),
        percent(row.bad_minutes_share, 1),
        number(row.replicas_mean, 2),
        row.replicas_max.to_string(),
        number(row.replica_seconds, 0),
        number(row.scale_actions_per_hour, 1),
        number(row.clairvoyant_ratio, 3),
    ]
}

/// What is simulated, and the table.
pub(super) fn text(report: &Report) -> String {
    let mut text = String::new();
    for sentence in sentences(report) {
        let _ = writeln!(text, "{sentence}");
    }
    text.push('\n');
    let rows: Vec<[String; 9]> = std::iter::once(HEADS.map(str::to_owned))
        .chain(report.runs.iter().map(|run| cells(&run.row)))
        .collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 9] = std::array::from_fn(width);
    for row in &rows {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
            let _ =
                if column < 2 { write!(line, "{cell:width$}  ") } else { write!(line, "{cell:>width$}  ") };
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

/// What is simulated and the bound, in sentences without a full stop.
pub(super) fn sentences(report: &Report) -> Vec<String> {
    let simulated = report.runs.iter().find(|run| !run.recorded);
    let requests = simulated.map_or(0, |run| run.row.requests);
    let mut sentences = report.planned.sentences(requests).to_vec();
    let replica_s = report.common.clairvoyant_replica_s;
    sentences.push(format!(
        "bound, the fewest for somebody who knows the future: {:.2} replicas on average, {replica_s:.0} replica-seconds",
        replica_s / report.common.duration.as_secs_f64()
    ));
    if report.runs.iter().any(|run: &Run| run.recorded) {
        sentences.push("recorded: what really happened, with the replicas that were ready".to_owned());
    }
    sentences
}
