//! Logs on standard error: with time and, on a terminal, colours; for the journal with a priority instead, as it has the time.
//!
//! The journal's priorities are written as `sd-daemon(3)` says, a number in angle brackets before each line, so that text and
//! fields of an event stay together in one line.

use std::fmt;
use std::io::{IsTerminal as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{Format, Full, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Where the log goes from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Log {
    /// A terminal, a pipe or a file.
    Plain,
    /// systemd's journal.
    Journal,
}

impl Log {
    /// Starts logging; `default` is the filter unless `RUST_LOG` names one.
    pub(crate) fn start(default: &str) -> Self {
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
        let logs = tracing_subscriber::fmt()
            .with_env_filter(filter)
            // Said on standard error too, and a thread that cannot write there would end.
            .log_internal_errors(false)
            .with_writer(std::io::stderr);
        let stream = std::env::var("JOURNAL_STREAM").ok();
        if is_journal(stream.as_deref(), standard_error()) {
            let lines = Prioritised(Format::default().without_time().with_level(false));
            logs.with_ansi(false).event_format(lines).init();
            Self::Journal
        } else {
            // Colours on a terminal only; `NO_COLOR` switches them off there as well.
            let colours = std::io::stderr().is_terminal();
            (if colours { logs } else { logs.with_ansi(false) }).init();
            Self::Plain
        }
    }

    /// Says why the program ends.
    pub(crate) fn last_words(self, error: &str) {
        let _ = match self {
            Self::Plain => writeln!(std::io::stderr(), "samclipd: {error}"),
            // The journal knows the name, and takes every line for an entry.
            Self::Journal => error
                .lines()
                .try_for_each(|line| writeln!(std::io::stderr(), "{}{line}", prefix(Level::ERROR))),
        };
    }
}

/// Device and inode of standard error.
fn standard_error() -> Option<(u64, u64)> {
    let file = std::fs::File::from(std::io::stderr().as_fd().try_clone_to_owned().ok()?);
    let found = file.metadata().ok()?;
    Some((found.dev(), found.ino()))
}

/// Whether `$JOURNAL_STREAM`, device and inode of the journal, names standard error: it may have been redirected since.
fn is_journal(stream: Option<&str>, standard_error: Option<(u64, u64)>) -> bool {
    let named = stream.and_then(|stream| {
        let (device, inode) = stream.split_once(':')?;
        Some((device.parse().ok()?, inode.parse().ok()?))
    });
    named.is_some() && named == standard_error
}

/// What makes the journal give a line a priority.
fn prefix(level: Level) -> &'static str {
    match level {
        Level::ERROR => "<3>",
        Level::WARN => "<4>",
        Level::INFO => "<6>",
        _ => "<7>",
    }
}

/// Lines with their priority in front.
struct Prioritised(Format<Full, ()>);

impl<S, N> FormatEvent<S, N> for Prioritised
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        writer.write_str(prefix(*event.metadata().level()))?;
        self.0.format_event(context, writer, event)
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn the_journal_is_standard_error_only_if_device_and_inode_say_so() {
        for (stream, found, expected) in [
            (Some("8:12345"), Some((8, 12345)), true),
            (Some("8:12345"), Some((8, 12346)), false),
            (Some("9:12345"), Some((8, 12345)), false),
            (Some("8:12345"), None, false),
            (None, Some((8, 12345)), false),
            (None, None, false),
            (Some("8"), Some((8, 0)), false),
            (Some("8:x"), Some((8, 0)), false),
            (Some(""), None, false),
        ] {
            assert_eq!(is_journal(stream, found), expected, "{stream:?} {found:?}");
        }
    }

    /// What was written.
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, part: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(part);
            Ok(part.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_for_the_journal_have_their_priority_and_no_time() {
        let lines = Lines::default();
        let to = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(Level::TRACE)
            .with_writer(move || to.clone())
            .with_ansi(false)
            .event_format(Prioritised(Format::default().without_time().with_level(false)))
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::error!(target: "t", "one");
            tracing::warn!(target: "t", camera = 2, "two");
            tracing::info!(target: "t", "three");
            tracing::debug!(target: "t", "four");
            tracing::trace!(target: "t", "five");
        });
        let written = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert_eq!(
            written,
            "<3>t: one\n<4>t: two camera=2\n<6>t: three\n<7>t: four\n<7>t: five\n"
        );
    }
}
