//! Asks a broker whether it would accept the daemon: connect, CONNECT, CONNACK, DISCONNECT.
//!
//! Asked in MQTT 3.1.1, with TLS if the daemon uses it. A client id of its own, so that a daemon that is connected stays so; no will, nothing published.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use bytes::BytesMut;
use rumqttc::mqttbytes::Error as CodecError;
use rumqttc::mqttbytes::v4::{Connect, ConnectReturnCode, Disconnect, Packet};
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};

use super::link::tls;
use super::mqtt::Settings;

/// A CONNACK is four bytes; more than this is not one.
const LARGEST_ANSWER: usize = 64;

/// Why the broker would not do.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// No such host, or nobody listens.
    #[error("{host}:{port}: {source}")]
    Connect {
        /// Host name or address.
        host: String,
        /// TCP port.
        port: u16,
        /// What the system says.
        source: std::io::Error,
    },
    /// Something listens, but it is no MQTT broker.
    #[error("{host}:{port} does not answer as an MQTT broker: {reason}")]
    Protocol {
        /// Host name or address.
        host: String,
        /// TCP port.
        port: u16,
        /// What came instead.
        reason: String,
    },
    /// The broker says no.
    #[error("{host}:{port} refuses the connection: {code:?}")]
    Refused {
        /// Host name or address.
        host: String,
        /// TCP port.
        port: u16,
        /// The broker's reason.
        code: ConnectReturnCode,
    },
}

/// A connection, in the clear or not.
trait Stream: Read + Write {}

impl<T: Read + Write> Stream for T {}

/// Connects once, waiting at most `patience` for each step.
///
/// # Errors
/// [`ProbeError`] with the step that did not work.
pub fn probe(settings: &Settings, patience: Duration) -> Result<(), ProbeError> {
    let (host, port) = (settings.host.clone(), settings.port);
    let refused = |source| ProbeError::Connect {
        host: host.clone(),
        port,
        source,
    };
    let protocol = |reason: String| ProbeError::Protocol {
        host: host.clone(),
        port,
        reason,
    };
    let mut last = std::io::Error::other("the name has no address");
    let mut stream = None;
    for address in (host.as_str(), port).to_socket_addrs().map_err(refused)? {
        match TcpStream::connect_timeout(&address, patience) {
            Ok(open) => {
                stream = Some(open);
                break;
            }
            Err(error) => last = error,
        }
    }
    let stream = stream.ok_or_else(|| refused(last))?;
    stream.set_read_timeout(Some(patience)).map_err(refused)?;
    stream.set_write_timeout(Some(patience)).map_err(refused)?;
    let mut stream: Box<dyn Stream> = match &settings.tls {
        None => Box::new(stream),
        Some(texts) => {
            let config = tls(texts).map_err(|e| protocol(e.to_string()))?;
            let name = ServerName::try_from(host.clone()).map_err(|e| protocol(e.to_string()))?;
            let session = ClientConnection::new(config, name).map_err(|e| protocol(e.to_string()))?;
            Box::new(StreamOwned::new(session, stream))
        }
    };
    let mut connect = Connect::new(format!("{}-doctor", settings.client_id));
    if let Some((user, password)) = &settings.credentials {
        connect.set_login(user.clone(), password.clone());
    }
    let mut bytes = BytesMut::new();
    connect.write(&mut bytes).map_err(|e| protocol(e.to_string()))?;
    stream.write_all(&bytes).map_err(|e| protocol(e.to_string()))?;
    bytes.clear();
    let answer = loop {
        match Packet::read(&mut bytes, LARGEST_ANSWER) {
            Ok(packet) => break packet,
            Err(CodecError::InsufficientBytes(_)) => {}
            Err(error) => return Err(protocol(error.to_string())),
        }
        let mut part = [0; LARGEST_ANSWER];
        match stream.read(&mut part) {
            Ok(0) => return Err(protocol("it closes the connection".into())),
            Ok(n) => bytes.extend_from_slice(&part[..n]),
            Err(error) => return Err(protocol(error.to_string())),
        }
    };
    match answer {
        Packet::ConnAck(ack) if ack.code == ConnectReturnCode::Success => {
            bytes.clear();
            // It has said yes; whether it hears the goodbye does not matter.
            if Disconnect.write(&mut bytes).is_ok() {
                let _ = stream.write_all(&bytes);
            }
            Ok(())
        }
        Packet::ConnAck(ack) => Err(ProbeError::Refused {
            host,
            port,
            code: ack.code,
        }),
        other => Err(protocol(format!("{other:?} came instead of an acknowledgement"))),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr, TcpListener};

    use super::*;
    use crate::message::topic::Topics;
    use crate::publish::broker::Broker;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn settings(address: SocketAddr) -> Settings {
        let available = Topics::new("samclip").unwrap().available();
        Settings::new(&address.ip().to_string(), address.port(), "probe", available)
    }

    /// Answers one connection with these bytes.
    fn answering(bytes: &'static [u8]) -> (SocketAddr, std::thread::JoinHandle<()>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = [0; 256];
            assert!(stream.read(&mut asked).unwrap() > 0);
            stream.write_all(bytes).unwrap();
        });
        (address, thread)
    }

    #[test]
    fn a_broker_that_accepts_is_good() {
        let broker = Broker::start(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
        probe(&settings(broker.address()), PATIENCE).unwrap();
    }

    #[test]
    fn nobody_listening_is_named_with_host_and_port() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let error = probe(&settings(address), PATIENCE).unwrap_err();
        assert!(matches!(error, ProbeError::Connect { .. }), "{error}");
        assert!(error.to_string().starts_with(&address.to_string()), "{error}");
    }

    #[test]
    fn a_refusal_and_a_stranger_are_told_apart() {
        let (address, thread) = answering(&[0x20, 2, 0, 5]);
        let error = probe(&settings(address), PATIENCE).unwrap_err();
        thread.join().unwrap();
        assert!(
            error.to_string().ends_with("refuses the connection: NotAuthorized"),
            "{error}"
        );
        for bytes in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], &b""[..], &[0xd0, 0][..]] {
            let (address, thread) = answering(bytes);
            let error = probe(&settings(address), PATIENCE).unwrap_err();
            thread.join().unwrap();
            assert!(matches!(error, ProbeError::Protocol { .. }), "{bytes:?}: {error}");
        }
    }
}
