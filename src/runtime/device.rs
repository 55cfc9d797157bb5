//! What the machine has: GPU and driver, read from `/proc`, and the libraries that this process has loaded.
//!
//! No library is asked: the answers must be the same before and after CUDA is up, and on machines without it.

use std::path::{Path, PathBuf};

/// Libraries whose versions an engine depends on, by the start of their file names.
const ENGINE_LIBRARIES: [&str; 5] = [
    "libnvinfer.so",
    "libnvonnxparser.so",
    "libcudart.so",
    "libcudnn.so",
    "libcuda.so",
];

/// Every library whose absence a user must be told of, and what needs it.
pub const WANTED_LIBRARIES: [(&str, &str); 6] = [
    ("libcuda.so.1", "NVIDIA driver"),
    ("libcudart.so", "CUDA runtime"),
    ("libcublas.so", "CUDA"),
    ("libcudnn.so", "cuDNN"),
    ("libnvinfer.so", "TensorRT"),
    ("libnvonnxparser.so", "TensorRT"),
];

/// GPU, driver and board as one line; `None` if there is no sign of an NVIDIA GPU.
///
/// Looked at below `root` (`/` outside tests): `proc/driver/nvidia/gpus/*/information` (model),
/// `proc/driver/nvidia/version` (driver), `proc/device-tree/model` and `etc/nv_tegra_release` (Jetson board and L4T).
#[must_use]
pub fn gpu(root: &Path) -> Option<String> {
    let read = |path: &Path| {
        std::fs::read_to_string(path)
            .ok()
            .map(|text| text.trim_matches(['\0', '\n', ' ']).to_owned())
    };
    let mut models: Vec<String> = std::fs::read_dir(root.join("proc/driver/nvidia/gpus"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| read(&entry.path().join("information")))
        .filter_map(|text| {
            let model = text.lines().find_map(|line| line.strip_prefix("Model:"))?;
            Some(model.trim().to_owned())
        })
        .collect();
    models.sort();
    let driver = read(&root.join("proc/driver/nvidia/version"));
    let driver = driver.and_then(|text| driver_version(text.lines().next()?));
    // Every ARM board has a device tree; only a Jetson has L4T.
    let l4t = read(&root.join("etc/nv_tegra_release")).and_then(|text| {
        let line = text.lines().next()?.trim_start_matches(['#', ' ']);
        Some(line.split(", GCID").next().unwrap_or(line).to_owned())
    });
    let board = l4t.as_ref().and_then(|_| read(&root.join("proc/device-tree/model")));
    let parts = [
        (!models.is_empty()).then(|| models.join(" + ")),
        board,
        driver.map(|version| format!("driver {version}")),
        l4t.map(|version| format!("L4T {version}")),
    ];
    let known: Vec<String> = parts.into_iter().flatten().collect();
    (!known.is_empty()).then(|| known.join(", "))
}

/// The version in `NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb 22 …`.
fn driver_version(line: &str) -> Option<String> {
    let dotted = |word: &&str| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.');
    line.split_whitespace().find(dotted).map(str::to_owned)
}

/// Paths of the libraries in a `/proc/<pid>/maps`, each once, in order.
#[must_use]
pub fn loaded(maps: &str) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = maps
        .lines()
        .filter_map(|line| line.find('/').map(|at| PathBuf::from(&line[at..])))
        .filter(|path| path.file_name().is_some_and(|n| n.to_string_lossy().contains(".so")))
        .collect();
    paths.sort();
    paths.dedup();
    paths
}

/// Versions that an engine depends on, out of the libraries loaded: file names with their sizes.
#[must_use]
pub fn engine_versions(loaded: &[PathBuf]) -> String {
    let version = |path: &PathBuf| {
        let name = path.file_name()?.to_str()?;
        let counts = ENGINE_LIBRARIES.iter().any(|start| name.starts_with(start));
        let bytes = std::fs::metadata(path).map_or(0, |m| m.len());
        counts.then(|| format!("{name} {bytes}"))
    };
    loaded.iter().filter_map(version).collect::<Vec<_>>().join(", ")
}

/// What this process has loaded; empty where there is no `/proc`.
#[must_use]
pub fn loaded_now() -> Vec<PathBuf> {
    loaded(&std::fs::read_to_string("/proc/self/maps").unwrap_or_default())
}

/// Directories that the loader searches: `LD_LIBRARY_PATH`, `/etc/ld.so.conf` with what it includes, the usual ones.
#[must_use]
pub fn library_directories(root: &Path, ld_library_path: Option<&str>) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = ld_library_path
        .into_iter()
        .flat_map(|text| text.split(':'))
        .filter(|dir| !dir.is_empty())
        .map(PathBuf::from)
        .collect();
    let mut files = vec![root.join("etc/ld.so.conf")];
    let mut included: Vec<PathBuf> = std::fs::read_dir(root.join("etc/ld.so.conf.d"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    included.sort();
    files.extend(included);
    let absolute = |dir: &str| root.join(dir.trim_start_matches('/'));
    for file in files {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        found.extend(text.lines().map(str::trim).filter(|l| l.starts_with('/')).map(absolute));
    }
    let machine = std::env::consts::ARCH;
    found.extend(
        [
            format!("/lib/{machine}-linux-gnu"),
            format!("/usr/lib/{machine}-linux-gnu"),
            format!("/usr/lib/{machine}-linux-gnu/tegra"),
            format!("/usr/lib/{machine}-linux-gnu/nvidia"),
            "/usr/local/cuda/lib64".into(),
            "/usr/local/lib".into(),
            "/lib64".into(),
            "/usr/lib64".into(),
            "/lib".into(),
            "/usr/lib".into(),
        ]
        .iter()
        .map(|dir| absolute(dir)),
    );
    let mut seen = std::collections::HashSet::new();
    found.retain(|dir| seen.insert(dir.clone()));
    found
}

/// The files whose names begin like a library's, in the first directory that has any; links are followed.
#[must_use]
pub fn find_library(directories: &[PathBuf], name: &str) -> Option<PathBuf> {
    directories.iter().find_map(|dir| {
        let entries = std::fs::read_dir(dir).ok()?.flatten();
        let mut found: Vec<PathBuf> = entries
            .map(|entry| entry.path())
            .filter(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(name)))
            .filter(|path| path.is_file())
            .collect();
        found.sort();
        let first = found.into_iter().next()?;
        Some(first.canonicalize().unwrap_or(first))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = root.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn a_graphics_card_is_known_by_model_and_driver() {
        let root = root(&[
            (
                "proc/driver/nvidia/gpus/0000:01:00.0/information",
                "Model: \t\t NVIDIA H100 PCIe\nIRQ:   16\n",
            ),
            (
                "proc/driver/nvidia/version",
                "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb 22 01:44:30 UTC 2024\nGCC version: 12\n",
            ),
        ]);
        assert_eq!(gpu(root.path()).unwrap(), "NVIDIA H100 PCIe, driver 550.54.14");
    }

    #[test]
    fn a_jetson_is_known_by_board_and_l4t_and_another_board_is_not_a_gpu() {
        let tegra = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n";
        let model = "NVIDIA Jetson Orin Nano Developer Kit\0";
        let jetson = root(&[("etc/nv_tegra_release", tegra), ("proc/device-tree/model", model)]);
        assert_eq!(
            gpu(jetson.path()).unwrap(),
            "NVIDIA Jetson Orin Nano Developer Kit, L4T R36 (release), REVISION: 4.3"
        );
        let other = root(&[("proc/device-tree/model", "Raspberry Pi 4 Model B Rev 1.4\0")]);
        assert_eq!(gpu(other.path()), None);
    }

    #[test]
    fn versions_come_from_the_names_of_loaded_libraries() {
        let maps = "7f00-7f01 r-xp 00000000 08:01 1 /usr/lib/libnvinfer.so.10.3.0\n\
                    7f01-7f02 r--p 00001000 08:01 1 /usr/lib/libnvinfer.so.10.3.0\n\
                    7f02-7f03 r--p 00000000 08:01 2 /usr/lib/libc.so.6\n7f03-7f04 rw-p 00000000 00:00 0 [heap]\n\
                    7f05-7f06 r--p 00000000 08:01 3 /opt/with space/libcudart.so.12.6.68\n";
        let paths = loaded(maps);
        assert_eq!(paths.len(), 3, "{paths:?}");
        assert_eq!(
            engine_versions(&paths),
            "libcudart.so.12.6.68 0, libnvinfer.so.10.3.0 0"
        );
    }

    #[test]
    fn libraries_are_found_where_the_loader_would_look() {
        let root = root(&[
            ("etc/ld.so.conf.d/cuda.conf", "# CUDA\n/opt/cuda/lib\n"),
            ("opt/cuda/lib/libcudart.so.12.6.68", ""),
            ("extra/libnvinfer.so.10", ""),
            ("usr/lib/libcudart.so.11", ""),
        ]);
        let extra = root.path().join("extra").display().to_string();
        let directories = library_directories(root.path(), Some(&format!(":{extra}")));
        let found = |name: &str| {
            let path = find_library(&directories, name)?;
            Some(path.file_name().unwrap().to_str().unwrap().to_owned())
        };
        assert_eq!(found("libcudart.so").unwrap(), "libcudart.so.12.6.68");
        assert_eq!(found("libnvinfer.so").unwrap(), "libnvinfer.so.10");
        assert_eq!(found("libcudnn.so"), None);
    }
}
