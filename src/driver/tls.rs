//! Mutually authenticated TLS 1.3 for CXTP links.
//!
//! RFC 4067 §6 wants IPsec ESP with the security associations set up before they are needed; our
//! links are long-lived, so the handshake is long done when a node moves. A peer is known by the
//! name in its certificate (a DNS name or an IP address; not a URI, which webpki does not verify):
//! the certificate must be of the configured authority and must name exactly one configured peer,
//! so a wildcard certificate cannot be somebody else.
//!
//! The lower anchor id dials (`proto::cxtp::Peer::is_dialer`), the other only accepts. To take new
//! certificates, make a new [`TlsConfig`]; links that are up stay as they are. There is no session
//! resumption: each link begins with certificates.
//!
//! With TLS 1.3 the dialer is done before the acceptor has seen its certificate; only the hello of
//! CXTP tells it that it is welcome.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, CommonState, RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

/// What both ends must say that they speak; the number is that of killick's use of CXTP.
const ALPN: &[u8] = b"killick-cxtp/1";

/// For TCP and TLS together.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);

/// PEM files.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The authority (one or several certificates) that must have signed the peers'.
    pub ca: PathBuf,
    /// Our certificate, and intermediate ones behind it.
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// Ready for handshakes; cheap to clone.
#[derive(Clone)]
pub struct TlsConfig {
    connector: TlsConnector,
    acceptor: TlsAcceptor,
    peers: Arc<[ServerName<'static>]>,
    handshake_max: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read {path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error("{path}: no PEM section with a {what}, or a broken one ({source})")]
    Pem { path: PathBuf, what: &'static str, source: pem::Error },
    #[error("{path}: {source}")]
    Ca { path: PathBuf, source: rustls::Error },
    #[error("the certificate in {certificate} and the key in {key} cannot be used: {source}")]
    Identity { certificate: PathBuf, key: PathBuf, source: rustls::Error },
    #[error("the authority cannot be used to verify peers: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
    #[error("{0:?} is neither a DNS name nor an IP address")]
    PeerName(String),
    #[error("two peers have the name {0:?}")]
    SamePeerName(String),
    #[error("there is no peer number {0}")]
    NoSuchPeer(usize),
    #[error("cannot connect to {addr}: {source}")]
    Connect { addr: SocketAddr, source: io::Error },
    #[error("TLS handshake: {0}")]
    Handshake(io::Error),
    #[error("TLS handshake: not done in time")]
    Timeout,
    #[error("the other end does not speak killick-cxtp/1 (ALPN)")]
    Alpn,
    #[error("the certificate of the other end names no configured peer")]
    UnknownPeer,
    #[error("the certificate of the other end names several configured peers")]
    AmbiguousPeer,
    #[error("the certificate of the other end is of another peer")]
    OtherPeer,
}

impl TlsConfig {
    /// `peers` are the names in the certificates of the peers; what [`connect`] and [`accept`] call
    /// a peer is its place in this list.
    pub fn load(files: &TlsFiles, peers: &[String]) -> Result<Self, TlsError> {
        let certificates = |path: &Path, what| -> Result<Vec<CertificateDer<'static>>, TlsError> {
            let broken = |source| TlsError::Pem { path: path.into(), what, source };
            let found = CertificateDer::pem_slice_iter(&read(path)?)
                .collect::<Result<Vec<_>, _>>()
                .map_err(broken)?;
            if found.is_empty() { Err(broken(pem::Error::NoItemsFound)) } else { Ok(found) }
        };
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&files.ca, "certificate")? {
            let source = |source| TlsError::Ca { path: files.ca.clone(), source };
            roots.add(certificate).map_err(source)?;
        }
        let chain = certificates(&files.certificate, "certificate")?;
        let key = PrivateKeyDer::from_pem_slice(&read(&files.key)?).map_err(|source| {
            TlsError::Pem { path: files.key.clone(), what: "private key", source }
        })?;
        let identity = |source| TlsError::Identity {
            certificate: files.certificate.clone(),
            key: files.key.clone(),
            source,
        };
        let roots = Arc::new(roots);
        let provider = Arc::new(rustls::crypto::ring::default_provider());

        let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("ring has TLS 1.3")
            .with_root_certificates(Arc::clone(&roots))
            .with_client_auth_cert(chain.clone(), key.clone_key())
            .map_err(identity)?;
        client.alpn_protocols = vec![ALPN.to_vec()];
        client.resumption = Resumption::disabled();

        let mut server =
            server_config(provider, roots)?.with_single_cert(chain, key).map_err(identity)?;
        server.alpn_protocols = vec![ALPN.to_vec()];
        server.send_tls13_tickets = 0;

        Ok(Self {
            connector: TlsConnector::from(Arc::new(client)),
            acceptor: TlsAcceptor::from(Arc::new(server)),
            peers: peer_names(peers)?.into(),
            handshake_max: HANDSHAKE_MAX,
        })
    }

    /// Which of the configured peers this certificate names.
    fn identify(&self, certificate: &CertificateDer<'_>) -> Result<usize, TlsError> {
        // rustls has verified it by now, so it parses.
        let certificate =
            webpki::EndEntityCert::try_from(certificate).map_err(|_| TlsError::UnknownPeer)?;
        let names = |name| certificate.verify_is_valid_for_subject_name(name).is_ok();
        let mut found = (0..self.peers.len()).filter(|&peer| names(&self.peers[peer]));
        match (found.next(), found.next()) {
            (Some(peer), None) => Ok(peer),
            (None, _) => Err(TlsError::UnknownPeer),
            (Some(_), Some(_)) => Err(TlsError::AmbiguousPeer),
        }
    }

    /// What rustls leaves to us: the protocol was agreed on, and the certificate is of one peer.
    fn check(&self, connection: &CommonState) -> Result<usize, TlsError> {
        if connection.alpn_protocol() != Some(ALPN) {
            return Err(TlsError::Alpn);
        }
        let chain = connection.peer_certificates().unwrap_or_default();
        self.identify(chain.first().ok_or(TlsError::UnknownPeer)?)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::File { path: path.into(), source })
}

fn server_config(
    provider: Arc<CryptoProvider>,
    roots: Arc<RootCertStore>,
) -> Result<rustls::ConfigBuilder<ServerConfig, rustls::server::WantsServerCert>, TlsError> {
    let verifier =
        WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider)).build()?;
    Ok(ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("ring has TLS 1.3")
        .with_client_cert_verifier(verifier))
}

fn peer_names(peers: &[String]) -> Result<Vec<ServerName<'static>>, TlsError> {
    let mut names = Vec::with_capacity(peers.len());
    for peer in peers {
        let name = ServerName::try_from(peer.clone());
        let name = name.map_err(|_| TlsError::PeerName(peer.clone()))?;
        if names.contains(&name) {
            return Err(TlsError::SamePeerName(peer.clone()));
        }
        names.push(name);
    }
    Ok(names)
}

/// Dials a peer.
pub async fn connect(
    config: &TlsConfig,
    addr: SocketAddr,
    peer: usize,
) -> Result<TlsStream<TcpStream>, TlsError> {
    let dial = async {
        let failed = |source| TlsError::Connect { addr, source };
        let stream = TcpStream::connect(addr).await.map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?; // a CT-Req must not wait for an ack
        handshake_as_client(config, stream, peer).await
    };
    tokio::time::timeout(config.handshake_max, dial).await.map_err(|_| TlsError::Timeout)?
}

/// Takes what a listener has accepted, and finds out who it is.
pub async fn accept(
    config: &TlsConfig,
    stream: TcpStream,
) -> Result<(usize, TlsStream<TcpStream>), TlsError> {
    stream.set_nodelay(true).map_err(TlsError::Handshake)?;
    handshake_as_server(config, stream).await
}

async fn handshake_as_client<S: AsyncRead + AsyncWrite + Unpin>(
    config: &TlsConfig,
    stream: S,
    peer: usize,
) -> Result<TlsStream<S>, TlsError> {
    let name = config.peers.get(peer).ok_or(TlsError::NoSuchPeer(peer))?.clone();
    let handshake =
        tokio::time::timeout(config.handshake_max, config.connector.connect(name, stream));
    let stream = handshake.await.map_err(|_| TlsError::Timeout)?.map_err(TlsError::Handshake)?;
    if config.check(stream.get_ref().1)? != peer {
        return Err(TlsError::OtherPeer);
    }
    Ok(stream.into())
}

async fn handshake_as_server<S: AsyncRead + AsyncWrite + Unpin>(
    config: &TlsConfig,
    stream: S,
) -> Result<(usize, TlsStream<S>), TlsError> {
    let handshake = tokio::time::timeout(config.handshake_max, config.acceptor.accept(stream));
    let stream = handshake.await.map_err(|_| TlsError::Timeout)?.map_err(TlsError::Handshake)?;
    let peer = config.check(stream.get_ref().1)?;
    Ok((peer, stream.into()))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::mctx::{self, Mctx, MctxConfig, Trust};
    use crate::proto::cxtp::{self, PeerConfig, Role};
    use crate::types::seam::{Context, ContextPrefix};
    use crate::types::{AnchorId, Generation, Instant, MnId, Prefix};

    type Authority = CertifiedIssuer<'static, KeyPair>;

    const A: &str = "a.killick.example";
    const B: &str = "b.killick.example";
    const C: &str = "c.killick.example";

    fn authority() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "anchors");
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    /// A directory of its own, gone with the test.
    struct Dir(PathBuf);

    impl Dir {
        fn new() -> Self {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let next = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = std::env::temp_dir().join(format!("killick-{}-{next}", std::process::id()));
            std::fs::create_dir(&path).unwrap();
            Self(path)
        }

        fn file(&self, name: &str, text: &str) -> PathBuf {
            let path = self.0.join(name);
            std::fs::write(&path, text).unwrap();
            path
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    /// A node that trusts `trusted`, and is `names` by the word of `signer`.
    fn node(trusted: &Authority, signer: &Authority, names: &[&str], peers: &[&str]) -> TlsConfig {
        let (dir, key) = (Dir::new(), KeyPair::generate().unwrap());
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let certificate = CertificateParams::new(names).unwrap().signed_by(&key, signer).unwrap();
        let files = TlsFiles {
            ca: dir.file("ca.pem", &trusted.pem()),
            certificate: dir.file("node.pem", &certificate.pem()),
            key: dir.file("node.key", &key.serialize_pem()),
        };
        let peers: Vec<String> = peers.iter().map(ToString::to_string).collect();
        TlsConfig::load(&files, &peers).unwrap()
    }

    type Accepted = Result<(usize, TlsStream<tokio::io::DuplexStream>), TlsError>;
    type Connected = Result<TlsStream<tokio::io::DuplexStream>, TlsError>;

    fn run<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(future)
    }

    /// `client` dials its first peer.
    async fn meet(client: &TlsConfig, server: &TlsConfig) -> (Connected, Accepted) {
        let (near, far) = tokio::io::duplex(64 * 1024);
        tokio::join!(handshake_as_client(client, near, 0), handshake_as_server(server, far))
    }

    #[test]
    fn the_right_peers_find_each_other() {
        run(async {
            let ca = authority();
            let client = node(&ca, &ca, &[A], &[B, C]);
            let server = node(&ca, &ca, &[B], &[C, A]);
            let (connected, accepted) = meet(&client, &server).await;
            let (mut connected, (peer, mut accepted)) = (connected.unwrap(), accepted.unwrap());
            assert_eq!(peer, 1);
            connected.write_all(b"hello").await.unwrap();
            connected.flush().await.unwrap();
            let mut octets = [0; 5];
            accepted.read_exact(&mut octets).await.unwrap();
            assert_eq!(&octets, b"hello");
            let version = accepted.get_ref().1.protocol_version();
            assert_eq!(version, Some(rustls::ProtocolVersion::TLSv1_3));
        });
    }

    #[test]
    fn an_address_may_be_the_name() {
        run(async {
            let ca = authority();
            let client = node(&ca, &ca, &["192.0.2.1"], &["2001:db8::2"]);
            let server = node(&ca, &ca, &["2001:db8::2"], &["192.0.2.1"]);
            let (connected, accepted) = meet(&client, &server).await;
            assert!(connected.is_ok());
            assert_eq!(accepted.unwrap().0, 0);
        });
    }

    #[test]
    fn another_authority_is_refused_at_both_ends() {
        run(async {
            let (ca, other) = (authority(), authority());
            let server = node(&ca, &ca, &[B], &[A]);
            // It trusts ours, but is signed by another.
            let (_, accepted) = meet(&node(&ca, &other, &[A], &[B]), &server).await;
            assert!(matches!(accepted, Err(TlsError::Handshake(_))), "{:?}", accepted.err());
            // It is signed by ours, but trusts another.
            let (connected, accepted) = meet(&node(&other, &ca, &[A], &[B]), &server).await;
            assert!(matches!(connected, Err(TlsError::Handshake(_))), "{:?}", connected.err());
            assert!(matches!(accepted, Err(TlsError::Handshake(_))), "{:?}", accepted.err());
        });
    }

    #[test]
    fn a_name_that_is_not_configured_is_refused() {
        run(async {
            let ca = authority();
            let server = node(&ca, &ca, &[B], &[A]);
            let (_, accepted) = meet(&node(&ca, &ca, &[C], &[B]), &server).await;
            assert!(matches!(accepted, Err(TlsError::UnknownPeer)), "{:?}", accepted.err());
            // The dialer reaches somebody else than it wanted.
            let (connected, _) = meet(&node(&ca, &ca, &[A], &[C]), &server).await;
            assert!(matches!(connected, Err(TlsError::Handshake(_))), "{:?}", connected.err());
        });
    }

    #[test]
    fn a_certificate_for_several_peers_is_nobody() {
        run(async {
            let ca = authority();
            let server = node(&ca, &ca, &[B], &[A, C]);
            for names in [&["*.killick.example"][..], &[A, C][..]] {
                let (_, accepted) = meet(&node(&ca, &ca, names, &[B]), &server).await;
                assert!(matches!(accepted, Err(TlsError::AmbiguousPeer)), "{:?}", accepted.err());
            }
            // The same at the dialer.
            let client = node(&ca, &ca, &[A], &[B, C]);
            let (connected, _) = meet(&client, &node(&ca, &ca, &[B, C], &[A])).await;
            assert!(matches!(connected, Err(TlsError::AmbiguousPeer)), "{:?}", connected.err());
        });
    }

    /// A client of our authority, but not as we make them.
    async fn meet_client(config: ClientConfig, server: &TlsConfig) -> Accepted {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let name = ServerName::try_from(B).unwrap();
        let connector = TlsConnector::from(Arc::new(config));
        let client = async {
            // It may learn of the refusal only when it reads.
            let mut stream = connector.connect(name, near).await.ok()?;
            stream.read_u8().await.ok()
        };
        tokio::join!(client, handshake_as_server(server, far)).1
    }

    fn bare_client(
        ca: &Authority,
    ) -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
        let mut roots = RootCertStore::empty();
        roots.add(ca.der().clone()).unwrap();
        ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
    }

    #[test]
    fn without_a_certificate_nobody_comes_in() {
        run(async {
            let ca = authority();
            let server = node(&ca, &ca, &[B], &[A]);
            let mut client = bare_client(&ca).with_no_client_auth();
            client.alpn_protocols = vec![ALPN.to_vec()];
            let accepted = meet_client(client, &server).await;
            assert!(matches!(accepted, Err(TlsError::Handshake(_))), "{:?}", accepted.err());
        });
    }

    #[test]
    fn another_protocol_is_refused() {
        run(async {
            let ca = authority();
            let server = node(&ca, &ca, &[B], &[A]);
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new(vec![A.to_string()]).unwrap();
            let certificate = params.signed_by(&key, &ca).unwrap();
            let client = |alpn: &[u8]| {
                let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
                let chain = vec![certificate.der().clone()];
                let mut client = bare_client(&ca).with_client_auth_cert(chain, key).unwrap();
                client.alpn_protocols = match alpn {
                    b"" => Vec::new(),
                    alpn => vec![alpn.to_vec()],
                };
                client
            };
            let accepted = meet_client(client(b"h2"), &server).await;
            assert!(matches!(accepted, Err(TlsError::Handshake(_))), "{:?}", accepted.err());
            // The control: but for this, it is let in.
            assert!(accept_and_close(client(ALPN), &server).await.is_ok());
            let accepted = accept_and_close(client(b""), &server).await;
            assert!(matches!(accepted, Err(TlsError::Alpn)), "{:?}", accepted.err());
        });
    }

    async fn accept_and_close(config: ClientConfig, server: &TlsConfig) -> Result<usize, TlsError> {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let name = ServerName::try_from(B).unwrap();
        let connector = TlsConnector::from(Arc::new(config));
        let (client, accepted) =
            tokio::join!(connector.connect(name, near), handshake_as_server(server, far));
        assert!(client.is_ok());
        accepted.map(|(peer, _)| peer)
    }

    /// ClientHello of OpenSSL 3.0.19 with TLS 1.2 as its maximum.
    const CLIENT_HELLO_12: &str = "\
        16030100b2010000ae030337ffe9d6c4919f285979e291fdc7991e38a7fbbeae7ca25ca5aa79ba7e15b8\
        5e000004c02b00ff01000081000000160014000011622e6b696c6c69636b2e6578616d706c65000b0004\
        03000102000a000c000a001d0017001e001900180023000000100011000f0e6b696c6c69636b2d637874\
        702f310016000000170000000d002a0028040305030603080708080809080a080b080408050806040105\
        010601030303010302040205020602";

    #[test]
    fn tls_1_2_is_refused() {
        run(async {
            let ca = authority();
            let server = node(&ca, &ca, &[B], &[A]);
            let (mut near, far) = tokio::io::duplex(64 * 1024);
            let octets = (0..CLIENT_HELLO_12.len()).step_by(2);
            let hello: Vec<u8> = octets
                .map(|i| u8::from_str_radix(&CLIENT_HELLO_12[i..i + 2], 16).unwrap())
                .collect();
            near.write_all(&hello).await.unwrap();
            let accepted = handshake_as_server(&server, far).await;
            assert!(matches!(accepted, Err(TlsError::Handshake(_))), "{:?}", accepted.err());
            let mut alert = Vec::new();
            near.read_to_end(&mut alert).await.unwrap();
            // Fatal alert 70, protocol_version (RFC 8446 §6.2).
            assert_eq!(alert, [21, 3, 3, 0, 2, 2, 70]);
        });
    }

    #[test]
    fn a_peer_that_says_nothing_is_not_waited_for() {
        run(async {
            let ca = authority();
            let mut server = node(&ca, &ca, &[B], &[A]);
            server.handshake_max = Duration::from_millis(20);
            let (_near, far) = tokio::io::duplex(64);
            let accepted = handshake_as_server(&server, far).await;
            assert!(matches!(accepted, Err(TlsError::Timeout)), "{:?}", accepted.err());
            let mut client = node(&ca, &ca, &[A], &[B]);
            client.handshake_max = Duration::from_millis(20);
            let (near, _far) = tokio::io::duplex(64 * 1024);
            let connected = handshake_as_client(&client, near, 0).await;
            assert!(matches!(connected, Err(TlsError::Timeout)), "{:?}", connected.err());
        });
    }

    #[test]
    fn bad_files_and_names_are_told_apart() {
        let (ca, dir, key) = (authority(), Dir::new(), KeyPair::generate().unwrap());
        let params = CertificateParams::new(vec![A.to_string()]).unwrap();
        let pem = params.signed_by(&key, &ca).unwrap().pem();
        let good = TlsFiles {
            ca: dir.file("ca.pem", &ca.pem()),
            certificate: dir.file("node.pem", &pem),
            key: dir.file("node.key", &key.serialize_pem()),
        };
        let other_key = dir.file("other.key", &KeyPair::generate().unwrap().serialize_pem());
        let empty = dir.file("empty.pem", "");
        let error = |files: &TlsFiles, peers: &[&str]| {
            let peers: Vec<String> = peers.iter().map(ToString::to_string).collect();
            TlsConfig::load(files, &peers).err().map(|error| error.to_string()).unwrap_or_default()
        };
        assert_eq!(error(&good, &[B]), "");
        let missing = TlsFiles { ca: dir.0.join("none.pem"), ..good.clone() };
        assert!(error(&missing, &[B]).starts_with("cannot read "));
        let nothing = TlsFiles { certificate: empty.clone(), ..good.clone() };
        assert!(error(&nothing, &[B]).contains("no PEM section with a certificate"));
        let no_key = TlsFiles { key: empty, ..good.clone() };
        assert!(error(&no_key, &[B]).contains("no PEM section with a private key"));
        let mismatch = TlsFiles { key: other_key, ..good.clone() };
        assert!(error(&mismatch, &[B]).contains("cannot be used"), "{}", error(&mismatch, &[B]));
        assert!(error(&good, &["no name"]).contains("neither a DNS name nor an IP address"));
        assert!(error(&good, &[B, B]).contains("two peers"));
    }

    /// One end: link machine, context room and stream, wired as the driver wires them.
    struct End {
        own: AnchorId,
        peer: cxtp::Peer,
        mctx: Mctx,
        stream: TlsStream<tokio::io::DuplexStream>,
        /// What the hall would act on.
        events: Vec<mctx::Output>,
    }

    impl End {
        fn new(own: AnchorId, other: AnchorId, stream: TlsStream<tokio::io::DuplexStream>) -> Self {
            let may_claim = vec!["10.0.0.0/8".parse().unwrap()];
            let trust = vec![Trust { anchor: other, may_claim }];
            let mut peer = cxtp::Peer::new(PeerConfig::new(own, Role::Anchor, other), 1);
            peer.handle_connected(Instant::ZERO, &mut Vec::new());
            let mctx = Mctx::new(MctxConfig::new(own, trust), 1);
            Self { own, peer, mctx, stream, events: Vec::new() }
        }

        fn carry_out(&mut self, out: Vec<mctx::Output>) {
            for output in out {
                match output {
                    mctx::Output::Send { signal, .. } => {
                        self.peer.send(&signal, Instant::ZERO).unwrap();
                    }
                    other => self.events.push(other),
                }
            }
        }

        async fn write(&mut self) {
            while let Some(octets) = self.peer.poll_transmit(Instant::ZERO) {
                self.stream.write_all(&octets).await.unwrap();
            }
            self.stream.flush().await.unwrap();
        }

        async fn read(&mut self) {
            let (mut buf, now, mut links) = ([0; 2048], Instant::ZERO, Vec::new());
            let len = self.stream.read(&mut buf).await.unwrap();
            assert!(len > 0, "{} lost its link", self.own);
            self.peer.handle_octets(&buf[..len], now, &mut links);
            for event in links {
                let (other, mut out) = (self.peer.peer(), Vec::new());
                match event {
                    cxtp::Output::Up { role, .. } => {
                        self.mctx.handle_link_up(other, role.is_controller(), now, &mut out);
                    }
                    cxtp::Output::Signal(signal) => {
                        self.mctx.handle_signal(other, signal, now, &mut out);
                    }
                    cxtp::Output::Down(reason) => panic!("{reason}"),
                }
                self.carry_out(out);
            }
        }
    }

    /// RFC 4067 §5.2 through everything: rooms, codec, machine and TLS.
    #[test]
    fn a_context_passes_between_two_anchors() {
        run(async {
            let ca = authority();
            let client = node(&ca, &ca, &[A], &[B]);
            let server = node(&ca, &ca, &[B], &[A]);
            let (connected, accepted) = meet(&client, &server).await;
            let (a, b) = (AnchorId(1), AnchorId(2));
            let mut pma = End::new(a, b, connected.unwrap());
            let mut nma = End::new(b, a, accepted.unwrap().1);
            assert!(pma.peer.is_dialer() && !nma.peer.is_dialer());
            pma.write().await;
            nma.read().await;
            nma.write().await;
            pma.read().await;

            let (mn, prefix) = (MnId::new("mn1").unwrap(), Prefix::v4(0x0a00_0001, 32).unwrap());
            let (now, none, mut out) = (Instant::ZERO, Generation::NONE, Vec::new());
            nma.mctx.handle_attached(&mn, prefix, &[a], none, now, &mut out);
            nma.carry_out(out);
            nma.write().await;
            pma.read().await;
            let Some(mctx::Output::ExportWanted { prefix, to, sequence }) = pma.events.pop() else {
                panic!("{:?}", pma.events);
            };
            let context = Context {
                mn: mn.clone(),
                generation: Generation(3),
                anchor: a,
                prefixes: vec![ContextPrefix { prefix, home: Some(a), lifetime_s: Some(60) }],
                attributes: vec![(1, vec![2, 3])],
                path: None,
            };
            let mut out = Vec::new();
            pma.mctx.reply_context(prefix, to, sequence, Ok(context.clone()), now, &mut out);
            pma.carry_out(out);
            pma.write().await;
            nma.read().await;
            let Some(mctx::Output::Imported { result: Ok(imported), .. }) = nma.events.pop() else {
                panic!("{:?}", nma.events);
            };
            assert_eq!(imported.context, context);
            let mut out = Vec::new();
            nma.mctx.handle_installed(&mn, Ok(()), now, &mut out);
            nma.carry_out(out);
            nma.write().await;
            pma.read().await;
            let (prefixes, generation) = (vec![prefix], Generation(3));
            let transferred = mctx::Output::Transferred { mn, prefixes, to: b, generation };
            assert_eq!(pma.events, [transferred]);
        });
    }
}
