//! What LISP needs of the system: control sockets on UDP 4342 ([`udp`]), the thread of the
//! user-space data plane ([`tun`]), the sensor of late packets ([`late`]), and what puts the latter
//! two beside a data plane of the kernel ([`Beside`]).

mod beside;
pub mod late;
pub(super) mod mmsg;
pub mod tun;
pub mod udp;

pub use beside::Beside;
