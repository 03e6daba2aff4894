//! The catalogue as a whole: every row builds and the small ones run, on tensors that are made as they are asked
//! for. Whether they compute the right thing is seen in `tests/it/zoo.rs`.
use super::{CATALOGUE, Entry};
use crate::model::zoo::NAMES;
use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// Most parameters of a network that is run here.
const PARAMETERS_MAX: usize = 8_000_000;

/// Classes, a number that no network has by itself.
const CLASSES: usize = 7;

/// Gives a constant tensor of whatever shape is asked for, and counts the elements.
struct Inventor {
    elements: Arc<AtomicUsize>,
    /// Blocks of `FastViT` whose convolution is 1x1.
    pointwise: Mutex<BTreeSet<String>>,
}

impl Inventor {
    fn new(elements: Arc<AtomicUsize>) -> Self {
        Self { elements, pointwise: Mutex::default() }
    }

    /// Whether a file would have no such tensor.
    fn lacks(&self, name: &str, shape: &Shape) -> bool {
        let mut pointwise = self.pointwise.lock().unwrap();
        if let Some((block, _)) = name.split_once(".conv_kxk.0.conv.")
            && shape.dims().ends_with(&[1, 1])
        {
            pointwise.insert(block.to_owned());
        }
        // A network without an optional depthwise convolution asks for one whose kernel has no pixels. FastViT
        // takes what is there, and these would not fit: a second 1x1 convolution beside the first, a smaller
        // image before the first stage, positions where there is no attention.
        shape.elem_count() == 0
            || name.split_once(".conv_scale.").is_some_and(|(block, _)| pointwise.contains(block))
            || name.starts_with("stages.0.downsample.")
            || name.contains(".pos_emb.")
    }
}

impl SimpleBackend for Inventor {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        if self.lacks(name, &shape) {
            candle_core::bail!("there is no {name}");
        }
        self.elements.fetch_add(shape.elem_count(), Ordering::Relaxed);
        let inputs: usize = shape.dims().iter().skip(1).product();
        // One element in memory, however large the tensor; but layer norm wants its vectors laid out.
        let tensor = Tensor::full(1.0 / inputs as f32, (), device)?.to_dtype(dtype)?.broadcast_as(shape)?;
        if tensor.rank() == 1 { tensor.contiguous() } else { Ok(tensor) }
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        candle_core::bail!("{name} is asked for without a shape")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}

/// Builds a network, and runs it on a grey image if it is small. Gives whether it ran.
fn try_out(entry: &Entry) -> Result<bool> {
    let parameters = Arc::new(AtomicUsize::new(0));
    let source = Box::new(Inventor::new(Arc::clone(&parameters)));
    let network = (entry.build)(CLASSES, VarBuilder::from_backend(source, DType::F32, Device::Cpu))?;
    if parameters.load(Ordering::Relaxed) > PARAMETERS_MAX {
        return Ok(false);
    }
    let side = entry.preprocessing.crop as usize;
    let logits = network.forward(&Tensor::full(0.5_f32, (1, 3, side, side), &Device::Cpu)?)?;
    assert_eq!(logits.dims(), [1, CLASSES], "{}", entry.name);
    let logits = logits.flatten_all()?.to_vec1::<f32>()?;
    assert!(logits.iter().all(|logit| logit.is_finite()), "{}: {logits:?}", entry.name);
    Ok(true)
}

#[test]
fn the_names_are_those_of_the_rows() {
    assert_eq!(CATALOGUE.each_ref().map(|entry| entry.name), NAMES);
}

#[test]
fn every_row_builds_and_the_small_ones_run() {
    let ran = CATALOGUE.iter().filter(|entry| match try_out(entry) {
        Ok(ran) => ran,
        Err(error) => panic!("{}: {error}", entry.name),
    });
    assert!(ran.count() >= 10);
}

#[test]
fn photos_are_resized_to_at_least_the_crop() {
    for entry in &CATALOGUE {
        assert!(entry.preprocessing.resize >= entry.preprocessing.crop, "{}", entry.name);
    }
}
