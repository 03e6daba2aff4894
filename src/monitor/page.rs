//! The live page: one HTML file, compiled in, that asks nobody but the monitor.
//!
//! **Invariant**: the page's own style and script are the only ones a browser runs, by their hashes.
use axum::response::{Html, IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::{HeaderName, HeaderValue, header};
use sha2::{Digest as _, Sha256};

const PAGE: &str = include_str!("page.html");

/// The page's Content-Security-Policy.
pub(super) fn policy() -> String {
    format!(
        "default-src 'none'; script-src '{}'; style-src '{}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash("script"),
        hash("style"),
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
    (headers, Html(PAGE)).into_response()
}

/// Hash, as a policy spells it, of what stands inside the page's one element called `tag`.
fn hash(tag: &str) -> String {
    let inside = PAGE
        .split_once(&format!("<{tag}>"))
        .and_then(|(_, rest)| rest.split_once(&format!("</{tag}>")))
        .map_or("", |(inside, _)| inside);
    format!("sha256-{}", BASE64_STANDARD.encode(Sha256::digest(inside)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_asks_nobody_but_the_monitor() {
        for outside in ["http:", "https:", "//cdn", "url(", "@import", " src=", "import("] {
            assert!(!PAGE.contains(outside), "the page contains {outside:?}");
        }
        for tag in ["<script>", "<style>"] {
            assert_eq!(PAGE.matches(tag).count(), 1, "{tag}");
        }
        // The policy would make the browser drop these.
        assert!(!PAGE.contains(" style=") && !PAGE.contains(" onclick="));
        assert!(PAGE.contains("<meta name=\"viewport\""));
    }

    #[test]
    fn the_policy_names_the_hashes_of_what_is_there() {
        let policy = policy();
        let nothing = BASE64_STANDARD.encode(Sha256::digest(""));
        assert!(!policy.contains(&nothing), "{policy}");
        assert!(policy.starts_with("default-src 'none'; script-src 'sha256-"), "{policy}");
        assert!(!policy.contains("unsafe"), "{policy}");
    }
}
