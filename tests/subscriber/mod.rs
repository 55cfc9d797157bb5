//! A subscriber of everything below `samclip/`.
#![allow(unreachable_pub)] // a module of several test programs

use std::net::SocketAddr;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use rumqttc::{Client, Event, MqttOptions, Packet, QoS};

/// Collects messages of all topics until `last` arrives; fails after a minute. Sends to `ready` once it listens.
pub fn collect(
    broker: SocketAddr,
    ready: &Sender<()>,
    mut last: impl FnMut(&str, &[u8]) -> bool,
) -> Vec<(String, Vec<u8>)> {
    let mut options = MqttOptions::new("test", broker.ip().to_string(), broker.port());
    options.set_max_packet_size(4 << 20, 4 << 20);
    let (client, mut connection) = Client::new(options, 10);
    client.subscribe("samclip/#", QoS::AtLeastOnce).unwrap();
    let started = Instant::now();
    let mut messages = Vec::new();
    for event in connection.iter() {
        assert!(
            started.elapsed() < Duration::from_secs(60),
            "no last message among {messages:?}"
        );
        match event {
            Ok(Event::Incoming(Packet::SubAck(_))) => ready.send(()).unwrap(),
            Ok(Event::Incoming(Packet::Publish(p))) => {
                let end = last(&p.topic, &p.payload);
                messages.push((p.topic, p.payload.to_vec()));
                if end {
                    break;
                }
            }
            _ => {}
        }
    }
    messages
}
