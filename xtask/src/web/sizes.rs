//! How large what the package ships is, and how large it may be.

use std::io;

use flate2::Compression;
use flate2::read::GzEncoder;

/// The size of a module, or of the scripts together.
#[derive(Debug, PartialEq)]
pub struct Row {
    name: &'static str,
    bytes: u64,
    /// After gzip, as servers send it.
    gzip: u64,
    /// Of that.
    limit: Option<u64>,
}

impl Row {
    /// Of these bytes.
    pub fn new(name: &'static str, bytes: &[u8], limit: Option<u64>) -> Result<Self, String> {
        let gzip = gzip(bytes).map_err(|error| format!("{name} could not be packed by gzip: {error}"))?;
        Ok(Self {
            name,
            bytes: bytes.len() as u64,
            gzip,
            limit,
        })
    }
}

pub fn table(rows: &[Row]) -> String {
    let line = |cells: [&str; 4]| {
        let [name, bytes, gzip, limit] = cells;
        format!("{name:12} {bytes:>12} {gzip:>12} {limit:>12}\n")
    };
    let mut text = line(["", "bytes", "after gzip", "at most"]);
    for row in rows {
        let limit = row.limit.map_or("any".into(), grouped);
        text += &line([row.name, &grouped(row.bytes), &grouped(row.gzip), &limit]);
    }
    text
}

/// A sentence for each row over its limit.
pub fn excesses(rows: &[Row]) -> String {
    let sentences = rows.iter().filter_map(|row| {
        let over = row.gzip.checked_sub(row.limit?).filter(|&over| over > 0)?;
        Some(format!("{} is {} bytes too large.", row.name, grouped(over)))
    });
    sentences.collect::<Vec<_>>().join("\n")
}

fn gzip(bytes: &[u8]) -> io::Result<u64> {
    io::copy(&mut GzEncoder::new(bytes, Compression::best()), &mut io::sink())
}

/// The number with commas between its thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that gzip cannot make smaller, so that it adds its header and little more.
    fn noise(count: usize) -> Vec<u8> {
        let mut state = 1_u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        };
        (0..count).map(|_| next()).collect()
    }

    #[test]
    fn sizes_are_before_and_after_gzip() {
        let row = |bytes: &[u8]| Row::new("cpu", bytes, None).unwrap();
        let (zeros, noise) = (row(&[0; 10_000]), row(&noise(1000)));
        assert_eq!((zeros.bytes, noise.bytes), (10_000, 1000));
        assert!(zeros.gzip < 100, "{zeros:?}");
        assert!((1000..1100).contains(&noise.gzip), "{noise:?}");
    }

    #[test]
    fn what_is_too_large_is_named() {
        let noise = noise(1000);
        let row = |name, limit| Row::new(name, &noise, limit).unwrap();
        let rows = [
            row("cpu", Some(900)),
            row("webgpu", Some(2000)),
            row("cpu-threads", None),
        ];
        let excesses = excesses(&rows);
        assert!(
            excesses.starts_with("cpu is 1") && excesses.ends_with(" bytes too large."),
            "{excesses}"
        );
        assert!(!excesses.contains('\n'), "{excesses}");
        let gzip = rows[0].gzip;
        assert!(super::excesses(&[row("cpu", Some(gzip))]).is_empty());
        assert_eq!(
            super::excesses(&[row("cpu", Some(gzip - 1))]),
            "cpu is 1 bytes too large."
        );

        let table = table(&rows);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 4);
        assert!(
            lines[2].contains(" 1,000 ") && lines[2].ends_with(" 2,000"),
            "{table}"
        );
        assert!(lines[3].ends_with(" any"), "{table}");
    }

    #[test]
    fn numbers_are_grouped() {
        let numbers = [0, 999, 1000, 123_456, 1_234_567].map(grouped);
        assert_eq!(numbers, ["0", "999", "1,000", "123,456", "1,234,567"]);
    }
}
