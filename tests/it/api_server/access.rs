//! Who asks, and what the Roles in the store let them do.
use super::routes::Target;
use super::store::Store;
use serde_json::Value;
use std::collections::HashMap;

/// The token that may do everything; it cannot be revoked.
pub(crate) const ADMIN: &str = "admin";

/// Whom a token stands for.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Who {
    Admin,
    Account { namespace: String, name: String },
    Anonymous,
}

impl Who {
    /// The name in messages and in the log of calls.
    pub(super) fn user(&self) -> String {
        match self {
            Self::Admin => "kubernetes-admin".to_owned(),
            Self::Account { namespace, name } => format!("system:serviceaccount:{namespace}:{name}"),
            Self::Anonymous => "system:anonymous".to_owned(),
        }
    }

    /// Whether a Role that is bound to this account in the namespace asked about allows the verb.
    pub(super) fn may(&self, store: &Store, verb: &str, asked: &Target) -> bool {
        let (namespace, name) = match self {
            Self::Admin => return true,
            Self::Anonymous => return false,
            Self::Account { namespace, name } => (namespace, name),
        };
        let Some(place) = asked.namespace.as_deref() else { return false };
        let is_it = |subject: &Value| {
            subject["kind"] == "ServiceAccount"
                && subject["name"] == **name
                && subject["namespace"] == **namespace
        };
        let bindings = store.list("rolebindings", Some(place)).into_iter();
        bindings.filter(|binding| entries(&binding["subjects"]).iter().any(is_it)).any(|binding| {
            let role = binding["roleRef"]["name"].as_str().unwrap_or_default();
            let role = store.get("roles", place, role);
            role.is_some_and(|role| entries(&role["rules"]).iter().any(|rule| allows(rule, verb, asked)))
        })
    }
}

fn entries(list: &Value) -> &[Value] {
    list.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn allows(rule: &Value, verb: &str, asked: &Target) -> bool {
    let has =
        |field: &str, wanted: &str| entries(&rule[field]).iter().any(|entry| entry == wanted || entry == "*");
    // A rule about names never lets anybody create: the name is not known before.
    let names = entries(&rule["resourceNames"]);
    let named =
        names.is_empty() || asked.name.as_ref().is_some_and(|name| names.iter().any(|entry| entry == name));
    has("apiGroups", &asked.group) && has("resources", &asked.full_resource()) && has("verbs", verb) && named
}

/// The tokens that are good now.
#[derive(Default)]
pub(super) struct Tokens {
    issued: u64,
    good: HashMap<String, Who>,
}

impl Tokens {
    /// A new token of a `ServiceAccount`; earlier ones stay good.
    pub(super) fn issue(&mut self, namespace: &str, name: &str) -> String {
        self.issued += 1;
        let token = format!("{namespace}.{name}.{}", self.issued);
        let who = Who::Account { namespace: namespace.to_owned(), name: name.to_owned() };
        self.good.insert(token.clone(), who);
        token
    }

    /// Makes a token one that nobody knows, as when it has expired.
    pub(super) fn revoke(&mut self, token: &str) {
        self.good.remove(token);
    }

    /// Whom a token stands for; `None` when it is not good.
    pub(super) fn who(&self, token: Option<&str>) -> Option<Who> {
        match token {
            None => Some(Who::Anonymous),
            Some(ADMIN) => Some(Who::Admin),
            Some(token) => self.good.get(token).cloned(),
        }
    }
}
