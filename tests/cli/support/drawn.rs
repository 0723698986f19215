//! Pictures that cost more than their files show.

use std::io::Write;

/// Returns a black PNG of one byte a pixel, which is much smaller than its pixels.
pub fn black_png(side: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, side, side);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(&vec![0; (side * side) as usize]).unwrap();
    writer.finish().unwrap();
    bytes
}

/// Returns a clear picture of `side` pixels a side, eight bytes each, which a decoder has to go through.
pub fn clear_png(side: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, side, side);
    encoder.set_color(png::ColorType::Rgba);
    encoder.set_depth(png::BitDepth::Sixteen);
    encoder.set_compression(png::Compression::Fast);
    encoder.set_filter(png::Filter::NoFilter);
    let mut writer = encoder.write_header().unwrap();
    let mut rows = writer.stream_writer().unwrap();
    let row = vec![0; 8 * side as usize];
    for _ in 0..side {
        rows.write_all(&row).unwrap();
    }
    rows.finish().unwrap();
    writer.finish().unwrap();
    bytes
}

/// Returns a black picture of `P4`, one bit a pixel: its pixels are held, 4 bytes each.
pub fn black_pnm(side: usize) -> Vec<u8> {
    let mut file = format!("P4 {side} {side} ").into_bytes();
    file.resize(file.len() + side.div_ceil(8) * side, 0xff);
    file
}
