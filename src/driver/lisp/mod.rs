//! What LISP needs of the system: control sockets on UDP 4342 ([`udp`]), the thread of the
//! user-space data plane ([`tun`]), and the sensor of late packets beside the kernel's data planes
//! ([`late`]).

mod mmsg;
pub mod tun;
pub mod udp;
