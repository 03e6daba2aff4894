//! The entropy-coded scan: block after block to the square.
//!
//! **Invariant**: blocks that the square does not need are only passed over, and reading ends with the last one
//! that it needs.
use super::axis::{Axis, Geometry, Transposed};
use super::bits::Bits;
use super::header::{Component, ZIGZAG};
use super::huffman::{Damaged, END_OF_BLOCK, FirstTable, Table};
use super::plane::{Block, Patch, Plane};
use crate::model::kernels::pixels::Work;

/// Diagonal of each coefficient in zigzag order, which none before it exceeds.
const DIAGONALS: [u8; 64] = diagonals();

const fn diagonals() -> [u8; 64] {
    let mut diagonals = [0; 64];
    let mut at = 1;
    while at < 64 {
        let natural = ZIGZAG[at];
        diagonals[at] = natural / 8 + natural % 8;
        at += 1;
    }
    diagonals
}

/// The axes of planes of one resolution.
pub(super) struct Axes {
    pub(super) rows: Axis,
    pub(super) columns: Transposed,
    /// Position of the last coefficient that counts, in zigzag order.
    last: usize,
    /// The diagonal that none beyond counts.
    diagonal: usize,
}

impl Axes {
    pub(super) fn new(rows: &Geometry, columns: &Geometry) -> Self {
        let (rows, columns) = (Axis::new(rows), Axis::new(columns));
        let counts = |at: &usize| {
            let natural = usize::from(ZIGZAG[*at]);
            natural / 8 < rows.coefficients() && natural % 8 < columns.coefficients()
        };
        let last = (0..64).rev().find(counts).unwrap_or(0);
        let diagonal = rows.coefficients().max(columns.coefficients()) - 1;
        let columns = Transposed::new(columns);
        Self { rows, columns, last, diagonal }
    }
}

/// What is read of a component and where it goes.
pub(super) struct Lane<'a> {
    pub(super) component: &'a Component<'a>,
    pub(super) axes: &'a Axes,
    pub(super) dc: &'a FirstTable,
    pub(super) ac: &'a Table,
    pub(super) plane: &'a mut Plane,
    /// The last first coefficient.
    pub(super) before: i32,
}

/// A scan to be read.
pub(super) struct Scan<'a> {
    /// What `bits::unstuff` made.
    pub(super) bytes: &'a [u8],
    /// Ends of the restart intervals.
    pub(super) ends: &'a [usize],
    /// MCUs between restart markers; 0 means that there are none.
    pub(super) restart_interval: usize,
    /// MCUs across.
    pub(super) across: usize,
    /// MCUs down.
    pub(super) down: usize,
    pub(super) lanes: Vec<Lane<'a>>,
}

impl Work for Scan<'_> {
    type Output = Result<(), Damaged>;

    #[inline(always)]
    fn run(mut self) -> Self::Output {
        let total = self.across * self.down;
        let interval = if self.restart_interval == 0 { total } else { self.restart_interval };
        if self.ends.len() != total.div_ceil(interval) {
            return Err(Damaged);
        }
        let needed_rows = self.needed_rows();
        let mut block = [0; 256];
        let mut start = 0;
        for (at, end) in self.ends.iter().copied().enumerate() {
            let first = at * interval;
            let last = (first + interval).min(total);
            // Rows above the square need not be read where a restart marker tells what comes after them.
            if last > needed_rows.start * self.across {
                if first >= needed_rows.end * self.across {
                    break;
                }
                for lane in &mut self.lanes {
                    lane.before = 0;
                }
                let mut bits = Bits::new(self.bytes, start, end);
                let stop = last.min(needed_rows.end * self.across);
                self.read(&mut bits, &mut block, first, stop)?;
                if stop == last && !bits.is_at_end() {
                    return Err(Damaged);
                }
            }
            start = end;
        }
        Ok(())
    }
}

impl Scan<'_> {
    /// Rows of MCUs that the square needs.
    fn needed_rows(&self) -> std::ops::Range<usize> {
        let rows = self.lanes.iter().map(|lane| {
            let (axis, down) = (&lane.axes.rows, lane.component.down);
            (axis.first / down, axis.end().div_ceil(down))
        });
        let (start, end) = rows.fold((self.down, 0), |(start, end), row| (start.min(row.0), end.max(row.1)));
        start..end.min(self.down)
    }

    /// Reads the MCUs from `first` up to `stop`.
    #[inline(always)]
    fn read(&mut self, bits: &mut Bits, block: &mut Block, first: usize, stop: usize) -> Result<(), Damaged> {
        let (mut row, mut column) = (first / self.across, first % self.across);
        for _ in first..stop {
            for lane in &mut self.lanes {
                let (across, down) = (lane.component.across, lane.component.down);
                for block_row in row * down..(row + 1) * down {
                    for block_column in column * across..(column + 1) * across {
                        lane.read_block(bits, block, block_row, block_column)?;
                    }
                }
            }
            if bits.overran() {
                return Err(Damaged);
            }
            column += 1;
            if column == self.across {
                (row, column) = (row + 1, 0);
            }
        }
        Ok(())
    }
}

impl Lane<'_> {
    #[inline(always)]
    fn read_block(
        &mut self,
        bits: &mut Bits,
        block: &mut Block,
        row: usize,
        column: usize,
    ) -> Result<(), Damaged> {
        self.before = self.before.wrapping_add(self.dc.read(bits)?);
        let (Some(rows), Some((left, columns))) =
            (self.axes.rows.reach(row), self.axes.columns.reach(column))
        else {
            return self.ac.pass_over(bits, 0);
        };
        block[0] = self.before as i16;
        let last = read_coefficients(self.ac, bits, self.axes.last, block)?;
        let diagonal = usize::from(DIAGONALS[last & 63]).min(self.axes.diagonal);
        let patch = Patch { row: rows.start, rows: self.axes.rows.weights(rows), column: left, columns };
        self.plane.add(block, diagonal, &self.component.factors, &patch);
        block[..64].fill(0);
        Ok(())
    }
}

/// Reads the coefficients from the second to that at `limit` in zigzag order and passes over the rest; gives
/// the position of the last that was read.
#[inline(always)]
fn read_coefficients(
    table: &Table,
    reader: &mut Bits,
    limit: usize,
    block: &mut Block,
) -> Result<usize, Damaged> {
    let natural = |position: usize| usize::from(ZIGZAG[position & 255]);
    // A copy, whose address nobody takes, stays in registers.
    let mut bits = reader.clone();
    let mut at = 0;
    'block: while at < limit {
        bits.refill();
        for _ in 0..2 {
            let pair = table.pair(&bits);
            let first = at + pair.advance();
            let value = pair.value(bits.window());
            at = first + pair.advance_of_second();
            if at >= limit {
                // Among the last ones, or all that is not usual.
                if pair.is_long() {
                    let (after, advance, value) = table.long(bits)?;
                    bits = after;
                    at = first - pair.advance() + advance;
                    block[natural(at)] = value;
                    continue 'block;
                }
                if first >= 63 {
                    // The block ends here: what was taken for a second symbol belongs to the next.
                    block[natural(first)] = value;
                    bits.skip(pair.total_of_first());
                    at = first;
                    break 'block;
                }
            }
            bits.skip(pair.total());
            // Without a second this writes where the first is written next.
            block[natural(at)] = pair.value_of_second();
            block[natural(first)] = value;
            if at >= limit {
                break 'block;
            }
        }
    }
    *reader = bits;
    match at {
        END_OF_BLOCK.. => Ok(at - END_OF_BLOCK),
        63 => Ok(63),
        64.. => Err(Damaged),
        _ => table.pass_over(reader, at).map(|()| at),
    }
}
