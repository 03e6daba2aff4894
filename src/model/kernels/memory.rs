//! Memory for the kernels: zeroed, aligned to cache lines, on huge pages where it is large.
//!
//! **Invariant**: a buffer's length never changes, and every element is initialised.
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

/// Bytes of a cache line, and of the widest vector.
const LINE: usize = 64;

/// One cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; LINE]);

/// Types of which every bit pattern is a value.
///
/// # Safety
/// The type must have no padding, no invalid bit patterns and an alignment of at most [`LINE`].
pub(in crate::model) unsafe trait Plain: Copy + Send + Sync + 'static {}
// SAFETY: numbers have neither padding nor invalid bit patterns, and align to at most 8 bytes.
unsafe impl Plain for f32 {}
// SAFETY: as above.
unsafe impl Plain for u8 {}
// SAFETY: as above.
unsafe impl Plain for i8 {}
// SAFETY: as above.
unsafe impl Plain for i16 {}
// SAFETY: as above.
unsafe impl Plain for i32 {}
// SAFETY: bf16 is a transparent u16.
unsafe impl Plain for half::bf16 {}

/// A fixed number of elements that start on a cache line.
pub(in crate::model) struct Buffer<T> {
    lines: Vec<Line>,
    length: usize,
    elements: PhantomData<T>,
}

impl<T: Plain> Buffer<T> {
    /// `length` zeros.
    pub(in crate::model) fn zeroed(length: usize) -> Self {
        let lines = (length * size_of::<T>()).div_ceil(LINE);
        Self { lines: vec![Line([0; LINE]); lines], length, elements: PhantomData }
    }
}

impl<T: Plain> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the lines hold at least `length` elements, all initialised; T is plain, hence any bytes
        // are values of it, and a line's alignment suffices.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.length) }
    }
}

impl<T: Plain> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.length) }
    }
}
