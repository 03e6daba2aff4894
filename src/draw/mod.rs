//! Pages that need nothing else: no script has to run, no file or address is loaded.
//!
//! Lines are drawn as inline SVG that stretches; all text is HTML beside it, so that it stays readable at any
//! width. The small script only reads values off under the pointer; it finds them in the page, as JSON: how many
//! `points` there are, `step_s` between them, and for each chart's id its series by name.
//!
//! **Invariant**: whatever comes from outside (names, reasons, errors) is escaped by [`escape`].
pub(crate) mod chart;

/// The style of every page.
const STYLE: &str = include_str!("page.css");
/// Reads values off under the pointer.
const SCRIPT: &str = include_str!("page.js");

/// What a page is made of.
#[derive(Debug)]
pub(crate) struct Page<'a> {
    /// Its title, which is escaped here.
    pub(crate) title: &'a str,
    /// Style beside that of every page.
    pub(crate) style: &'a str,
    /// Its header and main part, as HTML.
    pub(crate) content: &'a str,
    /// What its footer says after the version.
    pub(crate) note: &'a str,
    /// What the script finds, as JSON.
    pub(crate) data: &'a str,
}

impl Page<'_> {
    pub(crate) fn html(&self) -> String {
        let Self { style, content, note, .. } = self;
        format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta name=\"color-scheme\" content=\"light dark\">\n<title>{title}</title>\n\
             <link rel=\"icon\" href=\"data:,\">\n<style>\n{STYLE}{style}</style>\n</head>\n<body>\n{content}\
             <footer class=\"soft\">elastic {version}. {note}</footer>\n\
             <script type=\"application/json\" id=\"data\">{data}</script>\n<script>\n{SCRIPT}</script>\n</body>\n\
             </html>\n",
            title = escape(self.title),
            version = env!("CARGO_PKG_VERSION"),
            data = in_script(self.data),
        )
    }
}

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
fn in_script(json: &str) -> String {
    json.replace('<', "\\u003c")
}

/// Numbers for the script, without needless digits.
pub(crate) fn rounded(values: &[f64]) -> Vec<f64> {
    values.iter().map(|value| (value * 100.0).round() / 100.0).collect()
}
