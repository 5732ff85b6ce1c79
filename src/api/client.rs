//! The other end of the Unix socket: what the CLI and tests speak through. One connection per
//! request; a shell does not ask twice.

use std::io;
use std::path::{Path, PathBuf};

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use super::views::ErrorEnvelope;

/// Octets of an answer: a page of a thousand routes is half a megabyte.
const ANSWER_LEN_MAX: usize = 64 * 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error(
        "no killick answers at {0}: is it running? (killick run <file>; another socket: --socket \
         or KILLICK_SOCKET)"
    )]
    NotRunning(PathBuf),
    #[error("you may not use {0}: it is for its owner and group (api.mode in the configuration)")]
    Denied(PathBuf),
    #[error("cannot use {path}: {error}")]
    Socket { path: PathBuf, error: io::Error },
    #[error("the connection to the daemon broke: {0}")]
    Broken(String),
    /// The daemon's own sentence.
    #[error("{message}")]
    Refused { code: String, message: String },
}

#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

fn broken(error: impl std::fmt::Display) -> ClientError {
    ClientError::Broken(error.to_string())
}

impl Client {
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// The body of the answer, as it is; a refusal is an error.
    pub async fn request(
        &self,
        method: Method,
        resource: &str,
        body: Vec<u8>,
    ) -> Result<Bytes, ClientError> {
        let response = self.send(method, resource, body).await?;
        let status = response.status();
        let octets = Limited::new(response.into_body(), ANSWER_LEN_MAX);
        let octets = octets.collect().await.map_err(broken)?.to_bytes();
        if status.is_success() {
            return Ok(octets);
        }
        Err(match serde_json::from_slice::<ErrorEnvelope>(&octets) {
            Ok(ErrorEnvelope { error, .. }) => {
                ClientError::Refused { code: error.code, message: error.message }
            }
            Err(_) => ClientError::Broken(format!("it answered {status}")),
        })
    }

    pub async fn get(&self, resource: &str) -> Result<Bytes, ClientError> {
        self.request(Method::GET, resource, Vec::new()).await
    }

    /// A response that goes on: lines as they come.
    pub async fn lines(&self, resource: &str) -> Result<Lines, ClientError> {
        let response = self.send(Method::GET, resource, Vec::new()).await?;
        if !response.status().is_success() {
            return Err(ClientError::Broken(format!("it answered {}", response.status())));
        }
        Ok(Lines { body: response.into_body() })
    }

    async fn send(
        &self,
        method: Method,
        resource: &str,
        body: Vec<u8>,
    ) -> Result<Response<Incoming>, ClientError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| {
            let path = self.socket.clone();
            match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                    ClientError::NotRunning(path)
                }
                io::ErrorKind::PermissionDenied => ClientError::Denied(path),
                _ => ClientError::Socket { path, error },
            }
        })?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        // It ends with the response, or with the runtime.
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(resource)
            .header("host", "killick")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(broken)?;
        sender.send_request(request).await.map_err(broken)
    }
}

/// Pieces of one or more whole lines, as the daemon wrote them.
pub struct Lines {
    body: Incoming,
}

impl Lines {
    /// `None` when the daemon ends the stream.
    pub async fn next(&mut self) -> Option<Result<Bytes, ClientError>> {
        loop {
            match self.body.frame().await? {
                Ok(frame) => match frame.into_data() {
                    Ok(data) => return Some(Ok(data)),
                    Err(_trailers) => continue,
                },
                Err(error) => return Some(Err(broken(error))),
            }
        }
    }
}

/// `text` as a value of a query string.
pub fn in_query(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for octet in text.bytes() {
        match octet {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b':' | b'/' => {
                out.push(octet.into());
            }
            _ => out.push_str(&format!("%{octet:02X}")),
        }
    }
    out
}
