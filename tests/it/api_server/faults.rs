//! What goes wrong with calls, on demand. What happens to connections and open watches is in `connections` and `watch`.
use std::time::Duration;

/// A fault of every call that matches, or of the next few.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    verb: Option<&'static str>,
    resource: Option<&'static str>,
    pub(super) effect: Effect,
    calls_left: Option<u32>,
}

/// What becomes of a call.
#[derive(Clone, Debug)]
pub(super) enum Effect {
    /// Refused with the `Status` that the API server has for this code; a watch gets 410 as an event.
    Answer { code: u16, retry_after_s: Option<u32> },
    /// Answered with a text that is no `Status`, as by something in between.
    Text { code: u16, text: &'static str },
    /// Never answered, and not carried out.
    Silence,
    /// Answered as ever, but late.
    Slow(Duration),
}

impl Fault {
    fn new(effect: Effect) -> Self {
        Self { verb: None, resource: None, effect, calls_left: None }
    }

    /// Refused with this status, such as 409, 410, 429, 500 or 503.
    pub(crate) fn answer(code: u16) -> Self {
        let retry_after_s = [429, 503].contains(&code).then_some(1);
        Self::new(Effect::Answer { code, retry_after_s })
    }

    /// Answered with a text that is not from the API server.
    pub(crate) fn text(code: u16, text: &'static str) -> Self {
        Self::new(Effect::Text { code, text })
    }

    /// Never answered.
    pub(crate) fn silence() -> Self {
        Self::new(Effect::Silence)
    }

    /// Answered after this long.
    pub(crate) fn slow(by: Duration) -> Self {
        Self::new(Effect::Slow(by))
    }

    /// Only calls of this verb: get, list, watch, create, update, patch, delete.
    pub(crate) fn verb(self, verb: &'static str) -> Self {
        Self { verb: Some(verb), ..self }
    }

    /// Only calls about this resource, as a Role names it: `deployments/scale`, `leases`.
    pub(crate) fn resource(self, resource: &'static str) -> Self {
        Self { resource: Some(resource), ..self }
    }

    /// Only the next so many calls that match; without it, until the faults are cleared.
    pub(crate) fn times(self, calls: u32) -> Self {
        Self { calls_left: Some(calls), ..self }
    }

    fn matches(&self, verb: &str, resource: &str) -> bool {
        self.verb.is_none_or(|wanted| wanted == verb) && self.resource.is_none_or(|wanted| wanted == resource)
    }
}

/// The first fault that matches, of which one call is used up.
pub(super) fn take(faults: &mut Vec<Fault>, verb: &str, resource: &str) -> Option<Effect> {
    let at = faults.iter().position(|fault| fault.matches(verb, resource))?;
    let effect = faults[at].effect.clone();
    if let Some(left) = &mut faults[at].calls_left {
        *left = left.saturating_sub(1);
        if *left == 0 {
            faults.remove(at);
        }
    }
    Some(effect)
}
