//! Where models compute.

use candle_core::Device;
use candle_core::utils::{cuda_is_available, metal_is_available};

use crate::config::{Choice, DeviceChoice};
use crate::{Error, Result};

/// A device that this build supports and this machine has.
#[derive(Debug, Clone)]
pub(super) enum ComputeDevice {
    /// This crate's own kernels.
    Cpu,
    /// A GPU, through candle.
    Gpu(Device),
}

impl ComputeDevice {
    /// The device chosen. `auto` is a GPU where the build supports one and the machine has it.
    ///
    /// # Errors
    /// [`Error::Config`] when the device is not available.
    pub(super) fn of(choice: DeviceChoice) -> Result<Self> {
        let gpu = match choice {
            DeviceChoice::Auto if cuda_is_available() => Device::new_cuda(0),
            DeviceChoice::Auto if metal_is_available() => Device::new_metal(0),
            DeviceChoice::Auto | DeviceChoice::Cpu => return Ok(Self::Cpu),
            DeviceChoice::Cuda => Device::new_cuda(0),
            DeviceChoice::Mps => Device::new_metal(0),
        };
        gpu.map(Self::Gpu).map_err(|error| Error::Config {
            setting: "device".into(),
            value: choice.as_str().into(),
            reason: format!(
                "{error}; use device=\"cpu\", or a build with that device's feature (cuda, metal)"
            ),
        })
    }

    /// cpu, cuda or mps
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Gpu(device) if device.is_cuda() => "cuda",
            Self::Gpu(device) if device.is_metal() => "mps",
            Self::Gpu(_) | Self::Cpu => "cpu",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_is_always_there() {
        assert_eq!(ComputeDevice::of(DeviceChoice::Cpu).unwrap().name(), "cpu");
    }

    #[test]
    fn a_device_that_is_not_there_is_refused_by_name() {
        for choice in [DeviceChoice::Cuda, DeviceChoice::Mps] {
            match ComputeDevice::of(choice) {
                Ok(device) => assert_eq!(device.name(), choice.as_str(), "this machine has one"),
                Err(Error::Config { setting, value, .. }) => {
                    assert_eq!((setting.as_str(), value.as_str()), ("device", choice.as_str()));
                }
                Err(other) => panic!("{other}"),
            }
        }
    }
}
