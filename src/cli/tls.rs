//! A certificate authority for one mobility domain, and certificates of its nodes: what two killicks
//! need to believe each other. ECDSA P-256; keys are readable by their owner only, and nothing that
//! exists is overwritten.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};

use super::date;

/// Clocks of two nodes may differ by this much at the first use.
const CLOCK_SKEW_DAYS: u64 = 1;
const DAYS_MAX: u32 = 36_500;

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{path}: {error}")]
    File { path: PathBuf, error: io::Error },
    #[error("\"{0}\" cannot be the name in a certificate: letters, digits, '.', '-' and '_'")]
    Name(String),
    #[error("a validity of {0} days is not from 1 to {DAYS_MAX}")]
    Days(u32),
    #[error("{0} is not a certificate authority made by killick tls new-ca")]
    NotOurs(PathBuf),
    #[error("{0} and {1} do not belong together")]
    Mismatch(PathBuf, PathBuf),
    #[error("the certificate could not be made: {0}")]
    Make(#[from] rcgen::Error),
}

/// Writes `ca.pem` and `ca.key`; returns their paths.
pub fn new_ca(directory: &Path, name: &str, days: u32) -> Result<[PathBuf; 2], TlsError> {
    let key = KeyPair::generate()?;
    let mut params = ca_params(name);
    valid_for(&mut params, days)?;
    let certificate = params.self_signed(&key)?;
    write_pair(directory, "ca", &certificate.pem(), &key)
}

/// Writes `<name>.pem` and `<name>.key`, signed by the authority in the same directory.
pub fn issue(directory: &Path, name: &str, days: u32) -> Result<[PathBuf; 2], TlsError> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b".-_".contains(&b);
    if name.is_empty() || name.len() > 64 || name == "ca" || !name.bytes().all(allowed) {
        return Err(TlsError::Name(name.to_owned()));
    }
    let (ca_path, ca_key_path) = (directory.join("ca.pem"), directory.join("ca.key"));
    let ca = CertificateDer::from_pem_slice(read(&ca_path)?.as_bytes())
        .map_err(|_| TlsError::NotOurs(ca_path.clone()))?;
    let ca_key = KeyPair::from_pem(&read(&ca_key_path)?)?;
    // The issuer's name is all that is needed of the authority's certificate, and it has the form
    // that `new_ca` gives it; the check below finds out if it has not.
    let ca_name = common_name(&ca).ok_or_else(|| TlsError::NotOurs(ca_path.clone()))?;
    let issuer = Issuer::new(ca_params(&ca_name), ca_key);

    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new([name.to_owned()])?;
    params.distinguished_name = distinguished_name(name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    // A killick is both: it calls and is called.
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    valid_for(&mut params, days)?;
    let certificate = params.signed_by(&key, &issuer)?;
    if !is_signed_by(certificate.der(), &ca) {
        return Err(TlsError::Mismatch(ca_path, ca_key_path));
    }
    write_pair(directory, name, &certificate.pem(), &key)
}

fn distinguished_name(name: &str) -> DistinguishedName {
    let mut dn = DistinguishedName::new();
    dn.push(DnType::OrganizationName, "killick");
    dn.push(DnType::CommonName, name);
    dn
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = distinguished_name(name);
    // It signs nodes and no other authorities.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn valid_for(params: &mut CertificateParams, days: u32) -> Result<(), TlsError> {
    if !(1..=DAYS_MAX).contains(&days) {
        return Err(TlsError::Days(days));
    }
    let today = now().as_secs() / 86_400;
    let date = |day: u64| {
        let (year, month, day) = date::of_unix_days(day);
        rcgen::date_time_ymd(i32::try_from(year).expect("this age"), month, day)
    };
    params.not_before = date(today - CLOCK_SKEW_DAYS);
    params.not_after = date(today + u64::from(days));
    Ok(())
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// As a peer will check it.
fn is_signed_by(certificate: &CertificateDer<'_>, ca: &CertificateDer<'_>) -> bool {
    let Ok(end) = webpki::EndEntityCert::try_from(certificate) else { return false };
    let Ok(anchor) = webpki::anchor_from_trusted_cert(ca) else { return false };
    end.verify_for_usage(
        webpki::ALL_VERIFICATION_ALGS,
        &[anchor],
        &[],
        UnixTime::since_unix_epoch(now()),
        webpki::KeyUsage::client_auth(),
        None,
        None,
    )
    .is_ok()
}

/// The common name of a certificate's subject: id-at-commonName (2.5.4.3), a string of less than 128
/// octets (X.520 allows 64 characters).
fn common_name(certificate: &CertificateDer<'_>) -> Option<String> {
    const COMMON_NAME: &[u8] = &[0x06, 0x03, 0x55, 0x04, 0x03];
    let anchor = webpki::anchor_from_trusted_cert(certificate).ok()?;
    let subject = anchor.subject.as_ref();
    let at = subject.windows(COMMON_NAME.len()).position(|window| window == COMMON_NAME)?;
    let (_tag, rest) = subject[at + COMMON_NAME.len()..].split_first()?;
    let (len, rest) = rest.split_first()?;
    let name = rest.get(..usize::from(*len)).filter(|_| *len < 0x80)?;
    String::from_utf8(name.to_vec()).ok()
}

fn read(path: &Path) -> Result<String, TlsError> {
    fs::read_to_string(path).map_err(|error| TlsError::File { path: path.to_owned(), error })
}

fn write_pair(
    directory: &Path,
    name: &str,
    certificate: &str,
    key: &KeyPair,
) -> Result<[PathBuf; 2], TlsError> {
    fs::create_dir_all(directory)
        .map_err(|error| TlsError::File { path: directory.to_owned(), error })?;
    let paths = [format!("{name}.pem"), format!("{name}.key")].map(|file| directory.join(file));
    // The key first: a certificate without its key would be mistaken for a finished pair.
    write_new(&paths[1], &key.serialize_pem(), 0o600)?;
    if let Err(error) = write_new(&paths[0], certificate, 0o644) {
        let _ = fs::remove_file(&paths[1]);
        return Err(error);
    }
    Ok(paths)
}

fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), TlsError> {
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(|error: io::Error| TlsError::File { path: path.to_owned(), error })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn directory(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("killick-tls-{name}-{}", std::process::id()))
    }

    #[test]
    fn certificates_are_believed_and_keys_are_private() {
        let at = directory("pair");
        new_ca(&at, "domain one", 10).unwrap();
        let [certificate, key] = issue(&at, "a1", 5).unwrap();
        for key in [&key, &at.join("ca.key")] {
            assert_eq!(fs::metadata(key).unwrap().permissions().mode() & 0o777, 0o600);
        }
        let read = |path: &Path| CertificateDer::from_pem_file(path).unwrap();
        let (ca, certificate) = (read(&at.join("ca.pem")), read(&certificate));
        assert_eq!(common_name(&ca).unwrap(), "domain one");
        assert!(is_signed_by(&certificate, &ca));
        let end = webpki::EndEntityCert::try_from(&certificate).unwrap();
        let name = |name: &'static str| rustls_pki_types::ServerName::try_from(name).unwrap();
        assert!(end.verify_is_valid_for_subject_name(&name("a1")).is_ok());
        assert!(end.verify_is_valid_for_subject_name(&name("a2")).is_err());
        assert!(matches!(issue(&at, "a1", 5), Err(TlsError::File { .. })), "not overwritten");
        assert!(matches!(new_ca(&at, "x", 5), Err(TlsError::File { .. })), "not overwritten");
        fs::remove_dir_all(&at).unwrap();
    }

    #[test]
    fn what_does_not_belong_together_is_found() {
        let (one, two) = (directory("one"), directory("two"));
        new_ca(&one, "same name", 10).unwrap();
        new_ca(&two, "same name", 10).unwrap();
        fs::copy(two.join("ca.key"), one.join("ca.key")).unwrap();
        assert!(matches!(issue(&one, "a1", 5), Err(TlsError::Mismatch(_, _))));
        assert!(!one.join("a1.key").exists());
        for name in ["", "ca", "a/b", "a b"] {
            assert!(matches!(issue(&two, name, 5), Err(TlsError::Name(_))), "{name}");
        }
        assert!(matches!(issue(&two, "a1", 0), Err(TlsError::Days(0))));
        fs::write(two.join("ca.pem"), "nonsense").unwrap();
        assert!(matches!(issue(&two, "a1", 5), Err(TlsError::NotOurs(_))));
        fs::remove_dir_all(&one).unwrap();
        fs::remove_dir_all(&two).unwrap();
    }
}
