use super::*;
use crate::model::network::{EFFICIENTNET_LITE0, MOBILENET_V2, NETWORKS};
use proptest::prelude::*;

/// A network whose values tell their places.
fn blank(network: &'static Network) -> Quantised {
    let plan = network.plan();
    let layer = |output: usize, shape: &[usize]| Layer {
        weight: (0..shape.iter().product())
            .map(|at: usize| ((at % 255) as u8).cast_signed())
            .map(|w| w.max(-127))
            .collect(),
        multiplier: (0..output).map(|at| 1e-3 * (at + 1) as f32).collect(),
        offset: (0..output).map(|at| at as f32 - 7.5).collect(),
    };
    let of = |convolution: &Convolution| layer(convolution.output, &convolution.shape());
    let block = |block: &crate::model::network::Block| Block {
        expand: block.expand.as_ref().map(of),
        depthwise: of(&block.depthwise),
        project: of(&block.project),
        residual: block.residual.then(|| vec![0.5; block.project.output]),
    };
    Quantised {
        network,
        stem: of(&plan.stem),
        blocks: plan.blocks.iter().map(block).collect(),
        head: of(&plan.head),
        pool: vec![0.02; network.head_channels],
        classifier: layer(network.classes, &[network.classes, network.head_channels]),
    }
}

fn bytes(quantised: &Quantised) -> Vec<u8> {
    serialize(quantised, &BTreeMap::from([("calibration_photos".to_owned(), "3".to_owned())]))
}

/// What the reader says of a file whose header was changed as text.
fn complaint(from: &str, to: &str) -> String {
    let whole = bytes(&blank(&MOBILENET_V2));
    let length = u64::from_le_bytes(*whole.first_chunk().unwrap()) as usize;
    let header = String::from_utf8(whole[8..8 + length].to_vec()).unwrap();
    assert!(header.contains(from), "the header does not hold {from}");
    let header = header.replacen(from, to, 1);
    let changed =
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &whole[8 + length..]].concat();
    parse(&changed).map_or_else(|error| error.to_string(), |_| "fine".to_owned())
}

#[test]
fn a_file_gives_back_what_was_written() {
    for network in NETWORKS {
        let quantised = blank(network);
        let written = bytes(&quantised);
        assert!(is_quantised(&written));
        let read = parse(&written).unwrap();
        assert_eq!(read.network.name, network.name);
        assert_eq!(
            (&read.stem, &read.blocks, &read.head),
            (&quantised.stem, &quantised.blocks, &quantised.head)
        );
        assert_eq!((&read.pool, &read.classifier), (&quantised.pool, &quantised.classifier));
        assert_eq!(bytes(&read), written, "the same network gives the same bytes");
    }
}

#[test]
fn headers_that_are_wrong_are_named() {
    let says = |from: &str, to: &str, words: &str| {
        let complaint = complaint(from, to);
        assert!(complaint.contains(words), "{complaint:?} does not say {words:?}");
    };
    says(r#""precision":"int8""#, r#""precision":"int4""#, "do not say `precision: int8`");
    says(r#""model":"mobilenet_v2""#, r#""model":"resnet""#, r#"the network "resnet""#);
    says(
        r#""model":"mobilenet_v2""#,
        r#""model":"efficientnet_lite0""#,
        "lacks the tensor _conv_stem.weight",
    );
    says("features.0.0.offset", "features.0.0.other", "lacks the tensor features.0.0.offset of shape [32]");
    says("[1000,1280]", "[1280,1000]", "classifier.1.weight is I8 [1280, 1000], expected I8 [1000, 1280]");
    assert!(!is_quantised(b"garbage"));
}

#[test]
fn values_beyond_their_limits_are_refused() {
    let refused = |damage: &dyn Fn(&mut Quantised), words: &str| {
        let mut quantised = blank(&EFFICIENTNET_LITE0);
        damage(&mut quantised);
        let error = parse(&bytes(&quantised)).unwrap_err().to_string();
        assert!(error.contains(words), "{error:?} does not say {words:?}");
    };
    refused(&|q| q.stem.weight[5] = -128, "_conv_stem.weight holds a weight of -128");
    refused(&|q| q.head.offset[9] = f32::NAN, "_conv_head.offset holds infinities or NaN");
    refused(&|q| q.pool[0] = -1.0, "pool.multiplier holds a multiplier below zero");
    refused(&|q| q.pool[0] = 1e6, "pool.multiplier holds values that overflow");
    refused(&|q| q.classifier.multiplier[3] = 1e9, "_fc.multiplier holds values that overflow");
    let residual = |q: &mut Quantised| q.blocks[2].residual.as_mut().unwrap()[0] = 1e8;
    refused(&residual, "_blocks.2._project_conv.multiplier holds values that overflow");
}

#[test]
fn tensors_that_are_not_the_network_s_are_refused() {
    let quantised = blank(&MOBILENET_V2);
    let bytes = bytes(&quantised);
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Vec<_> = file.tensors();
    tensors.push(("extra".to_owned(), file.tensor("pool.multiplier").unwrap()));
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let more = safetensors::serialize(tensors, header.metadata().clone()).unwrap();
    let error = parse(&more).unwrap_err();
    assert_eq!(error, FileError::Unexpected { network: "mobilenet_v2", tensor: "extra".to_owned() });
}

#[test]
fn parts_of_a_file_are_refused() {
    let whole = bytes(&blank(&MOBILENET_V2));
    let header = 8 + u64::from_le_bytes(*whole.first_chunk().unwrap()) as usize;
    for length in (0..64).chain([header - 1, header, header + 1, whole.len() / 2, whole.len() - 1]) {
        assert!(matches!(parse(&whole[..length]), Err(FileError::Format(_))), "{length}");
    }
}

proptest! {
    #[test]
    fn garbage_is_an_error_and_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(parse(&bytes).is_err());
        let framed = [&(bytes.len() as u64).to_le_bytes()[..], &bytes].concat();
        prop_assert!(parse(&framed).is_err());
    }
}
