//! The bare loop: a process that opens the sessions and then copies octets from the injector to the
//! sinks. What it costs is what sockets, wake-ups and this bench cost; no router can be below it.

use std::io::{self, Read, Write};
use std::net::{IpAddr, TcpListener};

use crate::speaker::{DEVICE, INJECTOR, PORT, establish};

pub fn run(sinks: usize) -> io::Result<()> {
    let listener = TcpListener::bind((DEVICE, PORT))?;
    let mut injector = None;
    let mut outputs = Vec::new();
    while injector.is_none() || outputs.len() < sinks {
        let (mut stream, from) = listener.accept()?;
        establish(&mut stream, DEVICE)?;
        stream.set_nodelay(true)?;
        if from.ip() == IpAddr::V4(INJECTOR) {
            injector = Some(stream);
        } else {
            outputs.push(stream);
        }
    }
    let Some(mut injector) = injector else { return Ok(()) };
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let n = injector.read(&mut buffer)?;
        if n == 0 {
            return Ok(());
        }
        for output in &mut outputs {
            output.write_all(&buffer[..n])?;
        }
    }
}
