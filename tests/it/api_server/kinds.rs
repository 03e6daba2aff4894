//! What the double knows of each kind of object.
use serde_json::{Value, json};

/// One kind in one version of the API.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    pub(super) group: &'static str,
    pub(super) version: &'static str,
    pub(super) plural: &'static str,
    pub(super) singular: &'static str,
    /// Two versions of a kind show the same objects, which are stored as one of them.
    pub(super) stored_as: &'static str,
    pub(super) namespaced: bool,
    /// Whether PUT makes an object that is not there.
    pub(super) creates_on_put: bool,
    /// Whether PUT may leave `resourceVersion` out.
    pub(super) blind_put: bool,
    /// What counts as a new `generation`; `None` where there is none.
    pub(super) generation_of: Option<fn(&Value) -> Value>,
    /// How objects that are stored as another version look in this one, which can only be read then.
    pub(super) shown: Option<fn(&Value) -> Value>,
    /// What a bookmark carries beside the version: the fields that are never left out.
    pub(super) empty: fn() -> Value,
}

impl Kind {
    const fn new(
        group: &'static str,
        version: &'static str,
        plural: &'static str,
        singular: &'static str,
    ) -> Self {
        Self {
            group,
            version,
            plural,
            singular,
            stored_as: plural,
            namespaced: true,
            creates_on_put: false,
            blind_put: true,
            generation_of: None,
            shown: None,
            empty: || json!({}),
        }
    }

    /// As the API server names it in messages: `deployments.apps`, `pods`.
    pub(super) fn qualified(&self) -> String {
        qualified(self.plural, self.group)
    }

    /// As `apiVersion` names it: `apps/v1`, `v1`.
    pub(super) fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// An object as a client of this version sees it.
    pub(super) fn show(&self, stored: &Value) -> Value {
        self.shown.map_or_else(|| stored.clone(), |shown| shown(stored))
    }
}

/// A resource with its group behind it, where it has one.
pub(super) fn qualified(plural: &str, group: &str) -> String {
    if group.is_empty() { plural.to_owned() } else { format!("{plural}.{group}") }
}

/// The kind served under a group, a version and a name in paths.
pub(super) fn served(group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| (kind.group, kind.version, kind.plural) == (group, version, plural))
}

/// Whether the double knows what kind of object this is.
pub(super) fn is_known(object: &Value) -> bool {
    KINDS.iter().any(|kind| object["apiVersion"] == kind.api_version() && object["kind"] == kind.singular)
}

/// The kind that an object says it is of.
pub(super) fn of(object: &Value) -> &'static Kind {
    let (version, kind) = (&object["apiVersion"], &object["kind"]);
    let found = KINDS.iter().find(|known| *version == known.api_version() && *kind == known.singular);
    found.unwrap_or_else(|| panic!("the double knows no kind {kind} of {version}"))
}

/// The kind with this name in paths, in the version it is stored as: `deployments`, `events`.
pub(super) fn stored(plural: &str) -> &'static Kind {
    let found = KINDS.iter().find(|known| known.plural == plural && known.shown.is_none());
    found.unwrap_or_else(|| panic!("the double knows no {plural}"))
}

/// Every kind that is served.
pub(super) static KINDS: [Kind; 13] = [
    Kind {
        generation_of: Some(|object| object["spec"].clone()),
        empty: || {
            let template = json!({"metadata": {}, "spec": {"containers": null}});
            json!({
                "spec": {"replicas": 0, "selector": null, "template": template, "strategy": {}},
                "status": {},
            })
        },
        ..Kind::new("apps", "v1", "deployments", "Deployment")
    },
    Kind {
        generation_of: Some(|object| {
            json!([object["spec"].clone(), object["metadata"]["deletionTimestamp"].clone()])
        }),
        empty: || json!({"spec": {"containers": null}, "status": {}}),
        ..Kind::new("", "v1", "pods", "Pod")
    },
    Kind {
        generation_of: Some(|object| json!([object["endpoints"].clone(), object["ports"].clone()])),
        empty: || json!({"addressType": "", "endpoints": null, "ports": null}),
        ..Kind::new("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice")
    },
    Kind {
        creates_on_put: true,
        blind_put: false,
        empty: || json!({"spec": {}}),
        ..Kind::new("coordination.k8s.io", "v1", "leases", "Lease")
    },
    Kind {
        creates_on_put: true,
        empty: || json!({"eventTime": null}),
        ..Kind::new("events.k8s.io", "v1", "events", "Event")
    },
    Kind { shown: Some(core_event), ..Kind::new("", "v1", "events", "Event") },
    Kind {
        empty: || json!({"spec": {"scaleTargetRef": {"kind": "", "name": ""}, "maxReplicas": 0}}),
        ..Kind::new("autoscaling", "v2", "horizontalpodautoscalers", "HorizontalPodAutoscaler")
    },
    Kind {
        shown: Some(first_autoscaler),
        ..Kind::new("autoscaling", "v1", "horizontalpodautoscalers", "HorizontalPodAutoscaler")
    },
    Kind { namespaced: false, ..Kind::new("", "v1", "namespaces", "Namespace") },
    Kind::new("", "v1", "services", "Service"),
    Kind::new("", "v1", "serviceaccounts", "ServiceAccount"),
    Kind::new("rbac.authorization.k8s.io", "v1", "roles", "Role"),
    Kind::new("rbac.authorization.k8s.io", "v1", "rolebindings", "RoleBinding"),
];

/// An Event of events.k8s.io as core/v1, which `kubectl describe` reads.
fn core_event(event: &Value) -> Value {
    let renamed = [
        ("regarding", "involvedObject"),
        ("note", "message"),
        ("reportingController", "reportingComponent"),
        ("deprecatedSource", "source"),
        ("deprecatedFirstTimestamp", "firstTimestamp"),
        ("deprecatedLastTimestamp", "lastTimestamp"),
    ];
    let mut shown = event.clone();
    let fields = shown.as_object_mut().unwrap();
    for (name, core_name) in renamed {
        if let Some(value) = fields.remove(name) {
            fields.insert(core_name.to_owned(), value);
        }
    }
    fields.insert("apiVersion".to_owned(), "v1".into());
    shown
}

/// A `HorizontalPodAutoscaler` as autoscaling/v1, without what that version has no fields for.
fn first_autoscaler(autoscaler: &Value) -> Value {
    let (mut shown, spec) = (autoscaler.clone(), &autoscaler["spec"]);
    shown["apiVersion"] = "autoscaling/v1".into();
    shown["spec"] = json!({"scaleTargetRef": spec["scaleTargetRef"], "maxReplicas": spec["maxReplicas"]});
    if !spec["minReplicas"].is_null() {
        shown["spec"]["minReplicas"] = spec["minReplicas"].clone();
    }
    shown["status"] = json!({"currentReplicas": 0, "desiredReplicas": 0});
    shown
}
