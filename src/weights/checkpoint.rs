//! PyTorch checkpoints: tensors by name out of a `.pth` file, without Python.
//!
//! Two forms exist. Since PyTorch 1.6 a checkpoint is a zip file with an index (`data.pkl`) and a file for
//! each storage. Before, it was a row of pickles (a magic number, a version, facts about the machine, the
//! index, the keys of the storages) followed by the storages, each with its length; the public checkpoints of
//! both networks still have that form.
//!
//! **Invariant**: nothing is executed, and what is allocated is bounded by the length of the file.
use crate::model::weights::{FILE_BYTES_MAX, Stored, Tensors, floats};
use crate::weights::pickle::{Id, Node, Pickle};
use anyhow::{Context as _, anyhow, bail, ensure};
use candle_core::DType;
use std::collections::HashMap;
use std::io::{Cursor, Read as _};

/// The lowest 64 bits of 0x1950a86a20f9469cfc6c, which starts the older form.
const MAGIC: i64 = 0xa86a_20f9_469c_fc6c_u64.cast_signed();
/// Version of the older form; there was one only.
const PROTOCOL: usize = 1001;

/// Reads a checkpoint of either form.
pub fn parse(bytes: &[u8]) -> anyhow::Result<Tensors<'static>> {
    if bytes.starts_with(b"PK\x03\x04") { parse_zip(bytes) } else { parse_pickles(bytes) }
}

/// Whether the bytes start as a checkpoint of either form.
#[must_use]
pub fn is_checkpoint(bytes: &[u8]) -> bool {
    bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46")
}

/// A row of pickles with the storages behind them.
fn parse_pickles(bytes: &[u8]) -> anyhow::Result<Tensors<'static>> {
    let mut rest = bytes;
    let mut next = |what: &str| {
        let (pickle, length) =
            Pickle::read(rest).map_err(|error| anyhow!("cannot read the checkpoint's {what}: {error}"))?;
        rest = &rest[length..];
        anyhow::Ok(pickle)
    };
    let magic = next("magic number")?;
    ensure!(magic.node(magic.root) == &Node::Integer(MAGIC), "the file is no PyTorch checkpoint");
    let protocol = next("version")?;
    ensure!(protocol.size(protocol.root) == Some(PROTOCOL), "the checkpoint's version is not {PROTOCOL}");
    let machine = next("byte order")?;
    let little = machine.dictionary(machine.root).into_iter().flatten().any(|(key, value)| {
        machine.text(*key) == Some("little_endian") && machine.node(*value) == &Node::Integer(1)
    });
    ensure!(little, "the checkpoint was written by a big-endian machine");
    let index = next("index")?;
    let keys = next("list of storages")?;
    let entries = entries(&index)?;

    let widths: HashMap<&str, usize> =
        entries.iter().map(|entry| (entry.storage.as_str(), entry.dtype.width())).collect();
    let mut storages = HashMap::new();
    for key in keys.sequence(keys.root).context("the checkpoint's list of storages is no list")? {
        let key = keys.text(*key).context("the checkpoint's list of storages holds no names")?;
        let width = *widths.get(key).with_context(|| format!("no tensor uses the storage {key}"))?;
        let (length, after) =
            rest.split_first_chunk::<8>().context("the checkpoint ends before a storage")?;
        let length = usize::try_from(u64::from_le_bytes(*length)).ok().and_then(|n| n.checked_mul(width));
        let (data, after) = length
            .and_then(|length| after.split_at_checked(length))
            .with_context(|| format!("the checkpoint ends inside the storage {key}"))?;
        storages.insert(key.to_owned(), data);
        rest = after;
    }
    collect(&entries, |key| storages.get(key).map(|data| data.to_vec()))
}

/// A zip file with an index and a file a storage.
fn parse_zip(bytes: &[u8]) -> anyhow::Result<Tensors<'static>> {
    let mut archive =
        zip::ZipArchive::new(Cursor::new(bytes)).context("the checkpoint is not a whole zip file")?;
    let names: Vec<String> =
        archive.file_names().map(|name| name.map(std::borrow::Cow::into_owned)).collect::<Result<_, _>>()?;
    let index_name = names
        .iter()
        .find(|name| *name == "data.pkl" || name.ends_with("/data.pkl"))
        .context("the zip file holds no data.pkl, so it is no PyTorch checkpoint")?;
    let folder = index_name.trim_end_matches("data.pkl");
    let mut read = |name: &str| {
        let mut data = Vec::new();
        // Storages are not compressed, so that none is longer than the archive.
        let file = archive.by_name(name).with_context(|| format!("the checkpoint lacks {name}"))?;
        ensure!(file.size() <= bytes.len() as u64, "{name} is longer than the checkpoint that holds it");
        file.take(bytes.len() as u64)
            .read_to_end(&mut data)
            .with_context(|| format!("{name} in the checkpoint is damaged"))?;
        anyhow::Ok(data)
    };
    if names.contains(&format!("{folder}byteorder")) {
        let order = read(&format!("{folder}byteorder"))?;
        ensure!(order == b"little", "the checkpoint was written by a big-endian machine");
    }
    let (index, _) = Pickle::read(&read(index_name)?)
        .map_err(|error| anyhow!("cannot read the checkpoint's index: {error}"))?;
    collect(&entries(&index)?, |key| read(&format!("{folder}data/{key}")).ok())
}

/// Type of a storage's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Element {
    Read(DType),
    /// Stepped over: its name and width in bytes.
    Other(&'static str, usize),
}

impl Element {
    fn of(class: &str) -> anyhow::Result<Self> {
        Ok(match class.trim_start_matches("torch.") {
            "FloatStorage" => Self::Read(DType::F32),
            "HalfStorage" => Self::Read(DType::F16),
            "DoubleStorage" => Self::Other("f64", 8),
            "BFloat16Storage" => Self::Other("bf16", 2),
            "LongStorage" => Self::Other("i64", 8),
            "IntStorage" => Self::Other("i32", 4),
            "ShortStorage" => Self::Other("i16", 2),
            "CharStorage" => Self::Other("i8", 1),
            "ByteStorage" => Self::Other("u8", 1),
            "BoolStorage" => Self::Other("bool", 1),
            _ => bail!("the checkpoint has a storage of the unknown type {class}"),
        })
    }

    fn width(self) -> usize {
        match self {
            Self::Read(dtype) => dtype.size_in_bytes(),
            Self::Other(_, width) => width,
        }
    }
}

/// One tensor of the index.
#[derive(Debug)]
struct Entry {
    name: String,
    storage: String,
    dtype: Element,
    /// First element in the storage.
    offset: usize,
    shape: Vec<usize>,
    /// Elements from one index to the next, a dimension.
    strides: Vec<usize>,
}

impl Entry {
    /// Elements of the tensor, at most `most`.
    fn length(&self, most: usize) -> Option<usize> {
        self.shape.iter().try_fold(1_usize, |length, size| length.checked_mul(*size)).filter(|n| *n <= most)
    }

    /// Picks the tensor's elements, in row-major order, out of its storage. Checkpoints that were ported from
    /// another framework hold transposed tensors.
    fn gather(&self, storage: &[f32], length: usize) -> Option<Vec<f32>> {
        let mut at: Vec<usize> = vec![0; self.shape.len()];
        let mut values = Vec::with_capacity(length);
        for _ in 0..length {
            let steps = at.iter().zip(&self.strides).map(|(index, stride)| index.checked_mul(*stride));
            let from = steps.into_iter().try_fold(self.offset, |sum, step| sum.checked_add(step?))?;
            values.push(*storage.get(from)?);
            for (index, size) in at.iter_mut().zip(&self.shape).rev() {
                *index += 1;
                if *index < *size {
                    break;
                }
                *index = 0;
            }
        }
        Some(values)
    }
}

/// The tensors that an index names; whatever else it holds is passed over.
fn entries(index: &Pickle) -> anyhow::Result<Vec<Entry>> {
    let dictionary = |id: Id| index.dictionary(id);
    let mut items = dictionary(index.root).context("the checkpoint holds no dictionary of tensors")?;
    // Training checkpoints wrap the tensors.
    let wrapped = items.iter().find(|(key, _)| index.text(*key) == Some("state_dict"));
    if let Some(inner) = wrapped.and_then(|(_, value)| dictionary(*value)) {
        items = inner;
    }
    let mut entries = Vec::new();
    for (key, value) in items {
        let Some(name) = index.text(*key) else { continue };
        let entry = entry(index, name, *value).with_context(|| format!("tensor {name} of the checkpoint"))?;
        entries.extend(entry);
    }
    Ok(entries)
}

/// The tensor at a node; `None` where the node is no tensor.
fn entry(index: &Pickle, name: &str, id: Id) -> anyhow::Result<Option<Entry>> {
    let call = |id: Id| {
        let Node::Call(callable, arguments) = index.node(id) else { return None };
        Some((index.global(*callable)?, index.sequence(*arguments)?))
    };
    let rebuild = match call(id) {
        Some(("torch._utils._rebuild_parameter", arguments)) => arguments.first().and_then(|id| call(*id)),
        other => other,
    };
    let Some(("torch._utils._rebuild_tensor_v2", &[storage, offset, shape, strides, ..])) = rebuild else {
        return Ok(None);
    };
    let Node::Persistent(storage) = index.node(storage) else { bail!("has no storage") };
    let Some(&[_, class, key, ..]) = index.sequence(*storage) else { bail!("has an odd storage") };
    let dtype = Element::of(index.global(class).context("has a storage without a type")?)?;
    let shape = index.sizes(shape).context("has an odd shape")?;
    let strides = index.sizes(strides).context("has odd strides")?;
    ensure!(shape.len() == strides.len(), "has {} sizes and {} strides", shape.len(), strides.len());
    Ok(Some(Entry {
        name: name.to_owned(),
        storage: index.text(key).context("has a storage without a name")?.to_owned(),
        dtype,
        offset: index.size(offset).context("has an odd offset")?,
        shape,
        strides,
    }))
}

/// Cuts the tensors out of their storages.
fn collect(
    entries: &[Entry],
    mut storage: impl FnMut(&str) -> Option<Vec<u8>>,
) -> anyhow::Result<Tensors<'static>> {
    let mut tensors = Tensors::new();
    // Tensors may share a storage, or an element of it, so that a small file could ask for much memory.
    let mut elements_left = FILE_BYTES_MAX as usize / 4;
    for entry in entries {
        let (dtype, values) = match entry.dtype {
            Element::Other(name, _) => (name, Vec::new()),
            Element::Read(dtype) => {
                let length = entry.length(elements_left).with_context(|| {
                    format!("tensor {}: the tensors are larger than {FILE_BYTES_MAX} bytes", entry.name)
                })?;
                elements_left -= length;
                let data = storage(&entry.storage).with_context(|| {
                    format!("tensor {}: its storage {} is missing", entry.name, entry.storage)
                })?;
                let values = entry
                    .gather(&floats(&data, dtype)?, length)
                    .with_context(|| format!("tensor {} is larger than its storage", entry.name))?;
                (if dtype == DType::F16 { "f16" } else { "f32" }, values)
            }
        };
        let stored = Stored { shape: entry.shape.clone(), dtype: dtype.to_owned(), values: values.into() };
        tensors.insert(entry.name.clone(), stored);
    }
    Ok(tensors)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::sample;
    use proptest::prelude::*;

    fn two_tensors() -> Tensors<'static> {
        let stored = |shape: &[usize], first: f32| Stored {
            shape: shape.to_vec(),
            dtype: "f32".to_owned(),
            values: (0..shape.iter().product::<usize>()).map(|at| first + at as f32).collect(),
        };
        Tensors::from([
            ("a.weight".to_owned(), stored(&[2, 3, 1, 1], 1.0)),
            ("b".to_owned(), stored(&[4], -7.0)),
        ])
    }

    #[test]
    fn both_forms_read_back() {
        for bytes in [sample::pickles(&two_tensors()), sample::zip(&two_tensors())] {
            assert!(is_checkpoint(&bytes));
            let mut tensors = parse(&bytes).unwrap();
            let counter = tensors.remove("num_batches_tracked").unwrap();
            assert_eq!((counter.dtype.as_str(), counter.values.len()), ("i64", 0));
            assert_eq!(tensors, two_tensors());
        }
    }

    #[test]
    fn checkpoints_that_are_not_whole_are_refused() {
        for bytes in [sample::pickles(&two_tensors()), sample::zip(&two_tensors())] {
            for length in 0..bytes.len() {
                assert!(parse(&bytes[..length]).is_err(), "{length} of {}", bytes.len());
            }
        }
    }

    #[test]
    fn transposed_tensors_are_turned_and_bounds_are_kept() {
        let storage: Vec<f32> = (0..8_u8).map(f32::from).collect();
        let entry = |offset: usize, shape: &[usize], strides: &[usize]| {
            let entry = Entry {
                name: String::new(),
                storage: String::new(),
                dtype: Element::Read(DType::F32),
                offset,
                shape: shape.to_vec(),
                strides: strides.to_vec(),
            };
            entry.length(100).and_then(|length| entry.gather(&storage, length))
        };
        assert_eq!(entry(1, &[2, 3], &[3, 1]).unwrap(), [1., 2., 3., 4., 5., 6.]);
        assert_eq!(entry(0, &[2, 3], &[1, 2]).unwrap(), [0., 2., 4., 1., 3., 5.]);
        assert_eq!(entry(7, &[], &[]).unwrap(), [7.0]);
        assert_eq!(entry(8, &[0, 5], &[5, 1]).unwrap(), [0.0; 0]);
        assert!(entry(3, &[2, 3], &[3, 1]).is_none(), "past the end of the storage");
        assert!(entry(0, &[2], &[usize::MAX]).is_none() && entry(usize::MAX, &[1], &[1]).is_none());
        assert!(entry(0, &[101], &[0]).is_none() && entry(0, &[usize::MAX, 2], &[0, 0]).is_none());
    }

    proptest! {
        #[test]
        fn damage_is_an_error_or_harmless(at in 0_usize..3000, value in any::<u8>(), zip in any::<bool>()) {
            let mut bytes = if zip { sample::zip(&two_tensors()) } else { sample::pickles(&two_tensors()) };
            let at = at % bytes.len();
            bytes[at] = value;
            let _ = parse(&bytes);
        }
    }
}
