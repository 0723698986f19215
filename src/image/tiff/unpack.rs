//! From the bytes of a strip or tile to its samples.

use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress, inflate_flags};
use weezl::{BitOrder, LzwStatus};

use super::Compression;
use super::directory::Directory;
use super::fax::{Coding, Fax};

/// Unpacks the strips or tiles of a file, one after the other.
pub(super) struct Unpacker {
    method: Method,
    /// Whether bytes are to be read from their lowest bit on.
    reversed: bool,
    /// A strip's bytes, turned, and what is kept for the next.
    turned: Vec<u8>,
    /// Bytes of a row of samples.
    row: usize,
    /// Bytes from a sample to the same sample of the next pixel, where samples are differences.
    stride: Option<usize>,
    /// Bytes of a sample.
    size: usize,
    swapped: bool,
}

enum Method {
    None,
    PackBits,
    Lzw {
        decoder: Box<weezl::decode::Decoder>,
        /// Whether that is one of the codes that libtiff's first versions wrote.
        old: bool,
    },
    Deflate(Box<DecompressorOxide>),
    Fax(Fax),
}

/// LZW as TIFF has it, and as libtiff wrote it before: the other way round, and codes grow one later.
fn lzw(old: bool) -> Box<weezl::decode::Decoder> {
    Box::new(if old {
        weezl::decode::Decoder::new(BitOrder::Lsb, 8)
    } else {
        weezl::decode::Decoder::with_tiff_size_switch(BitOrder::Msb, 8)
    })
}

impl Unpacker {
    /// For strips or tiles of rows of `width` pixels and `row` bytes.
    pub fn new(directory: &Directory, width: u32, row: usize) -> Self {
        let method = match directory.compression {
            Compression::None | Compression::Jpeg => Method::None,
            Compression::PackBits => Method::PackBits,
            Compression::Lzw => Method::Lzw {
                decoder: lzw(false),
                old: false,
            },
            Compression::Deflate => Method::Deflate(Box::default()),
            Compression::FaxBytes => Method::Fax(Fax::new(Coding::Bytes, width)),
            Compression::FaxWords => Method::Fax(Fax::new(Coding::Words, width)),
            Compression::Fax3 => {
                let two_dimensional = directory.t4_options & 1 != 0;
                Method::Fax(Fax::new(Coding::Group3 { two_dimensional }, width))
            }
            Compression::Fax4 => Method::Fax(Fax::new(Coding::Group4, width)),
        };
        let size = if directory.bits == 16 { 2 } else { 1 };
        let predicted = directory.predictor == 2 && directory.compression.has_predictor();
        let samples = if directory.planar { 1 } else { directory.samples };
        Self {
            method,
            reversed: directory.reversed,
            turned: Vec::new(),
            row,
            stride: predicted.then_some(usize::from(samples) * size),
            size,
            swapped: size == 2 && !directory.little_endian,
        }
    }

    /// Unpacks `packed` into `out`.
    ///
    /// As in libtiff, damage is no error: what could be unpacked stays and the rest is zeros, but differences
    /// are not summed up and bytes not put in order. Samples of 16 bits have their low byte first.
    pub fn unpack(&mut self, packed: &[u8], out: &mut [u8]) {
        out.fill(0);
        if let Method::Fax(fax) = &mut self.method {
            return fax.decode(packed, self.reversed, self.row, out);
        }
        let packed = if self.reversed {
            self.turned.clear();
            self.turned.extend(packed.iter().map(|byte| byte.reverse_bits()));
            &self.turned
        } else {
            packed
        };
        let whole = match &mut self.method {
            Method::None => match packed.get(..out.len()) {
                Some(packed) => {
                    out.copy_from_slice(packed);
                    true
                }
                None => false,
            },
            Method::PackBits => unpack_bits(packed, out),
            Method::Lzw { decoder, old } => {
                // The first code clears the table: that is nine bits, a one and zeros.
                let is_old = matches!(packed, [0, second, ..] if second & 1 == 1);
                if !is_old && !matches!(packed, [0x80, 0..=0x7F, ..]) {
                    return;
                }
                if *old == is_old {
                    decoder.reset();
                } else {
                    *decoder = lzw(is_old);
                    *old = is_old;
                }
                let (mut packed, mut done) = (packed, 0);
                loop {
                    let result = decoder.decode_bytes(packed, &mut out[done..]);
                    packed = &packed[result.consumed_in..];
                    done += result.consumed_out;
                    if !matches!(result.status, Ok(LzwStatus::Ok))
                        || result.consumed_in + result.consumed_out == 0
                    {
                        break done == out.len();
                    }
                }
            }
            Method::Deflate(inflater) => {
                inflater.init();
                let flags = inflate_flags::TINFL_FLAG_PARSE_ZLIB_HEADER
                    | inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
                let (status, _, done) = decompress(inflater, packed, out, 0, flags);
                done == out.len() && !matches!(status, TINFLStatus::Failed | TINFLStatus::Adler32Mismatch)
            }
            Method::Fax(_) => true,
        };
        if !whole {
            return;
        }
        if self.swapped {
            for sample in out.as_chunks_mut::<2>().0 {
                sample.reverse();
            }
        }
        if let Some(stride) = self.stride
            && out.len().is_multiple_of(self.row)
            && self.row.is_multiple_of(stride)
        {
            for row in out.chunks_exact_mut(self.row) {
                sum_up(row, stride, self.size);
            }
        }
    }
}

/// Adds to each sample of a row the one before.
fn sum_up(row: &mut [u8], stride: usize, size: usize) {
    if size == 1 {
        for at in stride..row.len() {
            row[at] = row[at].wrapping_add(row[at - stride]);
        }
        return;
    }
    for at in (stride..row.len()).step_by(2) {
        let sample = |at| u16::from_le_bytes([row[at], row[at + 1]]);
        let sum = sample(at).wrapping_add(sample(at - stride)).to_le_bytes();
        row[at..at + 2].copy_from_slice(&sum);
    }
}

/// Unpacks runs and literals; returns whether `out` is full.
fn unpack_bits(mut packed: &[u8], mut out: &mut [u8]) -> bool {
    while !out.is_empty() {
        let Some((&count, rest)) = packed.split_first() else {
            return false;
        };
        packed = rest;
        match count {
            0..=127 => {
                let length = (usize::from(count) + 1).min(out.len());
                let Some((literal, rest)) = packed.split_at_checked(length) else {
                    return false;
                };
                let (start, end) = out.split_at_mut(length);
                start.copy_from_slice(literal);
                (packed, out) = (rest, end);
            }
            128 => {}
            129..=255 => {
                let Some((&byte, rest)) = packed.split_first() else {
                    return false;
                };
                let length = (257 - usize::from(count)).min(out.len());
                let (start, end) = out.split_at_mut(length);
                start.fill(byte);
                (packed, out) = (rest, end);
            }
        }
    }
    true
}
