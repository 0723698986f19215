//! Graphics cards, through WebGPU: in a browser, and natively on Vulkan, Metal and Direct3D 12.
//!
//! [`Gpu`] is a card that was opened, with the device that Burn computes on. The device is made here and
//! handed to Burn, because what fails on it has to reach whoever waits for a result: CubeCL's own handler of
//! errors ends the program, and in a browser the module.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::tensor::Device;
use burn::tensor::wgpu::WgpuSetup;
use wgpu::DeviceType;

use crate::towers::{CardOptions, Engine, Precision};
use crate::{Error, Result};

/// A graphics card, or a program that stands in for one. Cheap to clone.
#[derive(Clone)]
pub struct Gpu {
    device: Device,
    name: Arc<str>,
    options: CardOptions,
}

/// The first failure on a device that nobody was waiting for.
type Failure = Arc<Mutex<Option<String>>>;

/// The devices that were made, and what failed on them.
static FAILURES: Mutex<Vec<(Device, Failure)>> = Mutex::new(Vec::new());

/// A lock that a panic elsewhere does not spoil: what it guards is whole at any time.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells what failed on a device, if it is one of those that were made here. It says more than what the
/// failure left.
///
/// # Errors
/// [`Error::Device`] with the first failure.
pub(crate) fn check(device: &Device) -> Result<()> {
    let failures = lock(&FAILURES);
    let failure = failures.iter().find(|(of, _)| of == device);
    match failure.and_then(|(_, failure)| lock(failure).clone()) {
        Some(failure) => Err(Error::Device(failure)),
        None => Ok(()),
    }
}

impl Gpu {
    /// Takes the system's preferred adapter: a fast one, unless that is a program (`software`: that one will
    /// do).
    ///
    /// # Errors
    /// [`Error::Device`] where there is no adapter, or where it gives no device.
    pub async fn open(software: bool) -> Result<Self> {
        let instance = wgpu::Instance::default();
        let options = wgpu::RequestAdapterOptions {
            power_preference: wgpu::PowerPreference::HighPerformance,
            ..Default::default()
        };
        let adapter = instance.request_adapter(&options).await;
        let adapter = adapter.map_err(|error| {
            Error::Device(format!(
                "no adapter ({error}), expected a graphics card and its driver"
            ))
        })?;
        let info = adapter.get_info();
        let is_software = info.device_type == DeviceType::Cpu;
        if is_software && !software {
            return Err(Error::Device(format!(
                "{:?} computes on the processor, expected a graphics card",
                info.name
            )));
        }
        let offered = adapter.limits();
        let descriptor = wgpu::DeviceDescriptor {
            // Whatever it has: CubeCL asks the adapter what it may use.
            required_features: adapter.features().difference(
                wgpu::Features::MAPPABLE_PRIMARY_BUFFERS | wgpu::Features::all_experimental_mask(),
            ),
            required_limits: offered.clone(),
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            ..Default::default()
        };
        let device = adapter.request_device(&descriptor).await;
        let failed = |error: &dyn std::fmt::Display| Error::Device(format!("{:?}: {error}", info.name));
        let (device, queue) = device.map_err(|error| failed(&error))?;
        let setup = WgpuSetup {
            instance,
            adapter,
            device: device.clone(),
            queue,
            backend: info.backend,
        };
        let burn = Device::wgpu_options().setup(setup).init();
        let burn = burn.map_err(|error| failed(&error))?;
        let failure = Failure::default();
        lock(&FAILURES).push((burn.clone(), failure.clone()));
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            lock(&failure).get_or_insert_with(|| error.to_string());
        }));
        Ok(Self {
            device: burn,
            name: info.name.into(),
            options: CardOptions {
                precision: Precision::default(),
                is_software,
                largest: offered
                    .max_storage_buffer_binding_size
                    .min(offered.max_buffer_size),
            },
        })
    }

    /// The same card, on which weights are kept in the given way.
    pub fn with_precision(self, precision: Precision) -> Self {
        Self {
            options: CardOptions {
                precision,
                ..self.options
            },
            ..self
        }
    }

    /// The device that Burn computes on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What computes on it.
    pub fn engine(&self) -> Engine {
        Engine::Card(self.options)
    }

    /// The adapter's name, as its driver tells it; empty in browsers that keep it for themselves.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the card is a program on the processor.
    pub fn is_software(&self) -> bool {
        self.options.is_software
    }
}
