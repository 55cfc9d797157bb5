//! Where engines and text embeddings are kept (cache), and what must outlive the program: events and live queries (state).

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The cache directory: the configured one, else systemd's `$CACHE_DIRECTORY`, else `$XDG_CACHE_HOME/samclip`, else
/// `~/.cache/samclip`; `None` where there is not even a home.
#[must_use]
pub fn cache_dir(configured: Option<&Path>) -> Option<PathBuf> {
    choose(configured, &CACHE, |name| std::env::var_os(name))
}

/// The state directory: the configured one, else systemd's `$STATE_DIRECTORY`, else `$XDG_STATE_HOME/samclip`, else
/// `~/.local/state/samclip`; `None` where there is not even a home.
#[must_use]
pub fn state_dir(configured: Option<&Path>) -> Option<PathBuf> {
    choose(configured, &STATE, |name| std::env::var_os(name))
}

/// Names under which systemd, the XDG specification and a home know a directory.
struct Names {
    service: &'static str,
    xdg: &'static str,
    below_home: &'static str,
}

const CACHE: Names = Names {
    service: "CACHE_DIRECTORY",
    xdg: "XDG_CACHE_HOME",
    below_home: ".cache/samclip",
};

const STATE: Names = Names {
    service: "STATE_DIRECTORY",
    xdg: "XDG_STATE_HOME",
    below_home: ".local/state/samclip",
};

fn choose(configured: Option<&Path>, names: &Names, variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    // As the XDG specification has it: a relative path is no path.
    let absolute = |name: &str| variable(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let service = || {
        // systemd joins several directories with colons.
        let all = variable(names.service)?;
        let first = all.to_str()?.split(':').next()?.to_owned();
        Some(PathBuf::from(first)).filter(|p| p.is_absolute())
    };
    configured
        .map(Path::to_owned)
        .or_else(service)
        .or_else(|| absolute(names.xdg).map(|dir| dir.join("samclip")))
        .or_else(|| absolute("HOME").map(|dir| dir.join(names.below_home)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configured_directory_wins_then_systemd_then_the_user() {
        let all = [
            ("CACHE_DIRECTORY", "/var/cache/samclip:/var/cache/other"),
            ("XDG_CACHE_HOME", "/home/u/caches"),
            ("HOME", "/home/u"),
        ];
        let from = |skip: usize| {
            let variable = move |name: &str| {
                let found = all.iter().skip(skip).find(|(n, _)| *n == name);
                found.map(|(_, value)| OsString::from(value))
            };
            choose(None, &CACHE, variable)
        };
        assert_eq!(from(0).unwrap(), Path::new("/var/cache/samclip"));
        assert_eq!(from(1).unwrap(), Path::new("/home/u/caches/samclip"));
        assert_eq!(from(2).unwrap(), Path::new("/home/u/.cache/samclip"));
        assert_eq!(from(3), None);
        assert_eq!(
            choose(Some(Path::new("/x")), &CACHE, |_| None).unwrap(),
            Path::new("/x")
        );
        assert_eq!(choose(None, &CACHE, |_| Some("relative".into())), None);
        let home = |name: &str| (name == "HOME").then(|| OsString::from("/home/u"));
        assert_eq!(
            choose(None, &STATE, home).unwrap(),
            Path::new("/home/u/.local/state/samclip")
        );
    }
}
