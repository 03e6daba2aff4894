//! Networks of the feature `zoo`: their logits against timm's, and what is said of files that do not fit.
//!
//! `tests/zoo/README.md` tells how the fixtures were made; weights and images follow from names by the rule of
//! `tests/zoo/make_fixtures.py`.
use crate::support::{Running, client, flags};
use candle_core::{Device, Tensor};
use elastic::model::{Model, ModelArgs};
use elastic::net::serve::Limits;
use elastic::net::wire::ClassifyAnswer;
use elastic::serve_model;
use elastic::weights::convert::sha256;
use safetensors::tensor::{Dtype, TensorView};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Largest difference allowed, as a share of the largest logit.
const ERROR_MAX: f32 = 1e-4;

/// What timm's network answers, and from which tensors.
#[derive(Deserialize)]
struct Fixture {
    network: String,
    classes: usize,
    images: usize,
    size: usize,
    gain: f64,
    weights_sha256: String,
    logits: Vec<Vec<f32>>,
    tensors: BTreeMap<String, Vec<usize>>,
}

/// Tensors of a file that a test may damage: shape, type and bytes.
type Stored = BTreeMap<String, (Vec<usize>, Dtype, Vec<u8>)>;

/// `uniform` of the script: values from -1 up to 1 that follow from a name.
fn uniform(name: &str, count: usize) -> impl Iterator<Item = f32> {
    let seed = name
        .bytes()
        .fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3));
    (1..=count as u64).map(move |at| {
        let mut z = seed.wrapping_add(at.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 40) as f32 / 8_388_608.0 - 1.0
    })
}

/// `weights` of the script.
fn weights(name: &str, shape: &[usize], gain: f64) -> Vec<f32> {
    let fan_in: usize = shape.iter().skip(1).product();
    let (scale, centre) = if shape.len() >= 2 && fan_in > 1 {
        ((gain / fan_in as f64).sqrt() as f32, 0.0)
    } else if name.ends_with("running_var") || name.ends_with("weight") {
        (0.25, 1.0)
    } else {
        (0.25, 0.0)
    };
    uniform(name, shape.iter().product()).map(|value| value * scale + centre).collect()
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/zoo")
}

fn read(path: &Path) -> Fixture {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

impl Fixture {
    fn tensors(&self) -> Stored {
        let stored = |(name, shape): (&String, &Vec<usize>)| {
            let bytes = weights(name, shape, self.gain).into_iter().flat_map(f32::to_le_bytes).collect();
            (name.clone(), (shape.clone(), Dtype::F32, bytes))
        };
        self.tensors.iter().map(stored).collect()
    }

    /// Writes weights and class names into `folder` and loads the network from there.
    fn load(&self, tensors: &Stored, folder: &Path) -> Result<Model, String> {
        let file = folder.join(format!("{}.safetensors", self.network));
        let views = tensors.iter().map(|(name, (shape, dtype, bytes))| {
            (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        std::fs::write(&file, safetensors::serialize(views, None).unwrap()).unwrap();
        let names: Vec<_> = (0..self.classes).map(|class| format!("class {class}")).collect();
        std::fs::write(folder.join("imagenet_classes.txt"), names.join("\n")).unwrap();
        let model = Some(self.network.clone());
        let args = ModelArgs { model, weights_dir: folder.into(), ..ModelArgs::default() };
        Model::load(&args).map_err(|error| error.to_string())
    }

    /// Runs the network on the fixture's images: the largest difference from timm as a share of the largest logit.
    fn error(&self) -> f32 {
        let tensors = self.tensors();
        let bytes: Vec<u8> = tensors.values().flat_map(|(_, _, bytes)| bytes).copied().collect();
        let sum = sha256(&bytes);
        assert_eq!(sum, self.weights_sha256, "{}: the weights are not timm's", self.network);
        let folder = tempfile::tempdir().unwrap();
        let model = self.load(&tensors, folder.path()).unwrap();
        assert_eq!((model.name(), model.classes()), (self.network.as_str(), self.classes));
        let shape = (self.images, self.size, self.size, 3);
        let length = self.size * self.size * 3;
        let values = uniform("images", self.images * length).enumerate();
        let images: Vec<f32> = values.map(|(at, value)| value * (at / length + 1) as f32).collect();
        let images = Tensor::from_vec(images, shape, &Device::Cpu).unwrap();
        let found: Vec<Vec<f32>> = model.classifier().logits(&images).unwrap().to_vec2().unwrap();
        let largest = self.logits.iter().flatten().fold(0.0_f32, |largest, logit| largest.max(logit.abs()));
        let distance = |a: &[f32], b: &[f32]| {
            a.iter().zip(b).fold(0.0_f32, |most, (a, b)| most.max((a - b).abs())) / largest
        };
        let moved = distance(&self.logits[0], &self.logits[1]);
        assert!(moved > 20.0 * ERROR_MAX, "{}: both images look alike ({moved})", self.network);
        let errors = found.iter().zip(&self.logits).map(|(found, expected)| distance(found, expected));
        errors.fold(0.0, f32::max)
    }
}

#[test]
fn logits_are_timms() {
    let mut networks = 0;
    let mut wrong = Vec::new();
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder()).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    for file in files.into_iter().filter(|file| file.extension().is_some_and(|extension| extension == "json"))
    {
        let fixture = read(&file);
        let error = fixture.error();
        println!("{}: {error:.1e}", fixture.network);
        networks += 1;
        if error.is_nan() || error > ERROR_MAX {
            wrong.push(format!("{}: {error:.1e}", fixture.network));
        }
    }
    assert!(networks >= 8, "found only {networks} fixtures");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What loading says of the smallest fixture's file after `damage`.
fn complaint(damage: impl FnOnce(&mut Stored)) -> String {
    let fixture = read(&folder().join("mobilenetv4-conv-small.json"));
    let mut tensors = fixture.tensors();
    damage(&mut tensors);
    let folder = tempfile::tempdir().unwrap();
    fixture.load(&tensors, folder.path()).map_or_else(|error| error, |_| "fine".to_owned())
}

#[test]
fn every_kind_of_damage_is_named() {
    let check = |damage: fn(&mut Stored), words: &str| {
        let said = complaint(damage);
        assert!(said.contains(words), "{said:?} does not say {words:?}");
    };
    // The counters that training leaves are no tensors of the network.
    check(|t| drop(t.insert("bn1.num_batches_tracked".to_owned(), (vec![], Dtype::I64, vec![0; 8]))), "fine");
    check(
        |t| drop(t.remove("blocks.2.0.pw_exp.conv.weight")),
        "mobilenetv4-conv-small.safetensors of mobilenetv4-conv-small: the file lacks the tensor \
         blocks.2.0.pw_exp.conv.weight of shape [192, 64, 1, 1]",
    );
    check(|t| drop(t.remove("classifier.weight")), "lacks the tensor classifier.weight");
    check(
        |t| t.get_mut("conv_stem.weight").unwrap().0 = vec![3, 32, 3, 3],
        "conv_stem.weight has shape [3, 32, 3, 3], expected [32, 3, 3, 3]",
    );
    // candle-transformers takes what follows for a network without the part.
    let part = "blocks.2.0.dw_start.conv.weight";
    check(|t| drop(t.remove("blocks.2.0.dw_start.conv.weight")), "holds 231 of the network's 232 tensors");
    check(
        |t| t.retain(|name, _| !name.starts_with("blocks.2.0.dw_start.")),
        "holds 227 of the network's 232 tensors",
    );
    let shape = complaint(|t| t.get_mut(part).unwrap().0 = vec![64, 5, 5, 1]);
    assert!(
        shape.contains("dw_start.conv.weight has shape [64, 5, 5, 1], expected [64, 1, 5, 5]"),
        "{shape}"
    );
    check(
        |t| drop(t.insert("fc.weight".to_owned(), (vec![1], Dtype::F32, vec![0; 4]))),
        "no tensor fc.weight",
    );
    check(
        |t| {
            let (shape, dtype, bytes) = t.get_mut("classifier.bias").unwrap();
            (*shape, *dtype, *bytes) = (vec![10], Dtype::I32, vec![0; 40]);
        },
        "classifier.bias has elements of type i32, expected f32, f16 or bf16",
    );
    check(
        |t| t.get_mut("bn1.bias").unwrap().2[..4].copy_from_slice(&f32::NAN.to_le_bytes()),
        "bn1.bias holds infinities or NaN",
    );
}

#[test]
fn files_and_class_names_that_do_not_fit_are_refused() {
    let fixture = read(&folder().join("mobilenetv4-conv-small.json"));
    let folder = tempfile::tempdir().unwrap();
    let load = |model: &str| {
        let (model, weights_dir) = (Some(model.to_owned()), folder.path().into());
        Model::load(&ModelArgs { model, weights_dir, ..ModelArgs::default() })
            .map(drop)
            .map_err(|error| error.to_string())
    };
    let said = |model: &str| load(model).unwrap_err();
    assert!(said("resnet18").contains("resnet18.safetensors of resnet18: cannot read the file"));
    std::fs::write(folder.path().join("resnet18.safetensors"), "no weights").unwrap();
    assert!(said("resnet18").contains("not a whole safetensors file"));
    assert!(said("resnet19").contains("mobilenet_v2, efficientnet_lite0, resnet18, resnet34"));
    fixture.load(&fixture.tensors(), folder.path()).unwrap();
    // timm's underscores are understood.
    load("mobilenetv4_conv_small").unwrap();
    std::fs::remove_file(folder.path().join("imagenet_classes.txt")).unwrap();
    let labels = said("mobilenetv4-conv-small");
    assert!(labels.contains("1000 class names, mobilenetv4-conv-small has 10 classes"), "{labels}");
}

#[tokio::test]
async fn a_replica_serves_another_network() {
    let fixture = read(&folder().join("mobilenetv4-conv-small.json"));
    let folder = tempfile::tempdir().unwrap();
    let model = fixture.load(&fixture.tensors(), folder.path()).unwrap();
    let replica = Running::start(|listener, shutdown| async move {
        let settings: serve_model::Settings = flags(&[]);
        serve_model::serve(listener, model, settings, Limits::default(), shutdown).await.unwrap();
    })
    .await;
    let photo = std::fs::read(format!("{}/tests/photos/goldfish.jpg", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let answer = client().post(format!("{}/predict", replica.url)).body(photo).send().await.unwrap();
    let answer: ClassifyAnswer = answer.error_for_status().unwrap().json().await.unwrap();
    assert_eq!(answer.model, "mobilenetv4-conv-small");
    assert!(answer.predictions[0].label.starts_with("class "), "{:?}", answer.predictions);
}
