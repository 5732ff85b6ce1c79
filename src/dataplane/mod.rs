//! Desired entries → kernel.
//!
//! [`reconcile::Reconciler`] holds what should be there and what is there, and works off the
//! difference through a [`DataPlane`]: the kernel's routing socket, or the fake one of tests and
//! simulations. A call into it finishes in microseconds (netlink answers within the send), so the
//! routing thread calls it directly.

pub mod ebpf;
pub mod encap;
pub mod fake;
pub mod filter;
mod forwarding;
pub mod netlink;
pub mod reconcile;
pub mod repair;
pub mod rewrite;
pub mod transient;
pub mod tun;

use std::net::IpAddr;

pub use forwarding::{AccessView, Event, Forwarding};

use crate::types::seam::IfIndex;
use crate::types::{MacAddr, Prefix};

/// Which of our routes for a prefix: both may exist, the delivery is preferred (lower metric).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// The node is attached here.
    Delivery,
    /// The best path of BGP leads elsewhere.
    Bgp,
}

/// Where a route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Hop {
    pub link: IfIndex,
    /// `None`: the destination is on the link itself.
    pub gateway: Option<IpAddr>,
}

/// A route of ours as the kernel has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelRoute {
    pub prefix: Prefix,
    pub kind: Kind,
    pub hop: Hop,
}

/// One step of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// A new route; [`OpError::Exists`] when prefix and metric are taken.
    AddRoute {
        prefix: Prefix,
        kind: Kind,
        hop: Hop,
    },
    /// Over a route that is known to be ours.
    ReplaceRoute {
        prefix: Prefix,
        kind: Kind,
        hop: Hop,
    },
    /// Never removes a route of another protocol number; [`OpError::Missing`] when there is none.
    DeleteRoute {
        prefix: Prefix,
        kind: Kind,
    },
    /// The link-layer address of a node, so that its first packet does not wait for a resolution.
    SetNeighbor {
        link: IfIndex,
        ip: IpAddr,
        mac: MacAddr,
    },
    DeleteNeighbor {
        link: IfIndex,
        ip: IpAddr,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpError {
    #[error("there is already a route with this prefix and metric")]
    Exists,
    #[error("there is no such route or neighbour")]
    Missing,
    #[error("the interface is down or gone")]
    LinkDown,
    #[error("not permitted: CAP_NET_ADMIN is needed")]
    NotPermitted,
    #[error("{0}")]
    Other(String),
}

/// What the reconciler needs of a kernel.
pub trait DataPlane {
    /// Applies the operations in order; `results` receives one result for each.
    fn apply(&mut self, ops: &[Op], results: &mut Vec<Result<(), OpError>>);

    /// Begins to list all routes of ours, as they are.
    fn begin_dump(&mut self) -> Result<(), OpError>;

    /// A piece of the list; true when there is more. A piece takes well below a millisecond, so
    /// that a list of a million routes does not stop the routing thread for a second.
    fn continue_dump(&mut self, routes: &mut Vec<KernelRoute>) -> Result<bool, OpError>;

    /// How packets to this BGP next hop leave, by routes that are not ours.
    fn resolve(&mut self, next_hop: IpAddr) -> Result<Hop, OpError>;
}

/// Attaches a classic BPF program to a socket.
pub(crate) fn attach_filter(
    fd: std::os::fd::RawFd,
    program: &[libc::sock_filter],
) -> std::io::Result<()> {
    let filter = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| std::io::ErrorKind::InvalidInput)?,
        // The kernel copies the program and does not write to it.
        filter: program.as_ptr().cast_mut(),
    };
    let len = libc::socklen_t::try_from(size_of_val(&filter)).expect("a small struct");
    // SAFETY: `filter` points to `program`, and both outlive the call.
    let rc = unsafe {
        libc::setsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const filter).cast(),
            len,
        )
    };
    if rc == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}
