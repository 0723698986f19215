//! Whether an NVIDIA card can be used, before Burn is asked for it, which would end the program where it
//! cannot; and where the kernels are kept that are compiled for it.
//!
//! The one environment variable that is read here is CUDA's own: Burn finds CUDA's headers by `CUDA_PATH`
//! itself.

use std::ffi::c_int;
use std::path::PathBuf;

use libloading::{Library, Symbol};

use crate::{Error, Result};

/// The driver.
const DRIVER: &[&str] = &["libcuda.so.1", "libcuda.so", "nvcuda.dll"];
/// The compiler of kernels, by the major version of CUDA that it came with.
const NVRTC: &[&str] = &[
    "libnvrtc.so",
    "libnvrtc.so.13",
    "libnvrtc.so.12",
    "libnvrtc.so.11",
    "nvrtc64_130_0.dll",
    "nvrtc64_120_0.dll",
];
/// Where CUDA is looked for without the variable `CUDA_PATH`.
const FOLDERS: &[&str] = &["/usr/local/cuda", "/opt/cuda", "/usr"];
/// A header that kernels in half precision include.
const HEADER: &str = "include/cuda_fp16.h";

/// Checks that the card can be used, and has what is compiled for it kept for the next run.
///
/// # Errors
/// [`Error::Device`] says what is missing and what to install.
#[cfg(feature = "cuda")]
pub fn prepare(number: usize) -> Result<()> {
    use burn::cubecl::config::cache::CacheConfig;
    use burn::cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};

    check(number)?;
    // Of itself nothing that is compiled would be kept, and which kernels are fastest only in the folder
    // where a project of Rust's is built; now all of it is in the user's cache folder, or where else a
    // `cubecl.toml` in the folder or above says.
    let mut config = CubeClRuntimeConfig::from_current_dir().override_from_env();
    config.compilation.cache = true;
    if let CacheConfig::Target = config.environment.path {
        config.environment.path = CacheConfig::Global;
    }
    // The first one stays.
    CubeClRuntimeConfig::try_set(config);
    Ok(())
}

/// Checks that there is a driver with this card, NVRTC, and CUDA's headers.
///
/// # Errors
/// [`Error::Device`] says what is missing and what to install.
fn check(number: usize) -> Result<()> {
    let driver = open(DRIVER).ok_or_else(|| {
        missing("no NVIDIA driver (libcuda.so.1 was not found), expected one: install it, or leave out --device cuda")
    })?;
    let cards = cards(&driver)?;
    if number >= cards {
        let expected = match cards {
            0 => "that the driver finds a card, but it finds none".to_owned(),
            1 => "cuda:0, the only card".to_owned(),
            cards => format!("cuda:0 to cuda:{}", cards - 1),
        };
        return Err(missing(&format!("cuda:{number}, expected {expected}")));
    }
    if open(NVRTC).is_none() {
        return Err(missing(
            "no NVRTC (libnvrtc.so was not found), which compiles the kernels: install it with the CUDA toolkit, for instance \
             Debian's and Ubuntu's package libnvrtc12 or NVIDIA's cuda-nvrtc-12-8, and put its folder into LD_LIBRARY_PATH",
        ));
    }
    let folders = match std::env::var_os("CUDA_PATH") {
        Some(path) => vec![PathBuf::from(path)],
        None => FOLDERS.iter().map(PathBuf::from).collect(),
    };
    if !folders.iter().any(|folder| folder.join(HEADER).is_file()) {
        let looked: Vec<String> = folders
            .iter()
            .map(|folder| folder.display().to_string())
            .collect();
        return Err(missing(&format!(
            "no {HEADER} in {}, which the kernels include: install CUDA's headers (NVIDIA's package cuda-cudart-dev-12-8) and \
             name CUDA's folder in CUDA_PATH",
            looked.join(" or ")
        )));
    }
    Ok(())
}

fn missing(what: &str) -> Error {
    Error::Device(what.to_owned())
}

fn open(names: &[&str]) -> Option<Library> {
    // SAFETY: what these libraries do when they are loaded is what any program that uses CUDA has them do.
    names.iter().find_map(|name| unsafe { Library::new(name) }.ok())
}

/// How many cards the driver has.
fn cards(driver: &Library) -> Result<usize> {
    let failed = |what: String| {
        missing(&format!(
            "the NVIDIA driver does not start ({what}), expected one that does: nvidia-smi says more"
        ))
    };
    let mut count: c_int = 0;
    // SAFETY: the types are those of CUDA's driver interface, cuInit(unsigned int) and cuDeviceGetCount(int
    // *).
    let results = unsafe {
        let init: Symbol<'_, unsafe extern "C" fn(u32) -> c_int> = driver
            .get(b"cuInit\0")
            .map_err(|error| failed(error.to_string()))?;
        let get_count: Symbol<'_, unsafe extern "C" fn(*mut c_int) -> c_int> = driver
            .get(b"cuDeviceGetCount\0")
            .map_err(|error| failed(error.to_string()))?;
        [init(0), get_count(&raw mut count)]
    };
    const NO_DEVICE: c_int = 100;
    match results {
        [NO_DEVICE, _] | [0, NO_DEVICE] => Ok(0),
        [0, 0] => Ok(usize::try_from(count).unwrap_or(0)),
        [init, get_count] => Err(failed(format!(
            "cuInit gave {init}, cuDeviceGetCount {get_count}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_said() {
        // No machine has so many cards: with a driver the number is wrong, without one the driver is missing.
        let message = check(9_999).unwrap_err().to_string();
        assert!(message.starts_with("device: "), "{message}");
        match open(DRIVER) {
            None => assert!(message.contains("no NVIDIA driver"), "{message}"),
            Some(_) => assert!(
                message.contains("cuda:9999, expected") || message.contains("does not start"),
                "{message}"
            ),
        }
        assert!(open(&["libno-such-library.so"]).is_none());
    }
}
