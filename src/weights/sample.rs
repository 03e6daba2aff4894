//! Test code: writes small PyTorch checkpoints in both forms.
use crate::model::network::Network;
use crate::model::weights::{Stored, Tensors};
use rand::{Rng as _, SeedableRng as _};

fn text(out: &mut Vec<u8>, text: &str) {
    out.push(b'X');
    out.extend((text.len() as u32).to_le_bytes());
    out.extend(text.as_bytes());
}

fn integer(out: &mut Vec<u8>, value: usize) {
    out.push(b'J');
    out.extend((value as u32).to_le_bytes());
}

fn sizes(out: &mut Vec<u8>, sizes: &[usize]) {
    out.push(b'(');
    for size in sizes {
        integer(out, *size);
    }
    out.push(b't');
}

/// One entry of the index: name and a call that rebuilds the tensor from storage `key`.
fn entry(out: &mut Vec<u8>, name: &str, class: &str, key: usize, shape: &[usize]) {
    let length = shape.iter().product();
    text(out, name);
    out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
    text(out, "storage");
    out.extend(format!("ctorch\n{class}\n").as_bytes());
    text(out, &key.to_string());
    text(out, "cpu");
    integer(out, length);
    out.extend(b"NtQK\x00");
    sizes(out, shape);
    let strides: Vec<usize> = (0..shape.len()).map(|at| shape[at + 1..].iter().product()).collect();
    sizes(out, &strides);
    out.extend(b"\x89ccollections\nOrderedDict\n)RtR");
}

fn index(tensors: &Tensors) -> Vec<u8> {
    let mut out = b"\x80\x02ccollections\nOrderedDict\n)Rq\x00(".to_vec();
    for (key, (name, stored)) in tensors.iter().enumerate() {
        entry(&mut out, name, "FloatStorage", key, &stored.shape);
    }
    entry(&mut out, "num_batches_tracked", "LongStorage", tensors.len(), &[]);
    // The attribute `_metadata` that PyTorch hangs on the dictionary.
    out.extend(b"u}");
    text(&mut out, "_metadata");
    out.extend(b"ccollections\nOrderedDict\n)Rsb.");
    out
}

fn data(stored: &Stored) -> Vec<u8> {
    stored.values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// A checkpoint in the form before PyTorch 1.6.
pub(crate) fn pickles(tensors: &Tensors) -> Vec<u8> {
    let mut out =
        b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.\x80\x02}".to_vec();
    text(&mut out, "little_endian");
    out.extend(b"\x88s.");
    out.extend(index(tensors));
    out.extend(b"\x80\x02](");
    (0..=tensors.len()).for_each(|key| text(&mut out, &key.to_string()));
    out.extend(b"e.");
    for stored in tensors.values() {
        out.extend((stored.values.len() as u64).to_le_bytes());
        out.extend(data(stored));
    }
    out.extend(1_u64.to_le_bytes());
    out.extend(42_i64.to_le_bytes());
    out
}

/// A checkpoint in the form since PyTorch 1.6: a zip file of stored members.
pub(crate) fn zip(tensors: &Tensors) -> Vec<u8> {
    use std::io::Write as _;
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    let mut add = |name: &str, bytes: &[u8]| {
        archive.start_file(format!("archive/{name}"), options).unwrap();
        archive.write_all(bytes).unwrap();
    };
    add("data.pkl", &index(tensors));
    add("byteorder", b"little");
    for (key, stored) in tensors.values().enumerate() {
        add(&format!("data/{key}"), &data(stored));
    }
    add(&format!("data/{}", tensors.len()), &42_i64.to_le_bytes());
    archive.finish().unwrap().into_inner()
}

/// A network's unfolded tensors with reproducible values: small weights, batch norm near the identity.
pub(crate) fn unfolded(network: &Network, seed: u64) -> Tensors<'static> {
    let mut random = rand_pcg::Pcg64Mcg::seed_from_u64(seed);
    let mut tensors = Tensors::new();
    let mut add = |name: String, shape: Vec<usize>, low: f32, high: f32| {
        let values = (0..shape.iter().product()).map(|_| random.random_range(low..high)).collect();
        tensors.insert(name, Stored { shape, dtype: "f32".to_owned(), values });
    };
    let plan = network.plan();
    for convolution in plan.convolutions() {
        let shape = convolution.shape();
        let spread = (3.0 / shape[1..].iter().product::<usize>() as f32).sqrt();
        add(format!("{}.weight", convolution.name), shape, -spread, spread);
        let batch_norm = &convolution.batch_norm;
        for (part, low, high) in [
            ("weight", 0.5, 1.5),
            ("bias", -0.5, 0.5),
            ("running_mean", -0.5, 0.5),
            ("running_var", 0.5, 2.0),
        ] {
            add(format!("{batch_norm}.{part}"), vec![convolution.output], low, high);
        }
    }
    add(format!("{}.weight", plan.classifier), vec![network.classes, network.head_channels], -0.05, 0.05);
    add(format!("{}.bias", plan.classifier), vec![network.classes], -0.5, 0.5);
    tensors
}
