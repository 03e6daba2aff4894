//! What is played: rates as a file states them, or a shape that one word describes.
//!
//! **Invariant**: at least one line, and every rate is a finite number from 0 to [`RATE_RPS_MAX`].
use crate::logic::arrivals::{LINES_MAX, RATE_RPS_MAX};

/// Rates, one a line.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    rates_rps: Vec<f64>,
    form: Form,
}

/// How the rate moves from one number to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// Each line's rate is held for the whole line.
    Held,
    /// Each line's rate is reached in the middle of its line, with straight lines between the middles.
    Joined,
    /// The rates are corners, a line apart, with straight lines between them.
    Corners,
}

/// Why a text is no workload.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WorkloadError {
    /// A line is not a rate.
    #[error(
        "line {line_number}: {text:?} is no rate: write one number of requests a second from 0 to {RATE_RPS_MAX}"
    )]
    Line {
        /// Number of the line in the file, from 1.
        line_number: usize,
        /// The line, at most 40 characters of it.
        text: String,
    },
    /// No line has a rate.
    #[error("no line has a rate: write one number of requests a second on each")]
    Empty,
    /// More lines than [`LINES_MAX`].
    #[error("line {line_number}: over {LINES_MAX} rates: cut the file, or let each line last longer")]
    TooLong {
        /// Number of the first line over the limit, from 1.
        line_number: usize,
    },
    /// A word that starts like a shape and does not go on like one.
    #[error(
        "{text:?} is no schedule: write constant:RATE, ramp:FROM..TO or step:RATE,RATE,…, each rate a number of \
         requests a second from 0 to {RATE_RPS_MAX}"
    )]
    Shape {
        /// The word, at most 40 characters of it.
        text: String,
    },
}

impl Workload {
    /// Reads one rate in requests a second from each line; skips blank lines and what follows a `#`.
    pub fn parse(text: &str) -> Result<Self, WorkloadError> {
        let mut rates_rps = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let value = line.split('#').next().unwrap_or_default().trim();
            if value.is_empty() {
                continue;
            }
            let line_number = index + 1;
            if rates_rps.len() == LINES_MAX {
                return Err(WorkloadError::TooLong { line_number });
            }
            let rate_rps =
                rate(value).ok_or_else(|| WorkloadError::Line { line_number, text: beginning(value) })?;
            rates_rps.push(rate_rps);
        }
        if rates_rps.is_empty() {
            return Err(WorkloadError::Empty);
        }
        Ok(Self { rates_rps, form: Form::Held })
    }

    /// Reads a shape: `constant:50`, `ramp:10..100` (or more corners: `ramp:10..100..10`), `step:10,50,10`.
    /// `None` for a text that does not start like one, such as the name of a file.
    #[must_use]
    pub fn shape(text: &str) -> Option<Result<Self, WorkloadError>> {
        let (name, values) = text.split_once(':')?;
        let (separator, form, least, most) = match name {
            "constant" => (",", Form::Held, 1, 1),
            "ramp" => ("..", Form::Corners, 2, LINES_MAX),
            "step" => (",", Form::Held, 1, LINES_MAX),
            _ => return None,
        };
        let rates_rps: Option<Vec<f64>> =
            values.split(separator).take(LINES_MAX + 1).map(|value| rate(value.trim())).collect();
        let workload = rates_rps
            .filter(|rates_rps| (least..=most).contains(&rates_rps.len()))
            .map(|rates_rps| Self { rates_rps, form });
        Some(workload.ok_or_else(|| WorkloadError::Shape { text: beginning(text) }))
    }

    /// The same rate all the time, requests a second; `None` for what is no rate.
    #[must_use]
    pub fn constant(rate_rps: f64) -> Option<Self> {
        is_rate(rate_rps).then(|| Self { rates_rps: vec![rate_rps], form: Form::Held })
    }

    /// Straight lines between the middles of the lines, instead of jumps at their ends. The rate becomes
    /// continuous and the number of requests stays. A ramp is as it was.
    #[must_use]
    pub fn interpolated(self) -> Self {
        let form = if self.form == Form::Held { Form::Joined } else { self.form };
        Self { form, ..self }
    }

    /// The rates in requests a second, in the order of the file.
    #[must_use]
    pub fn rates_rps(&self) -> &[f64] {
        &self.rates_rps
    }

    /// How many lines it lasts; a ramp lasts one from each corner to the next.
    #[must_use]
    pub fn lines(&self) -> usize {
        match self.form {
            Form::Held | Form::Joined => self.rates_rps.len(),
            Form::Corners => self.rates_rps.len() - 1,
        }
    }

    /// Straight pieces of the rate in the order of time: where each ends, in lines from the start, and its
    /// rate at its start and at its end.
    pub(super) fn pieces(&self) -> Vec<(f64, f64, f64)> {
        let rates_rps = &self.rates_rps;
        let pairs = rates_rps.windows(2).map(|pair| (pair[0], pair[1]));
        match self.form {
            Form::Held => (1..).zip(rates_rps).map(|(end, rate)| (f64::from(end), *rate, *rate)).collect(),
            Form::Corners => (1..).zip(pairs).map(|(end, (from, to))| (f64::from(end), from, to)).collect(),
            Form::Joined => {
                let lines = rates_rps.len() as f64;
                let (first, last) = (rates_rps[0], rates_rps[rates_rps.len() - 1]);
                let between = (1..).zip(pairs).map(|(end, (from, to))| (f64::from(end) + 0.5, from, to));
                std::iter::once((0.5, first, first))
                    .chain(between)
                    .chain(std::iter::once((lines, last, last)))
                    .collect()
            }
        }
    }
}

fn rate(text: &str) -> Option<f64> {
    text.parse().ok().filter(|rate_rps| is_rate(*rate_rps))
}

fn is_rate(rate_rps: f64) -> bool {
    (0.0..=RATE_RPS_MAX).contains(&rate_rps)
}

fn beginning(text: &str) -> String {
    text.chars().take(40).collect()
}
