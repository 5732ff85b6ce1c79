//! BFD octets that a second coder made (`tests/vectors/bfd/coder.py`) and that BIRD and FRR sent,
//! what becomes of them when they are damaged, and what a dissector that knows nothing of us reads
//! in what we write.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use killick::auth::{BfdKey, Secret};
use killick::wire::bfd::{Control, ControlError, Diagnostic, Digest, Section, State};

fn vectors_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/bfd")
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().map(|c| c.to_digit(16).unwrap()).collect();
    digits.as_chunks::<2>().0.iter().map(|[a, b]| u8::try_from(a << 4 | b).unwrap()).collect()
}

fn vectors(file: &str) -> BTreeMap<String, Vec<u8>> {
    let text = fs::read_to_string(vectors_dir().join(file)).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let pairs = lines.map(|line| line.split_once(' ').unwrap());
    pairs.map(|(name, hex)| (name.to_owned(), unhex(hex))).collect()
}

fn key(id: u8, meticulous: bool, secret: &str) -> BfdKey {
    BfdKey::new(id, meticulous, Secret::new(secret.as_bytes().to_vec())).unwrap()
}

fn encoded(control: &Control) -> Vec<u8> {
    let mut out = Vec::new();
    control.encode(&mut out);
    out
}

/// What most of the vectors are.
fn plain() -> Control {
    Control {
        diagnostic: Diagnostic::NONE,
        state: State::Up,
        poll: false,
        is_final: false,
        control_plane_independent: false,
        demand: false,
        detect_mult: 3,
        my_discriminator: 0x0102_0304,
        your_discriminator: 0x0a0b_0c0d,
        desired_min_tx_us: 300_000,
        required_min_rx_us: 250_000,
        required_min_echo_rx_us: 0,
        section: None,
    }
}

/// The digest is taken from the octets: what it proves is asked elsewhere.
fn keyed(octets: &[u8], key_id: u8, meticulous: bool, sequence: u32) -> Option<Section> {
    let digest = match octets.len() {
        48 => Digest::Md5(octets[32..].try_into().unwrap()),
        _ => Digest::Sha1(octets[32..].try_into().unwrap()),
    };
    Some(Section::Keyed { key_id, meticulous, sequence, digest })
}

/// What the coder meant, in our words.
fn meaning(name: &str, octets: &[u8]) -> Control {
    let plain = plain();
    let down = Control { state: State::Down, ..plain.clone() };
    match name {
        "down-first" => Control {
            your_discriminator: 0,
            desired_min_tx_us: 1_000_000,
            required_min_rx_us: 300_000,
            ..down
        },
        "init" => Control {
            state: State::Init,
            desired_min_tx_us: 1_000_000,
            required_min_rx_us: 300_000,
            ..plain
        },
        "up-poll" => Control { poll: true, ..plain },
        "up-final" => Control { is_final: true, ..plain },
        "up-independent-echo" => Control {
            control_plane_independent: true,
            required_min_echo_rx_us: 50_000,
            detect_mult: 255,
            ..plain
        },
        "up-demand" => Control { demand: true, ..plain },
        "admin-down" => Control {
            state: State::AdminDown,
            diagnostic: Diagnostic::ADMINISTRATIVELY_DOWN,
            desired_min_tx_us: 1_000_000,
            ..plain
        },
        "admin-down-first" => Control {
            state: State::AdminDown,
            diagnostic: Diagnostic::ADMINISTRATIVELY_DOWN,
            your_discriminator: 0,
            ..plain
        },
        "down-expired" => {
            Control { diagnostic: Diagnostic::DETECTION_TIME_EXPIRED, detect_mult: 1, ..down }
        }
        "down-signaled" => Control { diagnostic: Diagnostic::NEIGHBOR_SIGNALED_DOWN, ..down },
        "diagnostic-31" => Control { diagnostic: Diagnostic(31), ..down },
        "extremes" => Control {
            my_discriminator: u32::MAX,
            your_discriminator: u32::MAX,
            desired_min_tx_us: u32::MAX,
            required_min_rx_us: 0,
            required_min_echo_rx_us: u32::MAX,
            ..plain
        },
        "simple" => {
            let password = b"a password of 16".to_vec();
            Control { section: Some(Section::Simple { key_id: 9, password }), ..plain }
        }
        "md5" => Control { section: keyed(octets, 1, false, 5), poll: true, ..plain },
        "md5-meticulous" => Control { section: keyed(octets, 1, true, 6), ..plain },
        "sha1" => Control { section: keyed(octets, 2, false, 7), ..plain },
        "sha1-meticulous" => {
            Control { section: keyed(octets, 1, true, u32::MAX), your_discriminator: 0, ..down }
        }
        other => panic!("what is {other}?"),
    }
}

fn good() -> impl Iterator<Item = (String, Vec<u8>)> {
    vectors("packets.hex").into_iter().filter(|(name, _)| !name.starts_with("bad-"))
}

#[test]
fn both_coders_mean_the_same() {
    let mut count = 0;
    for (name, octets) in good() {
        let meant = meaning(&name, &octets);
        assert_eq!(Control::decode(&octets), Ok((meant.clone(), octets.len())), "{name}");
        assert_eq!(encoded(&meant), octets, "{name}");
        count += 1;
    }
    assert_eq!(count, 17);
}

/// RFC 5880 §6.8.6.
#[test]
fn what_the_other_coder_calls_bad_is_discarded_for_that_reason() {
    let mut count = 0;
    for (name, octets) in vectors("packets.hex") {
        let Some(rule) = name.strip_prefix("bad-") else { continue };
        let why = match rule {
            "version" => ControlError::Version,
            "length-short" | "length-long" | "length-auth" => ControlError::Length,
            "detect-mult" => ControlError::DetectMult,
            "multipoint" => ControlError::Multipoint,
            "my-discriminator" => ControlError::MyDiscriminator,
            "your-discriminator-init" | "your-discriminator-up" => ControlError::YourDiscriminator,
            "section-type" | "section-length" | "section-empty-password" => ControlError::Section,
            other => panic!("what is {other}?"),
        };
        assert_eq!(Control::decode(&octets), Err(why), "{name}");
        count += 1;
    }
    assert_eq!(count, 12);
}

/// RFC 5880 §6.7.4: their digests convince us, and ours are theirs octet for octet.
#[test]
fn digests_agree() {
    let all = vectors("packets.hex");
    let captured = vectors("captured.hex");
    let bird = key(7, true, "k and bird, all ears");
    let mut cases = vec![
        (key(2, false, "exactly twenty bytes"), all["sha1"].clone()),
        (key(1, true, "one"), all["sha1-meticulous"].clone()),
    ];
    cases.extend(
        captured
            .iter()
            .filter(|(name, _)| name.starts_with("keyed-"))
            .map(|(_, octets)| (bird.clone(), octets.clone())),
    );
    assert_eq!(cases.len(), 6);
    for (key, octets) in cases {
        assert!(key.verify(&octets));
        let (control, _) = Control::decode(&octets).unwrap();
        let Some(Section::Keyed { sequence, .. }) = control.section else { panic!("no section") };
        let mut ours = Vec::new();
        key.seal(control, sequence, &mut ours);
        assert_eq!(ours, octets);
        for at in 0..octets.len() {
            let mut changed = octets.clone();
            changed[at] ^= 1;
            assert!(!key.verify(&changed), "octet {at}");
        }
        for len in 0..octets.len() {
            assert!(!key.verify(&octets[..len]));
        }
    }
}

#[test]
fn what_bird_and_frr_sent_is_understood() {
    let captured = vectors("captured.hex");
    for (name, octets) in &captured {
        let (control, len) = Control::decode(octets).unwrap();
        assert_eq!((len, &encoded(&control)), (octets.len(), octets), "{name}");
        let word = |state: State| name.contains(state.as_str());
        assert!(word(control.state), "{name}: {control:?}");
        assert_eq!(
            (control.poll, control.is_final),
            (name.contains("poll"), name.contains("final"))
        );
        assert_eq!(control.detect_mult, 3);
    }
    assert_eq!(captured.len(), 11);
}

/// Each octet to each value, each cut, each flag of two octets at once: no panic, and what passes
/// is written as it was read.
#[test]
fn damage_is_discarded_or_read_as_it_is() {
    let (mut passed, mut refused) = (0_u32, 0_u32);
    let mut check = |octets: &[u8]| match Control::decode(octets) {
        Ok((control, len)) => {
            passed += 1;
            let (mut again, mut read) = (encoded(&control), octets[..len].to_vec());
            match &control.section {
                // The reserved octet of a section is not kept.
                Some(Section::Keyed { .. }) => again[27] = read[27],
                Some(Section::Simple { .. }) => {}
                // A length with room for what no bit announces is nobody's fault (§6.8.6).
                None => {
                    read.truncate(24);
                    read[3] = 24;
                }
            }
            assert_eq!(again, read);
        }
        Err(_) => refused += 1,
    };
    for (_, octets) in vectors("packets.hex").into_iter().chain(vectors("captured.hex")) {
        for at in 0..octets.len() {
            check(&octets[..at]);
            let mut changed = octets.clone();
            for value in 0..=255 {
                changed[at] = value;
                check(&changed);
            }
        }
        for flags in 0..=255 {
            for len in 0..=255 {
                let mut changed = octets.clone();
                (changed[1], changed[3]) = (flags, len);
                check(&changed);
            }
        }
    }
    assert!(passed > 100_000 && refused > 100_000, "{passed} {refused}");
}

// ---- A dissector of others -------------------------------------------------------------------

/// What tshark has to show, in its own field names.
const SHOWN: [(&str, &str); 17] = [
    (
        "down-first",
        "sta=0x01 diag=0x00 your_discriminator=0x00000000 desired_min_tx_interval=1000000",
    ),
    ("init", "sta=0x02 required_min_rx_interval=300000"),
    ("up-poll", "sta=0x03 flags.p=1 flags.f=0 my_discriminator=0x01020304"),
    ("up-final", "sta=0x03 flags.p=0 flags.f=1 your_discriminator=0x0a0b0c0d"),
    (
        "up-independent-echo",
        "flags.c=1 detect_time_multiplier=255 required_min_echo_interval=50000",
    ),
    ("up-demand", "flags.d=1 flags.c=0"),
    ("admin-down", "sta=0x00 diag=0x07"),
    ("admin-down-first", "sta=0x00 your_discriminator=0x00000000"),
    ("down-expired", "sta=0x01 diag=0x01 detect_time_multiplier=1"),
    ("down-signaled", "diag=0x03"),
    ("diagnostic-31", "diag=0x1f"),
    ("extremes", "desired_min_tx_interval=4294967295 required_min_rx_interval=0"),
    ("simple", "flags.a=1 auth.type=1 auth.len=19 auth.key=9 auth.password=a_password_of_16"),
    ("md5", "auth.type=2 auth.len=24 auth.key=1 auth.seq_num=0x00000005"),
    ("md5-meticulous", "auth.type=3 auth.seq_num=0x00000006"),
    ("sha1", "auth.type=4 auth.len=28 auth.key=2 auth.seq_num=0x00000007"),
    ("sha1-meticulous", "auth.type=5 auth.seq_num=0xffffffff message_length=52"),
];

/// Link type 101, raw IP; each packet in UDP to the port of one hop, without a checksum.
fn pcap(packets: &[Vec<u8>]) -> Vec<u8> {
    let mut out = Vec::new();
    for word in [0xa1b2_c3d4_u32, 0x0002_0004, 0, 0, 65_535, 101] {
        // Version 2.4 as two halves, in the order of this file.
        if word == 0x0002_0004 {
            out.extend([0, 2, 0, 4]);
        } else {
            out.extend(word.to_be_bytes());
        }
    }
    for packet in packets {
        let len = u16::try_from(28 + packet.len()).unwrap();
        for word in [0, 0, u32::from(len), u32::from(len)] {
            out.extend(word.to_be_bytes());
        }
        out.extend([0x45, 0xc0]);
        out.extend(len.to_be_bytes());
        out.extend([0, 0, 0, 0, 255, 17, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2]);
        out.extend(49_152_u16.to_be_bytes());
        out.extend(3784_u16.to_be_bytes());
        out.extend((len - 20).to_be_bytes());
        out.extend([0, 0]);
        out.extend(packet);
    }
    out
}

#[test]
fn a_dissector_reads_what_we_write() {
    let all = vectors("packets.hex");
    let packets: Vec<Vec<u8>> =
        SHOWN.iter().map(|(name, _)| encoded(&meaning(name, &all[*name]))).collect();
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bfd_wire.pcap");
    fs::write(&file, pcap(&packets)).unwrap();
    let mut fields: Vec<String> = SHOWN
        .iter()
        .flat_map(|(_, shown)| shown.split_whitespace())
        .map(|pair| format!("bfd.{}", pair.split_once('=').unwrap().0))
        .collect();
    fields.extend(["_ws.malformed".to_owned(), "_ws.expert.message".to_owned()]);
    fields.sort();
    fields.dedup();
    let mut tshark = Command::new("tshark");
    tshark.arg("-r").arg(&file).args(["-T", "json"]);
    for field in &fields {
        tshark.args(["-e", field]);
    }
    let read = match tshark.output() {
        Ok(read) => read,
        Err(error) => {
            // Past the capture of the test harness.
            let _ = writeln!(std::io::stderr().lock(), "SKIPPED bfd_wire: tshark: {error}");
            return;
        }
    };
    assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
    let read: serde_json::Value = serde_json::from_slice(&read.stdout).unwrap();
    let read = read.as_array().unwrap();
    assert_eq!(read.len(), SHOWN.len());
    for ((name, shown), read) in SHOWN.iter().zip(read) {
        let layers = &read["_source"]["layers"];
        let values = |field: &str| -> Vec<&str> {
            let list = layers[field].as_array().map(Vec::as_slice).unwrap_or_default();
            list.iter().map(|value| value.as_str().unwrap()).collect()
        };
        assert_eq!(values("_ws.malformed"), [""; 0], "{name}");
        for pair in shown.split_whitespace() {
            let (short, want) = pair.split_once('=').unwrap();
            let got = values(&format!("bfd.{short}")).join(",").replace(' ', "_");
            assert_eq!(got, want, "{name}: {short}: {layers}");
        }
    }
}
