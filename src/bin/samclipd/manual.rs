//! Man pages and completions, made from the command line's definition so that they cannot say anything else.

use std::io::Write;
use std::path::Path;

use anyhow::Context as _;
use clap::CommandFactory as _;
use clap_complete::{Shell, generate, generate_to};

use super::arguments::Cli;

/// Prints the completions of a shell.
pub(crate) fn completions(shell: Shell, out: &mut dyn Write) -> anyhow::Result<()> {
    // The generator cannot report a closed pipe.
    let mut script = Vec::new();
    generate(shell, &mut Cli::command(), "samclipd", &mut script);
    Ok(out.write_all(&script)?)
}

/// Writes a man page per command, and the completions of bash, zsh and fish.
pub(crate) fn write(dir: &Path) -> anyhow::Result<()> {
    let failed = || format!("cannot write into {}", dir.display());
    std::fs::create_dir_all(dir).with_context(failed)?;
    clap_mangen::generate_to(Cli::command(), dir).with_context(failed)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut Cli::command(), "samclipd", dir).with_context(failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_and_every_shell_its_completions() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path()).unwrap();
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        for command in Cli::command().get_subcommands().filter(|c| !c.is_hide_set()) {
            let page = read(&format!("samclipd-{}.1", command.get_name()));
            assert!(page.contains(".SH SYNOPSIS"), "{}", command.get_name());
        }
        for file in ["samclipd.1", "samclipd.bash", "_samclipd", "samclipd.fish"] {
            assert!(read(file).contains("segment"), "{file}");
        }
    }
}
