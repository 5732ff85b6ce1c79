//! The packet sockets of access links: frames in, frames out, and which sources need not be shown.

use std::collections::BTreeMap;
use std::rc::Rc;

use tokio::task::AbortHandle;

use super::core::Core;
use super::packet::PacketSocket;
use crate::node::Node;
use crate::proto::nd::LinkConfig;
use crate::types::seam::IfIndex;

struct Sensor {
    name: String,
    socket: Rc<PacketSocket>,
    reader: AbortHandle,
}

/// All access links of the configuration, and those that are there.
#[derive(Default)]
pub struct Access {
    /// By interface name; `link` is filled in when the interface is there.
    configured: BTreeMap<String, LinkConfig>,
    open: BTreeMap<IfIndex, Sensor>,
}

impl Access {
    pub fn new(configured: BTreeMap<String, LinkConfig>) -> Self {
        Self { configured, open: BTreeMap::new() }
    }

    pub fn name(&self, link: IfIndex) -> Option<&str> {
        self.open.get(&link).map(|s| s.name.as_str())
    }

    pub fn find(&self, name: &str) -> Option<IfIndex> {
        self.open.iter().find(|(_, s)| s.name == name).map(|(link, _)| *link)
    }

    /// Listens on a link that is ready. Returns what the node is to know about it.
    pub fn open(&mut self, name: &str, link: IfIndex, core: &Rc<Core>) -> Option<LinkConfig> {
        let config = self.configured.get(name)?;
        let socket = match PacketSocket::open(link) {
            Ok(socket) => Rc::new(socket),
            Err(error) => {
                tracing::error!(interface = name, %error, "cannot listen for hosts");
                return None;
            }
        };
        let reader = tokio::task::spawn_local(run_reader(Rc::clone(core), Rc::clone(&socket)));
        let sensor = Sensor { name: name.to_owned(), socket, reader: reader.abort_handle() };
        if let Some(before) = self.open.insert(link, sensor) {
            before.reader.abort();
        }
        Some(LinkConfig { link, ..config.clone() })
    }

    pub fn close(&mut self, link: IfIndex) {
        if let Some(sensor) = self.open.remove(&link) {
            sensor.reader.abort();
        }
    }

    /// Hosts repeat what is lost here, and so do our probes and advertisements.
    pub fn send(&self, link: IfIndex, frame: &[u8]) {
        let Some(sensor) = self.open.get(&link) else { return };
        if let Err(error) = sensor.socket.send(frame) {
            tracing::debug!(interface = %sensor.name, %error, "a frame is not sent");
        }
    }

    /// The nodes of the link have changed: their packets are no news.
    pub fn refilter(&self, link: IfIndex, node: &Node) {
        let Some(sensor) = self.open.get(&link) else { return };
        match sensor.socket.set_attached(node.anchor.prefixes_on(link)) {
            Ok(_all_listed) => {}
            Err(error) => {
                tracing::warn!(interface = %sensor.name, %error, "the sensor's filter is not set");
            }
        }
    }
}

async fn run_reader(core: Rc<Core>, socket: Rc<PacketSocket>) {
    let link = socket.link();
    let mut buffer = vec![0; 2048];
    loop {
        match socket.receive(&mut buffer).await {
            Ok(received) => {
                let frame = &buffer[..received.len.min(buffer.len())];
                core.turn(|node, now, out| {
                    node.handle_frame(link, frame, received.checksum, now, out);
                });
            }
            Err(error) => {
                // The interface is down or going; its events come by netlink.
                tracing::debug!(link = link.0, %error, "an access link cannot be read");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
        tokio::task::yield_now().await;
    }
}
