//! Patches of an image.

/// Cuts an image `[3, size, size]` into patches `[patches, 3 * patch * patch]`, row by row, each in the order
/// of the convolution's weights. They begin `stride` values apart.
pub(crate) fn patches(size: usize, patch: usize, pixels: &[f32], stride: usize, out: &mut [f32]) {
    let across = size / patch;
    for channel in 0..3 {
        for y in 0..size {
            let line = &pixels[(channel * size + y) * size..][..size];
            let at = (channel * patch + y % patch) * patch;
            for (x, values) in line.chunks_exact(patch).enumerate() {
                out[(y / patch * across + x) * stride + at..][..patch].copy_from_slice(values);
            }
        }
    }
}
