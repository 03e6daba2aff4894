//! The catalogue as a whole: every row builds and the small ones run, on tensors that are made as they are asked
//! for. Whether they compute the right thing is seen in `tests/it/zoo.rs`.
use super::{CATALOGUE, Entry};
use crate::model::zoo::NAMES;
use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Most parameters of a network that is run here.
const PARAMETERS_MAX: usize = 8_000_000;

/// Classes, a number that no network has by itself.
const CLASSES: usize = 7;

/// Gives a constant tensor of whatever shape is asked for, and counts the elements.
struct Inventor(Arc<AtomicUsize>);

impl SimpleBackend for Inventor {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        // A network without an optional depthwise convolution asks for one whose kernel has no pixels.
        if shape.elem_count() == 0 {
            candle_core::bail!("{name} has no elements");
        }
        self.0.fetch_add(shape.elem_count(), Ordering::Relaxed);
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
    let source = Box::new(Inventor(Arc::clone(&parameters)));
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
