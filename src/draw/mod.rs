//! Pages that need nothing else: no script has to run, no file or address is loaded.
//!
//! Lines are drawn as inline SVG that stretches; all text is HTML beside it, so that it stays readable at any
//! width. The small script only reads values off under the pointer; it finds them in the page, as JSON: how many
//! `points` there are, `step_s` between them, and for each chart's id its series by name.
//!
//! **Invariant**: whatever comes from outside (names, reasons, errors) is escaped by [`escape`].
pub(crate) mod chart;

/// The style of every page.
pub(crate) const STYLE: &str = include_str!("page.css");
/// Reads values off under the pointer.
pub(crate) const SCRIPT: &str = include_str!("page.js");

/// Text as it may stand in HTML, also in an attribute.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

/// JSON as it may stand inside a `script` element.
pub(crate) fn in_script(json: &str) -> String {
    json.replace('<', "\\u003c")
}

/// Numbers for the script, without needless digits.
pub(crate) fn rounded(values: &[f64]) -> Vec<f64> {
    values.iter().map(|value| (value * 100.0).round() / 100.0).collect()
}
