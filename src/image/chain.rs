//! Parts of a file read as one.

use std::io::{self, BufRead, Read, Seek, SeekFrom};

/// Reads slices one after the other, so that a library sees a file without the parts that it should not.
pub(super) struct Chain<'a, const N: usize> {
    parts: [&'a [u8]; N],
    position: u64,
}

impl<'a, const N: usize> Chain<'a, N> {
    pub fn new(parts: [&'a [u8]; N]) -> Self {
        Self { parts, position: 0 }
    }
}

impl<const N: usize> BufRead for Chain<'_, N> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let mut at = self.position;
        for part in self.parts {
            match part.get(usize::try_from(at).unwrap_or(usize::MAX)..) {
                Some(rest) if !rest.is_empty() => return Ok(rest),
                _ => at -= part.len() as u64,
            }
        }
        Ok(&[])
    }

    fn consume(&mut self, amount: usize) {
        self.position += amount as u64;
    }
}

impl<const N: usize> Read for Chain<'_, N> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}

impl<const N: usize> Seek for Chain<'_, N> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let length: u64 = self.parts.iter().map(|part| part.len() as u64).sum();
        let (base, offset) = match to {
            SeekFrom::Start(at) => (at, 0),
            SeekFrom::Current(offset) => (self.position, offset),
            SeekFrom::End(offset) => (length, offset),
        };
        // A position beyond the end would only have to read as the end.
        let position = base
            .checked_add_signed(offset)
            .ok_or(io::ErrorKind::InvalidInput)?;
        self.position = position.min(length);
        Ok(self.position)
    }
}
