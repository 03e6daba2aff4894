//! Memory for the kernels: zeroed and aligned to cache lines; and files as memory.
//!
//! **Invariant**: a buffer's length never changes, and every element is initialised.
use std::fs::File;
use std::io::{self, Read as _};
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
unsafe impl Plain for u32 {}
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

/// A file's bytes: mapped where it is a file on disk, read where it is a pipe or the like.
pub struct FileBytes(Kept);

enum Kept {
    Mapped(memmap2::Mmap),
    Read(Vec<u8>),
}

impl FileBytes {
    /// The first `bytes_max` bytes, or all.
    pub(in crate::model) fn new(file: File, bytes_max: u64) -> io::Result<Self> {
        let about = file.metadata()?;
        if about.is_file() {
            let length = about.len().min(bytes_max) as usize;
            // SAFETY: the bytes are only read. Whoever writes into the file meanwhile changes what is read, which
            // is checked as far as memory safety goes: whatever the bytes are, they are bytes. A file that gets
            // shorter meanwhile ends the process, which `read_file` in weights.rs tells whoever writes weights.
            return unsafe { memmap2::MmapOptions::new().len(length).populate().map(&file) }
                .map(|map| Self(Kept::Mapped(map)));
        }
        let mut bytes = Vec::new();
        file.take(bytes_max).read_to_end(&mut bytes)?;
        Ok(Self(Kept::Read(bytes)))
    }
}

impl Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Kept::Mapped(map) => map,
            Kept::Read(bytes) => bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn files_and_pipes_are_read_up_to_a_limit() {
        for (text, bytes_max, expected) in [("", 5, ""), ("weights", 100, "weights"), ("weights", 3, "wei")] {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(text.as_bytes()).unwrap();
            assert_eq!(*FileBytes::new(file, bytes_max).unwrap(), *expected.as_bytes());
            let (reader, mut writer) = io::pipe().unwrap();
            writer.write_all(text.as_bytes()).unwrap();
            drop(writer);
            let pipe = File::from(std::os::fd::OwnedFd::from(reader));
            assert_eq!(*FileBytes::new(pipe, bytes_max).unwrap(), *expected.as_bytes());
        }
    }
}
