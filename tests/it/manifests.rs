//! The manifests in `deploy`, as `kubectl kustomize` renders them: they say what Kubernetes understands, and what we
//! promise about them holds.
mod network;
mod objects;
mod pods;
mod render;
mod restricted;
