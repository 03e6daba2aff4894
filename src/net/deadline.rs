//! How long a request may take, as its client says it.
use crate::net::error::ApiError;
use crate::net::wire::DEADLINE_HEADER;
use http::HeaderMap;
use std::num::IntErrorKind;
use std::time::Duration;

/// The client's own deadline, or the time-out where that is shorter.
pub fn time_allowed(headers: &HeaderMap, timeout: Duration) -> Result<Duration, ApiError> {
    let Some(value) = headers.get(DEADLINE_HEADER) else { return Ok(timeout) };
    let milliseconds = match value.to_str().unwrap_or_default().trim().parse::<u64>() {
        Ok(milliseconds) => milliseconds,
        // More than can be counted is as good as none.
        Err(error) if *error.kind() == IntErrorKind::PosOverflow => u64::MAX,
        Err(_) => {
            let message = format!("{DEADLINE_HEADER} must be a whole number of milliseconds");
            return Err(ApiError::bad_request(message));
        }
    };
    Ok(timeout.min(Duration::from_millis(milliseconds)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shorter_of_deadline_and_time_out_wins() {
        let timeout = Duration::from_secs(1);
        let allowed = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(DEADLINE_HEADER, text.parse().unwrap());
            time_allowed(&headers, timeout).map_err(|error| error.status.as_u16())
        };
        assert_eq!(time_allowed(&HeaderMap::new(), timeout), Ok(timeout));
        assert_eq!(allowed("250"), Ok(Duration::from_millis(250)));
        assert_eq!(allowed("0"), Ok(Duration::ZERO));
        assert_eq!(allowed("5000"), Ok(timeout));
        assert_eq!(allowed("99999999999999999999999"), Ok(timeout));
        for wrong in ["", "soon", "-1", "1.5"] {
            assert_eq!(allowed(wrong), Err(400), "{wrong}");
        }
    }
}
