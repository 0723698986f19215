//! Times resizing and normalising on one thread. Prints one JSON line a case; `peers/resize_opencv.py`
//! times the same with OpenCV.

use std::hint::black_box;
use std::time::{Duration, Instant};

use ernie_vil::image::{Pixels, Preprocessor, resize_linear};

/// Width and height of the images.
const SIZES: [(u32, u32); 6] = [
    (640, 480),
    (4000, 3000),
    (300, 200),
    (101, 67),
    (1920, 1080),
    (672, 672),
];

fn main() {
    let preprocessor = Preprocessor::new(224);
    for (width, height) in SIZES {
        let bytes = 3 * width as usize * height as usize;
        let data = (0..bytes as u32)
            .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
            .collect();
        let pixels = Pixels::new(width, height, data).expect("three bytes a pixel");
        let (to_width, to_height) = preprocessor.resized(width, height);
        report("resize", width, height, || {
            resize_linear(&pixels, to_width as u32, to_height as u32)
        });
        report("resize_crop", width, height, || preprocessor.crop(&pixels));
        let crop = preprocessor.crop(&pixels);
        let mut tensor = vec![0.0; preprocessor.values()];
        report("normalise", width, height, || {
            preprocessor.tensor_into(&crop, &mut tensor)
        });
    }
}

/// Prints the median time of a call.
fn report<T>(case: &str, width: u32, height: u32, mut call: impl FnMut() -> T) {
    let mut times = Vec::new();
    let start = Instant::now();
    while times.len() < 50 || start.elapsed() < Duration::from_millis(300) {
        let before = Instant::now();
        black_box(call());
        times.push(before.elapsed().as_nanos());
    }
    times.sort_unstable();
    let median = times[times.len() / 2];
    println!("{{\"case\": \"{case}\", \"image\": \"{width}x{height}\", \"median_ns\": {median}}}");
}
