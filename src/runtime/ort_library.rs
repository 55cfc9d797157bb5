//! Finds ONNX Runtime's shared library, and looks at it before the `ort` crate does.
//!
//! Search order: the path in the configuration, and then nothing else; otherwise `SAMCLIP_ORT_LIB`, `ORT_DYLIB_PATH`,
//! the directory of the program, the loader's own search, and the directories that distributions and vendors use.
//!
//! The crate panics where a library exports the entry point but not the programming interface behind it, so the
//! library is opened here first and asked for both. It stays open: that costs nothing where it is used, and unloading a
//! library that has started threads is worse than keeping it.
#![allow(unsafe_code)] // asks a C library for its version

use std::ffi::{CStr, CString, c_char, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Oldest version of the C interface that is asked for: ONNX Runtime 1.17.
const OLDEST: u32 = ort::MINOR_VERSION;

/// Names and directories where distributions and vendors put the library.
const USUAL_PLACES: [&str; 8] = [
    "libonnxruntime.so",
    "libonnxruntime.so.1",
    "/usr/local/lib/libonnxruntime.so",
    "/usr/lib/libonnxruntime.so",
    "/usr/lib/aarch64-linux-gnu/libonnxruntime.so",
    "/usr/lib/x86_64-linux-gnu/libonnxruntime.so",
    "/opt/onnxruntime/lib/libonnxruntime.so",
    "/usr/lib64/libonnxruntime.so",
];

/// Every path that is tried, in order. A path that the user configured is the only one.
pub(super) fn candidates(
    configured: Option<&Path>,
    environment: impl IntoIterator<Item = PathBuf>,
    program: Option<&Path>,
) -> Vec<PathBuf> {
    if let Some(path) = configured {
        return vec![path.to_owned()];
    }
    let beside = program.and_then(Path::parent).map(|dir| dir.join("libonnxruntime.so"));
    let named = environment.into_iter().filter(|p| !p.as_os_str().is_empty());
    let mut all: Vec<PathBuf> = named.collect();
    all.extend(beside);
    all.extend(USUAL_PLACES.iter().map(PathBuf::from));
    all
}

/// The first members of ONNX Runtime's `OrtApiBase`, whose layout never changes.
#[repr(C)]
struct ApiBase {
    get_api: Option<unsafe extern "C" fn(u32) -> *const c_void>,
    get_version_string: Option<unsafe extern "C" fn() -> *const c_char>,
}

/// Opens a library and asks for its version; the reason why it cannot be used otherwise.
pub(super) fn version(path: &Path) -> Result<String, String> {
    let bare = path.components().count() == 1;
    if !bare && !path.exists() {
        return Err("not there".into());
    }
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|_| "the path holds a zero byte".to_owned())?;
    // SAFETY: the name is a C string. Loading runs the library's initialisers, as it would for any caller of it.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if handle.is_null() {
        let reason = loader_error();
        return Err(if bare && reason.contains("No such file") {
            "not there".into()
        } else {
            reason
        });
    }
    // SAFETY: the handle is open and never closed; the symbol's name is a C string.
    let symbol = unsafe { libc::dlsym(handle, c"OrtGetApiBase".as_ptr()) };
    if symbol.is_null() {
        return Err("exports no OrtGetApiBase; it is not ONNX Runtime, or a Python module that contains it".into());
    }
    // SAFETY: this is the signature of OrtGetApiBase in every version of onnxruntime_c_api.h.
    let entry = unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C" fn() -> *const ApiBase>(symbol) };
    // SAFETY: takes no argument; the result is null or points to a static structure.
    let base = unsafe { entry().as_ref() }.ok_or("OrtGetApiBase returns nothing")?;
    let text = base.get_version_string.ok_or("its version cannot be asked for")?;
    // SAFETY: takes no argument; the result is null or a static C string.
    let text = unsafe {
        let text = text();
        (!text.is_null()).then(|| CStr::from_ptr(text))
    };
    let found = text.and_then(|t| t.to_str().ok()).ok_or("its version is not text")?;
    let minor = found.split('.').nth(1).and_then(|part| part.parse::<u32>().ok());
    if minor.is_none_or(|minor| minor < OLDEST) {
        return Err(format!("version {found}, 1.{OLDEST} or newer is needed"));
    }
    let get_api = base.get_api.ok_or("its programming interface cannot be asked for")?;
    // SAFETY: takes a number; the result is null or points to a static structure.
    if unsafe { get_api(OLDEST) }.is_null() {
        return Err(format!(
            "version {found} does not offer version {OLDEST} of its interface"
        ));
    }
    Ok(found.to_owned())
}

/// What the loader said last.
fn loader_error() -> String {
    // SAFETY: dlerror returns null or a C string that lives until the next call of the loader in this thread.
    let text = unsafe {
        let text = libc::dlerror();
        (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
    };
    text.unwrap_or_else(|| "the loader gives no reason".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configured_library_is_the_only_candidate() {
        let environment = || [PathBuf::from("/a.so"), PathBuf::new(), PathBuf::from("/b.so")];
        let program = Path::new("/opt/samclip/bin/samclipd");
        let all = candidates(None, environment(), Some(program));
        assert_eq!(
            all[..3],
            ["/a.so", "/b.so", "/opt/samclip/bin/libonnxruntime.so"].map(PathBuf::from)
        );
        assert_eq!(all.len(), 3 + USUAL_PLACES.len());
        let one = candidates(Some(Path::new("/c.so")), environment(), Some(program));
        assert_eq!(one, [PathBuf::from("/c.so")]);
    }

    #[test]
    fn what_is_no_library_is_refused_with_a_reason() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("libonnxruntime.so");
        assert_eq!(version(&path), Err("not there".into()));
        assert_eq!(version(Path::new("libsamclip-is-nowhere.so")), Err("not there".into()));
        std::fs::write(&path, "text").unwrap();
        assert!(version(&path).unwrap_err().contains("libonnxruntime.so"));
    }
}
