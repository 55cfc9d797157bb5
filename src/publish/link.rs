//! One connection to a broker: MQTT 3.1.1 or 5, plain or TLS, behind one face.
//!
//! A link lives for one connection. The next one begins with nothing on its way, so that what goes out again is decided
//! by the outbox and the spool, and not by the client library as well.

use std::sync::Arc;

use bytes::Bytes;
use rumqttc::v5::mqttbytes::v5::Filter;
use rumqttc::{
    LastWill, MqttOptions, Outgoing, Packet, QoS, SubscribeFilter, SubscribeReasonCode, TlsConfiguration, Transport, v5,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::mqtt::{PublishError, Settings};
use crate::message::payload::Availability;
use crate::message::topic::{Qos, Topic};

/// Messages handed to the client at once; the rest waits where the newest win.
const CLIENT_QUEUE: usize = 4;

/// Messages of QoS 1 on their way at once.
const IN_FLIGHT: u16 = 64;

/// Version of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Version {
    /// MQTT 3.1.1.
    #[default]
    V3,
    /// MQTT 5.
    V5,
}

/// Certificates for TLS, as PEM texts.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct TlsTexts {
    /// Certificates of the authorities that may have signed the broker's; `None` means the system's.
    pub authorities: Option<Vec<u8>>,
    /// Own certificate chain and its key.
    pub client: Option<(Vec<u8>, Vec<u8>)>,
}

impl std::fmt::Debug for TlsTexts {
    /// Says what is there and never what it is.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsTexts")
            .field("authorities", &self.authorities.is_some())
            .field("client", &self.client.is_some())
            .finish()
    }
}

/// Checks the certificates and makes TLS of them.
///
/// # Errors
/// [`PublishError::Tls`] for a text without certificates or key, or a key that does not belong to the certificate.
pub fn tls(texts: &TlsTexts) -> Result<Arc<rustls::ClientConfig>, PublishError> {
    let bad = |what: &str, reason: &dyn std::fmt::Display| PublishError::Tls(format!("{what}: {reason}"));
    let certificates = |what: &str, text: &[u8]| {
        let found: Vec<_> = CertificateDer::pem_slice_iter(text)
            .collect::<Result<_, _>>()
            .map_err(|e| bad(what, &e))?;
        if found.is_empty() {
            return Err(bad(what, &"no PEM certificate found"));
        }
        Ok(found)
    };
    let mut roots = rustls::RootCertStore::empty();
    match &texts.authorities {
        Some(text) => {
            for certificate in certificates("authorities", text)? {
                roots.add(certificate).map_err(|e| bad("authorities", &e))?;
            }
        }
        None => {
            let found = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(found.certs);
            if roots.is_empty() {
                return Err(bad("authorities", &"the system has none; name a file"));
            }
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| bad("protocol", &e))?
        .with_root_certificates(roots);
    let config = match &texts.client {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| bad("key", &e))?;
            builder
                .with_client_auth_cert(certificates("certificate", chain)?, key)
                .map_err(|e| bad("certificate and key", &e))?
        }
    };
    Ok(Arc::new(config))
}

/// The sending half.
pub(super) enum Sender {
    V3(rumqttc::AsyncClient),
    V5(v5::AsyncClient),
}

/// The receiving half, which also does the sending's work.
pub(super) enum Receiver {
    V3(Box<rumqttc::EventLoop>),
    V5(Box<v5::EventLoop>),
}

/// What happened on a link.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Happened {
    /// The broker accepted; it takes packets up to this size, if it says so.
    Connected { packet_limit: Option<usize> },
    /// A message of QoS 1 went out under this number.
    Left(u16),
    /// The broker has it; `false` if it refuses to pass it on.
    Acknowledged(u16, bool),
    /// A message came.
    Arrived {
        topic: String,
        payload: Bytes,
        retained: bool,
    },
    /// The broker's answer to [`Sender::subscribe`]: which filters it grants, in their order.
    Subscribed(Vec<bool>),
    /// Our goodbye went out.
    Parted,
    /// Nothing that matters.
    Other,
}

fn quality(qos: Qos) -> QoS {
    match qos {
        Qos::AtMostOnce => QoS::AtMostOnce,
        Qos::AtLeastOnce => QoS::AtLeastOnce,
    }
}

fn quality5(qos: Qos) -> v5::mqttbytes::QoS {
    match qos {
        Qos::AtMostOnce => v5::mqttbytes::QoS::AtMostOnce,
        Qos::AtLeastOnce => v5::mqttbytes::QoS::AtLeastOnce,
    }
}

/// A link that connects when it is first polled.
pub(super) fn open(settings: &Settings, tls: Option<&Arc<rustls::ClientConfig>>) -> (Sender, Receiver) {
    let transport = tls.map_or(Transport::Tcp, |config| {
        Transport::Tls(TlsConfiguration::Rustls(Arc::clone(config)))
    });
    let Topic { name, qos, retained } = &settings.available;
    let will = Availability::Offline.as_str();
    let most = settings.max_packet_bytes;
    match settings.version {
        Version::V3 => {
            let mut options = MqttOptions::new(&settings.client_id, &settings.host, settings.port);
            options.set_keep_alive(settings.keep_alive);
            options.set_max_packet_size(most, most);
            options.set_inflight(IN_FLIGHT);
            options.set_transport(transport);
            options.set_last_will(LastWill::new(name, will, quality(*qos), *retained));
            if let Some((user, password)) = &settings.credentials {
                options.set_credentials(user, password);
            }
            let (client, events) = rumqttc::AsyncClient::new(options, CLIENT_QUEUE);
            (Sender::V3(client), Receiver::V3(Box::new(events)))
        }
        Version::V5 => {
            let mut options = v5::MqttOptions::new(&settings.client_id, &settings.host, settings.port);
            options.set_keep_alive(settings.keep_alive);
            options.set_max_packet_size(Some(u32::try_from(most).unwrap_or(u32::MAX)));
            options.set_outgoing_inflight_upper_limit(IN_FLIGHT);
            options.set_transport(transport);
            let will = v5::mqttbytes::v5::LastWill::new(name, will, quality5(*qos), *retained, None);
            options.set_last_will(will);
            if let Some((user, password)) = &settings.credentials {
                options.set_credentials(user, password);
            }
            let (client, events) = v5::AsyncClient::new(options, CLIENT_QUEUE);
            (Sender::V5(client), Receiver::V5(Box::new(events)))
        }
    }
}

/// The receiving half has ended, and with it the link.
#[derive(Debug, thiserror::Error)]
#[error("connection task has ended: {0}")]
pub(super) struct Closed(String);

impl Sender {
    /// Hands a message to the client, waiting for a place in its short queue.
    pub(super) async fn publish(&self, topic: &Topic, payload: Vec<u8>) -> Result<(), Closed> {
        let Topic { name, qos, retained } = topic;
        let sent = match self {
            Self::V3(client) => {
                let sent = client.publish(name, quality(*qos), *retained, payload).await;
                sent.map_err(|e| e.to_string())
            }
            Self::V5(client) => {
                let sent = client.publish(name, quality5(*qos), *retained, payload).await;
                sent.map_err(|e| e.to_string())
            }
        };
        sent.map_err(Closed)
    }

    /// Asks for messages under all of these filters, in one packet; QoS 1.
    pub(super) async fn subscribe(&self, filters: &[String]) -> Result<(), Closed> {
        let filters = filters.iter().cloned();
        let sent = match self {
            Self::V3(client) => {
                let filters = filters.map(|filter| SubscribeFilter::new(filter, QoS::AtLeastOnce));
                client.subscribe_many(filters).await.map_err(|e| e.to_string())
            }
            Self::V5(client) => {
                let filters = filters.map(|filter| Filter::new(filter, v5::mqttbytes::QoS::AtLeastOnce));
                client.subscribe_many(filters).await.map_err(|e| e.to_string())
            }
        };
        sent.map_err(Closed)
    }

    /// Says goodbye.
    pub(super) async fn disconnect(&self) -> Result<(), Closed> {
        let sent = match self {
            Self::V3(client) => client.disconnect().await.map_err(|e| e.to_string()),
            Self::V5(client) => client.disconnect().await.map_err(|e| e.to_string()),
        };
        sent.map_err(Closed)
    }
}

impl Receiver {
    /// Waits for the next thing to happen; the error is why the connection is over, or never came to be.
    pub(super) async fn next(&mut self) -> Result<Happened, String> {
        match self {
            Self::V3(events) => Ok(match events.poll().await.map_err(|e| e.to_string())? {
                rumqttc::Event::Incoming(packet) => received(packet),
                rumqttc::Event::Outgoing(outgoing) => left(&outgoing),
            }),
            Self::V5(events) => Ok(match events.poll().await.map_err(|e| e.to_string())? {
                v5::Event::Incoming(packet) => received5(packet),
                v5::Event::Outgoing(outgoing) => left(&outgoing),
            }),
        }
    }
}

fn left(outgoing: &Outgoing) -> Happened {
    match outgoing {
        Outgoing::Publish(number) if *number > 0 => Happened::Left(*number),
        Outgoing::Disconnect => Happened::Parted,
        _ => Happened::Other,
    }
}

fn received(packet: Packet) -> Happened {
    match packet {
        Packet::ConnAck(_) => Happened::Connected { packet_limit: None },
        Packet::PubAck(ack) => Happened::Acknowledged(ack.pkid, true),
        Packet::SubAck(ack) => {
            let granted = |code: &SubscribeReasonCode| matches!(code, SubscribeReasonCode::Success(_));
            Happened::Subscribed(ack.return_codes.iter().map(granted).collect())
        }
        Packet::Publish(message) => Happened::Arrived {
            topic: message.topic,
            payload: message.payload,
            retained: message.retain,
        },
        _ => Happened::Other,
    }
}

fn received5(packet: v5::Incoming) -> Happened {
    use v5::mqttbytes::v5::{PubAckReason, SubscribeReasonCode};
    match packet {
        v5::Incoming::ConnAck(ack) => Happened::Connected {
            packet_limit: ack
                .properties
                .and_then(|p| p.max_packet_size)
                .map(|limit| limit as usize),
        },
        v5::Incoming::PubAck(ack) => {
            let taken = matches!(ack.reason, PubAckReason::Success | PubAckReason::NoMatchingSubscribers);
            Happened::Acknowledged(ack.pkid, taken)
        }
        v5::Incoming::SubAck(ack) => {
            let granted = |code: &SubscribeReasonCode| matches!(code, SubscribeReasonCode::Success(_));
            Happened::Subscribed(ack.return_codes.iter().map(granted).collect())
        }
        v5::Incoming::Publish(message) => Happened::Arrived {
            topic: String::from_utf8_lossy(&message.topic).into_owned(),
            payload: message.payload,
            retained: message.retain,
        },
        _ => Happened::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_to_subscriptions_says_which_are_refused_in_both_versions() {
        use v5::mqttbytes::v5::SubscribeReasonCode as Code5;
        let codes = vec![
            SubscribeReasonCode::Success(QoS::AtLeastOnce),
            SubscribeReasonCode::Failure,
        ];
        let ack = rumqttc::SubAck::new(1, codes);
        assert_eq!(received(Packet::SubAck(ack)), Happened::Subscribed(vec![true, false]));
        let ack = v5::mqttbytes::v5::SubAck {
            pkid: 1,
            return_codes: vec![
                Code5::NotAuthorized,
                Code5::Success(v5::mqttbytes::QoS::AtMostOnce),
                Code5::QuotaExceeded,
            ],
            properties: None,
        };
        let refused = Happened::Subscribed(vec![false, true, false]);
        assert_eq!(received5(v5::Incoming::SubAck(ack)), refused);
    }

    #[test]
    fn texts_that_are_no_certificates_are_refused_by_name_and_never_shown() {
        let error = |texts: &TlsTexts| tls(texts).unwrap_err().to_string();
        let mut texts = TlsTexts {
            authorities: Some(b"s3cret".to_vec()),
            client: None,
        };
        assert_eq!(error(&texts), "mqtt tls: authorities: no PEM certificate found");
        let ca = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        texts.authorities = Some(ca.cert.pem().into());
        assert!(tls(&texts).is_ok());
        texts.client = Some((ca.cert.pem().into(), b"s3cret".to_vec()));
        assert!(error(&texts).starts_with("mqtt tls: key: "));
        let other = rcgen::KeyPair::generate().unwrap();
        texts.client = Some((ca.cert.pem().into(), other.serialize_pem().into()));
        assert!(
            error(&texts).starts_with("mqtt tls: certificate and key: "),
            "{}",
            error(&texts)
        );
        assert_eq!(format!("{texts:?}"), "TlsTexts { authorities: true, client: true }");
    }
}
