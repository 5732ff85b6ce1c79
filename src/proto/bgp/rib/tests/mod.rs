//! The RIB from outside: UPDATE bodies in, octets to peers out.

mod lab;
mod model;
mod receive;
mod reflect;
mod send;
mod view;
