use super::*;
use crate::model;
use crate::model::network::EFFICIENTNET_LITE0;
use std::path::Path;

fn photo(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/photos").join(name)
}

/// A folder with the embedded network's float weights and two labelled photos, and the flags for them.
fn folder() -> (tempfile::TempDir, Args) {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("float.safetensors");
    std::fs::write(&input, model::embedded(&EFFICIENTNET_LITE0).unwrap()).unwrap();
    for name in ["goldfish.jpg", "volleyball.jpg", "labels.tsv"] {
        std::fs::copy(photo(name), folder.path().join(name)).unwrap();
    }
    let args = Args {
        input,
        output: folder.path().join("out.safetensors"),
        calibrate: folder.path().to_owned(),
        verify: vec![folder.path().to_owned()],
        model: None,
        photos_max: 2,
        pixels_max: 50,
    };
    (folder, args)
}

fn error(args: &Args) -> String {
    format!("{:#}", quantize(args).unwrap_err())
}

#[test]
fn a_network_is_quantised_from_end_to_end() {
    let (folder, mut args) = folder();
    // By name it is between the two photos, so that it counts as one that was skipped.
    std::fs::write(folder.path().join("not-a-photo.jpg"), "text").unwrap();
    args.photos_max = 3;
    let report = quantize(&args).unwrap();
    assert!(report.contains("2 photos, top 1 agrees with float on 2 (100.0 %)"), "{report}");
    assert!(report.contains("of 2 labels, float has 2 right and int8 2"), "{report}");
    let bytes = std::fs::read(&args.output).unwrap();
    let quantised = file::parse(&bytes).unwrap();
    assert_eq!(quantised.network.name, "efficientnet_lite0");
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let about = header.metadata().clone().unwrap();
    assert_eq!((&*about["calibration_photos"], &*about["precision"]), ("2", "int8"));
    assert_eq!(about["float_sha256"], convert::sha256(&std::fs::read(&args.input).unwrap()));
    assert!(about["license"].contains("Apache-2.0"), "integers made of float weights keep their licence");
    args.input = args.output.clone();
    assert!(error(&args).contains("holds integers already"));
}

#[test]
fn what_is_missing_or_wrong_is_named_and_nothing_is_written() {
    let (folder, args) = folder();
    let empty = folder.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let wrong = Args { calibrate: empty.clone(), ..args.clone() };
    assert!(error(&wrong).contains("no photo in") && error(&wrong).contains("0 files"), "{}", error(&wrong));
    std::fs::write(empty.join("a.png"), "text").unwrap();
    assert!(error(&wrong).contains("1 files with an image's name, 1 skipped"), "{}", error(&wrong));
    let wrong = Args { calibrate: folder.path().join("absent"), ..args.clone() };
    assert!(error(&wrong).contains("absent"), "{}", error(&wrong));
    let wrong = Args { model: Some("mobilenet_v2".to_owned()), ..args.clone() };
    assert!(error(&wrong).contains("holds efficientnet_lite0, expected mobilenet_v2"), "{}", error(&wrong));
    std::fs::write(folder.path().join("labels.tsv"), "file\tclasses\ngoldfish.jpg\tone\n").unwrap();
    assert!(error(&args).contains("classes of goldfish.jpg"), "{}", error(&args));
    std::fs::write(&args.input, "text").unwrap();
    assert!(error(&args).contains("float.safetensors"), "{}", error(&args));
    assert!(!args.output.exists());
}

#[test]
fn only_the_first_photos_by_name_are_read() {
    let (folder, _) = folder();
    let read = |photos_max| {
        let limits = photos::Limits { photos_max, pixels_max: 50_000_000 };
        photos::read(folder.path(), &EFFICIENTNET_LITE0, &limits).unwrap()
    };
    let names = |photos: Vec<photos::Photo>| photos.into_iter().map(|photo| photo.name).collect::<Vec<_>>();
    assert_eq!(names(read(1)), ["goldfish.jpg"]);
    let both = read(9);
    assert_eq!(
        (both[0].pixels.len(), &both[0].accepted[..], &both[1].accepted[..]),
        (224 * 224 * 3, &[1][..], &[890][..])
    );
    assert_eq!(names(both), ["goldfish.jpg", "volleyball.jpg"]);
}
