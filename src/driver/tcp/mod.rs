//! TCP sockets for BGP: listening, connecting, and what protects them (TCP-MD5, RFC 2385; GTSM,
//! RFC 5082).
//!
//! One listener per family serves all neighbours. It sends with TTL 255 whatever they use, because
//! its SYN-ACK is the listener's, and a neighbour with GTSM would not take it otherwise.

mod raw;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::proto::bgp::session::{Md5Key, Transport};

/// RFC 4271 §3: the port of BGP.
pub const BGP_PORT: u16 = 179;

/// Class selector 6, network control (RFC 4594 §3.1): routing must get through when data does not.
const TOS_CS6: u32 = 0xc0;

const TTL_MAX: u8 = 255;

/// Connections that wait for being accepted. The loop accepts at once; more than this is an attack.
const BACKLOG: i32 = 128;

fn context<T>(result: io::Result<T>, what: impl FnOnce() -> String) -> io::Result<T> {
    result.map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", what())))
}

fn new_socket(family_of: IpAddr) -> io::Result<Socket> {
    let socket =
        Socket::new(Domain::for_address((family_of, 0).into()), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    match family_of {
        IpAddr::V4(_) => socket.set_tos_v4(TOS_CS6)?,
        IpAddr::V6(_) => {
            socket.set_only_v6(true)?;
            socket.set_tclass_v6(TOS_CS6)?;
        }
    }
    Ok(socket)
}

fn set_ttl(socket: &impl AsFd, family_of: IpAddr, ttl: u8) -> io::Result<()> {
    let socket = SockRef::from(socket);
    match family_of {
        IpAddr::V4(_) => socket.set_ttl_v4(u32::from(ttl)),
        IpAddr::V6(_) => socket.set_unicast_hops_v6(u32::from(ttl)),
    }
}

/// A listener for one address (or all of a family). Port 179 needs CAP_NET_BIND_SERVICE.
pub fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let open = || {
        let socket = new_socket(addr.ip())?;
        set_ttl(&socket, addr.ip(), TTL_MAX)?;
        socket.bind(&addr.into())?;
        socket.listen(BACKLOG)?;
        TcpListener::from_std(socket.into())
    };
    context(open(), || format!("cannot listen on {addr}"))
}

/// Sets or removes the key of one neighbour on the listener of its family. It must be there before
/// the neighbour's SYN, and holds for connections accepted from then on.
pub fn set_listener_key(
    listener: &TcpListener,
    peer: IpAddr,
    key: Option<&Md5Key>,
) -> io::Result<()> {
    let result = match raw::set_md5(listener, peer, key.map_or(&[], Md5Key::octets)) {
        // There was none.
        Err(e) if key.is_none() && e.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        result => result,
    };
    context(result, || format!("TCP-MD5 key for {peer}"))
}

/// GTSM on a socket of the neighbour's family.
fn protect(socket: &impl AsFd, peer: IpAddr, hops: u8) -> io::Result<()> {
    set_ttl(socket, peer, TTL_MAX)?;
    // RFC 5082 §3: a packet from a trusted distance of one arrives with 255.
    let min = TTL_MAX - hops.saturating_sub(1);
    match peer {
        IpAddr::V4(_) => raw::set_min_ttl_v4(socket, min),
        IpAddr::V6(_) => raw::set_min_hop_count_v6(socket, min),
    }
}

/// Connects to a neighbour. Drop the future to give up.
pub async fn connect(transport: &Transport) -> io::Result<TcpStream> {
    let remote = transport.remote;
    let prepare = || {
        let socket = new_socket(remote.ip())?;
        socket.set_tcp_nodelay(true)?;
        if let Some(local) = transport.local {
            context(socket.bind(&SocketAddr::new(local, 0).into()), || format!("source {local}"))?;
        }
        if let Some(key) = &transport.md5 {
            context(raw::set_md5(&socket, remote.ip(), key.octets()), || "TCP-MD5".into())?;
        }
        if let Some(hops) = transport.ttl_security_hops {
            context(protect(&socket, remote.ip(), hops), || "TTL security".into())?;
        }
        Ok(TcpSocket::from_std_stream(socket.into()))
    };
    let result = match prepare() {
        Ok(socket) => socket.connect(remote).await,
        Err(e) => Err(e),
    };
    context(result, || format!("cannot connect to {remote}"))
}

/// What [`connect`] does to a socket, for one that the neighbour has opened. The key is inherited
/// from the listener.
pub fn prepare_accepted(stream: &TcpStream, transport: &Transport) -> io::Result<()> {
    let peer = transport.remote.ip();
    let prepare = || {
        stream.set_nodelay(true)?;
        match transport.ttl_security_hops {
            Some(hops) => context(protect(stream, peer, hops), || "TTL security".into()),
            None => Ok(()),
        }
    };
    context(prepare(), || format!("connection from {peer}"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::timeout;

    use super::*;

    const LOOPBACKS: [&str; 2] = ["127.0.0.1:0", "[::1]:0"];

    fn key(text: &str) -> Option<Md5Key> {
        Md5Key::new(text.as_bytes())
    }

    fn block_on<F: Future>(future: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    /// One connection; true when octets get through both ways before the deadline.
    async fn talk(listener: &TcpListener, transport: &Transport) -> bool {
        let both = async {
            let (client, server) = tokio::join!(connect(transport), listener.accept());
            let (mut client, (mut server, _)) = (client.unwrap(), server.unwrap());
            prepare_accepted(&server, transport).unwrap();
            assert!(client.nodelay().unwrap() && server.nodelay().unwrap());
            let mut octet = [0];
            client.write_all(&[1]).await.unwrap();
            server.read_exact(&mut octet).await.unwrap();
            server.write_all(&[octet[0] + 1]).await.unwrap();
            client.read_exact(&mut octet).await.unwrap();
            octet == [2]
        };
        timeout(Duration::from_millis(400), both).await.unwrap_or(false)
    }

    /// RFC 2385 §2: a segment that is not signed as expected is dropped without an answer.
    #[test]
    fn keys_must_match() {
        block_on(async {
            for addr in LOOPBACKS {
                let listener = listen(addr.parse().unwrap()).unwrap();
                let remote = listener.local_addr().unwrap();
                let with = |md5: Option<Md5Key>| Transport { md5, ..Transport::new(remote) };
                assert!(talk(&listener, &with(None)).await, "{addr}: no key on either side");
                set_listener_key(&listener, remote.ip(), key("secret").as_ref()).unwrap();
                assert!(talk(&listener, &with(key("secret"))).await, "{addr}: same key");
                assert!(!talk(&listener, &with(key("Secret"))).await, "{addr}: other key");
                assert!(!talk(&listener, &with(None)).await, "{addr}: no key at the client");
                set_listener_key(&listener, remote.ip(), key("rolled").as_ref()).unwrap();
                assert!(talk(&listener, &with(key("rolled"))).await, "{addr}: replaced");
                set_listener_key(&listener, remote.ip(), None).unwrap();
                assert!(talk(&listener, &with(None)).await, "{addr}: removed");
                set_listener_key(&listener, remote.ip(), None).unwrap();
            }
        });
    }

    /// RFC 5082 §3.
    #[test]
    fn packets_from_too_far_are_dropped() {
        block_on(async {
            for addr in LOOPBACKS {
                let listener = listen(addr.parse().unwrap()).unwrap();
                let remote = listener.local_addr().unwrap();
                let with = |hops| Transport { ttl_security_hops: hops, ..Transport::new(remote) };
                assert!(talk(&listener, &with(Some(1))).await, "{addr}");
                // Here for once the listener itself insists; loopback sends with 64 otherwise.
                protect(&listener, remote.ip(), 1).unwrap();
                assert!(talk(&listener, &with(Some(1))).await, "{addr}: 255");
                assert!(!talk(&listener, &with(None)).await, "{addr}: 64");
                protect(&listener, remote.ip(), 255).unwrap();
                assert!(talk(&listener, &with(None)).await, "{addr}: far is near enough");
            }
        });
    }

    #[test]
    fn the_source_address_is_bound_and_errors_say_where() {
        block_on(async {
            let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
            let remote = listener.local_addr().unwrap();
            let local = Some("127.0.0.7".parse().unwrap());
            let from = Transport { local, ..Transport::new(remote) };
            let (client, server) = tokio::join!(connect(&from), listener.accept());
            client.unwrap();
            assert_eq!(Some(server.unwrap().1.ip()), local);

            let local = Some("203.0.113.1".parse().unwrap());
            let refused = connect(&Transport { local, ..Transport::new(remote) }).await;
            let text = refused.unwrap_err().to_string();
            assert!(text.starts_with(&format!("cannot connect to {remote}: source 203.0.113.1: ")));

            let text = listen(remote).unwrap_err().to_string();
            assert!(text.starts_with(&format!("cannot listen on {remote}: ")), "{text}");
        });
    }
}
