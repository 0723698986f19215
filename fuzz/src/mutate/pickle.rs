//! Pickles by their operations.

use super::{Random, items, noise};

/// The kinds of operands that an operation has.
#[derive(Clone, Copy)]
enum Operand {
    /// So many bytes.
    Bytes(usize),
    /// A length of so many bytes, and as many bytes as it says.
    Sized(usize),
    /// So many lines.
    Lines(usize),
}

fn operand(operation: u8) -> Option<Operand> {
    Some(match operation {
        0x80 | b'K' | b'h' | b'q' => Operand::Bytes(1),
        b'M' => Operand::Bytes(2),
        b'J' | b'j' | b'r' => Operand::Bytes(4),
        b'G' | 0x95 => Operand::Bytes(8),
        0x8a | 0x8c | b'C' => Operand::Sized(1),
        0x8b | b'B' | b'X' => Operand::Sized(4),
        0x8d | 0x8e | 0x96 => Operand::Sized(8),
        b'c' => Operand::Lines(2),
        b'('
        | b')'
        | b'.'
        | b'0'
        | b'1'
        | b'2'
        | b'N'
        | b'R'
        | b']'
        | b'a'
        | b'b'
        | b'd'
        | b'e'
        | b'l'
        | b's'
        | b't'
        | b'u'
        | b'}'
        | 0x81
        | 0x85..=0x89
        | 0x93
        | 0x94 => Operand::Bytes(0),
        _ => return None,
    })
}

/// One operation with its operands.
fn length(rest: &[u8]) -> Option<usize> {
    let (&operation, behind) = rest.split_first()?;
    let operands = match operand(operation)? {
        Operand::Bytes(count) => count,
        Operand::Sized(width) => {
            let digits = behind.get(..width)?;
            let size = digits
                .iter()
                .rev()
                .fold(0usize, |n, &digit| n << 8 | usize::from(digit));
            size.checked_add(width)?
        }
        Operand::Lines(count) => {
            let mut ends = behind.iter().enumerate().filter(|&(_, &byte)| byte == b'\n');
            ends.nth(count - 1)?.0 + 1
        }
    };
    (operands <= behind.len()).then_some(1 + operands)
}

pub fn change(random: &mut Random, bytes: &[u8], most: usize) -> Vec<u8> {
    let mut operations: Vec<Vec<u8>> = Vec::new();
    let mut rest = bytes;
    while let Some(length) = length(rest) {
        // Their lengths would be wrong, and nothing stands on them.
        if rest[0] != 0x95 {
            operations.push(rest[..length].to_vec());
        }
        rest = &rest[length..];
    }
    if operations.is_empty() {
        return noise(random, bytes.to_vec());
    }
    let at = random.below(operations.len());
    match random.below(4) {
        // A run of them again and again: entries of one dictionary, uses of one object.
        0 => {
            let end = (at + 1 + random.below(24)).min(operations.len());
            let run = operations[at..end].to_vec();
            let size: usize = run.iter().map(Vec::len).sum();
            let times = (1usize << random.below(14)).min(most.saturating_sub(bytes.len()) / size.max(1));
            let mut copies = Vec::with_capacity(times * run.len());
            (0..times).for_each(|_| copies.extend_from_slice(&run));
            operations.splice(at..at, copies);
        }
        1 => {
            for _ in 0..=random.below(8) {
                let at = random.below(operations.len() + 1);
                let new = snippet(random);
                operations.insert(at, new);
            }
        }
        _ => items(random, &mut operations, |random, operation| {
            let kind = operation[0];
            match operand(kind) {
                Some(Operand::Bytes(0)) | None => {
                    operation[0] = random.pick(b"().012NR]abdelstu}\x81\x85\x86\x87\x88\x89\x93\x94");
                }
                Some(Operand::Bytes(count)) => {
                    let mut old = [0; 8];
                    old[..count].copy_from_slice(&operation[1..]);
                    let new = random.number(u64::from_le_bytes(old)).to_le_bytes();
                    operation[1..].copy_from_slice(&new[..count]);
                }
                Some(Operand::Sized(width)) => match random.below(3) {
                    // A length that is not true.
                    0 => {
                        let mut old = [0; 8];
                        old[..width].copy_from_slice(&operation[1..=width]);
                        let new = random.number(u64::from_le_bytes(old)).to_le_bytes();
                        operation[1..=width].copy_from_slice(&new[..width]);
                    }
                    _ => {
                        let mut data = noise(random, operation[1 + width..].to_vec());
                        if random.one_in(4) {
                            data = data.repeat(1 << random.below(8));
                        }
                        if width == 1 {
                            data.truncate(255);
                        }
                        operation.truncate(1);
                        operation.extend(&(data.len() as u64).to_le_bytes()[..width]);
                        operation.extend(data);
                    }
                },
                Some(Operand::Lines(_)) => *operation = noise(random, std::mem::take(operation)),
            }
        }),
    }
    let mut joined = operations.concat();
    joined.extend_from_slice(rest);
    joined
}

/// An operation that makes, remembers or moves something.
fn snippet(random: &mut Random) -> Vec<u8> {
    let text = |text: &str| [&[0x8c, text.len() as u8], text.as_bytes()].concat();
    match random.below(9) {
        0 => vec![b'h', random.below(16) as u8],
        1 => vec![b'q', random.below(16) as u8],
        2 => vec![random.pick(b"()]}N\x88\x89")],
        3 => vec![random.pick(b"aesutl012\x85\x86\x87\x94")],
        4 => vec![b'K', random.byte()],
        5 => text(random.pick(&[
            "UnpackBigParamInfor@@",
            "OriginShape",
            "slices",
            "model",
            "state_dict",
            "w",
            "",
        ])),
        6 => random
            .pick(&[
                "cnumpy.core.multiarray\n_reconstruct\n",
                "cnumpy.core.multiarray\nscalar\n",
                "cnumpy.core.numeric\n_frombuffer\n",
                "cnumpy\nndarray\n",
                "cnumpy\ndtype\n",
                "c_codecs\nencode\n",
                "cbuiltins\ntuple\n",
                "ccollections\nOrderedDict\n",
            ])
            .into(),
        7 => vec![b'R'],
        _ => [&[b'C', 4][..], &random.bytes(4)].concat(),
    }
}
