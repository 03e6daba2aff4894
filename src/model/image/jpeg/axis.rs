//! What each block of a plane adds to the pixels of the square, along one axis.
//!
//! Inverse cosine transform, chroma upsampling and resizing are linear and separable, so they are one matrix: from
//! the coefficients of a block to the output pixels that the block reaches. It is the idea of resizing in the
//! transform domain (N. Merhav and V. Bhaskaran, "Fast algorithms for DCT-domain image down-sampling and for
//! inverse motion compensation", 1997), here with the exact filters of the plain path, so that nothing is
//! rounded between the coefficients and the output, and no pixel of the full size is ever computed.
//!
//! **Invariant**: a block's outputs are in a row, and every row of weights is padded with zeros to whole
//! chunks of [`LANES`].
use crate::model::network::Filter;

/// Outputs that are computed together.
pub(super) const LANES: usize = 8;

/// Coefficients that add less than this share of what the first one does are left out. In a photo they are
/// small themselves, so that together they are worth less than rounding to a byte.
const SHARE_MIN: f32 = 0.08;

/// An axis of a plane.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Geometry {
    /// Samples of the plane.
    pub(super) samples: usize,
    /// Pixels of the picture.
    pub(super) pixels: usize,
    /// Pixels that share a sample: 1, 2 or 4.
    pub(super) ratio: usize,
    /// First pixel of the crop, which may be between two.
    pub(super) start: f64,
    /// Pixels of the crop.
    pub(super) side: f64,
    /// Pixels to make of it.
    pub(super) outputs: usize,
    /// Filter to resize with.
    pub(super) filter: Filter,
}

/// The outputs that a block reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reach {
    /// First output.
    pub(super) start: usize,
    /// Number of outputs.
    pub(super) length: usize,
    /// Where the weights of the first are.
    at: usize,
}

/// The blocks of an axis that the square needs.
pub(super) struct Axis {
    /// The first of them.
    pub(super) first: usize,
    reaches: Vec<Reach>,
    /// Eight coefficients an output.
    weights: Vec<[f32; 8]>,
}

/// Samples with their weights.
type Taps = Vec<(usize, f32)>;

impl Geometry {
    /// Weights of the samples that make `output`, in order of position, without those of zero.
    fn taps(&self, output: usize, taps: &mut Taps) {
        taps.clear();
        let scale = self.side / self.outputs as f64;
        let stretch = scale.max(1.0);
        let (shape, support): (fn(f64) -> f64, f64) = match self.filter {
            Filter::Bilinear => (triangle, 1.0),
            Filter::Bicubic => (catmull_rom, 2.0),
        };
        let centre = self.start + (output as f64 + 0.5) * scale;
        let first = (centre - support * stretch).floor().max(0.0) as usize;
        let last = ((centre + support * stretch).ceil() as usize).min(self.pixels);
        let weight = |pixel: usize| shape((pixel as f64 + 0.5 - centre) / stretch);
        let total: f64 = (first..last).map(weight).sum();
        for pixel in first..last {
            let weight = (weight(pixel) / total) as f32;
            if weight != 0.0 {
                self.upsample(pixel, weight, taps);
            }
        }
    }

    /// Adds the samples that `pixel` is interpolated from: linearly between two at half the resolution, as
    /// libjpeg does, and by repetition at a quarter.
    fn upsample(&self, pixel: usize, weight: f32, taps: &mut Taps) {
        let last = self.samples - 1;
        let near = (pixel / self.ratio).min(last);
        if self.ratio != 2 {
            add(taps, near, weight);
            return;
        }
        let far = if pixel.is_multiple_of(2) { near.saturating_sub(1) } else { (near + 1).min(last) };
        add(taps, near.min(far), weight * if near < far { 0.75 } else { 0.25 });
        add(taps, near.max(far), weight * if near < far { 0.25 } else { 0.75 });
    }
}

/// Adds a weight to those of a sample that is among the last few.
fn add(taps: &mut Taps, sample: usize, weight: f32) {
    match taps.iter_mut().rev().take(3).find(|tap| tap.0 == sample) {
        Some(tap) => tap.1 += weight,
        None => taps.push((sample, weight)),
    }
}

fn triangle(x: f64) -> f64 {
    (1.0 - x.abs()).max(0.0)
}

fn catmull_rom(x: f64) -> f64 {
    match x.abs() {
        x if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
        x if x < 2.0 => ((2.5 - 0.5 * x) * x - 4.0) * x + 2.0,
        _ => 0.0,
    }
}

/// By sample, what each coefficient of its block adds to it (T.81, A.3.3).
fn basis() -> [[f32; 8]; 8] {
    std::array::from_fn(|sample| {
        std::array::from_fn(|coefficient| {
            let scale = if coefficient == 0 { 0.125_f64.sqrt() } else { 0.5 };
            let angle = (2 * sample + 1) as f64 * coefficient as f64 * std::f64::consts::PI / 16.0;
            (scale * angle.cos()) as f32
        })
    })
}

impl Axis {
    /// The blocks and their weights.
    pub(super) fn new(geometry: &Geometry) -> Self {
        let basis = basis();
        let mut all_taps = Taps::new();
        let mut taps = Taps::new();
        let mut ends = Vec::with_capacity(geometry.outputs);
        for output in 0..geometry.outputs {
            geometry.taps(output, &mut taps);
            all_taps.extend_from_slice(&taps);
            ends.push(all_taps.len());
        }
        let taps_of = |output: usize| {
            let start = if output == 0 { 0 } else { ends[output - 1] };
            &all_taps[start..ends[output]]
        };
        let first = all_taps.iter().map(|tap| tap.0 / 8).min().unwrap_or(0);
        let last = all_taps.iter().map(|tap| tap.0 / 8).max().unwrap_or(0);
        let mut reaches = vec![Reach { start: 0, length: 0, at: 0 }; last + 1 - first];
        for output in 0..geometry.outputs {
            for (sample, _) in taps_of(output) {
                let reach = &mut reaches[sample / 8 - first];
                if reach.length == 0 {
                    reach.start = output;
                }
                reach.length = output + 1 - reach.start;
            }
        }
        let mut at = 0;
        for reach in &mut reaches {
            reach.at = at;
            at += reach.length;
        }
        let mut weights = vec![[0.0; 8]; at];
        for output in 0..geometry.outputs {
            for (sample, weight) in taps_of(output) {
                let reach = &reaches[sample / 8 - first];
                let sums = &mut weights[reach.at + output - reach.start];
                for (sum, basis) in sums.iter_mut().zip(&basis[sample % 8]) {
                    *sum += weight * basis;
                }
            }
        }
        Self { first, reaches, weights }
    }

    /// What a block reaches, if it reaches anything.
    #[inline(always)]
    pub(super) fn reach(&self, block: usize) -> Option<&Reach> {
        self.reaches.get(block.wrapping_sub(self.first)).filter(|reach| reach.length > 0)
    }

    /// Number of coefficients that count: none after them does.
    pub(super) fn coefficients(&self) -> usize {
        let power = |at: usize| self.weights.iter().map(|weights| weights[at] * weights[at]).sum::<f32>();
        let least = power(0) * SHARE_MIN * SHARE_MIN;
        (1..8).rev().find(|at| power(*at) >= least).unwrap_or(0) + 1
    }

    /// The block after the last that is needed.
    pub(super) fn end(&self) -> usize {
        self.first + self.reaches.len()
    }

    /// The weights of a block's outputs.
    #[inline(always)]
    pub(super) fn weights(&self, reach: &Reach) -> &[[f32; 8]] {
        &self.weights[reach.at..reach.at + reach.length]
    }
}

/// An axis with the outputs of each coefficient together.
pub(super) struct Transposed {
    axis: Axis,
    /// By block: chunks of outputs, each with eight rows of [`LANES`].
    chunks: Vec<[[f32; LANES]; 8]>,
    /// By block, where its chunks start.
    starts: Vec<usize>,
}

impl Transposed {
    pub(super) fn new(axis: Axis) -> Self {
        let mut chunks = Vec::new();
        let mut starts = Vec::with_capacity(axis.reaches.len() + 1);
        for reach in &axis.reaches {
            starts.push(chunks.len());
            for outputs in axis.weights(reach).chunks(LANES) {
                let mut chunk = [[0.0; LANES]; 8];
                for (lane, weights) in outputs.iter().enumerate() {
                    for (row, weight) in chunk.iter_mut().zip(weights) {
                        row[lane] = *weight;
                    }
                }
                chunks.push(chunk);
            }
        }
        starts.push(chunks.len());
        Self { axis, chunks, starts }
    }

    /// First output and weights of a block, if it reaches any.
    #[inline(always)]
    pub(super) fn reach(&self, block: usize) -> Option<(usize, &[[[f32; LANES]; 8]])> {
        let reach = self.axis.reach(block)?;
        let at = block - self.axis.first;
        Some((reach.start, &self.chunks[self.starts[at]..self.starts[at + 1]]))
    }
}
