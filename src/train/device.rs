//! Where a run computes: the processor, or a GPU by Vulkan (feature `train-vulkan`).
//!
//! Both compute the same model: [`Kernels`](super::kernels::Kernels) names what differs. On the processor these are fused
//! loops, on a GPU the framework's operators, which it fuses itself.

use std::str::FromStr;

use super::precision::Precision;

/// What computes, as the command line names it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The processor: `cpu`.
    #[default]
    Cpu,
    /// A GPU: `gpu` takes the first one, or with several processes on a host the one of the process's number there; `gpu:1`
    /// takes the second.
    Gpu(Option<usize>),
    /// A Vulkan driver that computes on the processor, such as Mesa's lavapipe: `gpu:software`. Far slower than `cpu`; it
    /// tests the path to a GPU where there is none.
    SoftwareGpu,
}

/// Why there is no such device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// A name that is none.
    #[error("found {0:?}, expected cpu, gpu, gpu:NUMBER or gpu:software")]
    Name(String),
    /// The machine lacks it.
    #[error(
        "--device: found {found} GPUs that Vulkan reaches, expected GPU {index}, counted from 0; install the GPU's Vulkan driver \
         (vulkaninfo --summary lists what it reaches), start no more processes than a host has GPUs, or use --device cpu"
    )]
    Missing {
        /// How many there are.
        found: usize,
        /// The one that was asked for.
        index: usize,
    },
    /// It does not compute in that precision.
    #[error("precision: found {found:?}, expected {expected} on this device; change the recipe, or --device", found = .found.to_string())]
    Precision {
        /// What the recipe asks for.
        found: Precision,
        /// What the device has.
        expected: String,
    },
    /// No Vulkan driver computes on the processor.
    #[error(
        "--device: found no Vulkan driver that computes on the processor, expected one such as lavapipe; install it (Debian and \
         Ubuntu: mesa-vulkan-drivers), or use --device cpu"
    )]
    NoSoftwareGpu,
}

impl FromStr for Device {
    type Err = DeviceError;

    fn from_str(name: &str) -> Result<Self, DeviceError> {
        match name.split_once(':') {
            None if name == "cpu" => Ok(Self::Cpu),
            None if name == "gpu" => Ok(Self::Gpu(None)),
            Some(("gpu", "software")) => Ok(Self::SoftwareGpu),
            Some(("gpu", number)) => match number.parse() {
                Ok(index) => Ok(Self::Gpu(Some(index))),
                Err(_) => Err(DeviceError::Name(name.into())),
            },
            _ => Err(DeviceError::Name(name.into())),
        }
    }
}

/// GPUs by Vulkan.
#[cfg(feature = "train-vulkan")]
pub mod gpu {
    use cubecl::device::WgpuDeviceKind;

    use burn_backend::{Backend as _, DType};

    use super::DeviceError;
    use crate::train::kernels::Kernels;
    use crate::train::precision::Precision;

    /// The backend that computes on a GPU, with chains of element-wise operators fused. Kernels are chosen by rule and not by trying
    /// them out, so that a run that was killed goes on as the one that was not.
    pub type Gpu = burn_wgpu::Wgpu;
    /// One GPU.
    pub type GpuDevice = cubecl::Device;

    impl Kernels for Gpu {
        fn computes_in(precision: Precision, device: &GpuDevice) -> bool {
            match precision {
                Precision::Fp32 => true,
                Precision::Fp16 => Self::supports_dtype(device, DType::F16),
                Precision::Bf16 => Self::supports_dtype(device, DType::BF16),
            }
        }
    }

    /// GPU `index` among those that Vulkan reaches: discrete ones first, then integrated and virtual ones.
    ///
    /// # Errors
    /// [`DeviceError::Missing`] if there are not as many.
    pub fn open(index: usize) -> Result<GpuDevice, DeviceError> {
        let kinds: [fn(usize) -> WgpuDeviceKind; 4] = [
            WgpuDeviceKind::DiscreteGpu,
            WgpuDeviceKind::IntegratedGpu,
            WgpuDeviceKind::VirtualGpu,
            WgpuDeviceKind::Other,
        ];
        let each = kinds
            .iter()
            .flat_map(|kind| (0..).map_while(|i| GpuDevice::vulkan(kind(i)).ok()));
        let found: Vec<GpuDevice> = each.collect();
        let missing = DeviceError::Missing {
            found: found.len(),
            index,
        };
        found.into_iter().nth(index).ok_or(missing).map(opened)
    }

    /// The Vulkan driver that computes on the processor.
    ///
    /// # Errors
    /// [`DeviceError::NoSoftwareGpu`] without one.
    pub fn open_software() -> Result<GpuDevice, DeviceError> {
        let found = GpuDevice::vulkan(WgpuDeviceKind::Cpu);
        found.map_err(|_| DeviceError::NoSoftwareGpu).map(opened)
    }

    fn opened(device: GpuDevice) -> GpuDevice {
        tracing::info!(?device, compiler = device.client().name(), "computing on a GPU");
        device
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_the_processor_or_a_gpu_by_number() {
        assert_eq!("cpu".parse(), Ok(Device::Cpu));
        assert_eq!("gpu".parse(), Ok(Device::Gpu(None)));
        assert_eq!("gpu:2".parse(), Ok(Device::Gpu(Some(2))));
        assert_eq!("gpu:software".parse(), Ok(Device::SoftwareGpu));
        for wrong in ["", "GPU", "gpu:", "gpu:-1", "gpu:1:2", "cpu:0", "cuda"] {
            let found = wrong.parse::<Device>();
            assert_eq!(found, Err(DeviceError::Name(wrong.into())), "{wrong:?}");
        }
    }
}
