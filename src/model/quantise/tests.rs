use super::*;
use crate::model::kernels::{Normalisation, Padding};
use crate::model::network::{EFFICIENTNET_LITE0, Filter, MOBILENET_V2, Naming, Origin, Preprocessing, Stage};
use crate::model::quantise::file::UNROUNDED_MAX;
use crate::model::quantise::float::Float;
use crate::model::quantise::statistics::Statistics;
use crate::model::weights::{self, Tensors};
use rand::{Rng as _, SeedableRng as _};

/// The smallest network with every kind of layer, under a name that is known.
const fn tiny(padding: Padding) -> Network {
    const fn stage(kernel: usize, stride: usize, expansion: usize, channels: usize, repeats: usize) -> Stage {
        Stage { kernel, stride, expansion, channels, repeats }
    }
    const STAGES: &[Stage] = &[stage(3, 1, 1, 8, 1), stage(5, 2, 4, 12, 2), stage(3, 2, 4, 16, 2)];
    Network {
        name: "mobilenet_v2",
        stages: STAGES,
        stem_channels: 16,
        head_channels: 48,
        classes: 10,
        padding,
        preprocessing: Preprocessing {
            resize: 36,
            crop: 36,
            filter: Filter::Bilinear,
            normalisation: Normalisation { mean: [120.4, 110.0, 99.5], deviation: [60.0, 58.0, 62.0] },
        },
        naming: Naming::Torchvision,
        batch_norm_epsilon: 1e-5,
        origin: Origin { source: "", sha256_prefix: "", licence: "" },
    }
}

static SYMMETRIC: Network = tiny(Padding::Symmetric);
static SAME: Network = tiny(Padding::Same);

fn random() -> rand_pcg::Pcg64Mcg {
    rand_pcg::Pcg64Mcg::seed_from_u64(11)
}

/// Weights that keep the size of the activations.
fn tensors(network: &Network) -> Tensors<'static> {
    weights::made_up(network, &mut random())
}

/// Pictures of soft waves, in which neighbours are alike as in photos.
fn pictures(network: &Network, count: usize) -> Vec<Vec<u8>> {
    let mut random = random();
    let side = network.input_size();
    let mut picture = || {
        let waves: Vec<[f32; 3]> = (0..3).map(|_| [0; 3].map(|_| random.random_range(0.05..0.4))).collect();
        let value = |at: usize| {
            let [down, right, phase] = waves[at % 3];
            let (row, column) = ((at / 3 / side) as f32, (at / 3 % side) as f32);
            ((row * down + column * right + phase * 20.0).sin() * 120.0 + 128.0) as u8
        };
        (0..side * side * 3).map(value).collect()
    };
    (0..count).map(|_| picture()).collect()
}

fn observed(float: &Float, network: &Network, pictures: &[Vec<u8>]) -> Statistics {
    let mut statistics = Statistics::new(network);
    for picture in pictures {
        float.logits(picture, &mut |activation| statistics.observe(activation));
    }
    statistics
}

#[test]
fn the_integers_stay_close_to_the_floats_on_pictures_not_seen_before() {
    for network in [&SYMMETRIC, &SAME] {
        let tensors = tensors(network);
        let float = Float::new(network, &tensors).unwrap();
        let pictures = pictures(network, 40);
        let quantised =
            Quantised::new(network, &tensors, &observed(&float, network, &pictures[..32])).unwrap();
        for (at, picture) in pictures.iter().enumerate() {
            let expected = float.logits(picture, &mut |_| ());
            let got = reference::logits(&quantised, picture);
            let size = expected.iter().map(|value| value * value).sum::<f32>().sqrt();
            let apart = expected.iter().zip(&got).map(|(a, b)| (a - b) * (a - b)).sum::<f32>().sqrt();
            assert!(apart < 0.1 * size, "{:?}, picture {at}: {apart} apart of {size}", network.padding);
        }
    }
}

#[test]
fn the_float_network_is_the_one_that_serves() {
    use crate::model::{forward, kernels::isa::Isa};
    for network in [&SYMMETRIC, &SAME] {
        let tensors = tensors(network);
        let float = Float::new(network, &tensors).unwrap();
        let serving = forward::float32(network, &tensors, Isa::best()).unwrap();
        let picture = &pictures(network, 1)[0];
        let (mut input, mut seen) = (Vec::new(), Vec::new());
        let logits = float.logits(picture, &mut |activation| {
            if activation.index == 0 {
                input = activation.values.to_vec();
            }
            seen.push((activation.index, activation.channels));
        });
        assert_eq!(seen.len(), network.plan().convolutions().count() + 2);
        assert!(seen.iter().enumerate().all(|(at, (index, _))| at == *index), "{seen:?}");
        let side = network.input_size();
        let image =
            candle_core::Tensor::from_vec(input, (1, side, side, 3), &candle_core::Device::Cpu).unwrap();
        let expected = serving.logits(&image).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (a, b) in expected.iter().zip(&logits) {
            assert!((a - b).abs() < 1e-4 * (1.0 + a.abs()), "{a} served, {b} here");
        }
    }
}

/// Every layer with the multipliers of what is added to it.
fn layers(quantised: &Quantised) -> Vec<(&Layer, Option<&[f32]>)> {
    let mut layers = vec![(&quantised.stem, None), (&quantised.head, None), (&quantised.classifier, None)];
    for block in &quantised.blocks {
        layers.extend(block.expand.iter().map(|layer| (layer, None)));
        layers.extend([(&block.depthwise, None), (&block.project, block.residual.as_deref())]);
    }
    layers
}

#[test]
fn channels_that_were_silent_or_tiny_stay_within_the_limits() {
    let mut tensors = tensors(&SYMMETRIC);
    let names: Vec<String> = SYMMETRIC.plan().convolutions().map(|c| c.name.clone()).collect();
    for (at, name) in names.iter().enumerate() {
        let bias = tensors.get_mut(&format!("{name}.bias")).unwrap().values.to_mut();
        // Below what any input brings up, and as good as constant.
        bias[0] = -1000.0;
        let row =
            tensors[&format!("{name}.weight")].values.len() / tensors[&format!("{name}.bias")].values.len();
        let weight = tensors.get_mut(&format!("{name}.weight")).unwrap().values.to_mut();
        weight[row..2 * row].fill(if at % 2 == 0 { 0.0 } else { 1e-30 });
        // A layer with one huge channel makes all others tiny beside it.
        weight[2 * row..3 * row].iter_mut().for_each(|weight| *weight *= 1e6);
    }
    let float = Float::new(&SYMMETRIC, &tensors).unwrap();
    let statistics = observed(&float, &SYMMETRIC, &pictures(&SYMMETRIC, 4));
    for statistics in [statistics, Statistics::new(&SYMMETRIC)] {
        let quantised = Quantised::new(&SYMMETRIC, &tensors, &statistics).unwrap();
        for (layer, residual) in layers(&quantised) {
            assert!(layer.multiplier.iter().all(|multiplier| multiplier.is_finite() && *multiplier >= 0.0));
            assert!(layer.weight.iter().all(|weight| *weight > i8::MIN));
            // Logits are not rounded, so that they may be as large as the weights make them.
            if layer.offset.len() != SYMMETRIC.classes {
                assert!(layer.reach(residual) < UNROUNDED_MAX, "{} channels", layer.offset.len());
            }
        }
        assert!(
            reference::logits(&quantised, &pictures(&SYMMETRIC, 1)[0]).iter().all(|logit| logit.is_finite())
        );
    }
}

#[test]
fn activations_that_overflow_are_refused() {
    let mut tensors = tensors(&SAME);
    tensors.get_mut("features.0.0.bias").unwrap().values.to_mut()[0] = 3e38;
    tensors.get_mut("features.1.conv.1.weight").unwrap().values.to_mut().fill(3e38);
    let float = Float::new(&SAME, &tensors).unwrap();
    let statistics = observed(&float, &SAME, &pictures(&SAME, 1));
    let error = Quantised::new(&SAME, &tensors, &statistics).unwrap_err().to_string();
    assert!(error.contains("features.1.conv.1.weight") && error.contains("infinities or NaN"), "{error}");
}

#[test]
fn beyond_the_edge_lie_the_bytes_of_the_mean() {
    assert_eq!(padding(&MOBILENET_V2), [124, 116, 104]);
    assert_eq!(padding(&EFFICIENTNET_LITE0), [127; 3]);
}

#[test]
fn the_network_that_serves_integers_is_the_reference() {
    use crate::model::{forward, kernels::isa::Isa};
    for network in [&SYMMETRIC, &SAME] {
        let tensors = tensors(network);
        let float = Float::new(network, &tensors).unwrap();
        let pictures = pictures(network, 3);
        let quantised = Quantised::new(network, &tensors, &observed(&float, network, &pictures)).unwrap();
        let expected: Vec<f32> = pictures.iter().flat_map(|p| reference::logits(&quantised, p)).collect();
        let side = network.input_size();
        let (shape, device) = ((3, side, side, 3), candle_core::Device::Cpu);
        let photos = candle_core::Tensor::from_vec(pictures.concat(), shape, &device).unwrap();
        for isa in Isa::all() {
            let serving = forward::int8(&quantised, isa).unwrap();
            let got = serving.logits(&photos).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(got, expected, "{isa}");
        }
    }
}
