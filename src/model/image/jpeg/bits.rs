//! Entropy-coded bytes to bits.
//!
//! **Invariant**: reading never fails and never leaves the buffer: beyond its end come zeros, and
//! [`Bits::overran`] tells that they were read.

/// Zero bytes after the last, so that the usual refill need not look where the end is.
const SLACK_BYTES: usize = 64;

/// Removes the byte stuffing. `clean` receives the bytes and `ends` where each restart interval ends.
///
/// `None`: the pixels are not followed by the end-of-image marker, or the restart markers are out of order.
pub(super) fn unstuff(scan: &[u8], clean: &mut Vec<u8>, ends: &mut Vec<usize>) -> Option<()> {
    clean.clear();
    ends.clear();
    clean.resize(scan.len() + SLACK_BYTES, 0);
    let (mut from, mut to) = (0, 0);
    loop {
        // Runs without 0xFF are copied 16 bytes at a time; what is copied too much is written over.
        while let Some(chunk) = scan.get(from..from + 16) {
            clean[to..to + 16].copy_from_slice(chunk);
            let stuffed = chunk.iter().fold(0_u32, |mask, byte| (mask << 1) | u32::from(*byte == 0xFF));
            if stuffed != 0 {
                let plain = (stuffed.leading_zeros() - 16) as usize;
                from += plain;
                to += plain;
                break;
            }
            from += 16;
            to += 16;
        }
        while *scan.get(from)? != 0xFF {
            clean[to] = scan[from];
            from += 1;
            to += 1;
        }
        let mut marker_at = from + 1;
        while *scan.get(marker_at)? == 0xFF {
            marker_at += 1;
        }
        match scan[marker_at] {
            0x00 if marker_at == from + 1 => {
                clean[to] = 0xFF;
                to += 1;
            }
            marker @ 0xD0..=0xD7 if usize::from(marker & 7) == ends.len() % 8 => ends.push(to),
            0xD9 => break,
            _ => return None,
        }
        from = marker_at + 1;
    }
    ends.push(to);
    clean.truncate(to);
    clean.resize(to + SLACK_BYTES, 0);
    Some(())
}

/// A reader of bits, the first one in the highest place.
///
/// The refill without branches is variant 4 of F. Giesen, "Reading bits in far too many ways", 2018.
#[derive(Clone)]
pub(super) struct Bits<'a> {
    bytes: &'a [u8],
    /// Next byte to be counted into `ready`.
    at: usize,
    /// Unread bits from the top; below those that are counted come some of the next byte's.
    window: u64,
    /// Bits counted in the window.
    ready: u32,
    /// End of the restart interval, bytes.
    end: usize,
}

impl<'a> Bits<'a> {
    /// Reads `bytes[start..end]`; `bytes` are what [`unstuff`] made.
    #[inline(always)]
    pub(super) fn new(bytes: &'a [u8], start: usize, end: usize) -> Self {
        Self { bytes, at: start, window: 0, ready: 0, end }
    }

    /// Makes at least 56 bits ready.
    #[inline(always)]
    pub(super) fn refill(&mut self) {
        let next = self
            .bytes
            .get(self.at..)
            .and_then(<[u8]>::first_chunk)
            .map_or(0, |eight| u64::from_be_bytes(*eight));
        self.window |= next >> self.ready;
        self.at += (63 - self.ready as usize) >> 3;
        self.ready |= 0x38; // 56
    }

    /// The next bits, the first one in the highest place.
    #[inline(always)]
    pub(super) fn window(&self) -> u64 {
        self.window
    }

    /// The next `count` bits, 1 to 63, as a number.
    #[inline(always)]
    pub(super) fn peek(&self, count: u32) -> usize {
        (self.window >> (64 - count)) as usize
    }

    /// Goes on by the number of bits in the low byte of `count`, fewer than 64, which must be ready.
    #[inline(always)]
    pub(super) fn skip(&mut self, count: u64) {
        // Two ways to take the number out of it: the shift, on which the next look-up waits, needs none.
        self.window = self.window.wrapping_shl(count as u32);
        self.ready = self.ready.wrapping_sub((count & 255) as u32);
    }

    /// Whether more bits were read than there are.
    #[inline(always)]
    pub(super) fn overran(&self) -> bool {
        self.at * 8 > self.end * 8 + self.ready as usize
    }

    /// Whether no whole byte is left.
    pub(super) fn is_at_end(&self) -> bool {
        !self.overran() && self.at * 8 + 7 >= self.end * 8 + self.ready as usize
    }
}

/// The number that `size` bits at the top of `window` stand for (T.81, F.2.2.1); 0 for no bits.
#[inline(always)]
pub(super) fn extend(window: u64, size: u32) -> i32 {
    let number = ((window >> 1) >> (63 - size)) as i32;
    // Numbers that start with 0 are negative: all ones less in place of a sign.
    let negative = (window >> 63) as i32 - 1;
    number + (negative & ((-1_i32 << size) + 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cleaned(scan: &[u8]) -> Option<(Vec<u8>, Vec<usize>)> {
        let (mut clean, mut ends) = (vec![9; 3], vec![7]);
        unstuff(scan, &mut clean, &mut ends)?;
        assert!(clean.split_off(*ends.last().unwrap()) == [0; SLACK_BYTES]);
        Some((clean, ends))
    }

    #[test]
    fn stuffing_and_restart_markers_are_removed() {
        assert_eq!(
            cleaned(b"a\xFF\x00b\xFF\xD0c\xFF\xD1\xFF\xFF\xD9 more"),
            Some((b"a\xFFbc".to_vec(), vec![3, 4, 4]))
        );
        for damaged in [
            &b""[..],
            b"a",
            b"a\xFF",
            b"a\xFF\x00",
            b"a\xFF\xD1b\xFF\xD9",
            b"a\xFF\xC4b\xFF\xD9",
            b"\xFF\xFF\x00\xFF\xD9",
        ] {
            assert_eq!(cleaned(damaged), None, "{damaged:?}");
        }
    }

    #[test]
    fn numbers_are_extended_as_the_standard_says() {
        let extended = |bits: u64, size: u32| extend(bits << (64 - size), size);
        assert_eq!([extended(0, 1), extended(1, 1)], [-1, 1]);
        assert_eq!([0, 1, 2, 3].map(|bits| extended(bits, 2)), [-3, -2, 2, 3]);
        assert_eq!([extended(0, 15), extended(0x7FFF, 15)], [-0x7FFF, 0x7FFF]);
        assert_eq!([extend(0, 0), extend(u64::MAX, 0)], [0, 0]);
    }

    proptest! {
        #[test]
        fn bytes_come_back_as_they_were_stuffed(bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(0xFF)], 0..200)) {
            let mut scan: Vec<u8> = bytes.iter().flat_map(|byte| if *byte == 0xFF { vec![0xFF, 0] } else { vec![*byte] }).collect();
            scan.extend([0xFF, 0xD9]);
            prop_assert_eq!(cleaned(&scan), Some((bytes.clone(), vec![bytes.len()])));
        }

        #[test]
        fn bits_come_in_order_and_the_end_is_seen(bytes in prop::collection::vec(any::<u8>(), 0..60), steps in prop::collection::vec(1_u32..28, 60)) {
            let padded = [&bytes[..], &[0; SLACK_BYTES]].concat();
            let mut bits = Bits::new(&padded, 0, bytes.len());
            let mut read = 0;
            for step in steps {
                bits.refill();
                let expected = (0..step as usize).fold(0, |number, ahead| {
                    let at = read + ahead;
                    number << 1 | padded.get(at / 8).map_or(0, |byte| usize::from(byte >> (7 - at % 8) & 1))
                });
                prop_assert_eq!(bits.peek(step), expected);
                bits.skip(step.into());
                read += step as usize;
                prop_assert_eq!(bits.overran(), read > bytes.len() * 8);
                prop_assert_eq!(bits.is_at_end(), read <= bytes.len() * 8 && read + 7 >= bytes.len() * 8);
            }
        }
    }
}
