//! A plain JPEG encoder for tests: any size, sampling and restart interval.
//!
//! **Invariant**: what it writes is a valid baseline JPEG, slow and large.
use super::header::ZIGZAG;
use std::f64::consts::PI;

/// A picture to be written.
#[derive(Clone, Debug)]
pub(super) struct Picture {
    pub(super) width: usize,
    pub(super) height: usize,
    /// Sampling factors of each component, across and down.
    pub(super) sampling: Vec<(u8, u8)>,
    /// MCUs between restart markers, or 0.
    pub(super) restart_interval: u16,
    /// Step of the quantisation.
    pub(super) step: u8,
    /// Whether most codes are too long for a look-up.
    pub(super) long_codes: bool,
}

/// Bits of a code and the code.
type Code = (u32, u32);

struct Writer {
    bytes: Vec<u8>,
    bits: u64,
    count: u32,
}

impl Writer {
    fn put(&mut self, (count, value): Code) {
        self.bits = self.bits << count | u64::from(value);
        self.count += count;
        while self.count >= 8 {
            self.count -= 8;
            let byte = (self.bits >> self.count) as u8;
            self.bytes.push(byte);
            if byte == 0xFF {
                self.bytes.push(0);
            }
        }
    }

    /// Fills the last byte with ones.
    fn flush(&mut self) {
        let fill = (8 - self.count % 8) % 8;
        self.put((fill, (1 << fill) - 1));
    }
}

/// A number of some bits: its size and how it is written.
fn sized(value: i32) -> (u32, Code) {
    let size = 32 - value.unsigned_abs().leading_zeros();
    let bits = if value < 0 { (value + (1 << size) - 1) as u32 } else { value as u32 };
    (size, (size, bits))
}

/// Every symbol of a table, and how many codes there are of each length.
fn table(first: bool, long_codes: bool) -> ([u8; 16], Vec<u8>) {
    let mut counts = [0; 16];
    let symbols: Vec<u8> = if first {
        (0..12).collect()
    } else {
        let sizes = (1..=10_u8).flat_map(|size| (0..16_u8).map(move |run| run << 4 | size));
        [0x00, 0xF0].into_iter().chain(sizes).collect()
    };
    let total = symbols.len();
    // Some short codes, and the rest of them of one length.
    (counts[1], counts[3], counts[4]) = (1, 4, 4);
    counts[if long_codes { 14 } else { 8 }] = (total - 9) as u8;
    (counts, symbols)
}

/// The code of a symbol.
fn code(symbol: u8, (counts, symbols): &([u8; 16], Vec<u8>)) -> Code {
    let place = symbols.iter().position(|known| *known == symbol).unwrap() as u32;
    let (mut code, mut before) = (0, 0);
    for (length, count) in (1..).zip(counts) {
        if place < before + u32::from(*count) {
            return (length, code + place - before);
        }
        code = (code + u32::from(*count)) << 1;
        before += u32::from(*count);
    }
    unreachable!("every symbol has a code")
}

fn segment(marker: u8, body: &[u8]) -> Vec<u8> {
    [&[0xFF, marker], &(body.len() as u16 + 2).to_be_bytes()[..], body].concat()
}

impl Picture {
    /// The file. `sample` gives the value 0..255 at a column and a row of a component's plane.
    pub(super) fn write(&self, sample: impl Fn(usize, usize, usize) -> f64) -> Vec<u8> {
        let count = self.sampling.len();
        let mut file = vec![0xFF, 0xD8];
        file.extend(segment(0xDB, &[&[0][..], &[self.step; 64]].concat()));
        let (height, width) = ((self.height as u16).to_be_bytes(), (self.width as u16).to_be_bytes());
        let mut frame = [&[8][..], &height, &width, &[count as u8]].concat();
        for (id, (across, down)) in (1..).zip(&self.sampling) {
            frame.extend([id, across << 4 | down, 0]);
        }
        file.extend(segment(0xC0, &frame));
        let tables = [table(true, self.long_codes), table(false, self.long_codes)];
        for (class, (counts, symbols)) in (0..).zip(&tables) {
            file.extend(segment(0xC4, &[&[class << 4], &counts[..], symbols].concat()));
        }
        file.extend(segment(0xDD, &self.restart_interval.to_be_bytes()));
        let places = (1..=count as u8).flat_map(|id| [id, 0]);
        let scan: Vec<u8> = [count as u8].into_iter().chain(places).chain([0, 63, 0]).collect();
        file.extend(segment(0xDA, &scan));
        let mut writer = Writer { bytes: file, bits: 0, count: 0 };
        self.write_scan(&mut writer, &tables, sample);
        writer.bytes.extend([0xFF, 0xD9]);
        writer.bytes
    }

    fn write_scan(
        &self,
        writer: &mut Writer,
        tables: &[([u8; 16], Vec<u8>); 2],
        sample: impl Fn(usize, usize, usize) -> f64,
    ) {
        // The block of a single component is an MCU, whatever its factors are.
        let single = self.sampling.len() == 1;
        let factors = |at: usize| if single { (1, 1) } else { self.sampling[at] };
        let (across, down) = (usize::from(factors(0).0), usize::from(factors(0).1));
        let columns = self.width.div_ceil(8 * across);
        let mut before = [0; 3];
        for mcu in 0..columns * self.height.div_ceil(8 * down) {
            let interval = usize::from(self.restart_interval);
            if interval > 0 && mcu > 0 && mcu.is_multiple_of(interval) {
                writer.flush();
                writer.bytes.extend([0xFF, 0xD0 | ((mcu / interval - 1) % 8) as u8]);
                before = [0; 3];
            }
            for (component, before) in before.iter_mut().enumerate().take(self.sampling.len()) {
                let (wide, tall) = (usize::from(factors(component).0), usize::from(factors(component).1));
                // Samples beyond the edge repeat those at it.
                let right = (self.width * wide).div_ceil(across) - 1;
                let bottom = (self.height * tall).div_ceil(down) - 1;
                for at in 0..wide * tall {
                    let left = (mcu % columns * wide + at % wide) * 8;
                    let top = (mcu / columns * tall + at / wide) * 8;
                    let value = |x: usize, y: usize| {
                        sample(component, (left + x).min(right), (top + y).min(bottom)) - 128.0
                    };
                    write_block(writer, tables, &transform(value, f64::from(self.step)), before);
                }
            }
        }
        writer.flush();
    }
}

/// Quantised coefficients in natural order.
fn transform(sample: impl Fn(usize, usize) -> f64, step: f64) -> [i32; 64] {
    let mut samples = [0.0; 64];
    for (at, value) in samples.iter_mut().enumerate() {
        *value = sample(at % 8, at / 8);
    }
    let wave = |frequency: usize, position: usize| {
        let scale = if frequency == 0 { 0.125_f64.sqrt() } else { 0.5 };
        scale * ((2 * position + 1) as f64 * frequency as f64 * PI / 16.0).cos()
    };
    std::array::from_fn(|to| {
        let parts = samples.iter().enumerate();
        let sum: f64 = parts.map(|(at, value)| value * wave(to % 8, at % 8) * wave(to / 8, at / 8)).sum();
        (sum / step).round() as i32
    })
}

fn write_block(writer: &mut Writer, tables: &[([u8; 16], Vec<u8>); 2], block: &[i32; 64], before: &mut i32) {
    let (size, bits) = sized(block[0] - *before);
    *before = block[0];
    writer.put(code(size as u8, &tables[0]));
    writer.put(bits);
    let mut run = 0;
    for at in &ZIGZAG[1..64] {
        let value = block[usize::from(*at)];
        if value == 0 {
            run += 1;
            continue;
        }
        while run > 15 {
            writer.put(code(0xF0, &tables[1]));
            run -= 16;
        }
        let (size, bits) = sized(value);
        writer.put(code(run << 4 | size as u8, &tables[1]));
        writer.put(bits);
        run = 0;
    }
    if run > 0 {
        writer.put(code(0x00, &tables[1]));
    }
}
