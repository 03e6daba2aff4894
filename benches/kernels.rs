//! Where an inference's time goes: every kernel of MobileNetV2 alone, beside the most multiply-adds that the core
//! does in a second and beside a whole inference. See benches/README.md.
//!
//! **Invariant**: the table at the end holds medians that Criterion has written, and no others.
use criterion::{Criterion, Throughput};
use elastic::model::Precision;
use elastic::model::kernels::isa::{Isa, Level};
use elastic::model::kernels::measure::{self, Case};
use elastic::model::network::MOBILENET_V2;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What is measured together: a number format on an instruction set.
struct Set {
    /// Criterion's group.
    name: &'static str,
    isa: Isa,
    peak: Case,
    inference: Case,
    cases: Vec<Case>,
    /// Cases that this run has measured; a filter leaves others out.
    measured: usize,
}

impl Set {
    fn new((name, precision, isa): (&'static str, Precision, Isa)) -> anyhow::Result<Self> {
        Ok(Self {
            name,
            isa,
            peak: measure::peak(isa, precision),
            inference: measure::inference(isa, precision, &MOBILENET_V2)?,
            cases: measure::cases(isa, precision, &MOBILENET_V2)?,
            measured: 0,
        })
    }

    fn run(&mut self, criterion: &mut Criterion) {
        let mut group = criterion.benchmark_group(self.name);
        for case in [&mut self.peak, &mut self.inference].into_iter().chain(&mut self.cases) {
            let mut measured = false;
            group.throughput(Throughput::Elements(case.multiply_adds));
            group.bench_function(case.name.clone(), |bencher| {
                measured = true;
                bencher.iter(|| case.run());
            });
            self.measured += usize::from(measured);
        }
        group.finish();
    }

    /// The table, unless there is nothing to say.
    fn account(&self, folder: &Path) -> Option<String> {
        let median = |case: &Case| median_ns(&folder.join(self.name), &case.name);
        let peak = median(&self.peak).map(|ns| self.peak.multiply_adds as f64 / ns);
        let whole = median(&self.inference);
        let classes = classes(self.cases.iter().filter_map(|case| Some((case, median(case)?))));
        let known =
            self.cases.iter().chain([&self.peak, &self.inference]).filter(|case| median(case).is_some());
        let (known, all) = (known.count(), self.cases.len() + 2);
        if self.measured == 0 || known == 0 {
            return None;
        }
        let sum = classes.iter().fold((0.0, 0.0), |sum, (_, products, ns)| (sum.0 + products, sum.1 + ns));
        let rows = classes.iter().map(|(class, products, ns)| (*class, Some(*products), *ns));
        let rows = rows.chain([("sum", Some(sum.0), sum.1)]);
        let products = Some(self.inference.multiply_adds as f64);
        let rows = rows.chain(whole.map(|ns| ("inference", products, ns)));
        // Of some kernels only, the difference says nothing.
        let rows = rows.chain(whole.filter(|_| known == all).map(|ns| ("between kernels", None, ns - sum.1)));
        let peak_text = peak.map_or("peak not measured".to_owned(), |peak| {
            format!("peak {peak:.1} multiply-adds a nanosecond")
        });
        let mut lines = vec![
            String::new(),
            format!("{} on {}: {}, {peak_text}", self.name, self.isa, MOBILENET_V2.name),
            String::new(),
            "| layer           | 10^6 multiply-adds | us per inference | % of inference | % of peak |"
                .to_owned(),
            "| --------------- | -----------------: | ---------------: | -------------: | --------: |"
                .to_owned(),
        ];
        lines.extend(rows.map(|(layer, products, ns)| {
            let (millions, us) = (cell(products.map(|products| products / 1e6), 2), cell(Some(ns / 1e3), 1));
            let of_whole = cell(whole.map(|whole| 100.0 * ns / whole), 1);
            let of_peak = cell(products.zip(peak).map(|(products, peak)| 100.0 * products / ns / peak), 1);
            format!("| {layer:15} | {millions:>18} | {us:>16} | {of_whole:>14} | {of_peak:>9} |")
        }));
        if self.measured < all {
            let (now, missing) = (self.measured, all - known);
            let earlier = known.saturating_sub(now);
            lines.push(format!(
                "\n{now} of {all} cases are of this run, {earlier} of earlier ones, {missing} missing"
            ));
        }
        Some(lines.join("\n"))
    }
}

/// Multiply-adds and nanoseconds per inference of each class, in the order in which they first run.
fn classes<'a>(cases: impl Iterator<Item = (&'a Case, f64)>) -> Vec<(&'a str, f64, f64)> {
    let mut classes: Vec<(&str, f64, f64)> = Vec::new();
    for (case, ns) in cases {
        let (products, ns) = (case.count as f64 * case.multiply_adds as f64, case.count as f64 * ns);
        match classes.iter_mut().find(|(class, ..)| *class == case.class) {
            Some(sum) => (sum.1, sum.2) = (sum.1 + products, sum.2 + ns),
            None => classes.push((&case.class, products, ns)),
        }
    }
    classes
}

fn cell(value: Option<f64>, digits: usize) -> String {
    value.map_or("-".to_owned(), |value| format!("{value:.digits$}"))
}

/// The median of a case, nanoseconds, if Criterion has written it.
fn median_ns(group: &Path, case: &str) -> Option<f64> {
    // Criterion replaces what not every file system takes; of that our names have slashes only.
    let file = group.join(case.replace('/', "_")).join("new/estimates.json");
    let estimates: serde_json::Value = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
    estimates["median"]["point_estimate"].as_f64()
}

/// Where Criterion writes.
#[allow(clippy::disallowed_methods)] // these are Criterion's and Cargo's own settings
fn folder() -> PathBuf {
    let target =
        || std::env::var_os("CARGO_TARGET_DIR").map(|target| PathBuf::from(target).join("criterion"));
    let home = std::env::var_os("CRITERION_HOME").map(PathBuf::from);
    home.or_else(target).unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/criterion"))
}

fn main() -> anyhow::Result<()> {
    let folder = folder();
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(20)
        .output_directory(&folder)
        .configure_from_args();
    let mut sets = vec![("f32", Precision::F32, Isa::best())];
    let narrower = Isa::new(Level::Avx2).filter(|isa| *isa < Isa::best());
    sets.extend(narrower.map(|isa| ("f32@avx2", Precision::F32, isa)));
    sets.extend([("bf16", Precision::Bf16, Isa::best()), ("int8", Precision::Int8, Isa::best())]);
    let mut accounts = Vec::new();
    for set in sets {
        let mut set = Set::new(set)?;
        set.run(&mut criterion);
        accounts.extend(set.account(&folder));
    }
    criterion.final_summary();
    // To be tried and to be listed is not to be measured.
    if !std::env::args().any(|argument| argument == "--test" || argument == "--list") {
        for account in accounts {
            println!("{account}");
        }
    }
    Ok(())
}
