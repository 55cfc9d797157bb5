//! What opening a model tells its caller while it takes long.

use std::path::PathBuf;

/// A step that may take minutes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Engines are built and written into this folder (`None`: kept in memory only).
    BuildEngine(Option<PathBuf>),
    /// The engines just built are read back, before they are trusted.
    VerifyEngine(PathBuf),
    /// Another process builds the same engines.
    WaitForBuild(PathBuf),
    /// Engines are there and are loaded.
    LoadEngine(PathBuf),
    /// The graphs are open; texts are embedded, as far as their embeddings are not kept.
    EmbedTexts,
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::BuildEngine(None) => write!(f, "building TensorRT engines (not kept: there is no cache directory)"),
            Self::BuildEngine(Some(folder)) => write!(f, "building TensorRT engines in {}", folder.display()),
            Self::VerifyEngine(folder) => write!(f, "reading the engines back from {}", folder.display()),
            Self::WaitForBuild(folder) => {
                write!(f, "waiting for another process that builds {}", folder.display())
            }
            Self::LoadEngine(folder) => write!(f, "loading engines from {}", folder.display()),
            Self::EmbedTexts => write!(f, "embedding texts"),
        }
    }
}

/// Who wants to know, and may say no.
pub trait Progress {
    /// A step begins.
    fn stage(&self, stage: &Stage);

    /// Whether to give up waiting.
    fn cancelled(&self) -> bool {
        false
    }

    /// Whether engines may be built at all; without, a missing engine is an error.
    fn may_build(&self) -> bool {
        true
    }
}

/// Tells nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn stage(&self, _: &Stage) {}
}
