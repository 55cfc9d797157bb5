//! A small MQTT 3.1.1 broker inside the program, so that `demo` and the tests need nothing installed.
//!
//! It knows retained messages, last wills, wildcards, QoS 0 and 1 and keep-alive. Left out on purpose: sessions that
//! outlive their connection, delivery again after a loss, passwords, TLS, MQTT 5. For anything but a demonstration use a
//! real broker. The packet codec is rumqttc's.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::BytesMut;
use rumqttc::mqttbytes::v4::{
    ConnAck, Connect, ConnectReturnCode, LastWill, Packet, PubAck, PubComp, PubRec, Publish, SubAck, Subscribe,
    SubscribeReasonCode, UnsubAck,
};
use rumqttc::mqttbytes::{self, Error as CodecError, Protocol, QoS};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedReadHalf;
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, info};

/// Largest packet in bytes, either way.
pub const MAX_PACKET_BYTES: usize = 16 << 20;

/// Most connections at once; further ones are closed.
const MAX_CLIENTS: usize = 64;

/// Most retained messages; further topics are passed on but not kept.
const MAX_RETAINED: usize = 4_096;

/// Packets waiting for one slow subscriber; further ones are dropped for it.
const CLIENT_QUEUE: usize = 256;

/// Ports tried after a taken one.
const NEXT_PORTS: u16 = 16;

/// Time a connection has to send its first packet.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the broker could not be started.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// No port could be opened.
    #[error("broker cannot listen on {listen} (and the {NEXT_PORTS} ports after it): {source}")]
    Listen {
        /// The address asked for.
        listen: SocketAddr,
        /// The operating system's answer.
        source: io::Error,
    },
    /// No thread or no event loop.
    #[error("broker thread: {0}")]
    Thread(#[from] io::Error),
}

/// A running broker; dropping it closes all connections and frees the port.
#[derive(Debug)]
pub struct Broker {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Broker {
    /// Listens on `listen`, or on the next free port if that one is taken; port 0 takes any free port.
    ///
    /// # Errors
    /// [`BrokerError`] if no port or thread is to be had.
    pub fn start(listen: SocketAddr) -> Result<Self, BrokerError> {
        let listener = bind(listen).map_err(|source| BrokerError::Listen { listen, source })?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()?;
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("broker".into()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = accept(listener) => {}
                    _ = stopped => {}
                }
            });
        })?;
        info!(%address, "built-in broker listens");
        Ok(Self {
            address,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            debug!("broker thread panicked");
        }
    }
}

fn bind(listen: SocketAddr) -> io::Result<std::net::TcpListener> {
    let mut last = std::net::TcpListener::bind(listen);
    if listen.port() != 0 {
        for offset in 1..=NEXT_PORTS {
            match (&last, listen.port().checked_add(offset)) {
                (Err(error), Some(port)) if error.kind() == io::ErrorKind::AddrInUse => {
                    last = std::net::TcpListener::bind((listen.ip(), port));
                }
                _ => break,
            }
        }
    }
    last
}

/// All connections and retained messages.
#[derive(Default)]
struct Hub {
    clients: HashMap<u64, Client>,
    retained: HashMap<String, Publish>,
    next: u64,
}

/// One connection as the others see it.
struct Client {
    id: String,
    packets: mpsc::Sender<Packet>,
    filters: Vec<(String, QoS)>,
    next_pkid: u16,
}

impl Client {
    /// Queues a message for the client if a filter matches; `retained` marks one that was kept.
    fn offer(&mut self, message: &Publish, retained: bool) {
        let matching = self
            .filters
            .iter()
            .filter(|(filter, _)| mqttbytes::matches(&message.topic, filter));
        let Some(most) = matching.map(|(_, qos)| *qos as u8).max() else {
            return;
        };
        let mut message = message.clone();
        (message.dup, message.retain, message.pkid) = (false, retained, 0);
        message.qos = if most >= 1 && message.qos != QoS::AtMostOnce {
            QoS::AtLeastOnce
        } else {
            QoS::AtMostOnce
        };
        if message.qos == QoS::AtLeastOnce {
            message.pkid = self.next_pkid;
            self.next_pkid = self.next_pkid.checked_add(1).unwrap_or(1);
        }
        if self.packets.try_send(Packet::Publish(message)).is_err() {
            debug!(client = self.id, "slow subscriber, message dropped");
        }
    }
}

impl Hub {
    /// Keeps a retained message and gives it to everyone who wants it.
    fn publish(&mut self, mut message: Publish) {
        if message.retain {
            if message.payload.is_empty() {
                self.retained.remove(&message.topic);
            } else if self.retained.len() < MAX_RETAINED || self.retained.contains_key(&message.topic) {
                self.retained.insert(message.topic.clone(), message.clone());
            }
        }
        message.retain = false;
        for client in self.clients.values_mut() {
            client.offer(&message, false);
        }
    }
}

fn lock(hub: &Mutex<Hub>) -> MutexGuard<'_, Hub> {
    // every critical section leaves the hub whole
    hub.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn accept(listener: std::net::TcpListener) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return debug!(%error, "broker cannot use its socket"),
    };
    let hub = Arc::new(Mutex::new(Hub::default()));
    loop {
        match listener.accept().await {
            Ok((stream, peer)) if lock(&hub).clients.len() < MAX_CLIENTS => {
                let hub = Arc::clone(&hub);
                tokio::spawn(async move {
                    if let Err(error) = serve(stream, &hub).await {
                        debug!(%peer, %error, "broker closed a connection");
                    }
                });
            }
            Ok((_, peer)) => debug!(%peer, "broker is full"),
            Err(error) => {
                debug!(%error, "broker cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum ConnectionError {
    #[error("socket: {0}")]
    Io(#[from] io::Error),
    #[error("packet: {0:?}")]
    Codec(CodecError),
    #[error("silence for longer than the keep-alive")]
    Silent,
    #[error("found {0}, expected another packet")]
    Unexpected(&'static str),
}

/// The receiving side of a connection.
struct Reader {
    half: OwnedReadHalf,
    buffer: BytesMut,
}

impl Reader {
    /// The next packet; `None` if the other side closed.
    async fn next(&mut self) -> Result<Option<Packet>, ConnectionError> {
        loop {
            match Packet::read(&mut self.buffer, MAX_PACKET_BYTES) {
                Ok(packet) => return Ok(Some(packet)),
                Err(CodecError::InsufficientBytes(_)) => {
                    if self.half.read_buf(&mut self.buffer).await? == 0 {
                        return Ok(None);
                    }
                }
                Err(error) => return Err(ConnectionError::Codec(error)),
            }
        }
    }
}

/// One connection from CONNECT to its end.
async fn serve(stream: TcpStream, hub: &Mutex<Hub>) -> Result<(), ConnectionError> {
    stream.set_nodelay(true)?;
    let (half, mut writer) = stream.into_split();
    let mut reader = Reader {
        half,
        buffer: BytesMut::with_capacity(1 << 16),
    };
    let first = tokio::time::timeout(CONNECT_TIMEOUT, reader.next())
        .await
        .map_err(|_| ConnectionError::Silent)??;
    let Some(Packet::Connect(connect)) = first else {
        return Err(ConnectionError::Unexpected("no CONNECT"));
    };
    if connect.protocol != Protocol::V4 {
        let refusal = ConnAck::new(ConnectReturnCode::RefusedProtocolVersion, false);
        let mut bytes = BytesMut::new();
        refusal.write(&mut bytes).map_err(ConnectionError::Codec)?;
        writer.write_all(&bytes).await?;
        return Err(ConnectionError::Unexpected("another protocol version than 3.1.1"));
    }
    let (packets, mut outgoing) = mpsc::channel::<Packet>(CLIENT_QUEUE);
    let number = register(hub, &connect, packets.clone());
    let write = async {
        let mut bytes = BytesMut::new();
        while let Some(packet) = outgoing.recv().await {
            bytes.clear();
            packet
                .write(&mut bytes, MAX_PACKET_BYTES)
                .map_err(ConnectionError::Codec)?;
            writer.write_all(&bytes).await?;
        }
        Ok(())
    };
    let read = receive(&mut reader, &connect, number, packets, hub);
    // the writer ends when the hub drops the queue: another client has taken the id
    let outcome = tokio::select! {
        outcome = read => outcome,
        outcome = write => outcome.map(|()| End::Broken),
    };
    let mut hub = lock(hub);
    hub.clients.remove(&number);
    if !matches!(outcome, Ok(End::Clean))
        && let Some(LastWill {
            topic,
            message,
            qos,
            retain,
        }) = connect.last_will
    {
        let mut will = Publish::from_bytes(topic, qos, message);
        will.retain = retain;
        hub.publish(will);
    }
    outcome.map(|_| ())
}

/// How a connection ended without an error.
enum End {
    /// With DISCONNECT.
    Clean,
    /// Without.
    Broken,
}

/// Enters a client, pushes out one with the same id and answers CONNECT.
fn register(hub: &Mutex<Hub>, connect: &Connect, packets: mpsc::Sender<Packet>) -> u64 {
    let mut hub = lock(hub);
    hub.next += 1;
    let number = hub.next;
    if !connect.client_id.is_empty() {
        hub.clients.retain(|_, client| client.id != connect.client_id);
    }
    let accepted = packets.try_send(Packet::ConnAck(ConnAck::new(ConnectReturnCode::Success, false)));
    debug!(
        client = connect.client_id,
        accepted = accepted.is_ok(),
        "client connected"
    );
    hub.clients.insert(
        number,
        Client {
            id: connect.client_id.clone(),
            packets,
            filters: Vec::new(),
            next_pkid: 1,
        },
    );
    number
}

/// Handles packets until the connection ends.
async fn receive(
    reader: &mut Reader,
    connect: &Connect,
    number: u64,
    packets: mpsc::Sender<Packet>,
    hub: &Mutex<Hub>,
) -> Result<End, ConnectionError> {
    // only the hub keeps the queue open, so that it can close the connection
    let packets = packets.downgrade();
    let silence = match connect.keep_alive {
        0 => Duration::from_secs(365 * 86_400),
        seconds => Duration::from_secs(u64::from(seconds)).mul_f32(1.5),
    };
    loop {
        let next = tokio::time::timeout(silence, reader.next())
            .await
            .map_err(|_| ConnectionError::Silent)??;
        let Some(packet) = next else { return Ok(End::Broken) };
        let answer = match packet {
            Packet::Publish(message) => {
                if !mqttbytes::valid_topic(&message.topic) {
                    return Err(ConnectionError::Unexpected("a topic with wildcards"));
                }
                let answer = match message.qos {
                    QoS::AtMostOnce => None,
                    QoS::AtLeastOnce => Some(Packet::PubAck(PubAck::new(message.pkid))),
                    QoS::ExactlyOnce => Some(Packet::PubRec(PubRec::new(message.pkid))),
                };
                lock(hub).publish(message);
                answer
            }
            Packet::PubRel(release) => Some(Packet::PubComp(PubComp::new(release.pkid))),
            Packet::Subscribe(subscribe) => {
                subscribed(&mut lock(hub), number, &subscribe);
                None
            }
            Packet::Unsubscribe(unsubscribe) => {
                if let Some(client) = lock(hub).clients.get_mut(&number) {
                    client
                        .filters
                        .retain(|(filter, _)| !unsubscribe.topics.contains(filter));
                }
                Some(Packet::UnsubAck(UnsubAck::new(unsubscribe.pkid)))
            }
            Packet::PingReq => Some(Packet::PingResp),
            Packet::PubAck(_) => None,
            Packet::Disconnect => return Ok(End::Clean),
            _ => return Err(ConnectionError::Unexpected("a packet that clients do not send here")),
        };
        if let Some(answer) = answer {
            let Some(packets) = packets.upgrade() else {
                return Ok(End::Broken);
            };
            if packets.send(answer).await.is_err() {
                return Ok(End::Broken);
            }
        }
    }
}

/// Enters filters, acknowledges them and sends what is retained under them.
fn subscribed(hub: &mut Hub, number: u64, subscribe: &Subscribe) {
    let Hub { clients, retained, .. } = hub;
    let Some(client) = clients.get_mut(&number) else { return };
    let mut codes = Vec::new();
    let mut fresh = Vec::new();
    for filter in &subscribe.filters {
        if !mqttbytes::valid_filter(&filter.path) {
            codes.push(SubscribeReasonCode::Failure);
            continue;
        }
        let qos = if filter.qos == QoS::AtMostOnce {
            QoS::AtMostOnce
        } else {
            QoS::AtLeastOnce
        };
        codes.push(SubscribeReasonCode::Success(qos));
        client.filters.retain(|(known, _)| *known != filter.path);
        client.filters.push((filter.path.clone(), qos));
        fresh.push(&filter.path);
    }
    if client
        .packets
        .try_send(Packet::SubAck(SubAck::new(subscribe.pkid, codes)))
        .is_err()
    {
        debug!(client = client.id, "slow subscriber, acknowledgement dropped");
    }
    let mut kept: Vec<_> = retained
        .values()
        .filter(|message| fresh.iter().any(|filter| mqttbytes::matches(&message.topic, filter)))
        .collect();
    kept.sort_by(|a, b| a.topic.cmp(&b.topic));
    for message in kept {
        client.offer(message, true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};

    const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

    #[test]
    fn a_taken_port_moves_on_to_the_next_free_one() {
        let first = Broker::start(ANY).unwrap();
        let second = Broker::start(first.address()).unwrap();
        assert_ne!(first.address().port(), 0);
        assert!((1..=NEXT_PORTS).contains(&(second.address().port() - first.address().port())));
    }

    #[test]
    fn dropping_the_broker_frees_its_port() {
        let address = Broker::start(ANY).unwrap().address();
        assert!(std::net::TcpStream::connect(address).is_err());
    }

    #[test]
    fn foreign_bytes_close_their_connection_only() {
        let broker = Broker::start(ANY).unwrap();
        // The first is the beginning of a packet, whose end is waited for.
        for noise in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            &[0x10, 0x02, 0x00, 0x04],
            &[0xff; 64],
            &[0xc0, 0x00],
        ] {
            let mut stream = std::net::TcpStream::connect(broker.address()).unwrap();
            stream.set_read_timeout(Some(3 * CONNECT_TIMEOUT)).unwrap();
            stream.write_all(noise).unwrap();
            // closed with or without a reset, and without an answer
            match stream.read(&mut [0; 8]) {
                Ok(0) => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
                other => panic!("{other:?} after {noise:?}"),
            }
        }
        let mut stream = std::net::TcpStream::connect(broker.address()).unwrap();
        stream
            .write_all(&[0x10, 13, 0, 4, b'M', b'Q', b'T', b'T', 4, 2, 0, 60, 0, 1, b'a'])
            .unwrap();
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer, [0x20, 2, 0, 0], "a well-formed client is accepted");
    }
}
