//! The runs as one page that needs nothing else, see [`crate::draw`].
//!
//! **Invariant**: whatever comes from outside (names, reasons) is escaped; all charts have the same axis of time.
use crate::draw::chart::{Line, Panel, Scale, clock};
use crate::draw::{Page, escape, rounded};
use crate::sim::Second;
use crate::simulate::Report;
use crate::simulate::summary::Run;
use crate::simulate::table::{HEADS, cells, sentences};
use serde_json::{Map, Value, json};
use std::fmt::Write as _;

const RUN_STYLE: &str = include_str!("html/page.css");
/// Most points; more would be finer than the pixels of a screen.
const POINTS_MAX: usize = 1000;
/// Most changes of a run in its table.
const CHANGES_SHOWN: usize = 500;

/// The page.
pub(super) fn page(report: &Report) -> String {
    let mut content = String::with_capacity(256 << 10);
    content.push_str("<header>\n<h1>Simulated runs</h1>\n");
    for sentence in sentences(report) {
        let _ = writeln!(content, "<p class=\"soft\">{}</p>", escape(&sentence));
    }
    content.push_str("</header>\n<main>\n");
    content.push_str(&table(report));
    let step_s =
        report.runs.iter().map(|run| run.seconds.len()).max().unwrap_or(1).div_ceil(POINTS_MAX).max(1);
    let mut data = Map::new();
    for (index, run) in report.runs.iter().enumerate() {
        let settings = &report.planned.playing.settings;
        let replicas_per_rps = settings.service_time.as_secs_f64() / f64::from(settings.slots);
        let series = Series::new(&run.seconds, step_s, replicas_per_rps);
        content.push_str(&section(index, run, &series));
        data.insert("step_s".to_owned(), json!(step_s));
        data.insert("points".to_owned(), json!(series.rate_rps.len()));
        data.extend(series.to_json(index));
    }
    content.push_str("</main>\n");
    let page = Page {
        title: &format!("{} – elastic simulate", report.planned.source),
        style: RUN_STYLE,
        content: &content,
        note: "Missed: answered later than the promise, or refused. Bad minutes: more than 1 % of the requests that \
               arrived in them missed. Replicas are paid for from the moment they are asked for. Each chart has a \
               scale of its own.",
        data: &Value::Object(data).to_string(),
    };
    page.html()
}

fn table(report: &Report) -> String {
    let mut html =
        "<section class=\"card\"><div class=\"scroll\"><table class=\"numbers runs\">\n<tr>".to_owned();
    for head in HEADS {
        let _ = write!(html, "<th>{head}</th>");
    }
    html += "</tr>\n";
    for (index, run) in report.runs.iter().enumerate() {
        let [policy, rest @ ..] = cells(&run.row);
        let _ = write!(html, "<tr><th><a href=\"#run-{index}\">{}</a></th>", escape(&policy));
        for cell in rest {
            let _ = write!(html, "<td>{}</td>", escape(&cell));
        }
        html += "</tr>\n";
    }
    html + "</table></div></section>\n"
}

/// Seconds joined to points: means of each.
struct Series {
    step_s: usize,
    rate_rps: Vec<f64>,
    missed_rps: Vec<f64>,
    desired: Vec<f64>,
    ready: Vec<f64>,
    /// Replicas that the arrivals would keep busy.
    offered: Vec<f64>,
}

impl Series {
    fn new(seconds: &[Second], step_s: usize, replicas_per_rps: f64) -> Self {
        let mean = |of: fn(&Second) -> u32| -> Vec<f64> {
            let mean = |point: &[Second]| {
                point.iter().map(|second| f64::from(of(second))).sum::<f64>() / point.len() as f64
            };
            seconds.chunks(step_s).map(mean).collect()
        };
        let rate_rps = mean(|second| second.arrivals);
        let offered = rate_rps.iter().map(|rate_rps| rate_rps * replicas_per_rps).collect();
        Self {
            step_s,
            missed_rps: mean(|second| second.missed),
            desired: mean(|second| second.desired),
            ready: mean(|second| second.ready),
            rate_rps,
            offered,
        }
    }

    fn to_json(&self, index: usize) -> [(String, Value); 3] {
        [
            (format!("rate-{index}"), json!({ "arrived": rounded(&self.rate_rps) })),
            (
                format!("replicas-{index}"),
                json!({
                    "ready": rounded(&self.ready), "asked for": rounded(&self.desired),
                    "offered load": rounded(&self.offered),
                }),
            ),
            (format!("missed-{index}"), json!({ "missed": rounded(&self.missed_rps) })),
        ]
    }
}

fn section(index: usize, run: &Run, series: &Series) -> String {
    let row = &run.row;
    let name = if run.recorded { row.policy.clone() } else { format!("{}, {}", row.policy, row.dispatch) };
    let [_, _, missed, bad_minutes, replicas, ..] = cells(row);
    let mut html = format!(
        "<section class=\"run\" id=\"run-{index}\">\n<h2>{}</h2><p class=\"soft\">missed {missed}, bad minutes \
         {bad_minutes}, {replicas} replicas on average</p>\n",
        escape(&name)
    );
    let each = if series.step_s > 1 { format!(" (each point {} s)", series.step_s) } else { String::new() };
    html += &Panel {
        id: &format!("rate-{index}"),
        title: &format!("Requests a second{each}"),
        points: series.rate_rps.len(),
        length_s: (series.rate_rps.len() * series.step_s) as f64,
        scale: Scale::linear(&[&series.rate_rps]),
        lines: &[Line::new("arrived", "ok", &series.rate_rps)],
        bars: &[],
        marks: &[],
        limit: None,
    }
    .html();
    html += &Panel {
        id: &format!("replicas-{index}"),
        title: "Replicas",
        points: series.rate_rps.len(),
        length_s: (series.rate_rps.len() * series.step_s) as f64,
        scale: Scale::linear(&[&series.ready, &series.desired, &series.offered, &[4.0]]),
        lines: &[
            Line::new("asked for", "desired", &series.desired),
            Line::new("offered load", "offered", &series.offered),
        ],
        bars: &[Line::new("ready", "ready", &series.ready)],
        marks: &[],
        limit: None,
    }
    .html();
    if series.missed_rps.iter().all(|missed| *missed == 0.0) {
        html += "<figure class=\"card\"><figcaption><h2>Missed</h2></figcaption><p class=\"soft\">no request was \
                 over the promise</p></figure>\n";
    } else {
        html += &Panel {
            id: &format!("missed-{index}"),
            title: &format!("Missed, requests a second{each}"),
            points: series.rate_rps.len(),
            length_s: (series.rate_rps.len() * series.step_s) as f64,
            scale: Scale::linear(&[&series.missed_rps]),
            lines: &[],
            bars: &[Line::new("missed", "missed", &series.missed_rps)],
            marks: &[],
            limit: None,
        }
        .html();
    }
    html + &changes(run) + "</section>\n"
}

fn changes(run: &Run) -> String {
    if run.recorded {
        return String::new();
    }
    let count = run.changes.len();
    let noun = if count == 1 { "change" } else { "changes" };
    let mut html =
        format!("<details class=\"card\"><summary>{count} {noun} of the number of replicas</summary>");
    if count > 0 {
        html += "<div class=\"scroll\"><table class=\"decisions\">\n<tr><th>at</th><th>replicas</th><th>why</th></tr>\n";
        for change in run.changes.iter().take(CHANGES_SHOWN) {
            let _ = writeln!(
                html,
                "<tr><td>{}</td><td>{} → {}</td><td>{}</td></tr>",
                clock(change.at.as_secs_f64()),
                change.from,
                change.to,
                escape(&change.reason)
            );
        }
        html += "</table></div>";
        let more = count.saturating_sub(CHANGES_SHOWN);
        if more > 0 {
            let _ = write!(html, "<p class=\"soft\">and {more} more</p>");
        }
    }
    html + "</details>\n"
}
