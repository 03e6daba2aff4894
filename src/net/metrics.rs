//! Prometheus exposition, the same for every mode: OpenMetrics 1.0.0 for who asks for it, Prometheus text 0.0.4
//! for everybody else.
//!
//! **Invariant**: both texts carry the same samples under the same names.
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode, header};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

/// Edges of latency histograms in seconds. 0.33 and 0.5, the target and the promise, are edges, so that the
/// share of requests over them can be read off exactly.
pub const LATENCY_EDGES_S: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.33, 0.5, 1.0, 2.5, 5.0, 10.0];

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PROMETHEUS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A registry whose metrics are all called `elastic_…`.
#[must_use]
pub fn registry() -> Registry {
    Registry::with_prefix("elastic")
}

/// Writes a registry in the format that the request's `headers` ask for.
#[must_use]
pub fn render(registry: &Registry, headers: &HeaderMap) -> Response {
    let mut text = String::new();
    if let Err(error) = encode(&mut text, registry) {
        return (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response();
    }
    let (content_type, text) = if wants_open_metrics(headers) {
        (OPEN_METRICS, text)
    } else {
        (PROMETHEUS_TEXT, prometheus_text(&text))
    };
    // A cache between must not hand one reader's format to another.
    ([(header::CONTENT_TYPE, content_type), (header::VARY, "accept")], text).into_response()
}

/// Whether `Accept` prefers OpenMetrics. Without a preference, also without the header, it is Prometheus text,
/// which every tool reads.
fn wants_open_metrics(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let ranges: Vec<Range> = accepted.flat_map(|value| value.split(',')).filter_map(Range::parse).collect();
    let open = quality(&ranges, ("application", "openmetrics-text"), "1.0.0");
    let text = quality(&ranges, ("text", "plain"), "0.0.4");
    // Of two that are liked alike the one that was asked for by name is meant.
    let named =
        ranges.iter().any(|range| range.kind == "application/openmetrics-text" && range.quality > 0.0);
    open > text || (named && open > 0.0 && open >= text)
}

/// One element of an `Accept` header.
#[derive(Debug)]
struct Range {
    kind: String,
    version: Option<String>,
    quality: f32,
}

impl Range {
    fn parse(element: &str) -> Option<Self> {
        let mut parts = element.split(';').map(str::trim);
        let kind = parts.next().filter(|kind| kind.contains('/'))?.to_ascii_lowercase();
        let (mut version, mut quality) = (None, 1.0);
        for (name, value) in parts.filter_map(|part| part.split_once('=')) {
            match name.trim().to_ascii_lowercase().as_str() {
                "version" => version = Some(value.trim().trim_matches('"').to_owned()),
                // What cannot be read does not turn a wish into a refusal.
                "q" => quality = value.trim().parse().map_or(1.0, |q: f32| q.clamp(0.0, 1.0)),
                _ => {}
            }
        }
        Some(Self { kind, version, quality })
    }
}

/// How much a media type is wanted: the quality of the most specific range that takes it, 0 when none does.
fn quality(ranges: &[Range], (group, name): (&str, &str), version: &str) -> f32 {
    let specificity = |range: &Range| match range.kind.split_once('/') {
        Some((g, n)) if g == group && n == name => match &range.version {
            Some(wanted) => (wanted == version).then_some(4),
            None => Some(3),
        },
        Some((g, "*")) if g == group => Some(2),
        Some(("*", "*")) => Some(1),
        _ => None,
    };
    let taking = ranges.iter().filter_map(|range| Some((specificity(range)?, range.quality)));
    taking.max_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1))).map_or(0.0, |(_, quality)| quality)
}

/// OpenMetrics text as Prometheus text 0.0.4: there, a family is called as its samples are (`…_total`, `…_info`),
/// and units and the end have no line.
fn prometheus_text(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    let mut help = None;
    for line in open_metrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ').map(|(_, help)| help);
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                kind => ("", kind),
            };
            if let Some(help) = help.take() {
                text.extend(["# HELP ", name, suffix, " ", help, "\n"]);
            }
            text.extend(["# TYPE ", name, suffix, " ", kind, "\n"]);
        } else if !line.starts_with('#') {
            text.extend([line, "\n"]);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use http_body_util::BodyExt as _;
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::gauge::Gauge;
    use prometheus_client::metrics::histogram::Histogram;
    use prometheus_client::metrics::info::Info;
    use prometheus_client::registry::Unit;

    fn asking(accept: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_str(accept).unwrap())])
    }

    #[test]
    fn open_metrics_is_for_who_prefers_it() {
        assert!(!wants_open_metrics(&HeaderMap::new()));
        for accept in [
            "application/openmetrics-text",
            "Application/OpenMetrics-Text; version=1.0.0",
            "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.4,*/*;q=0.1",
            "application/openmetrics-text; version=\"1.0.0\", text/plain",
            "application/*;q=0.9, text/*;q=0.8",
            // As Prometheus 3 asks.
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
             application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;q=0.4,\
             text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
        ] {
            assert!(wants_open_metrics(&asking(accept)), "{accept}");
        }
        for accept in [
            "*/*",
            "",
            "nonsense",
            "text/plain",
            "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
            "application/openmetrics-text;q=0",
            "application/openmetrics-text;q=0, text/plain;q=0",
            "application/openmetrics-text;version=1.0.0;q=0.3, text/plain;version=0.0.4;q=0.4",
            "application/openmetrics-text;version=2.0.0, text/plain;q=0.1",
            "application/openmetrics-text;q=0.2, */*",
        ] {
            assert!(!wants_open_metrics(&asking(accept)), "{accept}");
        }
    }

    fn every_kind() -> Registry {
        let mut registry = registry();
        let (counter, gauge) = (Counter::<u64>::default(), Gauge::<i64>::default());
        counter.inc_by(3);
        let histogram = Histogram::new([0.33, 0.5]);
        histogram.observe(0.4);
        registry.register("requests", "Requests that ended", counter);
        registry.register("slots", "Slots now", gauge);
        registry.register_with_unit("duration", "Time # taken", Unit::Seconds, histogram);
        registry.register("build", "What runs", Info::new([("version", "a\"b\\c\nd")]));
        registry
    }

    async fn rendered(headers: &HeaderMap) -> (String, String) {
        let answer = render(&every_kind(), headers);
        let kind = answer.headers()[header::CONTENT_TYPE].to_str().unwrap().to_owned();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (kind, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn both_formats() {
        let (kind, text) = rendered(&HeaderMap::new()).await;
        assert_eq!(kind, PROMETHEUS_TEXT);
        insta::assert_snapshot!("prometheus_text", text);
        let (kind, open) = rendered(&asking("application/openmetrics-text")).await;
        assert_eq!(kind, OPEN_METRICS);
        insta::assert_snapshot!("open_metrics", open);
        let samples = |text: &str| -> Vec<String> {
            text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
        };
        assert_eq!(samples(&text), samples(&open));
    }
}
