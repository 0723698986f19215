//! A float32 as text, the way numpy prints it.

/// Writes a float32 as numpy 1 prints it: the shortest digits that read back as the same float32,
/// at least one of them after the point (`1.0`), and an exponent of at least two digits below 1e-4
/// and from 1e16 on (`1e-05`, `1.5e+17`). What is not finite becomes `nan`, `inf` or `-inf`.
///
/// ```
/// use ernie_vil::vectors::write_f32;
/// let mut text = Vec::new();
/// write_f32(&mut text, 0.1);
/// text.push(b' ');
/// write_f32(&mut text, 1e-5);
/// assert_eq!(text, b"0.1 1e-05");
/// ```
#[inline]
pub fn write_f32(out: &mut Vec<u8>, value: f32) {
    // Compared as f64, so that the bounds are exact: the float32 nearest to 1e-4 lies below 1e-4.
    let magnitude = f64::from(value.abs());
    // In this range the digits come in plain notation already.
    if value == 0.0 || (1e-4..1e12).contains(&magnitude) {
        out.extend_from_slice(zmij::Buffer::new().format_finite(value).as_bytes());
    } else {
        write_rare(out, value, magnitude);
    }
}

/// The numbers that a vector of length 1 seldom holds.
#[cold]
fn write_rare(out: &mut Vec<u8>, value: f32, magnitude: f64) {
    if value.is_nan() {
        return out.extend_from_slice(b"nan");
    }
    if (1e-4..1e16).contains(&magnitude) {
        // Whole numbers: the shortest digits, then zeros up to the point.
        return out.extend_from_slice(format!("{value}.0").as_bytes());
    }
    let text = format!("{value:e}");
    let Some((digits, exponent)) = text.split_once('e') else {
        return out.extend_from_slice(text.as_bytes()); // inf, -inf
    };
    let (sign, exponent) = exponent
        .strip_prefix('-')
        .map_or(('+', exponent), |rest| ('-', rest));
    out.extend_from_slice(format!("{digits}e{sign}{exponent:0>2}").as_bytes());
}
