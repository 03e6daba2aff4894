//! From the coefficients of a block to the pixels of the square, and from its planes to its colours.
//!
//! **Invariant**: no operation depends on the instruction set: eight lanes are multiplied and added one by one
//! in the same order everywhere.
use super::axis::LANES;
use super::header::Factors;

/// Coefficients of a block in natural order. What lies beyond the 64th is never read; that there is so much
/// of it spares a look at the bounds wherever the position is a byte.
pub(super) type Block = [i16; 256];

/// A plane of the square, to which blocks are added.
pub(super) struct Plane {
    values: Vec<f32>,
    side: usize,
}

/// The part of a plane that a block reaches, and the weights with which it does.
pub(super) struct Patch<'a> {
    /// First row.
    pub(super) row: usize,
    /// Weights of each row, by the coefficient's row.
    pub(super) rows: &'a [[f32; 8]],
    /// First column.
    pub(super) column: usize,
    /// Weights of each chunk of columns, by the coefficient's column.
    pub(super) columns: &'a [[[f32; LANES]; 8]],
}

impl Plane {
    pub(super) fn new() -> Self {
        Self { values: Vec::new(), side: 0 }
    }

    /// Values of a row, with those that only pad it.
    fn stride(&self) -> usize {
        (self.side + LANES).next_multiple_of(LANES)
    }

    /// Makes it a black square.
    pub(super) fn reset(&mut self, side: usize) {
        self.side = side;
        self.values.clear();
        self.values.resize(side * self.stride(), 0.0);
    }

    /// Adds a block whose last coefficient other than zero is on the given diagonal of the block.
    #[inline(always)]
    pub(super) fn add(&mut self, block: &Block, diagonal: usize, factors: &Factors, patch: &Patch) {
        if let [columns] = patch.columns {
            self.add_chunks(block, diagonal, factors, patch, std::array::from_ref(columns));
        } else if let Ok(columns) = <&[_; 2]>::try_from(patch.columns) {
            self.add_chunks(block, diagonal, factors, patch, columns);
        } else {
            for (at, columns) in patch.columns.iter().enumerate() {
                let patch = Patch { column: patch.column + at * LANES, ..*patch };
                self.add_chunks(block, diagonal, factors, &patch, std::array::from_ref(columns));
            }
        }
    }

    #[inline(always)]
    fn add_chunks<const CHUNKS: usize>(
        &mut self,
        block: &Block,
        diagonal: usize,
        factors: &Factors,
        patch: &Patch,
        columns: &[[[f32; LANES]; 8]; CHUNKS],
    ) {
        match diagonal {
            0 => self.add_corner::<CHUNKS, 1>(block, factors, patch, columns),
            1 => self.add_corner::<CHUNKS, 2>(block, factors, patch, columns),
            2 | 3 => self.add_corner::<CHUNKS, 4>(block, factors, patch, columns),
            _ => self.add_corner::<CHUNKS, 8>(block, factors, patch, columns),
        }
    }

    /// Adds the first `SIDE` rows and columns of a block.
    #[inline(always)]
    fn add_corner<const CHUNKS: usize, const SIDE: usize>(
        &mut self,
        block: &Block,
        factors: &Factors,
        patch: &Patch,
        columns: &[[[f32; LANES]; 8]; CHUNKS],
    ) {
        let mut coefficients = [[0.0; 8]; SIDE];
        for (row, values) in coefficients.iter_mut().enumerate() {
            for (column, value) in values.iter_mut().enumerate() {
                *value = f32::from(block[row * 8 + column]) * factors[row][column];
            }
        }
        let stride = self.stride();
        let Some(values) = self.values.get_mut(patch.row * stride + patch.column..) else { return };
        for (weights, row) in patch.rows.iter().zip(values.chunks_mut(stride)) {
            let mut sums = [0.0; 8];
            for (weight, coefficients) in weights.iter().zip(&coefficients) {
                for (sum, coefficient) in sums.iter_mut().zip(coefficients) {
                    *sum += weight * coefficient;
                }
            }
            for (chunk, outputs) in columns.iter().zip(row.as_chunks_mut::<LANES>().0) {
                let mut sum = *outputs;
                for (weights, value) in chunk[..SIDE].iter().zip(sums) {
                    for (output, weight) in sum.iter_mut().zip(weights) {
                        *output += value * weight;
                    }
                }
                *outputs = sum;
            }
        }
    }

    fn rows(&self) -> impl Iterator<Item = &[[f32; LANES]]> {
        self.values.chunks_exact(self.stride().max(1)).map(|row| row.as_chunks().0)
    }
}

/// The pixels of a grey plane (one) or of luma and two chroma planes, red first.
#[inline(always)]
pub(super) fn colours(planes: &[Plane]) -> Vec<u8> {
    let side = planes.first().map_or(0, |luma| luma.side);
    let mut pixels = vec![0; side * side * 3];
    match planes {
        [luma, blue, red] => {
            let rows = luma.rows().zip(blue.rows()).zip(red.rows());
            for (((luma, blue), red), line) in rows.zip(pixels.chunks_mut(side * 3)) {
                let chunks = luma.iter().zip(blue).zip(red);
                for (((luma, blue), red), out) in chunks.zip(line.chunks_mut(LANES * 3)) {
                    write(&coloured(luma, blue, red), out);
                }
            }
        }
        [grey, ..] => {
            for (row, line) in grey.rows().zip(pixels.chunks_mut(side * 3)) {
                for (luma, out) in row.iter().zip(line.chunks_mut(LANES * 3)) {
                    write(&coloured(luma, &[0.0; LANES], &[0.0; LANES]), out);
                }
            }
        }
        [] => {}
    }
    pixels
}

/// `YCbCr` around 0 to RGB (ITU-T T.871), red in the lowest byte.
#[inline(always)]
fn coloured(luma: &[f32; LANES], blue: &[f32; LANES], red: &[f32; LANES]) -> [u32; LANES] {
    let mut colours = [0; LANES];
    for lane in 0..LANES {
        let (luma, blue, red) = (luma[lane] + 128.0, blue[lane], red[lane]);
        let green = luma - 0.344_136 * blue - 0.714_136 * red;
        colours[lane] = byte(luma + 1.402 * red) | byte(green) << 8 | byte(luma + 1.772 * blue) << 16;
    }
    colours
}

/// The nearest byte.
#[inline(always)]
fn byte(value: f32) -> u32 {
    let value = if value > 0.0 { value } else { 0.0 };
    let value = if value < 255.0 { value } else { 255.0 };
    // At 2^23 the last bit of a float is one: adding rounds, and the byte is the float's last one. Unlike the
    // conversion, which has to mind values out of range, it is one instruction for all lanes.
    (value + 8_388_608.0).to_bits() & 255
}

/// Writes pixels of three bytes as far as there is room.
#[inline(always)]
fn write(colours: &[u32; LANES], out: &mut [u8]) {
    let mut bytes = [0; LANES * 3];
    for (lane, colour) in colours.iter().enumerate() {
        let [red, green, blue, _] = colour.to_le_bytes();
        (bytes[lane * 3], bytes[lane * 3 + 1], bytes[lane * 3 + 2]) = (red, green, blue);
    }
    match <&mut [u8; LANES * 3]>::try_from(&mut *out) {
        Ok(out) => *out = bytes,
        Err(_) => out.copy_from_slice(&bytes[..out.len()]),
    }
}
