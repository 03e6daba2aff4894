//! tract on the exported ONNX file.
//!
//! **Invariant**: the batch is a constant of the optimised graph, as tract wants it.
use crate::{Engine, Prepared, SIDE};
use anyhow::{Context as _, Result};
use std::path::PathBuf;
use tract_onnx::prelude::*;

/// tract, pure Rust.
pub struct Tract {
    file: PathBuf,
}

impl Tract {
    /// Will read the ONNX file for each batch size.
    pub fn new(file: PathBuf) -> Self {
        Self { file }
    }
}

impl Engine for Tract {
    fn version(&self) -> &'static str {
        env!("VERSION_TRACT_ONNX")
    }

    fn what(&self) -> &'static str {
        "f32.onnx, optimised"
    }

    fn prepare(&self, images: Vec<f32>, batch: usize) -> Result<Prepared> {
        let model = tract_onnx::onnx()
            .model_for_path(&self.file)?
            .with_input_fact(0, f32::fact([batch, 3, SIDE, SIDE]).into())?
            .into_optimized()?
            .into_runnable()?;
        let images: TValue = Tensor::from_shape(&[batch, 3, SIDE, SIDE], &images)?.into();
        Ok(Box::new(move || {
            let answer = model.run(tvec!(images.clone()))?;
            let logits = answer.first().context("the graph has no output")?;
            Ok(logits.to_plain_array_view::<f32>()?.iter().copied().collect())
        }))
    }
}
