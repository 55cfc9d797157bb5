//! Which device node a camera's name means: a path, a number, a link below `/dev/v4l`, a serial number or a card name.
//!
//! Numbers of nodes change when cameras are plugged in again, so names are looked up at every opening.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::super::CaptureError;
use super::device::Device;

/// Where the kernel and udev show cameras.
#[derive(Clone, Debug)]
pub(super) struct Places {
    dev: PathBuf,
    sys: PathBuf,
    /// Asks a device for its card name, which need not be what sysfs shows.
    ask: fn(&Path) -> Option<String>,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            dev: "/dev".into(),
            sys: "/sys/class/video4linux".into(),
            ask: |path| Some(Device::open(path).ok()?.identity().ok()?.card),
        }
    }
}

/// A video device node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) path: PathBuf,
    /// Card name that sysfs shows.
    pub(super) card: String,
    /// Serial number of the USB device, if it has one.
    pub(super) serial: Option<String>,
    /// Stable names below `/dev/v4l`.
    pub(super) links: Vec<PathBuf>,
    /// The hardware behind it; cameras with several nodes share it.
    hardware: PathBuf,
    /// Position among the nodes of one piece of hardware.
    index: u32,
}

fn line(path: PathBuf) -> Option<String> {
    let text = std::fs::read(path).ok()?;
    let text = String::from_utf8_lossy(&text).trim().to_owned();
    Some(text).filter(|t| !t.is_empty())
}

/// Serial number of the USB device that a node belongs to; hubs above it have numbers of their own.
fn serial(hardware: &Path) -> Option<String> {
    let device = hardware.ancestors().find(|dir| dir.join("idVendor").exists())?;
    line(device.join("serial"))
}

impl Places {
    /// All nodes by number.
    pub(super) fn nodes(&self) -> Vec<Node> {
        let links = self.links();
        let entries = std::fs::read_dir(&self.dev).into_iter().flatten().flatten();
        let names = entries.filter_map(|e| e.file_name().into_string().ok());
        let mut numbers: Vec<u32> = names
            .filter_map(|n| n.strip_prefix("video").and_then(|n| n.parse().ok()))
            .collect();
        numbers.sort_unstable();
        let node = |number: u32| {
            let name = format!("video{number}");
            let path = self.dev.join(&name);
            let sys = self.sys.join(&name);
            let hardware = sys.join("device").canonicalize().unwrap_or_else(|_| path.clone());
            Node {
                card: line(sys.join("name")).unwrap_or_default(),
                serial: serial(&hardware),
                links: links.get(&path).cloned().unwrap_or_default(),
                index: line(sys.join("index")).and_then(|i| i.parse().ok()).unwrap_or(0),
                hardware,
                path,
            }
        };
        numbers.into_iter().map(node).collect()
    }

    /// Links that udev makes, by the node they lead to.
    fn links(&self) -> BTreeMap<PathBuf, Vec<PathBuf>> {
        let mut found: BTreeMap<PathBuf, Vec<PathBuf>> = BTreeMap::new();
        for directory in ["v4l/by-id", "v4l/by-path"] {
            let entries = std::fs::read_dir(self.dev.join(directory)).into_iter().flatten();
            for link in entries.flatten().map(|e| e.path()) {
                if let Ok(node) = link.canonicalize() {
                    found.entry(node).or_default().push(link);
                }
            }
        }
        found.values_mut().for_each(|links| links.sort());
        found
    }

    /// The node that a name means.
    ///
    /// # Errors
    /// [`CaptureError::NoCamera`], and [`CaptureError::SeveralCameras`] for a name that fits more than one.
    pub(super) fn resolve(&self, name: &Path) -> Result<PathBuf, CaptureError> {
        if name.is_absolute() {
            return Ok(name.to_owned());
        }
        let text = name.to_string_lossy();
        // Device numbers have no leading zeros; serial numbers may.
        if let Some(number) = text.parse::<u16>().ok().filter(|n| n.to_string() == text) {
            return Ok(self.dev.join(format!("video{number}")));
        }
        let mut nodes = self.nodes();
        if !nodes.iter().any(|node| node.is_called(&text)) {
            for node in &mut nodes {
                node.card = (self.ask)(&node.path).unwrap_or_else(|| std::mem::take(&mut node.card));
            }
        }
        let mut fitting: Vec<&Node> = nodes.iter().filter(|node| node.is_called(&text)).collect();
        fitting.sort_by_key(|node| (node.hardware.clone(), node.index));
        fitting.dedup_by_key(|node| node.hardware.clone());
        let list = |nodes: &[&Node]| match nodes {
            [] => "none".to_owned(),
            nodes => nodes.iter().map(|n| n.describe()).collect::<Vec<_>>().join(", "),
        };
        match fitting[..] {
            [node] => Ok(node.path.clone()),
            [] => Err(CaptureError::NoCamera {
                name: text.into_owned(),
                found: list(&nodes.iter().filter(|n| n.index == 0).collect::<Vec<_>>()),
            }),
            _ => Err(CaptureError::SeveralCameras {
                name: text.into_owned(),
                found: list(&fitting),
            }),
        }
    }
}

impl Node {
    fn is_called(&self, name: &str) -> bool {
        let card = |name: &str| {
            let rest = self.card.strip_prefix(name);
            // USB cameras say "product: interface"
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(": "))
        };
        let serial = |name: &str| self.serial.as_deref() == Some(name);
        if let Some(name) = name.strip_prefix("card:") {
            return card(name);
        }
        if let Some(name) = name.strip_prefix("serial:") {
            return serial(name);
        }
        let link = |link: &PathBuf| {
            let link = link.file_name().unwrap_or_default().to_string_lossy();
            link == name || link.strip_suffix("-video-index0") == Some(name)
        };
        self.links.iter().any(link) || serial(name) || card(name)
    }

    fn describe(&self) -> String {
        let serial = self.serial.as_ref().map(|s| format!(", serial {s}"));
        format!(
            "{} ({:?}{})",
            self.path.display(),
            self.card,
            serial.unwrap_or_default()
        )
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A machine with the given USB cameras (name, serial), each with a metadata node behind it.
    fn machine(cameras: &[(&str, &str)]) -> (tempfile::TempDir, Places) {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().canonicalize().unwrap();
        let places = Places {
            dev: dir.join("dev"),
            sys: dir.join("class"),
            ask: |path| path.ends_with("video2").then(|| "Cam as it says".to_owned()),
        };
        for made in [places.dev.join("v4l/by-id"), places.sys.clone()] {
            std::fs::create_dir_all(made).unwrap();
        }
        for (at, (card, serial)) in cameras.iter().enumerate() {
            let usb = dir.join(format!("devices/usb1/1-{at}"));
            std::fs::create_dir_all(usb.join("interface")).unwrap();
            std::fs::write(dir.join("devices/usb1/idVendor"), "1d6b").unwrap();
            std::fs::write(dir.join("devices/usb1/serial"), "hub").unwrap();
            std::fs::write(usb.join("idVendor"), "046d").unwrap();
            if !serial.is_empty() {
                std::fs::write(usb.join("serial"), format!("{serial}\n")).unwrap();
            }
            for index in 0..2 {
                let name = format!("video{}", 2 * at + index);
                std::fs::write(places.dev.join(&name), "").unwrap();
                let class = places.sys.join(&name);
                std::fs::create_dir_all(&class).unwrap();
                std::fs::write(class.join("name"), format!("{card}\n")).unwrap();
                std::fs::write(class.join("index"), format!("{index}\n")).unwrap();
                symlink(usb.join("interface"), class.join("device")).unwrap();
                let link = format!("v4l/by-id/usb-{}_{serial}-video-index{index}", card.replace(' ', "_"));
                symlink(places.dev.join(&name), places.dev.join(link)).unwrap();
            }
        }
        (root, places)
    }

    #[test]
    fn a_camera_is_found_by_every_name_it_has() {
        let (_root, places) = machine(&[("Cam A: Cam A", "0001"), ("Cam B", "")]);
        let find = |name: &str| {
            let path = places.resolve(Path::new(name)).map_err(|e| e.to_string())?;
            Ok::<_, String>(path.file_name().unwrap().to_string_lossy().into_owned())
        };
        for (name, node) in [
            ("3", "video3"),
            ("/dev/video9", "video9"),
            ("0001", "video0"),
            ("serial:0001", "video0"),
            ("Cam A", "video0"),
            ("card:Cam A: Cam A", "video0"),
            ("Cam B", "video2"),
            ("card:Cam as it says", "video2"),
            ("usb-Cam_A:_Cam_A_0001", "video0"),
            ("usb-Cam_B_-video-index1", "video3"),
        ] {
            assert_eq!(find(name).as_deref(), Ok(node), "{name}");
        }
        let error = find("hub").unwrap_err();
        assert!(
            error.starts_with("no camera is called \"hub\"; found ")
                && error.contains("(\"Cam A: Cam A\", serial 0001)"),
            "{error}"
        );
        assert!(find("Cam").is_err() && find("card:0001").is_err());
    }

    #[test]
    fn a_name_that_two_cameras_have_is_refused() {
        let (_root, places) = machine(&[("Cam", "1a"), ("Cam", "1b")]);
        let error = places.resolve(Path::new("Cam")).unwrap_err().to_string();
        assert!(error.contains("several cameras are called \"Cam\""), "{error}");
        assert!(error.contains("serial 1a") && error.contains("serial 1b"), "{error}");
        assert_eq!(places.resolve(Path::new("1b")).unwrap().file_name().unwrap(), "video2");
    }
}
