//! A name server as Compose has one: the name of a service is the addresses of its containers.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::wait::must;

/// Longest datagram without an agreement about more.
const DATAGRAM: usize = 512;
const HEADER: usize = 12;
/// An answer, recursion available, no error.
const ANSWER: [u8; 2] = [0x81, 0x80];
const TYPE_A: u16 = 1;
/// A record for the name that stands behind the header: an address, of the internet, to be asked for again at once.
const RECORD: [u8; 12] = [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4];

/// Answers every name with the same addresses; ends with this value.
#[derive(Debug)]
pub(crate) struct Names {
    pub(crate) port: u16,
    addresses: watch::Sender<Vec<Ipv4Addr>>,
    server: JoinHandle<()>,
}

impl Names {
    pub(crate) async fn start(addresses: Vec<Ipv4Addr>) -> Self {
        let socket = must(UdpSocket::bind("127.0.0.1:0").await, "listening for a name server");
        let port = must(socket.local_addr(), "the port of a name server").port();
        let (addresses, asked) = watch::channel(addresses);
        let server = tokio::spawn(async move {
            let mut question = [0; DATAGRAM];
            while let Ok((length, from)) = socket.recv_from(&mut question).await {
                let answer = answer(&question[..length], &asked.borrow().clone());
                if let Ok(answer) = answer {
                    // The caller asks again.
                    let _ = socket.send_to(&answer, from).await;
                }
            }
        });
        Self { port, addresses, server }
    }

    /// From now on.
    pub(crate) fn set(&self, addresses: Vec<Ipv4Addr>) {
        self.addresses.send_replace(addresses);
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn answer(question: &[u8], addresses: &[Ipv4Addr]) -> Result<Vec<u8>> {
    let asked = question.get(HEADER..).context("no header")?;
    let name = asked.iter().position(|byte| *byte == 0).context("no name")?;
    // After the name: its end, the type and the class.
    let asked = asked.get(..name + 5).context("no type")?;
    let wanted = u16::from_be_bytes([asked[name + 1], asked[name + 2]]);
    let addresses = if wanted == TYPE_A { addresses } else { &[] };
    let count = u16::try_from(addresses.len())?.to_be_bytes();
    let mut answer = [&question[..2], &ANSWER, &[0, 1], &count, &[0; 4], asked].concat();
    for address in addresses {
        answer.extend(RECORD);
        answer.extend(address.octets());
    }
    Ok(answer)
}
