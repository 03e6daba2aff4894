//! The segments of a JPEG file before its pixels (ITU-T T.81, annex B).
//!
//! **Invariant**: a [`Header`] borrows from the file and allocates nothing, and every number in it was checked:
//! what is not certain to be read right is `None` and left to another decoder.

/// Natural position of each coefficient in zigzag order; beyond the last, a place nobody reads.
pub(super) const ZIGZAG: [u8; 256] = zigzag();

/// Position in a block of coefficients that nobody reads.
const NOWHERE: u8 = 64;

const fn zigzag() -> [u8; 256] {
    let mut order = [NOWHERE; 256];
    let (mut row, mut column) = (0_u8, 0_u8);
    let mut at = 0;
    while at < 64 {
        order[at] = row * 8 + column;
        // Even diagonals go up and right, odd ones down and left; the edges turn them round.
        if (row + column).is_multiple_of(2) {
            match (row, column) {
                (_, 7) => row += 1,
                (0, _) => column += 1,
                _ => (row, column) = (row - 1, column + 1),
            }
        } else {
            match (row, column) {
                (7, _) => column += 1,
                (_, 0) => row += 1,
                _ => (row, column) = (row + 1, column - 1),
            }
        }
        at += 1;
    }
    order
}

/// A Huffman table as the file states it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Codes<'a> {
    /// Number of codes of 1 to 16 bits.
    pub(super) counts: &'a [u8; 16],
    /// Their symbols, in order of code.
    pub(super) symbols: &'a [u8],
}

impl Codes<'_> {
    /// What tells the table from others.
    pub(super) fn key(&self) -> Vec<u8> {
        [self.counts, self.symbols].concat()
    }
}

/// Factors of a block's coefficients, in natural order.
pub(super) type Factors = [[f32; 8]; 8];

/// One of the planes that the pixels are made of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Component<'a> {
    /// Blocks in an MCU, across.
    pub(super) across: usize,
    /// Blocks in an MCU, down.
    pub(super) down: usize,
    /// Quantisation factors.
    pub(super) factors: Factors,
    /// Codes of the first coefficient.
    pub(super) dc: Codes<'a>,
    /// Codes of the other coefficients.
    pub(super) ac: Codes<'a>,
}

/// What the file says of its pixels.
#[derive(Debug)]
pub(super) struct Header<'a> {
    /// Pixels across.
    pub(super) width: usize,
    /// Pixels down.
    pub(super) height: usize,
    /// Luma, and the two chroma planes unless the picture is grey.
    pub(super) components: Vec<Component<'a>>,
    /// MCUs between restart markers; 0 means that there are none.
    pub(super) restart_interval: usize,
    /// The last EXIF block, from its TIFF header on.
    pub(super) exif: Option<&'a [u8]>,
    /// The entropy-coded pixels and what follows them.
    pub(super) scan: &'a [u8],
}

/// A component as the frame states it, before the scan names its codes.
#[derive(Clone, Copy)]
struct Stated {
    id: u8,
    across: u8,
    down: u8,
    factors: usize,
}

/// What was read so far.
#[derive(Default)]
struct Tables<'a> {
    factors: [Option<Factors>; 4],
    dc: [Option<Codes<'a>>; 4],
    ac: [Option<Codes<'a>>; 4],
    restart_interval: usize,
    exif: Option<&'a [u8]>,
}

/// Takes bytes off the front.
fn take<'a, const N: usize>(bytes: &mut &'a [u8]) -> Option<&'a [u8; N]> {
    let (taken, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(taken)
}

/// Reads the segments up to the first scan. `None`: not a baseline JPEG of grey or `YCbCr` in a single scan, or
/// a damaged one.
pub(super) fn read(file: &[u8]) -> Option<Header<'_>> {
    let mut rest = file.strip_prefix(&[0xFF, 0xD8])?;
    let mut tables = Tables::default();
    let mut frame: Option<(usize, usize, Vec<Stated>)> = None;
    loop {
        let [0xFF, mut marker] = *take(&mut rest)? else { return None };
        // Fill bytes may stand before a marker.
        while marker == 0xFF {
            [marker] = *take(&mut rest)?;
        }
        let length = usize::from(u16::from_be_bytes(*rest.first_chunk()?));
        let segment = rest.get(2..length)?;
        rest = &rest[length..];
        match marker {
            0xC0 | 0xC1 if frame.is_none() => frame = Some(read_frame(segment)?),
            0xC4 => read_codes(segment, &mut tables)?,
            0xDB => read_factors(segment, &mut tables)?,
            0xDD => tables.restart_interval = usize::from(u16::from_be_bytes(segment.try_into().ok()?)),
            0xE1 if segment.starts_with(b"Exif\0\0") => tables.exif = Some(&segment[6..]),
            0xEE if segment.starts_with(b"Adobe") && segment.get(11) != Some(&1) => return None,
            0xE0..=0xEF | 0xFE => {}
            0xDA => {
                let (width, height, stated) = frame?;
                let components = read_scan(segment, &stated, &tables)?;
                let (restart_interval, exif) = (tables.restart_interval, tables.exif);
                return Some(Header { width, height, components, restart_interval, exif, scan: rest });
            }
            _ => return None,
        }
    }
}

/// Size and components.
fn read_frame(mut segment: &[u8]) -> Option<(usize, usize, Vec<Stated>)> {
    let &[8, high, low, wide, narrow, count @ (1 | 3)] = take(&mut segment)? else { return None };
    let height = usize::from(u16::from_be_bytes([high, low]));
    let width = usize::from(u16::from_be_bytes([wide, narrow]));
    if width == 0 || height == 0 || segment.len() != 3 * usize::from(count) {
        return None;
    }
    let mut stated = Vec::with_capacity(3);
    while let Some(&[id, sampling, factors]) = take(&mut segment) {
        stated.push(Stated { id, across: sampling >> 4, down: sampling & 15, factors: factors.into() });
    }
    if let [only] = &mut stated[..] {
        // A scan of one component is coded block by block, whatever its sampling factors are.
        (only.across, only.down) = (1, 1);
    } else if stated.iter().map(|component| component.id).eq(*b"RGB") {
        return None;
    }
    let luma = stated[0];
    // Chroma at the resolution of luma, a half or a quarter.
    let fits = |luma: u8, own: u8| {
        (1..=4).contains(&luma) && own > 0 && luma.is_multiple_of(own) && matches!(luma / own, 1 | 2 | 4)
    };
    let all_fit = stated.iter().all(|own| fits(luma.across, own.across) && fits(luma.down, own.down));
    let twins = stated.iter().skip(1).all(|own| (own.across, own.down) == (stated[1].across, stated[1].down));
    (all_fit && twins).then_some((width, height, stated))
}

fn read_codes<'a>(mut segment: &'a [u8], tables: &mut Tables<'a>) -> Option<()> {
    while let Some(&[place]) = take(&mut segment) {
        let counts = take::<16>(&mut segment)?;
        let total = counts.iter().map(|count| usize::from(*count)).sum::<usize>();
        let (symbols, rest) = segment.split_at_checked(total)?;
        segment = rest;
        let of_class = if place < 16 { &mut tables.dc } else { &mut tables.ac };
        // The class is 0 or 1.
        let place = if place < 32 { usize::from(place & 15) } else { return None };
        *of_class.get_mut(place)? = Some(Codes { counts, symbols });
    }
    Some(())
}

fn read_factors(mut segment: &[u8], tables: &mut Tables) -> Option<()> {
    while let Some(&[place]) = take(&mut segment) {
        let mut factors = [[0.0; 8]; 8];
        for &at in &ZIGZAG[..64] {
            let factor = match place >> 4 {
                0 => take::<1>(&mut segment)?[0].into(),
                1 => u16::from_be_bytes(*take(&mut segment)?),
                _ => return None,
            };
            factors[usize::from(at / 8)][usize::from(at % 8)] = f32::from(factor);
        }
        *tables.factors.get_mut(usize::from(place & 15))? = Some(factors);
    }
    Some(())
}

/// All components must be in the scan, at full depth, in the order of the frame.
fn read_scan<'a>(mut segment: &[u8], stated: &[Stated], tables: &Tables<'a>) -> Option<Vec<Component<'a>>> {
    let [count] = *take(&mut segment)?;
    if usize::from(count) != stated.len() || segment.len() != 2 * stated.len() + 3 {
        return None;
    }
    let mut components = Vec::with_capacity(3);
    for own in stated {
        let [id, places] = *take(&mut segment)?;
        if id != own.id {
            return None;
        }
        components.push(Component {
            across: own.across.into(),
            down: own.down.into(),
            factors: (*tables.factors.get(own.factors)?)?,
            dc: (*tables.dc.get(usize::from(places >> 4))?)?,
            ac: (*tables.ac.get(usize::from(places & 15))?)?,
        });
    }
    (segment == [0, 63, 0]).then_some(components)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_zigzag_visits_every_coefficient_once() {
        assert_eq!(ZIGZAG[..10], [0, 1, 8, 16, 9, 2, 3, 10, 17, 24]);
        assert_eq!(ZIGZAG[54..64], [39, 46, 53, 60, 61, 54, 47, 55, 62, 63]);
        let mut seen = ZIGZAG[..64].to_vec();
        seen.sort_unstable();
        assert!(seen.into_iter().eq(0..64));
        assert!(ZIGZAG[64..].iter().all(|at| *at == NOWHERE));
    }
}
