//! The one place that reads the wall clock, for times that people read.
use std::time::Duration;

/// Time since the Unix epoch; zero when the machine's clock is set before it.
///
/// Never use it to measure an interval: wall clocks jump.
#[must_use]
#[allow(clippy::disallowed_types)] // the exception that clippy.toml names
pub fn unix_time() -> Duration {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
}
