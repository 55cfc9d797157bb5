//! What cameras there are and what they offer, for people who write a configuration.

use std::path::{Path, PathBuf};

use v4l::framesize::FrameSizeEnum;

use super::super::ControlValue;
use super::choice;
use super::control::{self, Control};
use super::device::{Device, code_text};
use super::find::{Node, Places};
use super::negotiate::refusal;

/// A frame size that a camera offers.
#[derive(Clone, Debug)]
pub struct CameraSize {
    /// As text: `640x480`, or a range.
    pub size: String,
    /// Frames per second, slowest first; empty if the driver does not tell.
    pub rates: Vec<f32>,
}

/// A format that a camera offers.
#[derive(Clone, Debug)]
pub struct CameraFormat {
    /// Four-cc code.
    pub four_cc: String,
    /// Whether this program reads it.
    pub supported: bool,
    /// Frame sizes in the driver's order.
    pub sizes: Vec<CameraSize>,
}

/// A camera of this machine.
#[derive(Clone, Debug)]
pub struct CameraListing {
    /// Device node.
    pub path: PathBuf,
    /// Card name.
    pub card: String,
    /// Driver's name; empty if it could not be asked.
    pub driver: String,
    /// Where it is plugged in, in the driver's words.
    pub bus: String,
    /// Serial number of the USB device.
    pub serial: Option<String>,
    /// Stable names below `/dev/v4l`.
    pub links: Vec<PathBuf>,
    /// What it offers, or why it could not be asked; empty for what is no camera.
    pub formats: Result<Vec<CameraFormat>, String>,
    /// What can be set.
    pub controls: Vec<Control>,
}

/// Lists the cameras in `/dev`, by number. Nodes that deliver no pictures are left out.
#[must_use]
pub fn list_cameras() -> Vec<CameraListing> {
    let nodes = Places::default().nodes().into_iter().map(listing);
    nodes
        .filter(|c| c.formats.as_ref().map_or(true, |f| !f.is_empty()))
        .collect()
}

/// One camera by its device node; and what is wrong with controls that are wanted of it.
///
/// # Errors
/// Why it is no camera or cannot be asked.
pub fn look_at(path: &Path, wanted: &[(String, ControlValue)]) -> Result<(CameraListing, Vec<String>), String> {
    let real = path.canonicalize().map_err(|e| format!("{}: {e}", path.display()))?;
    let node = Places::default().nodes().into_iter().find(|n| n.path == real);
    let found = listing(node.ok_or_else(|| format!("{} is no video device", real.display()))?);
    let faults = control::faults(&found.controls, wanted);
    Ok((found, faults))
}

fn listing(node: Node) -> CameraListing {
    let mut listing = CameraListing {
        path: node.path,
        card: node.card,
        driver: String::new(),
        bus: String::new(),
        serial: node.serial,
        links: node.links,
        formats: Ok(Vec::new()),
        controls: Vec::new(),
    };
    let asked = Device::open(&listing.path).and_then(|device| Ok((device.identity()?, device)));
    match asked {
        Err(error) => listing.formats = Err(refusal(&listing.path, error).to_string()),
        Ok((identity, device)) => {
            if let Some(interface) = identity.interface {
                let describe = |code| CameraFormat {
                    four_cc: code_text(code),
                    supported: choice::find(code).is_some(),
                    sizes: device
                        .sizes(code)
                        .into_iter()
                        .map(|size| describe_size(&device, code, size))
                        .collect(),
                };
                listing.formats = Ok(device.formats(interface).into_iter().map(describe).collect());
                listing.controls = control::controls(&device);
            }
            (listing.card, listing.driver, listing.bus) = (identity.card, identity.driver, identity.bus);
        }
    }
    listing
}

fn describe_size(device: &Device, code: v4l::FourCC, size: FrameSizeEnum) -> CameraSize {
    match size {
        FrameSizeEnum::Discrete(d) => CameraSize {
            size: format!("{}x{}", d.width, d.height),
            rates: choice::named(&device.rates(code, d.width, d.height)),
        },
        FrameSizeEnum::Stepwise(s) => CameraSize {
            size: format!("{}x{} to {}x{}", s.min_width, s.min_height, s.max_width, s.max_height),
            rates: choice::named(&device.rates(code, s.max_width, s.max_height)),
        },
    }
}
