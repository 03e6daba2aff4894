//! The live page: one HTML document, compiled in, that asks nobody but the monitor.
//!
//! **Invariant**: the page's own style and script are the only ones a browser runs, by their hashes.
use axum::response::{Html, IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::{HeaderName, HeaderValue, header};
use sha2::{Digest as _, Sha256};
use std::sync::LazyLock;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
static PAGE: LazyLock<String> = LazyLock::new(|| {
    include_str!("page.html").replace("/* page.css */", STYLE).replace("/* page.js */", SCRIPT)
});

/// The page's Content-Security-Policy.
pub(super) fn policy() -> String {
    let hash = |text: &str| format!("sha256-{}", BASE64_STANDARD.encode(Sha256::digest(text)));
    format!(
        "default-src 'none'; script-src '{}'; style-src '{}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash(SCRIPT),
        hash(STYLE),
    )
}

/// The page with its policy, never cached: after an upgrade it must match what it polls.
pub(super) fn answer(policy: HeaderValue) -> Response {
    let headers: [(HeaderName, HeaderValue); 4] = [
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    ];
    (headers, Html(PAGE.as_str())).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_asks_nobody_but_the_monitor() {
        for outside in ["http:", "https:", "//cdn", "url(", "@import", " src=", "import("] {
            assert!(!PAGE.contains(outside), "the page contains {outside:?}");
        }
        // The policy would make the browser drop these.
        assert!(!PAGE.contains(" style=") && !PAGE.contains(" onclick="));
        assert!(PAGE.contains("<meta name=\"viewport\""));
    }

    #[test]
    fn style_and_script_stand_alone_in_their_elements() {
        for (tag, text) in [("style", STYLE), ("script", SCRIPT)] {
            assert!(!text.contains("</") && !text.contains("/* page."), "{tag}");
            assert!(PAGE.contains(&format!("<{tag}>{text}</{tag}>")), "{tag}");
        }
        let policy = policy();
        assert!(policy.starts_with("default-src 'none'; script-src 'sha256-"), "{policy}");
        assert!(!policy.contains("unsafe"), "{policy}");
    }
}
