//! The limits of the sizes in a configuration.

use crate::{Error, Result};

/// No width, depth or count in a configuration may be larger: the largest published model stays
/// far below, and sizes that are products of two such numbers cannot overflow.
const LARGEST_SIZE: usize = 1 << 22;
/// No tower may have more blocks than this.
const MOST_BLOCKS: usize = 1 << 10;

pub(super) fn size(field: &str, value: usize) -> Result<()> {
    if (1..=LARGEST_SIZE).contains(&value) {
        return Ok(());
    }
    Err(Error::Config(format!(
        "{field} is {value}, expected 1 to {LARGEST_SIZE}"
    )))
}

pub(super) fn image_size(value: usize) -> Result<()> {
    const LARGEST: usize = 1 << 13;
    if (1..=LARGEST).contains(&value) {
        return Ok(());
    }
    Err(Error::Config(format!(
        "image.image_size is {value}, expected 1 to {LARGEST}"
    )))
}

pub(super) fn blocks(field: &str, value: usize) -> Result<()> {
    if (1..=MOST_BLOCKS).contains(&value) {
        return Ok(());
    }
    Err(Error::Config(format!(
        "{field} is {value}, expected 1 to {MOST_BLOCKS}"
    )))
}

pub(super) fn epsilon(field: &str, value: f64) -> Result<()> {
    if value > 0.0 && value < 1.0 {
        return Ok(());
    }
    Err(Error::Config(format!(
        "{field} is {value}, expected a number between 0 and 1"
    )))
}

pub(super) fn multiple(field: &str, value: usize, of_field: &str, of: usize) -> Result<()> {
    if value.is_multiple_of(of) {
        return Ok(());
    }
    Err(Error::Config(format!(
        "{field} is {value}, expected a multiple of {of_field}, {of}"
    )))
}
