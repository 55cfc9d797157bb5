//! A TCP proxy in front of a broker that refuses, and cuts connections in the middle of a message.
#![allow(unreachable_pub, clippy::unwrap_used)] // a module of several test programs; a panic is how a test fails
#![allow(dead_code, reason = "every test binary uses another part")]

use std::collections::VecDeque;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// What the proxy does with connections.
struct Rules {
    open: bool,
    /// Bytes from the client after which the next connections are cut; connections beyond live on.
    cuts: VecDeque<usize>,
    /// Both ends of every connection.
    streams: Vec<TcpStream>,
}

/// Listens until the test ends.
pub struct Proxy {
    pub port: u16,
    rules: Arc<Mutex<Rules>>,
}

impl Proxy {
    /// In front of the broker at a port; its first connections are cut after so many bytes.
    pub fn start(broker: u16, cuts: &[usize]) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let rules = Arc::new(Mutex::new(Rules {
            open: true,
            cuts: cuts.iter().copied().collect(),
            streams: Vec::new(),
        }));
        let shared = Arc::clone(&rules);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                // A broker that is away is a connection that ends at once.
                if let Ok(broker) = TcpStream::connect((Ipv4Addr::LOCALHOST, broker)) {
                    join(&client, &broker, &mut shared.lock().unwrap());
                }
            }
        });
        Self { port, rules }
    }

    /// Lets connections pass, or ends those that there are and refuses new ones.
    pub fn set_open(&self, open: bool) {
        let mut rules = self.rules.lock().unwrap();
        rules.open = open;
        if !open {
            rules
                .streams
                .drain(..)
                .for_each(|stream| drop(stream.shutdown(Shutdown::Both)));
        }
    }

    /// Connections that are still to be cut.
    pub fn cuts_left(&self) -> usize {
        self.rules.lock().unwrap().cuts.len()
    }
}

/// Passes bytes on in both directions.
fn join(client: &TcpStream, broker: &TcpStream, rules: &mut Rules) {
    if !rules.open {
        return;
    }
    let most = rules.cuts.pop_front().unwrap_or(usize::MAX);
    let pair = || (client.try_clone().unwrap(), broker.try_clone().unwrap());
    let (from, to) = pair();
    std::thread::spawn(move || pass(from, to, most));
    let (to, from) = pair();
    std::thread::spawn(move || pass(from, to, usize::MAX));
    let (client, broker) = pair();
    rules.streams.extend([client, broker]);
}

/// Passes at most so many bytes on, then cuts both.
fn pass(mut from: TcpStream, mut to: TcpStream, most: usize) {
    let (mut buffer, mut left) = ([0; 4096], most);
    while left > 0 {
        let wanted = left.min(buffer.len());
        match from.read(&mut buffer[..wanted]) {
            Ok(count) if count > 0 && to.write_all(&buffer[..count]).is_ok() => left -= count,
            _ => break,
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
