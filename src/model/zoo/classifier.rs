//! A network of the catalogue behind the [`Classifier`] trait.
//!
//! candle's kernels spread over every CPU in two ways. What they hand to rayon is kept on the calling thread here.
//! Sums and products of tensors go over a pool of candle's own, one for the whole process, whose size is read from
//! the environment only: with `RAYON_NUM_THREADS=1` there is none, and nor do matrix products read
//! `/proc/cpuinfo` to count the CPUs each time.
//!
//! **Invariant**: where `RAYON_NUM_THREADS` is 1, inference runs on the calling thread and on no other, like that
//! of the other networks; where it is not, [`load`] says so.
use super::catalogue::{Built, CATALOGUE, Entry};
use super::tensors::{Tensors, TensorsError};
use crate::model::forward::{Classifier, Session, SessionSize};
use crate::model::kernels::Normalisation;
use crate::model::network::Description;
use candle_core::{DType, Device, Result, Tensor};
use std::path::Path;
use std::sync::Arc;

thread_local! {
    /// A rayon pool of which this thread is the only worker, so that whatever candle's kernels hand to rayon
    /// runs here. `None` if the thread is in a pool already: then the owner of that pool has decided.
    static POOL_OF_ONE: Option<rayon::ThreadPool> =
        rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread().build().ok();
}

/// A network from the catalogue, on candle's own kernels.
struct Other {
    network: Built,
    normalisation: Normalisation,
}

/// A session of [`Other`], whose memory candle allocates anew for each call.
struct Running {
    other: Arc<Other>,
    logits: Vec<f32>,
}

impl Classifier for Arc<Other> {
    fn session(&self, _size: SessionSize) -> Result<Box<dyn Session>> {
        Ok(Box::new(Running { other: Self::clone(self), logits: Vec::new() }))
    }
}

impl Session for Running {
    fn logits(&mut self, images: &Tensor) -> Result<&[f32]> {
        POOL_OF_ONE.with(|_| ());
        let Other { network, normalisation } = &*self.other;
        self.logits = network.forward(&channels_first(images, normalisation)?)?.flatten_all()?.to_vec1()?;
        Ok(&self.logits)
    }
}

/// Loads the network `name`, one of [`super::NAMES`], from a safetensors file.
///
/// The number of classes is that of the file's last layer.
pub fn load(
    name: &str,
    file: &Path,
) -> std::result::Result<(Description, Box<dyn Classifier>), TensorsError> {
    let entry = CATALOGUE.iter().find(|entry| entry.name == name);
    let entry = entry.ok_or_else(|| TensorsError::Build(candle_core::Error::msg("no such network")))?;
    let (description, network) = build(entry, file)?;
    if candle_core::utils::get_num_threads() > 1 {
        tracing::warn!(
            "{name} runs on candle's own kernels, which workers would fight over: set RAYON_NUM_THREADS=1 in \
             the environment, which is several times faster too"
        );
    }
    let normalisation = entry.preprocessing.normalisation;
    Ok((description, Box::new(Arc::new(Other { network, normalisation }))))
}

fn build(entry: &Entry, file: &Path) -> std::result::Result<(Description, Built), TensorsError> {
    let tensors = Tensors::read(file, entry.head, entry.timm_name)?;
    let classes = tensors.rows(&format!("{}.weight", entry.head))?;
    let network = tensors.judge((entry.build)(classes, tensors.builder()), entry.tensors)?;
    Ok((Description { name: entry.name, classes, preprocessing: entry.preprocessing }, network))
}

/// `[N, height, width, 3]`, pixels as bytes or already normalised as float32, to normalised
/// `[N, 3, height, width]`. The only place that knows both layouts.
fn channels_first(images: &Tensor, normalisation: &Normalisation) -> Result<Tensor> {
    let images = if images.dtype() == DType::U8 {
        let per_channel = |values: [f32; 3]| Tensor::new(&values, &Device::Cpu);
        images
            .to_dtype(DType::F32)?
            .broadcast_sub(&per_channel(normalisation.mean)?)?
            .broadcast_div(&per_channel(normalisation.deviation)?)?
    } else {
        images.clone()
    };
    images.permute((0, 3, 1, 2))?.contiguous()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_normalised_and_turned_like_floats() {
        let normalisation = &CATALOGUE[0].preprocessing.normalisation;
        let bytes: Vec<u8> = (0..2 * 2 * 3).map(|at| at * 20).collect();
        let floats: Vec<f32> = bytes
            .iter()
            .enumerate()
            .map(|(at, byte)| {
                (f32::from(*byte) - normalisation.mean[at % 3]) / normalisation.deviation[at % 3]
            })
            .collect();
        let turned = |images: Result<Tensor>| {
            let turned = channels_first(&images.unwrap(), normalisation).unwrap();
            assert_eq!(turned.dims(), [1, 3, 2, 2]);
            turned.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let from_floats = turned(Tensor::from_vec(floats.clone(), (1, 2, 2, 3), &Device::Cpu));
        assert_eq!(from_floats, turned(Tensor::from_vec(bytes, (1, 2, 2, 3), &Device::Cpu)));
        assert_eq!(from_floats[..5], [floats[0], floats[3], floats[6], floats[9], floats[1]]);
    }

    #[test]
    fn a_calling_thread_is_its_own_pool() {
        POOL_OF_ONE.with(|pool| assert!(pool.is_some()));
        assert_eq!(rayon::current_num_threads(), 1);
        let here = std::thread::current().id();
        let ids = rayon::join(|| std::thread::current().id(), || std::thread::current().id());
        assert_eq!(ids, (here, here));
    }
}
