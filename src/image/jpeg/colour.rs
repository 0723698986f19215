//! Colour conversion, bit for bit libjpeg's and OpenCV's.

/// Makes RGB pixels of as many samples of Y, Cb and Cr.
#[inline(always)]
pub(super) fn rgb_row([y, cb, cr]: [&[u8]; 3], out: &mut [[u8; 3]]) {
    let count = out.len();
    let (y, cb, cr) = (&y[..count], &cb[..count], &cr[..count]);
    for (i, out) in out.iter_mut().enumerate() {
        *out = rgb(y[i], cb[i], cr[i]);
    }
}

/// ITU-R BT.601 in full range, as JFIF has it, with libjpeg's 16 fraction bits.
#[inline(always)]
pub(super) fn rgb(y: u8, cb: u8, cr: u8) -> [u8; 3] {
    const HALF: i32 = 1 << 15;
    let (y, cb, cr) = (i32::from(y), i32::from(cb) - 128, i32::from(cr) - 128);
    [
        y + ((91881 * cr + HALF) >> 16),
        y + ((-22554 * cb - 46802 * cr + HALF) >> 16),
        y + ((116130 * cb + HALF) >> 16),
    ]
    .map(|light| light.clamp(0, 255) as u8)
}

/// The light that an ink and black let through together, as OpenCV has it. Both are stored
/// inverted.
#[inline(always)]
pub(super) fn printed(ink: u8, black: u8) -> u8 {
    let (ink, black) = (i32::from(ink), i32::from(black));
    (black - (((255 - ink) * black) >> 8)) as u8
}

#[cfg(target_arch = "x86_64")]
pub(super) mod avx2 {
    use std::arch::x86_64::*;

    /// [`super::rgb_row`], 16 pixels at a time.
    #[target_feature(enable = "avx2")]
    #[inline]
    pub fn rgb_row([y, cb, cr]: [&[u8]; 3], out: &mut [[u8; 3]]) {
        let (pixels, rest) = out.as_chunks_mut::<16>();
        let done = 16 * pixels.len();
        let samples = y.as_chunks().0.iter().zip(cb.as_chunks().0).zip(cr.as_chunks().0);
        for (out, ((y, cb), cr)) in pixels.iter_mut().zip(samples) {
            rgb_16(y, cb, cr, out);
        }
        super::rgb_row([&y[done..], &cb[done..], &cr[done..]], rest);
    }

    /// 16 samples as 16-bit numbers.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn load(samples: &[u8; 16]) -> __m256i {
        // SAFETY: 16 bytes to read; the instruction needs no alignment.
        _mm256_cvtepu8_epi16(unsafe { _mm_loadu_si128(samples.as_ptr().cast()) })
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn rgb_16(y: &[u8; 16], cb: &[u8; 16], cr: &[u8; 16], out: &mut [[u8; 3]; 16]) {
        let center = _mm256_set1_epi16(128);
        let (y, cb, cr) = (
            load(y),
            _mm256_sub_epi16(load(cb), center),
            _mm256_sub_epi16(load(cr), center),
        );
        // The whole part of the factor apart, the fraction by the high half of a product with twice
        // the value, then halved with rounding: the rounding that 16 fraction bits give.
        let times = |value: __m256i, whole: __m256i, fraction: i16| {
            let twice = _mm256_mulhi_epi16(_mm256_add_epi16(value, value), _mm256_set1_epi16(fraction));
            let once = _mm256_srai_epi16(_mm256_add_epi16(twice, _mm256_set1_epi16(1)), 1);
            _mm256_add_epi16(whole, once)
        };
        let red = _mm256_add_epi16(y, times(cr, cr, (91881 - 65536) as i16));
        let blue = _mm256_add_epi16(
            y,
            times(cb, _mm256_add_epi16(cb, cb), (116130 - 2 * 65536) as i16),
        );
        let both = |pairs: __m256i| {
            let factors = _mm256_set1_epi32((65536 - 46802) << 16 | (-22554i16 as u16 as i32));
            let sum = _mm256_add_epi32(_mm256_madd_epi16(pairs, factors), _mm256_set1_epi32(1 << 15));
            _mm256_srai_epi32(sum, 16)
        };
        let green = _mm256_packs_epi32(
            both(_mm256_unpacklo_epi16(cb, cr)),
            both(_mm256_unpackhi_epi16(cb, cr)),
        );
        let green = _mm256_add_epi16(y, _mm256_sub_epi16(green, cr));

        // The bytes of 16 pixels, by colour.
        let narrow = |light: __m256i| {
            _mm_packus_epi16(_mm256_castsi256_si128(light), _mm256_extracti128_si256(light, 1))
        };
        let (red, green, blue) = (narrow(red), narrow(green), narrow(blue));
        // Byte `i` of the result's 48 is colour `i % 3` of pixel `i / 3`.
        const fn places(third: usize, colour: usize) -> [i8; 16] {
            let mut places = [-1; 16];
            let mut i = 0;
            while i < 16 {
                if (third * 16 + i) % 3 == colour {
                    places[i] = ((third * 16 + i) / 3) as i8;
                }
                i += 1;
            }
            places
        }
        const PLACES: [[[i8; 16]; 3]; 3] = [
            [places(0, 0), places(0, 1), places(0, 2)],
            [places(1, 0), places(1, 1), places(1, 2)],
            [places(2, 0), places(2, 1), places(2, 2)],
        ];
        for (out, places) in out
            .as_flattened_mut()
            .as_chunks_mut::<16>()
            .0
            .iter_mut()
            .zip(&PLACES)
        {
            // SAFETY: 16 bytes to read; the instruction needs no alignment.
            let [r, g, b] = places
                .each_ref()
                .map(|p| unsafe { _mm_loadu_si128(p.as_ptr().cast()) });
            let mixed = _mm_or_si128(
                _mm_or_si128(_mm_shuffle_epi8(red, r), _mm_shuffle_epi8(green, g)),
                _mm_shuffle_epi8(blue, b),
            );
            // SAFETY: 16 bytes to write; the instruction needs no alignment.
            unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), mixed) };
        }
    }
}
