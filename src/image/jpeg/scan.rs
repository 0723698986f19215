//! Entropy-coded segments: blocks, MCUs, restarts, and what becomes of damage.

use super::frame::{Component, Frame, Headers, Scan, ZIGZAG};
use super::huffman::{BitReader, Table, TableSpec};
use super::idct::Block;
use crate::{Error, Result};

/// The data ended within an MCU, or before a restart marker.
pub(super) struct Stalled;

/// Decodes the blocks of one kind of scan.
pub(super) trait Coding {
    /// Decodes a block of the scan's component at `place`.
    fn block(&mut self, bits: &mut BitReader, place: usize, block: &mut Block) -> Result<()>;
    /// A restart marker was passed.
    fn restart(&mut self);
    /// Passes over the next blocks of which nothing is coded, at most `most`; returns how many those are.
    /// `zeros` tells how many of the next blocks, at most as many as it is asked for, have no coefficient of
    /// the scan yet.
    #[inline(always)]
    fn skip(&mut self, _most: usize, _zeros: impl FnOnce(usize) -> usize) -> usize {
        0
    }
}

/// Sequential coding: whole blocks. `TRACKED` goes with a tracked [`BitReader`].
pub(super) struct Sequential<const TRACKED: bool> {
    /// The tables for DC and AC, by component of the scan.
    tables: Vec<[Table; 2]>,
    /// The last DC value, by component of the scan.
    last: [i32; 4],
}

fn table(tables: &[Option<TableSpec>; 4], index: usize, dc: bool) -> Result<Table> {
    match tables.get(index) {
        Some(Some(spec)) => Table::new(spec, dc),
        _ => Err(Error::Image(format!(
            "JPEG: a scan uses the {} Huffman table {index}, which is not defined",
            if dc { "DC" } else { "AC" }
        ))),
    }
}

impl<const TRACKED: bool> Sequential<TRACKED> {
    pub fn new(headers: &Headers, scan: &Scan) -> Result<Self> {
        let tables = scan
            .components
            .iter()
            .map(|component| {
                Ok([
                    table(&headers.dc_tables, component.dc_table, true)?,
                    table(&headers.ac_tables, component.ac_table, false)?,
                ])
            })
            .collect::<Result<_>>()?;
        Ok(Sequential { tables, last: [0; 4] })
    }
}

impl<const TRACKED: bool> Coding for Sequential<TRACKED> {
    #[inline(always)]
    fn block(&mut self, reader: &mut BitReader, place: usize, block: &mut Block) -> Result<()> {
        let mut bits = *reader;
        let [dc, ac] = &self.tables[place];
        let last = &mut self.last[place & 3];
        // Damaged data may add up to anything.
        *last = last.wrapping_add(bits.difference::<TRACKED>(dc));
        block[0] = *last as i16;
        let mut k = 1;
        while k < 64 {
            let next = bits.coefficient::<TRACKED>(ac);
            if next.size == 0 {
                if next.run < 15 {
                    break;
                }
                k += 16;
            } else {
                k += next.run;
                block[usize::from(ZIGZAG[k]) & 63] = next.value as i16;
                k += 1;
            }
        }
        *reader = bits;
        Ok(())
    }

    fn restart(&mut self) {
        self.last = [0; 4];
    }
}

/// The first pass over the DC coefficients of a progression.
pub(super) struct DcFirst {
    tables: Vec<Table>,
    last: [i32; 4],
    low: u32,
}

impl DcFirst {
    pub fn new(headers: &Headers, scan: &Scan) -> Result<Self> {
        let tables = scan
            .components
            .iter()
            .map(|component| table(&headers.dc_tables, component.dc_table, true))
            .collect::<Result<_>>()?;
        Ok(DcFirst {
            tables,
            last: [0; 4],
            low: scan.low,
        })
    }
}

impl Coding for DcFirst {
    #[inline(always)]
    fn block(&mut self, bits: &mut BitReader, place: usize, block: &mut Block) -> Result<()> {
        let last = &mut self.last[place & 3];
        let Some(value) = last.checked_add(bits.difference::<false>(&self.tables[place])) else {
            return Err(Error::Image("JPEG: a DC coefficient beyond 32 bits".into()));
        };
        *last = value;
        block[0] = (value << self.low) as i16;
        Ok(())
    }

    fn restart(&mut self) {
        self.last = [0; 4];
    }
}

/// A further bit of the DC coefficients.
pub(super) struct DcRefinement {
    pub low: u32,
}

impl Coding for DcRefinement {
    #[inline(always)]
    fn block(&mut self, bits: &mut BitReader, _: usize, block: &mut Block) -> Result<()> {
        if bits.bit() {
            block[0] |= 1 << self.low;
        }
        Ok(())
    }

    fn restart(&mut self) {}
}

/// The first pass over a band of AC coefficients.
pub(super) struct AcFirst {
    table: Table,
    first: usize,
    last: usize,
    low: u32,
    /// Blocks whose band is known to be zero.
    zero_blocks: u32,
}

impl AcFirst {
    pub fn new(headers: &Headers, scan: &Scan) -> Result<Self> {
        Ok(AcFirst {
            table: table(&headers.ac_tables, scan.components[0].ac_table, false)?,
            first: scan.first,
            last: scan.last,
            low: scan.low,
            zero_blocks: 0,
        })
    }
}

impl Coding for AcFirst {
    #[inline(always)]
    fn block(&mut self, reader: &mut BitReader, _: usize, block: &mut Block) -> Result<()> {
        if self.zero_blocks > 0 {
            self.zero_blocks -= 1;
            return Ok(());
        }
        let mut bits = *reader;
        let mut k = self.first;
        while k <= self.last {
            let next = bits.coefficient::<false>(&self.table);
            if next.size == 0 {
                if next.run < 15 {
                    // A run of 2^run blocks and as many as the appended bits say, this one included.
                    self.zero_blocks = (1 << next.run) - 1 + bits.bits(next.run as u32);
                    break;
                }
                k += 16;
            } else {
                k += next.run;
                block[usize::from(ZIGZAG[k]) & 63] = (next.value << self.low) as i16;
                k += 1;
            }
        }
        *reader = bits;
        Ok(())
    }

    fn restart(&mut self) {
        self.zero_blocks = 0;
    }

    #[inline(always)]
    fn skip(&mut self, most: usize, _: impl FnOnce(usize) -> usize) -> usize {
        let count = most.min(self.zero_blocks as usize);
        self.zero_blocks -= count as u32;
        count
    }
}

/// A further bit of a band of AC coefficients.
pub(super) struct AcRefinement(AcFirst);

impl AcRefinement {
    pub fn new(headers: &Headers, scan: &Scan) -> Result<Self> {
        AcFirst::new(headers, scan).map(AcRefinement)
    }
}

impl Coding for AcRefinement {
    #[inline(always)]
    fn block(&mut self, reader: &mut BitReader, _: usize, block: &mut Block) -> Result<()> {
        let AcFirst {
            ref table,
            first,
            last,
            low,
            ref mut zero_blocks,
        } = self.0;
        let mut bits = *reader;
        let (plus, minus) = (1i16 << low, -1i16 << low);
        let refine = |bits: &mut BitReader, coefficient: &mut i16| {
            if bits.bit() && *coefficient & plus == 0 {
                *coefficient = coefficient.wrapping_add(if *coefficient >= 0 { plus } else { minus });
            }
        };
        let mut k = first;
        if *zero_blocks == 0 {
            while k <= last {
                let (mut run, coded) = bits.run(table);
                let mut value = 0;
                if coded {
                    value = if bits.bit() { plus } else { minus };
                } else if run < 15 {
                    *zero_blocks = (1 << run) + bits.bits(run as u32);
                    break;
                }
                // Over `run` zeros and all that is not zero to the place of the new coefficient.
                while k <= last {
                    let coefficient = &mut block[usize::from(ZIGZAG[k]) & 63];
                    if *coefficient != 0 {
                        refine(&mut bits, coefficient);
                    } else if run == 0 {
                        break;
                    } else {
                        run -= 1;
                    }
                    k += 1;
                }
                if value != 0 {
                    block[usize::from(ZIGZAG[k]) & 63] = value;
                }
                k += 1;
            }
        }
        if *zero_blocks > 0 {
            for &position in ZIGZAG.get(k..=last).unwrap_or_default() {
                let coefficient = &mut block[usize::from(position) & 63];
                if *coefficient != 0 {
                    refine(&mut bits, coefficient);
                }
            }
            *zero_blocks -= 1;
        }
        *reader = bits;
        Ok(())
    }

    fn restart(&mut self) {
        self.0.zero_blocks = 0;
    }

    #[inline(always)]
    fn skip(&mut self, most: usize, zeros: impl FnOnce(usize) -> usize) -> usize {
        let most = most.min(self.0.zero_blocks as usize);
        if most == 0 {
            return 0;
        }
        let count = zeros(most);
        self.0.zero_blocks -= count as u32;
        count
    }
}

/// Steps through the MCUs of a scan.
pub(super) struct Walk<'a> {
    data: &'a [u8],
    pub bits: BitReader<'a>,
    restart_interval: usize,
    /// MCUs to the next restart marker.
    to_restart: usize,
    /// Its number, 0 to 7.
    next_restart: u8,
    /// The data of this segment has run out: the rest of its MCUs stay as they are.
    starved: bool,
    /// The last strip of which there was data.
    pub last_told: usize,
}

/// Where a block of a strip lies.
#[derive(Clone, Copy)]
pub(super) struct Place {
    /// Which of the frame's components.
    pub component: usize,
    /// The block row in the strip.
    pub row: usize,
    /// The block column; there may be columns, and rows, beyond the component's.
    pub column: usize,
}

/// What blocks are decoded into.
pub(super) trait Sink {
    /// Lends a block, which holds what earlier scans left in it.
    fn block(&mut self, place: Place) -> &mut Block;
    /// Takes the block back.
    fn done(&mut self, place: Place);
    /// How many blocks of the row from `place` on, at most `most`, have no coefficient of the scan yet.
    #[inline(always)]
    fn zeros(&self, _place: Place, _most: usize) -> usize {
        0
    }
}

impl<'a> Walk<'a> {
    pub fn new(headers: &Headers<'a>, tracked: bool) -> Self {
        Walk {
            data: headers.data,
            bits: BitReader::new(headers.data, headers.position, tracked),
            restart_interval: headers.restart_interval,
            to_restart: headers.restart_interval,
            next_restart: 0,
            starved: false,
            last_told: 0,
        }
    }

    /// Whether nothing of the scan is left to read.
    pub fn is_over(&self) -> bool {
        self.starved && self.restart_interval == 0
    }

    /// Passes the restart marker that is due. If another marker is there, guesses as libjpeg does
    /// whether data or markers are missing.
    #[cold]
    fn restart(&mut self) -> Result<(), Stalled> {
        self.bits.align();
        let next = |bits: &mut BitReader| match Headers::marker(self.data, bits.position) {
            Some((marker, position)) => {
                (bits.marker, bits.position) = (marker, position);
                Ok(())
            }
            None => {
                bits.at_end = true;
                Err(Stalled)
            }
        };
        if self.bits.marker == 0 {
            next(&mut self.bits)?;
        }
        loop {
            match self.bits.marker {
                0xd0..=0xd7 => match (self.bits.marker - 0xd0).wrapping_sub(self.next_restart) & 7 {
                    // One or two that come later: the data up to it is missing.
                    1 | 2 => break,
                    // One or two that came before: to the next one.
                    6 | 7 => next(&mut self.bits)?,
                    // The right one, or a damaged one.
                    _ => {
                        self.bits.marker = 0;
                        break;
                    }
                },
                // No valid marker.
                0..0xc0 => next(&mut self.bits)?,
                _ => break,
            }
        }
        self.next_restart = (self.next_restart + 1) & 7;
        self.to_restart = self.restart_interval;
        if self.bits.marker == 0 {
            self.starved = false;
        }
        self.bits.restarted();
        Ok(())
    }

    /// Decodes one MCU row of the frame into the blocks that `sink` lends.
    #[inline(always)]
    pub fn strip(
        &mut self,
        coding: &mut impl Coding,
        scan: &Scan,
        frame: &Frame,
        strip: usize,
        sink: &mut impl Sink,
    ) -> Result<Result<(), Stalled>> {
        // A scan of one component goes block by block over what the image covers.
        let alone = scan.components.len() == 1;
        let first = &frame.components[scan.components[0].index];
        let (rows, mcus) = if alone {
            (
                (first.blocks_high - strip * first.v).min(first.v),
                first.blocks_wide,
            )
        } else {
            (1, frame.mcus_wide)
        };
        // The components' place in the frame and their blocks in an MCU, across and down.
        let mut parts = [(0, 1, 1); 4];
        for (part, component) in parts.iter_mut().zip(&scan.components) {
            let Component { h, v, .. } = frame.components[component.index];
            *part = if alone {
                (component.index, 1, 1)
            } else {
                (component.index, h, v)
            };
        }
        let parts = &parts[..scan.components.len()];
        let blocks = parts.iter().map(|(_, h, v)| h * v).sum();
        for row in 0..rows {
            let mut column = 0;
            while column < mcus {
                if !self.starved {
                    self.last_told = strip;
                }
                if self.restart_interval > 0 {
                    if self.to_restart == 0 {
                        if let Err(stalled) = self.restart() {
                            return Ok(Err(stalled));
                        }
                        coding.restart();
                    }
                    self.to_restart -= 1;
                }
                self.bits.begin_mcu(blocks, self.restart_interval > 0);
                for (place, &(component, h, v)) in parts.iter().enumerate() {
                    for down in 0..v {
                        for across in 0..h {
                            let target = Place {
                                component,
                                row: row + down,
                                column: column * h + across,
                            };
                            let block = sink.block(target);
                            if !self.starved {
                                coding.block(&mut self.bits, place, block)?;
                            }
                            sink.done(target);
                        }
                    }
                }
                self.starved |= self.bits.starved();
                if self.bits.stalled() {
                    return Ok(Err(Stalled));
                }
                column += 1;
                // Most blocks of a progression's later scans, so a file of few bytes may have very many.
                if alone && !self.starved {
                    let most = match self.restart_interval {
                        0 => mcus - column,
                        _ => self.to_restart.min(mcus - column),
                    };
                    let next = Place {
                        component: parts[0].0,
                        row,
                        column,
                    };
                    let skipped = coding.skip(most, |most| sink.zeros(next, most));
                    column += skipped;
                    if self.restart_interval > 0 {
                        self.to_restart -= skipped;
                    }
                }
            }
        }
        Ok(Ok(()))
    }
}
