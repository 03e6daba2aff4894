//! Huffman tables that decode several symbols a look-up.
//!
//! A symbol of a JPEG tells how many coefficients to skip and how many bits the next value has; the value
//! follows it. Decoding is a chain of look-ups, each of which waits for the one before, so that the way to be
//! fast is to make fewer: the next bits tell not one symbol but as many as are wholly among them.
//!
//! **Invariant**: whatever the file states, a table is whole: bits that are no code, or longer than the
//! look-up, are marked so and go through [`Table::long`].
use super::bits::{Bits, extend};
use super::header::Codes;

/// Bits of a look-up. A longer one finds more, in a table that fills more of the cache.
pub(super) const PEEK_BITS: u32 = 11;
const ENTRIES: usize = 1 << PEEK_BITS;
/// Bits of a look-up where the values do not matter.
const PASS_BITS: u32 = 12;
const PASS_ENTRIES: usize = 1 << PASS_BITS;

/// What the end of a block advances by: past every coefficient, with the position before it still to be told.
pub(super) const END_OF_BLOCK: usize = 128;

/// The pixels are damaged, or the file means something else than it seems to.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Damaged;

/// A symbol with its value. Small, as there are many of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Symbol {
    code: u8,
    size: u8,
    advance: u8,
}

impl Symbol {
    /// The meaning of a symbol of a table for first coefficients: the size of the difference.
    fn first(code: u8, symbol: u8) -> Option<Self> {
        (symbol < 16).then_some(Self { code, size: symbol, advance: 0 })
    }

    /// The meaning of a symbol of a table for the other coefficients.
    fn other(code: u8, symbol: u8) -> Option<Self> {
        let (run, size) = (symbol >> 4, symbol & 15);
        let advance = match (run, size) {
            (0, 0) => END_OF_BLOCK as u8,
            (15, _) | (_, 1..) => run + 1,
            _ => return None,
        };
        Some(Self { code, size, advance })
    }

    /// Bits of the code; 0: no symbol.
    fn code(self) -> u32 {
        self.code.into()
    }

    /// Bits of the value.
    fn size(self) -> u32 {
        self.size.into()
    }

    /// Bits of both.
    fn total(self) -> u32 {
        self.code() + self.size()
    }

    /// Coefficients to go on by.
    fn advance(self) -> usize {
        self.advance.into()
    }
}

/// The codes of a table, in order.
struct Canonical {
    /// By length: how many 16-bit words begin with a code of this length or a shorter one.
    limits: [u32; 17],
    /// By length: what to subtract from a code to get its place among the symbols.
    bases: [u32; 17],
    symbols: [u8; 256],
}

impl Canonical {
    fn new(codes: &Codes) -> Option<Self> {
        let mut canonical = Self { limits: [0; 17], bases: [0; 17], symbols: [0; 256] };
        canonical.symbols.get_mut(..codes.symbols.len())?.copy_from_slice(codes.symbols);
        let (mut code, mut place) = (0_u32, 0_u32);
        for (length, count) in (1..).zip(codes.counts) {
            canonical.bases[length] = code.wrapping_sub(place);
            code += u32::from(*count);
            place += u32::from(*count);
            if code > 1 << length {
                return None;
            }
            canonical.limits[length] = code << (16 - length);
            code <<= 1;
        }
        Some(canonical)
    }

    /// Length and symbol of the code that `word`, 16 bits, begins with.
    fn find(&self, word: u32) -> Option<(u8, u8)> {
        let length = (1..17).find(|length| word < self.limits[*length])?;
        let place = (word >> (16 - length)).wrapping_sub(self.bases[length]);
        Some((length as u8, self.symbols[place as usize & 255]))
    }
}

/// The symbols that [`PEEK_BITS`] begin with, one for each look-up.
fn singles(codes: &Codes, meaning: fn(u8, u8) -> Option<Symbol>) -> Box<[Symbol; ENTRIES]> {
    let mut singles = Box::new([Symbol::default(); ENTRIES]);
    let (mut at, mut place) = (0, 0);
    for (length, count) in (1..=PEEK_BITS).zip(codes.counts) {
        for symbol in &codes.symbols[place..place + usize::from(*count)] {
            let end = at + (1 << (PEEK_BITS - length));
            if let (Some(meant), Some(same)) = (meaning(length as u8, *symbol), singles.get_mut(at..end)) {
                same.fill(meant);
            }
            at = end;
        }
        place += usize::from(*count);
    }
    singles
}

/// Codes of first coefficients.
pub(super) struct FirstTable {
    canonical: Canonical,
    /// Bits of code and value in the low byte, those of the code in the next; 0 for a long code.
    entries: Box<[u16; ENTRIES]>,
}

impl FirstTable {
    pub(super) fn new(codes: &Codes) -> Option<Self> {
        let canonical = Canonical::new(codes)?;
        let singles = singles(codes, Symbol::first);
        let mut entries = Box::new([0; ENTRIES]);
        for (entry, symbol) in entries.iter_mut().zip(&*singles) {
            *entry = (symbol.total() | symbol.code() << 8) as u16;
        }
        Some(Self { canonical, entries })
    }

    /// Reads a difference.
    #[inline(always)]
    pub(super) fn read(&self, bits: &mut Bits) -> Result<i32, Damaged> {
        bits.refill();
        let entry = u64::from(self.entries[bits.peek(PEEK_BITS)]);
        if entry == 0 {
            let (after, symbol) = long(&self.canonical, bits.clone(), Symbol::first)?;
            *bits = after;
            let value = extend(bits.window(), symbol.size());
            bits.skip(symbol.size().into());
            return Ok(value);
        }
        let code = (entry >> 8) as u32;
        let value = extend(bits.window() << code, (entry & 255) as u32 - code);
        bits.skip(entry);
        Ok(value)
    }
}

/// Up to two symbols. The value of the first is still in the bits, that of the second was looked up.
///
/// From the lowest byte: bits of both, bits of the first, bits of the first's code, size of the first's value,
/// advance of the first, advance of the second, value of the second (two bytes).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Pair(u64);

impl Pair {
    /// A code that is longer than a look-up. It advances past every coefficient, so that a single comparison
    /// finds it together with the end of a block.
    const LONG: Self = Self(64 << 32);

    fn new(bits: usize, singles: &[Symbol; ENTRIES]) -> Self {
        let first = singles[bits];
        if first.code() == 0 {
            return Self::LONG;
        }
        let left = PEEK_BITS.saturating_sub(first.total());
        let next = (bits << first.total().min(PEEK_BITS)) % ENTRIES;
        let mut second = singles[next];
        if first.advance() == END_OF_BLOCK || second.code() == 0 || second.total() > left {
            second = Symbol::default();
        }
        let window = (next as u64) << (64 - PEEK_BITS) << second.code();
        let value = extend(window, second.size()) as i16 as u16;
        let fields = [
            first.total() + second.total(),
            first.total(),
            first.code(),
            first.size(),
            first.advance() as u32,
            second.advance() as u32,
        ];
        let low = fields.iter().rev().fold(0, |entry, field| entry << 8 | u64::from(*field));
        Self(low | u64::from(value) << 48)
    }

    #[inline(always)]
    pub(super) fn is_long(self) -> bool {
        self == Self::LONG
    }

    /// Bits of both symbols, in the low six.
    #[inline(always)]
    pub(super) fn total(self) -> u64 {
        self.0
    }

    /// Bits of the first symbol, in the low six.
    #[inline(always)]
    pub(super) fn total_of_first(self) -> u64 {
        self.0 >> 8
    }

    #[inline(always)]
    pub(super) fn advance(self) -> usize {
        (self.0 >> 32) as usize & 255
    }

    /// Value of the first symbol, which `window` begins with.
    #[inline(always)]
    pub(super) fn value(self, window: u64) -> i16 {
        extend(window << (self.0 >> 16 & 63), (self.0 >> 24) as u32 & 63) as i16
    }

    /// 0 if there is no second.
    #[inline(always)]
    pub(super) fn advance_of_second(self) -> usize {
        (self.0 >> 40) as usize & 255
    }

    #[inline(always)]
    pub(super) fn value_of_second(self) -> i16 {
        (self.0 >> 48) as i16
    }
}

/// As many symbols as have their codes in a look-up, for blocks that only have to be passed over: bits in the
/// low byte, advance in the next; 0 for a long code.
fn passed_over(bits: usize, singles: &[Symbol; ENTRIES]) -> u16 {
    let (mut total, mut advance) = (0, 0);
    while total < PASS_BITS {
        let next = singles[((bits << total) % PASS_ENTRIES) >> (PASS_BITS - PEEK_BITS)];
        let ends = next.advance() == END_OF_BLOCK;
        // The last place that a block can have, so that the position before its end can be told from the sum.
        if next.code() == 0 || total + next.code() > PASS_BITS || !ends && advance + next.advance() > 63 {
            break;
        }
        total += next.total();
        advance += next.advance();
        if ends {
            break;
        }
    }
    (total | (advance as u32) << 8) as u16
}

/// Codes of the other coefficients.
pub(super) struct Table {
    canonical: Canonical,
    pairs: Box<[Pair; ENTRIES]>,
    passed_over: Box<[u16; PASS_ENTRIES]>,
}

impl Table {
    pub(super) fn new(codes: &Codes) -> Option<Self> {
        let canonical = Canonical::new(codes)?;
        let singles = singles(codes, Symbol::other);
        let mut pairs = Box::new([Pair::LONG; ENTRIES]);
        for (bits, pair) in pairs.iter_mut().enumerate() {
            *pair = Pair::new(bits, &singles);
        }
        let mut passed = Box::new([0; PASS_ENTRIES]);
        for (bits, pass) in passed.iter_mut().enumerate() {
            *pass = passed_over(bits, &singles);
        }
        Some(Self { canonical, pairs, passed_over: passed })
    }

    #[inline(always)]
    pub(super) fn pair(&self, bits: &Bits) -> Pair {
        self.pairs[bits.peek(PEEK_BITS)]
    }

    /// Reads a symbol with a long code: its advance and value.
    #[cold]
    #[inline(never)]
    pub(super) fn long<'a>(&self, bits: Bits<'a>) -> Result<(Bits<'a>, usize, i16), Damaged> {
        let (mut bits, symbol) = long(&self.canonical, bits, Symbol::other)?;
        let value = extend(bits.window(), symbol.size());
        bits.skip(symbol.size().into());
        Ok((bits, symbol.advance(), value as i16))
    }

    /// Reads to the end of a block of which the coefficients up to `at` were read.
    #[inline(always)]
    pub(super) fn pass_over(&self, reader: &mut Bits, mut at: usize) -> Result<(), Damaged> {
        // A copy, whose address nobody takes, stays in registers.
        let mut bits = reader.clone();
        while at < 63 {
            bits.refill();
            for _ in 0..2 {
                let entry = usize::from(self.passed_over[bits.peek(PASS_BITS)]);
                let next = at + (entry >> 8);
                if entry == 0 || next % END_OF_BLOCK >= 63 {
                    // One by one: the block may be full before the last of these symbols, the rest of which
                    // then belong to the next block.
                    let (after, advance) = self.step(bits)?;
                    bits = after;
                    at += advance;
                    break;
                }
                bits.skip(entry as u64);
                at = next;
                if at >= 63 {
                    break;
                }
            }
        }
        *reader = bits;
        if at == 63 || at >= END_OF_BLOCK { Ok(()) } else { Err(Damaged) }
    }

    /// Passes over one symbol; gives its advance.
    #[cold]
    #[inline(never)]
    fn step<'a>(&self, mut bits: Bits<'a>) -> Result<(Bits<'a>, usize), Damaged> {
        let pair = self.pair(&bits);
        if pair.is_long() {
            return self.long(bits).map(|(bits, advance, _)| (bits, advance));
        }
        bits.skip(pair.total_of_first());
        Ok((bits, pair.advance()))
    }
}

/// Reads a symbol bit by bit, up to its value.
#[cold]
#[inline(never)]
fn long<'a>(
    canonical: &Canonical,
    mut bits: Bits<'a>,
    meaning: fn(u8, u8) -> Option<Symbol>,
) -> Result<(Bits<'a>, Symbol), Damaged> {
    bits.refill();
    let (length, symbol) = canonical.find(bits.peek(16) as u32).ok_or(Damaged)?;
    bits.skip(length.into());
    Ok((bits, meaning(length, symbol).ok_or(Damaged)?))
}
