//! Bundles from the network, over HTTPS with the system's certificate authorities; over plain HTTP only if they are signed.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use ureq::Agent;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use super::archive::MOST_BYTES;

/// How long the server may take to accept the connection, and then to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long the whole archive may take.
const LONGEST: Duration = Duration::from_secs(3600);

/// Whether a source is an address rather than a path.
pub(super) fn is_address(source: &str) -> bool {
    source.starts_with("https://") || source.starts_with("http://")
}

/// Opens an address for reading.
///
/// # Errors
/// Plain HTTP without a signature, also where a server sends on to it; a server that cannot be reached, is not trusted,
/// or does not have the file.
pub(super) fn open(address: &str, signed: bool) -> anyhow::Result<impl Read> {
    ensure!(
        signed || address.starts_with("https://"),
        "{address}: whoever is on the way can change what plain HTTP carries; use https, or --key with signed bundles"
    );
    let response = agent(signed)
        .get(address)
        .call()
        .with_context(|| format!("cannot fetch {address}"))?;
    Ok(response.into_body().into_with_config().limit(MOST_BYTES).reader())
}

/// A client; what is not signed it fetches by HTTPS alone, wherever servers send it on to.
fn agent(signed: bool) -> Agent {
    let trusted = rustls_native_certs::load_native_certs().certs;
    let trusted: Vec<Certificate<'static>> = trusted.iter().map(|c| Certificate::from_der(c).to_owned()).collect();
    let tls = TlsConfig::builder()
        .root_certs(RootCerts::new_with_certs(&trusted))
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build();
    Agent::config_builder()
        .tls_config(tls)
        .https_only(!signed)
        .timeout_connect(Some(PATIENCE))
        .timeout_recv_response(Some(PATIENCE))
        .timeout_recv_body(Some(LONGEST))
        .user_agent(concat!("samclipd/", env!("CARGO_PKG_VERSION")))
        .build()
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_signed_comes_by_https_alone_also_after_a_redirection() {
        // Every step of a request is checked alike, the first one as one that a server sends on to.
        let refused = agent(false).get("http://127.0.0.1:9/nano.tar.gz").call().unwrap_err();
        assert!(matches!(refused, ureq::Error::RequireHttpsOnly(_)), "{refused}");
        assert!(!agent(true).config().https_only());
    }
}
