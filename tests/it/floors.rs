//! The floors of the house: imports only go down, and modes never import each other.
use std::path::{Path, PathBuf};

/// Floor of a top-level module of the crate; `None` for what composes them (`cli`, `up`, `main`, `lib`).
fn floor(module: &str) -> Option<u8> {
    match module {
        "logic" => Some(0),
        "draw" | "model" | "sim" => Some(1),
        "net" => Some(2),
        "serve_model" | "dispatch" | "monitor" | "autoscale" | "load" | "simulate" | "classify"
        | "weights" => Some(3),
        _ => None,
    }
}

/// Every Rust source below `folder`.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// The top-level modules that a source names after `crate::`, also inside `use crate::{a, b::c}`.
fn imports(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        let names = |part: &str| part.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        match rest.strip_prefix('{') {
            Some(list) => {
                let mut depth = 0;
                let mut part = String::new();
                for c in list.chars() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => found.push(names(std::mem::take(&mut part).trim())),
                        _ => {}
                    }
                    if c != ',' || depth > 0 {
                        part.push(c);
                    }
                }
                found.push(names(part.trim()));
            }
            None => found.push(names(rest)),
        }
    }
    found
}

/// Sentences that name each import that goes up or sideways.
fn violations(module: &str, text: &str) -> Vec<String> {
    let Some(from) = floor(module) else { return Vec::new() };
    let goes_down = |to: &String| to == module || floor(to).is_none_or(|to_floor| to_floor < from);
    let up_or_sideways = |to: &String| !goes_down(to) || matches!(to.as_str(), "cli" | "up");
    imports(text).into_iter().filter(up_or_sideways).map(|to| format!("{module} imports {to}")).collect()
}

#[test]
fn imports_only_go_down() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files = sources(&root);
    assert!(files.len() > 20, "found only {} sources", files.len());
    let mut found = Vec::new();
    for file in files {
        let relative = file.strip_prefix(&root).unwrap().with_extension("");
        let module = relative.components().next().unwrap().as_os_str().to_str().unwrap().to_owned();
        let text = std::fs::read_to_string(&file).unwrap();
        found.extend(violations(&module, &text).into_iter().map(|v| format!("{}: {v}", file.display())));
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn the_check_sees_imports_that_go_up_or_sideways() {
    assert_eq!(violations("logic", "use crate::net::wire;"), ["logic imports net"]);
    assert_eq!(violations("load", "use crate::{model::X, monitor::{A, B}, net};"), ["load imports monitor"]);
    assert_eq!(violations("net", "fn f(x: crate::dispatch::Args) {}"), ["net imports dispatch"]);
    assert_eq!(violations("monitor", "use crate::up;"), ["monitor imports up"]);
    assert!(violations("monitor", "use crate::{logic::window, monitor::page, net::wire};").is_empty());
}
