//! Tells the code which versions of its peers are locked, for the table.
use std::fs::read_to_string;

fn main() {
    println!("cargo::rerun-if-changed=Cargo.lock");
    let lock = read_to_string("Cargo.lock").expect("Cargo.lock lies beside build.rs");
    for (name, variable) in [("candle-core", "VERSION_CANDLE_CORE"), ("tract-onnx", "VERSION_TRACT_ONNX")] {
        let package = format!("name = \"{name}\"\nversion = \"");
        let rest = lock.split_once(&package).expect("the package is locked").1;
        let version = rest.split_once('"').expect("the version is quoted").0;
        println!("cargo::rustc-env={variable}={version}");
    }
}
