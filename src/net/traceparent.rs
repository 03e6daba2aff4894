//! W3C Trace Context: which trace of the client's a request belongs to.
use http::HeaderMap;

/// The header that says so.
pub const TRACEPARENT: &str = "traceparent";

/// What a `traceparent` header says, in its own words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceParent {
    /// 32 hexadecimal digits.
    pub trace_id: String,
    /// 16 hexadecimal digits: the client's own span.
    pub parent_id: String,
}

/// The trace that a request names; `None` also where it is malformed, which is never the request's fault.
#[must_use]
pub fn of(headers: &HeaderMap) -> Option<TraceParent> {
    parse(headers.get(TRACEPARENT)?.to_str().ok()?)
}

/// Versions after 00 may have more fields, which are to be passed over.
fn parse(text: &str) -> Option<TraceParent> {
    let mut fields = text.split('-');
    let [version, trace_id, parent_id, flags] = [2, 32, 16, 2].map(|digits| {
        let lower_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        fields.next().filter(|field| field.len() == digits && field.bytes().all(lower_hex))
    });
    let (version, trace_id, parent_id) = (version?, trace_id?, parent_id?);
    flags?;
    let is_zero = |field: &str| field.bytes().all(|byte| byte == b'0');
    let too_long = version == "00" && fields.next().is_some();
    if version == "ff" || too_long || is_zero(trace_id) || is_zero(parent_id) {
        return None;
    }
    Some(TraceParent { trace_id: trace_id.to_owned(), parent_id: parent_id.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";

    #[test]
    fn well_formed_headers_name_a_trace() {
        for text in [
            format!("00-{TRACE}-{SPAN}-01"),
            format!("00-{TRACE}-{SPAN}-00"),
            format!("01-{TRACE}-{SPAN}-01-more-to-come"),
        ] {
            let expected = TraceParent { trace_id: TRACE.to_owned(), parent_id: SPAN.to_owned() };
            assert_eq!(parse(&text), Some(expected), "{text}");
        }
    }

    #[test]
    fn malformed_ones_name_none() {
        for text in [
            String::new(),
            "00".to_owned(),
            format!("ff-{TRACE}-{SPAN}-01"),
            format!("00-{TRACE}-{SPAN}-01-more"),
            format!("00-{TRACE}-{SPAN}"),
            format!("00-{TRACE}-{SPAN}-1"),
            format!("00-{}-{SPAN}-01", "0".repeat(32)),
            format!("00-{TRACE}-{}-01", "0".repeat(16)),
            format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
            format!("00-{}-{SPAN}-01", "g".repeat(32)),
        ] {
            assert_eq!(parse(&text), None, "{text}");
        }
    }
}
