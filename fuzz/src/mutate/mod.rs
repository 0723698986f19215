//! Changes valid files by their structure: what lies behind a checksum, a length or a table is reached seldom
//! by changing bytes.
//!
//! Everything is a function of a seed, so that what failed is made again.

mod image;
mod pickle;
mod text;

/// A changed file of at most `most` bytes for a target.
pub fn mutate(target: &str, bytes: &[u8], seed: u64, most: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut changed = bytes.to_vec();
    for _ in 0..=random.below(3) {
        changed = match random.below(8) {
            0 => noise(&mut random, changed),
            _ => by_structure(target, &mut random, &changed, most),
        };
        changed.truncate(most);
    }
    changed
}

/// As [`mutate`], in the place of the first `size` bytes of `data`, for every other seed: of libFuzzer's own
/// changes one leads to the next. Returns the new size.
#[allow(dead_code, reason = "for libFuzzer")]
pub fn in_place(target: &str, data: &mut [u8], size: usize, most: usize, seed: u32) -> Option<usize> {
    if seed.is_multiple_of(2) {
        return None;
    }
    let changed = mutate(target, &data[..size], seed.into(), most.min(data.len()));
    data[..changed.len()].copy_from_slice(&changed);
    Some(changed.len())
}

fn by_structure(target: &str, random: &mut Random, bytes: &[u8], most: usize) -> Vec<u8> {
    match target {
        "image" => image::change(random, bytes, most),
        "pickle" => pickle::change(random, bytes, most),
        "index" if is_log(bytes) => log(random, bytes),
        "index" | "safetensors" => safetensors(random, bytes, most),
        "npy" => npy(random, bytes, most),
        "config" | "request" | "captions" => text::json(random, bytes, most),
        _ => text::lines(random, bytes, most),
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `most`, which is not 0.
    fn below(&mut self, most: usize) -> usize {
        (self.next() % most.max(1) as u64) as usize
    }

    fn byte(&mut self) -> u8 {
        self.next() as u8
    }

    fn one_in(&mut self, many: usize) -> bool {
        self.below(many) == 0
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// A place in what has `length` items, where it has one.
    fn place(&mut self, length: usize) -> Option<usize> {
        (length > 0).then(|| self.below(length))
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.byte()).collect()
    }

    /// A number in the place of another one: near it, small, at the edge of a type, or any.
    fn number(&mut self, old: u64) -> u64 {
        const EDGES: [u64; 20] = [
            0,
            1,
            2,
            3,
            7,
            8,
            15,
            16,
            127,
            128,
            255,
            256,
            32_767,
            65_535,
            65_536,
            0x7fff_ffff,
            0x8000_0000,
            0xffff_ffff,
            1 << 32,
            u64::MAX,
        ];
        match self.below(8) {
            0 => old.wrapping_add(1),
            1 => old.wrapping_sub(1),
            2 => old.wrapping_mul(2),
            3 => old / 2,
            4 => self.below(64) as u64,
            5 => self.next() >> self.below(64),
            _ => self.pick(&EDGES),
        }
    }
}

/// Bytes that are changed, put in, left out or repeated anywhere.
fn noise(random: &mut Random, mut bytes: Vec<u8>) -> Vec<u8> {
    for _ in 0..=random.below(4) {
        let Some(at) = random.place(bytes.len()) else {
            return random.bytes(16);
        };
        let run = 1 + random.below(16).min(bytes.len() - at - 1);
        match random.below(7) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.byte(),
            2 => bytes[at] = random.pick(&[0, 1, 0x7f, 0x80, 0xff]),
            3 => drop(bytes.drain(at..at + run)),
            4 => {
                let new = random.bytes(run);
                bytes.splice(at..at, new);
            }
            5 => {
                let copy = bytes[at..at + run].to_vec();
                let to = random.below(bytes.len());
                bytes.splice(to..to, copy);
            }
            _ => bytes.truncate(at),
        }
    }
    bytes
}

/// Items that are left out, repeated, moved and replaced; `other` changes one.
fn items<T: Clone>(random: &mut Random, items: &mut Vec<T>, mut other: impl FnMut(&mut Random, &mut T)) {
    let Some(at) = random.place(items.len()) else {
        return;
    };
    let to = random.below(items.len());
    match random.below(8) {
        0 => drop(items.remove(at)),
        1 => items.swap(at, to),
        2 => items.insert(to, items[at].clone()),
        // Many of one: what is looked for among all of them each time takes long.
        3 => {
            let many = 1 << random.below(10);
            let copies = vec![items[at].clone(); many];
            items.splice(at..at, copies);
        }
        _ => other(random, &mut items[at]),
    }
}

fn is_log(bytes: &[u8]) -> bool {
    bytes
        .get(16..)
        .is_some_and(|contents| contents.starts_with(b"Hernie-vil log"))
}

/// Records of an index's log, under right checksums.
fn log(random: &mut Random, bytes: &[u8]) -> Vec<u8> {
    use sha2::{Digest, Sha256};
    let mut records = Vec::new();
    let mut rest = bytes;
    while let Some((length, behind)) = rest.split_first_chunk::<8>()
        && let Some(contents) = behind.get(8..)
        && let Some((contents, behind)) =
            contents.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX))
    {
        records.push(contents.to_vec());
        rest = behind;
    }
    items(random, &mut records, |random, record| {
        *record = noise(random, std::mem::take(record))
    });
    let mut log = Vec::new();
    let torn = random.one_in(4).then(|| random.below(records.len()));
    for (number, contents) in records.iter().enumerate() {
        let length = match torn == Some(number) && random.one_in(2) {
            true => random.number(contents.len() as u64),
            false => contents.len() as u64,
        };
        let length = length.to_le_bytes();
        let mut sum: [u8; 8] = Sha256::new()
            .chain_update(length)
            .chain_update(contents)
            .finalize()[..8]
            .try_into()
            .expect("eight bytes");
        if torn == Some(number) {
            sum[0] ^= random.byte();
        }
        log.extend(length);
        log.extend(sum);
        log.extend(contents);
    }
    log.extend(rest);
    log
}

/// The header of a safetensors file, whose length follows it.
fn safetensors(random: &mut Random, bytes: &[u8], most: usize) -> Vec<u8> {
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return noise(random, bytes.to_vec());
    };
    let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
    let (header, data) = rest.split_at_checked(length).unwrap_or((rest, &[]));
    let header = text::json(random, header, most / 2);
    let mut length = header.len() as u64;
    if random.one_in(8) {
        length = random.number(length);
    }
    let mut data = data.to_vec();
    if random.one_in(4) {
        let size = random.number(data.len() as u64).min(most as u64);
        data.resize(size as usize, 0x40);
    }
    let mut file = length.to_le_bytes().to_vec();
    file.extend(header);
    file.extend(data);
    file
}

/// The header of a NumPy file, whose length follows it.
fn npy(random: &mut Random, bytes: &[u8], most: usize) -> Vec<u8> {
    const START: usize = 8;
    let Some(&version) = bytes.get(6) else {
        return noise(random, bytes.to_vec());
    };
    let width = if version == 1 { 2 } else { 4 };
    let Some(digits) = bytes.get(START..START + width) else {
        return noise(random, bytes.to_vec());
    };
    let length = digits
        .iter()
        .rev()
        .fold(0, |n, &digit| n << 8 | usize::from(digit));
    let rest = &bytes[START + width..];
    let (header, data) = rest.split_at_checked(length).unwrap_or((rest, &[]));
    let header = text::json(random, header, most / 2);
    let mut length = header.len() as u64;
    if random.one_in(8) {
        length = random.number(length);
    }
    let mut file = bytes[..START].to_vec();
    file.extend(&length.to_le_bytes()[..width]);
    file.extend(header);
    file.extend(data);
    file
}
