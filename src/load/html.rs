//! The report as one page that needs nothing else, see [`crate::draw`].
//!
//! **Invariant**: whatever comes from outside (names, reasons, errors) is escaped.
mod series;

use crate::draw::chart::{self, Line, Mark, Panel, Scale};
use crate::draw::{Page, escape};
use crate::load::fleet::Seen;
use crate::load::report::{LatencyMs, Report, percent, show};
use series::Series;
use std::fmt::Write as _;

/// Most decisions in the table; the chart marks all.
const DECISIONS_SHOWN: usize = 200;

/// The page.
pub(crate) fn page(report: &Report) -> String {
    let series = Series::new(report);
    let standing = match () {
        () if !report.valid || report.interrupted => "warn",
        () if report.is_good() => "good",
        () => "bad",
    };
    let mut content = String::with_capacity(64 << 10);
    let _ = write!(
        content,
        "<header>\n<h1>Load report</h1>\n<p class=\"verdict {standing}\">{verdict}</p>\n\
         <p class=\"soft\">{schedule} against {target}, started {started}</p>\n</header>\n<main>\n",
        schedule = escape(&report.plan.schedule),
        target = escape(&report.target),
        started = utc(report.started_unix_s),
        verdict = escape(&report.verdict()),
    );
    content.push_str(&tiles(report));
    content.push_str(&charts(report, &series));
    content.push_str("<div class=\"columns\">\n");
    content.push_str(&percentiles(report));
    content.push_str(&counts(report));
    content.push_str(&plan(report));
    content.push_str("</div>\n");
    if let Some(fleet) = &report.fleet {
        content.push_str(&decisions(fleet));
    }
    content.push_str("</main>\n");
    let page = Page {
        title: &format!("{} – elastic load", report.plan.schedule),
        style: "",
        content: &content,
        note: "Latencies count from the instant at which a request was due; failed and shed requests rank as slower \
               than every answer.",
        data: &series.to_json(),
    };
    page.html()
}

fn tiles(report: &Report) -> String {
    let latency = report.latency_ms;
    let promise = report.slo.and_then(|slo| slo.p99_ms_max);
    let over = promise.is_some_and(|max| latency.p99.is_none_or(|p99| p99 > max));
    let bound = report.slo.and_then(|slo| slo.missed_share_max);
    let missed_over = bound.is_some_and(|max| report.missed_share > max);
    let mut html = "<dl class=\"tiles\">\n".to_owned();
    let mut tile = |name: &str, value: String, unit: &str, note: String, standing: &str| {
        let _ = writeln!(
            html,
            "<div><dt>{name}</dt><dd class=\"big {standing}\">{value}<small>{unit}</small></dd>\
             <dd class=\"soft\">{note}</dd></div>"
        );
    };
    let bad = |is_bad| if is_bad { "bad" } else { "" };
    let promised = promise.map_or_else(|| "no promise".to_owned(), |max| format!("promise {max} ms"));
    tile("p99", show(latency.p99), " ms", promised, bad(over));
    tile("p50", show(latency.p50), " ms", format!("p99.9 {} ms", show(latency.p999)), "");
    let allowed = bound.map_or_else(
        || format!("{} failed, {} shed", report.failed, report.shed),
        |max| format!("at most {}", percent(max)),
    );
    let share = percent(report.missed_share);
    tile("failed or shed", share.trim_end_matches(" %").to_owned(), " %", allowed, bad(missed_over));
    let rate = format!("{:.1}", report.rate_rps_mean);
    tile("mean rate", rate, " rps", format!("{} requests", report.sent), "");
    let limit = format!("p99, limit {} ms", report.lag_ms_max);
    let lagged = if report.valid { "" } else { "warn" };
    tile("generator’s lag", show(report.lag_ms.p99), " ms", limit, lagged);
    html + "</dl>\n"
}

fn charts(report: &Report, series: &Series) -> String {
    let mut html = String::new();
    let step = series.step_s;
    let each = if step > 1 { format!(", each point {step} s") } else { String::new() };
    html += &Panel {
        id: "rate",
        title: &format!("Requests a second{each}"),
        points: series.len(),
        length_s: series.length_s,
        scale: Scale::linear(&[&series.planned, &series.sent, &series.ok]),
        lines: &[
            Line::new("planned", "planned", &series.planned),
            Line::new("sent", "sent", &series.sent),
            Line::new("answered", "ok", &series.ok),
        ],
        bars: &[],
        marks: &[],
        limit: None,
    }
    .html();
    let promise = report.slo.and_then(|slo| slo.p99_ms_max);
    let p99_ms = series::known(&series.p99_ms);
    html += &Panel {
        id: "latency",
        title: "Latency from the scheduled instant, ms",
        points: series.len(),
        length_s: series.length_s,
        scale: Scale::latency(&p99_ms, promise),
        lines: &[Line::of("p99", "p99", &series.p99_ms), Line::of("p50", "p50", &series.p50_ms)],
        bars: &[],
        marks: &[],
        limit: promise.map(|max| ("promise", max)),
    }
    .html();
    html += &misses(series);
    html + &replicas(report.fleet.as_ref(), series)
}

fn misses(series: &Series) -> String {
    if series.kinds.is_empty() {
        return note("Failed and shed", "no request failed or was shed");
    }
    let total: Vec<f64> =
        (0..series.len()).map(|at| series.kinds.iter().map(|(_, counts)| counts[at]).sum()).collect();
    let bars: Vec<Line> = series
        .kinds
        .iter()
        .enumerate()
        .map(|(index, (kind, counts))| Line::new(kind, series::colour(kind, index), counts))
        .collect();
    Panel {
        id: "misses",
        title: "Failed and shed a second, by kind",
        points: series.len(),
        length_s: series.length_s,
        scale: Scale::linear(&[&total]),
        lines: &[],
        bars: &bars,
        marks: &[],
        limit: None,
    }
    .html()
}

fn replicas(fleet: Option<&Seen>, series: &Series) -> String {
    let Some(fleet) = fleet else {
        return note("Replicas", "--monitor URL adds the replicas and the decisions to this page");
    };
    let marks: Vec<Mark> = fleet
        .decisions
        .iter()
        .map(|change| Mark { t: change.t, up: change.to > change.from, text: escape(&change.reason) })
        .collect();
    if fleet.replicas.is_empty() && marks.is_empty() {
        let problems = fleet.problems.join("; ");
        let text = if problems.is_empty() { "the monitor knows of no replicas" } else { &problems };
        return note("Replicas", &escape(text));
    }
    let total: Vec<f64> =
        series.ready.iter().zip(&series.starting).map(|(a, b)| a.unwrap_or(0.0) + b.unwrap_or(0.0)).collect();
    let (ready, starting) = (series::filled(&series.ready), series::filled(&series.starting));
    Panel {
        id: "replicas",
        title: "Replicas and decisions",
        points: series.len(),
        length_s: series.length_s,
        scale: Scale::whole(&total),
        lines: &[],
        bars: &[Line::new("ready", "ready", &ready), Line::new("starting", "starting", &starting)],
        marks: &marks,
        limit: None,
    }
    .html()
}

fn note(title: &str, text: &str) -> String {
    format!("<section class=\"card\"><h2>{title}</h2><p class=\"soft\">{text}</p></section>\n")
}

fn percentiles(report: &Report) -> String {
    let mut html = "<section class=\"card\"><h2>Milliseconds</h2><div class=\"scroll\"><table class=\"numbers\">\n<tr><th></th><th>p50</th>\
                    <th>p90</th><th>p99</th><th>p99.9</th><th>max</th></tr>\n"
        .to_owned();
    let lag = report.lag_ms;
    let lag = LatencyMs { p50: lag.p50, p90: None, p99: lag.p99, p999: None, max: lag.max };
    for (name, l) in [
        ("from schedule", report.latency_ms),
        ("from send", report.send_latency_ms),
        ("generator’s lag", lag),
    ] {
        let _ = write!(html, "<tr><th>{name}</th>");
        for value in [l.p50, l.p90, l.p99, l.p999, l.max] {
            let _ = write!(html, "<td>{}</td>", show(value));
        }
        html += "</tr>\n";
    }
    html + "</table></div></section>\n"
}

fn counts(report: &Report) -> String {
    let mut html = "<section class=\"card counts\"><h2>Requests</h2><table>\n".to_owned();
    let mut row = |name: &str, count: u64| {
        let _ = writeln!(html, "<tr><th>{}</th><td>{count}</td></tr>", escape(name));
    };
    row("sent", report.sent);
    row("answered", report.ok);
    row("shed", report.shed);
    row("failed", report.failed);
    for (kind, count) in &report.failures {
        row(&format!("· {kind}"), *count);
    }
    for (model, count) in &report.models {
        row(&format!("answered by {model}"), *count);
    }
    html + "</table></section>\n"
}

fn plan(report: &Report) -> String {
    let plan = &report.plan;
    let seed = plan.seed.map_or_else(|| "none".to_owned(), |seed| seed.to_string());
    let rows = [
        ("schedule", escape(&plan.schedule)),
        ("arrivals", plan.arrivals.to_owned()),
        ("seed", seed),
        ("interpolated", if plan.interpolate { "yes" } else { "no" }.to_owned()),
        ("speed, scale", format!("{}, {}", plan.speed, plan.scale)),
        ("planned", format!("{:.0} requests in {}", plan.requests_expected, chart::clock(plan.duration_s))),
    ];
    let rows = rows.map(|(name, value)| format!("<tr><th>{name}</th><td>{value}</td></tr>\n")).concat();
    format!("<section class=\"card\"><h2>Plan</h2><table>\n{rows}</table></section>\n")
}

fn decisions(fleet: &Seen) -> String {
    if fleet.decisions.is_empty() {
        return String::new();
    }
    let mut html =
        "<section class=\"card\"><h2>Decisions</h2><div class=\"scroll\"><table class=\"decisions\">\n\
                    <tr><th>at</th><th>replicas</th><th>why</th></tr>\n"
            .to_owned();
    for change in fleet.decisions.iter().take(DECISIONS_SHOWN) {
        let _ = writeln!(
            html,
            "<tr><td>{}</td><td>{} → {}{}</td><td>{}</td></tr>",
            chart::clock(change.t),
            change.from,
            change.to,
            if change.applied { "" } else { " (not applied)" },
            escape(&change.reason)
        );
    }
    html += "</table></div>";
    let more = fleet.decisions.len().saturating_sub(DECISIONS_SHOWN);
    if more > 0 {
        let _ = write!(html, "<p class=\"soft\">and {more} more, in the JSON</p>");
    }
    html + "</section>\n"
}

/// Seconds since the Unix epoch as a date, after Hinnant's `civil_from_days`.
fn utc(unix_s: f64) -> String {
    let seconds = unix_s.max(0.0) as u64;
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_shifted + 2) / 5 + 1;
    let month = if month_shifted < 10 { month_shifted + 3 } else { month_shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{:02} UTC", second % 60)
}

#[cfg(test)]
mod tests;
