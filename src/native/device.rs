//! Which device computes, and how.

use std::fmt;
use std::str::FromStr;
#[cfg(feature = "wgpu")]
use std::sync::OnceLock;

use super::error::refused;
#[cfg(feature = "wgpu")]
use crate::gpu::Gpu;
use crate::towers::Attention;
#[cfg(feature = "wgpu")]
use crate::towers::check_gpu;

/// Where towers compute. As a text: `cpu`, `flex`, `wgpu`, `cuda`, `cuda:NUMBER` or `auto`.
///
/// ```
/// use ernie_vil::native::Device;
/// assert_eq!("cpu".parse::<Device>().unwrap(), Device::Cpu);
/// assert_eq!(Device::Cuda(1).to_string(), "cuda:1");
/// assert!("tpu".parse::<Device>().is_err());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Device {
    /// The CPU, by this project's own kernels.
    #[default]
    Cpu,
    /// The CPU, by Burn's Flex backend alone.
    Flex,
    /// A graphics card, by Vulkan, Metal or Direct3D 12.
    Wgpu,
    /// An NVIDIA card, by its number.
    Cuda(usize),
    /// A graphics card where there is one, and the CPU otherwise.
    Auto,
}

impl Device {
    /// Whether it is a graphics card, where kernels are compiled and work is waited for.
    pub fn is_card(self) -> bool {
        matches!(self, Self::Wgpu | Self::Cuda(_))
    }

    /// The device that this one stands for: `auto` is a graphics card where there is one, and the CPU
    /// otherwise.
    pub fn chosen(self) -> Self {
        match self {
            #[cfg(feature = "wgpu")]
            Self::Auto if gpu(self).is_ok() => Self::Wgpu,
            Self::Auto => Self::Cpu,
            device => device,
        }
    }

    /// The name of the graphics card that this stands for, where wgpu computes on one.
    pub fn adapter(self) -> Option<String> {
        match self.chosen() {
            #[cfg(feature = "wgpu")]
            Self::Wgpu => Some(gpu(self).ok()?.name().to_owned()),
            _ => None,
        }
    }
}

impl FromStr for Device {
    type Err = super::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, number) = match text.split_once(':') {
            Some((name, number)) => (name, Some(number)),
            None => (text, None),
        };
        let device = match (name, number) {
            ("cpu", None) => Self::Cpu,
            ("flex", None) => Self::Flex,
            ("wgpu", None) => Self::Wgpu,
            ("auto", None) => Self::Auto,
            ("cuda", None) => Self::Cuda(0),
            ("cuda", Some(number)) => {
                let number = number.parse();
                Self::Cuda(number.map_err(|_| refused!("{text:?}, expected a card's number: cuda:0"))?)
            }
            _ => return Err(refused!("expected cpu, wgpu, cuda, cuda:NUMBER, auto or flex")),
        };
        let lacks = |feature: &str| {
            Err(refused!(
                "this binary was built without the feature {feature} (cargo build --release --features {feature})"
            ))
        };
        match device {
            Self::Wgpu if !cfg!(feature = "wgpu") => lacks("wgpu"),
            Self::Cuda(_) if !cfg!(feature = "cuda") => lacks("cuda"),
            device => Ok(device),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Flex => f.write_str("flex"),
            Self::Wgpu => f.write_str("wgpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
            Self::Auto => f.write_str("auto"),
        }
    }
}

/// Precision of the weights on a device and of what is multiplied with them. Normalisations and sums stay in
/// single precision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceDtype {
    /// Single precision; on a card that wgpu finds, as the model's files have it.
    #[default]
    Auto,
    /// Single precision.
    F32,
    /// Single precision of which tensor cores multiply 11 bits: cuda.
    Tf32,
    /// Half precision: cuda, wgpu, flex.
    F16,
    /// bfloat16: cuda, flex.
    Bf16,
}

impl fmt::Display for DeviceDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::Tf32 => "tf32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        })
    }
}

/// A device and how it computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeviceOptions {
    /// Where towers compute.
    pub device: Device,
    /// In which precision.
    pub dtype: DeviceDtype,
    /// How Burn computes attention, on cuda and flex; the others have one way.
    pub attention: Option<Attention>,
}

impl From<Device> for DeviceOptions {
    fn from(device: Device) -> Self {
        Self {
            device,
            ..Self::default()
        }
    }
}

/// The graphics card, which all towers share. Where it is asked for by name a program may stand in for one,
/// which is slow.
#[cfg(feature = "wgpu")]
pub(crate) fn gpu(device: Device) -> crate::Result<Gpu> {
    static GPU: OnceLock<crate::Result<Gpu>> = OnceLock::new();
    let open = || {
        pollster::block_on(async {
            let gpu = Gpu::open(device == Device::Wgpu).await?;
            check_gpu(&gpu).await?;
            Ok(gpu)
        })
    };
    GPU.get_or_init(open).clone()
}
