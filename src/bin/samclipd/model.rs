//! `samclipd model`: installed bundles.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use samclip::daemon::install::{DEFAULT_KEY, InstallOptions, Version, default_store, install, list, roll_back};

use super::arguments::{RuntimeArgs, SEARCH};
use super::{ENDING, INTERRUPTED, OnTerminal, may_be_there, watch_signals};

#[derive(Subcommand)]
pub(crate) enum ModelCommand {
    /// Verify a bundle, try it, and make it the version in use; the version before is kept.
    #[command(after_help = SEARCH)]
    Install {
        /// A bundle's directory, a .tar or .tar.gz of one, or the address of such a file.
        #[arg(value_name = "DIR|FILE|URL")]
        source: String,
        /// Public key (minisign) that must have signed the bundle's manifest [default: /etc/samclip/model.pub if it is there].
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
        #[command(flatten)]
        store: StoreArgs,
        #[command(flatten)]
        runtime: RuntimeArgs,
    },
    /// List the installed versions.
    List {
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Make the version before the one in use again.
    Rollback {
        /// The model's name.
        name: String,
        #[command(flatten)]
        store: StoreArgs,
    },
}

#[derive(Args)]
pub(crate) struct StoreArgs {
    /// Directory of the installed models [default: /var/lib/samclip/models, or samclip/models in the user's state directory].
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
}

impl StoreArgs {
    fn dir(self) -> anyhow::Result<PathBuf> {
        self.store
            .or_else(default_store)
            .context("neither /var/lib/samclip nor HOME is there; name a directory with --store")
    }
}

pub(crate) fn run(command: ModelCommand, table: &mut dyn Write) -> anyhow::Result<()> {
    match command {
        ModelCommand::Install {
            source,
            key,
            store,
            runtime,
        } => {
            let trusted = || Some(PathBuf::from(DEFAULT_KEY)).filter(|path| may_be_there(path));
            let options = InstallOptions {
                source,
                store: store.dir()?,
                key: key.or_else(trusted),
                runtime: runtime.options(),
            };
            // May be killed at any moment: what is unfinished is cleared by the next one.
            watch_signals(&ENDING, || std::process::exit(INTERRUPTED))?;
            install(&options, &OnTerminal, table)?;
        }
        ModelCommand::List { store } => {
            let dir = store.dir()?;
            let versions = list(&dir)?;
            if versions.is_empty() {
                writeln!(table, "no model is installed in {}", dir.display())?;
            }
            for version in versions {
                let mark = if version.in_use { "*" } else { " " };
                writeln!(table, "{mark} {}@{}", version.name, version.id)?;
            }
        }
        ModelCommand::Rollback { name, store } => {
            let Version { name, id, .. } = roll_back(&store.dir()?, &name)?;
            writeln!(
                table,
                "{name}@{id} is in use; a running daemon takes it at its next start"
            )?;
        }
    }
    Ok(())
}
