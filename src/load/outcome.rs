//! How one request ended.
use std::time::Duration;

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Failure {
    /// No whole answer within the time-out.
    Timeout,
    /// No connection.
    Connect,
    /// The connection broke.
    Transport,
    /// The answer is larger than allowed.
    AnswerTooLarge,
    /// An answer with a status that is neither a success nor 503.
    Status(u16),
    /// Too many requests were in flight to send this one.
    Cap,
    /// Cut off by a second signal.
    Aborted,
}

impl Failure {
    /// Name in the report.
    pub(crate) fn kind(self) -> String {
        match self {
            Self::Timeout => "timeout".to_owned(),
            Self::Connect => "connect".to_owned(),
            Self::Transport => "transport".to_owned(),
            Self::AnswerTooLarge => "answer_too_large".to_owned(),
            Self::Status(status) => format!("http_{status}"),
            Self::Cap => "cap".to_owned(),
            Self::Aborted => "aborted".to_owned(),
        }
    }
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Answered with a success.
    Ok {
        /// The network that the answer names.
        model: Option<Box<str>>,
    },
    /// Refused with 503.
    Shed,
    /// Anything else.
    Failed(Failure),
}

/// A request that ended; instants since the start of the run.
#[derive(Clone, Debug)]
pub(crate) struct Ended {
    /// When it was due.
    pub(crate) due: Duration,
    /// When it was handed to the HTTP client, or refused for the cap.
    pub(crate) sent: Duration,
    /// When its answer was there as a whole.
    #[allow(clippy::struct_field_names)] // due, sent, ended: the three instants of a request
    pub(crate) ended: Duration,
    /// How it ended.
    pub(crate) outcome: Outcome,
}
