//! `[http]`: the page, its API, metrics and health.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Deserialize;
use toml::Spanned;

use super::check::Checker;
use super::{ConfigError, read_small};

/// Shortest and longest token in characters.
const TOKEN: std::ops::RangeInclusive<usize> = 16..=256;

/// `[http]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HttpTable {
    /// Address and port; default `127.0.0.1:8080`. Any other machine can reach an address that is not loopback, which
    /// therefore needs `token_file`.
    pub listen: Spanned<String>,
    /// File with a token of 16 to 256 characters on its first line; default: none, which only a loopback address allows.
    pub token_file: Option<PathBuf>,
}

impl Default for HttpTable {
    fn default() -> Self {
        Self {
            listen: Spanned::new(0..0, "127.0.0.1:8080".to_owned()),
            token_file: None,
        }
    }
}

/// The HTTP server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Http {
    /// Where it listens; port from 1.
    pub listen: SocketAddr,
    /// File with the token that everybody has to show; there is one unless `listen` is loopback.
    pub token_file: Option<PathBuf>,
}

impl Checker<'_> {
    pub(super) fn http(&self, table: Spanned<HttpTable>) -> Result<Http, ConfigError> {
        if !cfg!(feature = "http") {
            let problem = "[http] found, but this build has no HTTP server; rebuild with feature \"http\"";
            return Err(self.at(table.span().start, problem.into()));
        }
        let HttpTable { listen, token_file } = table.into_inner();
        let address: SocketAddr = listen.get_ref().parse().map_err(|_| {
            let found = listen.get_ref();
            let problem = format!("listen is {found:?}, expected an address and a port such as 127.0.0.1:8080");
            self.at(listen.span().start, problem)
        })?;
        self.require(address.port() != 0, &listen, || {
            format!("listen is \"{address}\", expected a port from 1 to 65535")
        })?;
        self.require(address.ip().is_loopback() || token_file.is_some(), &listen, || {
            format!(
                "listen is \"{address}\", which other machines reach, without token_file; add token_file = \"FILE\" \
                 with a secret in it, or listen on 127.0.0.1:{}",
                address.port()
            )
        })?;
        Ok(Http {
            listen: address,
            token_file,
        })
    }
}

impl Http {
    /// Reads the token file, if one is set.
    ///
    /// # Errors
    /// [`ConfigError`] if it cannot be read or its first line is no token; the message never holds its content.
    pub fn read_token(&self) -> Result<Option<String>, ConfigError> {
        let Some(path) = &self.token_file else { return Ok(None) };
        let text = read_small(path)?;
        let token = text.lines().next().unwrap_or_default().trim();
        // What can stand in a header and in an address as it is.
        let plain = |c: char| c.is_ascii_alphanumeric() || "-._~".contains(c);
        if TOKEN.contains(&token.len()) && token.chars().all(plain) {
            return Ok(Some(token.to_owned()));
        }
        let (least, most) = (TOKEN.start(), TOKEN.end());
        let problem = format!(
            "expected a token of {least} to {most} letters, digits, and -._~ on line 1; openssl rand -hex 16 makes one"
        );
        Err(ConfigError::Line {
            path: path.clone(),
            line: 1,
            problem,
        })
    }
}

#[cfg(all(test, feature = "http"))]
mod tests {
    use super::*;
    use crate::daemon::config::Config;

    fn http(lines: &str) -> Result<Option<Http>, String> {
        let text = format!("model = \"m\"\n[[camera]]\nid = \"a\"\nsource = \"dir:///f\"\n{lines}");
        let config = Config::parse(&text, "samclipd.toml".as_ref());
        config.map(|config| config.http).map_err(|error| error.to_string())
    }

    #[test]
    fn there_is_no_server_unless_the_table_is_there_and_then_on_loopback() {
        assert_eq!(http(""), Ok(None));
        let default = Http {
            listen: "127.0.0.1:8080".parse().unwrap(),
            token_file: None,
        };
        assert_eq!(http("[http]\n"), Ok(Some(default)));
        assert!(http("[http]\nlisten = \"[::1]:80\"").is_ok());
        assert!(http("[http]\nlisten = \"0.0.0.0:80\"\ntoken_file = \"/etc/t\"").is_ok());
    }

    #[test]
    fn an_address_that_others_reach_needs_a_token() {
        for address in ["0.0.0.0:8080", "192.168.1.7:8080", "[::]:8080"] {
            let error = http(&format!("[http]\nlisten = \"{address}\"")).unwrap_err();
            let expected = format!(
                "samclipd.toml:6: listen is \"{address}\", which other machines reach, without token_file; add \
                 token_file = \"FILE\" with a secret in it, or listen on 127.0.0.1:8080"
            );
            assert_eq!(error, expected);
        }
        let error = http("[http]\nlisten = \"127.0.0.1:0\"").unwrap_err();
        assert_eq!(
            error,
            "samclipd.toml:6: listen is \"127.0.0.1:0\", expected a port from 1 to 65535"
        );
        let error = http("[http]\nlisten = \"everywhere\"").unwrap_err();
        let expected = "listen is \"everywhere\", expected an address and a port such as 127.0.0.1:8080";
        assert_eq!(error, format!("samclipd.toml:6: {expected}"));
    }

    #[test]
    fn a_token_comes_from_a_file_and_never_enters_a_message() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let mut http = http("[http]").unwrap().unwrap();
        assert_eq!(http.read_token(), Ok(None));
        http.token_file = Some(path.clone());
        assert!(matches!(http.read_token(), Err(ConfigError::Read { .. })));
        std::fs::write(&path, "0123456789abcdef\n").unwrap();
        assert_eq!(http.read_token(), Ok(Some("0123456789abcdef".into())));
        for bad in ["", "s3cret", "s3cret with spaces in it", "s3cret;s3cret;s3cret"] {
            std::fs::write(&path, bad).unwrap();
            let error = http.read_token().unwrap_err().to_string();
            assert!(
                error.contains("token:1: expected a token of 16") && !error.contains("s3cret"),
                "{error}"
            );
        }
    }
}
