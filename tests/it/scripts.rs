//! Every shell script through shellcheck.
use crate::support::program;
use std::path::Path;
use std::process::Command;

#[test]
fn shellcheck_finds_nothing_in_the_scripts() {
    let Some(shellcheck) = program("shellcheck") else { return };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut scripts = vec![root.join(".ci/run")];
    let mut folders = vec![root.join("scripts"), root.join("tests"), root.join("benches")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "sh") {
                scripts.push(path);
            }
        }
    }
    assert!(scripts.len() >= 4, "{scripts:?}");
    let found = Command::new(shellcheck).args(&scripts).current_dir(root).output().unwrap();
    assert!(found.status.success(), "{}", String::from_utf8_lossy(&found.stdout));
}
