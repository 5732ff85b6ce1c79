use super::*;

/// Octets by hand from the figure in RFC 5880 §4.1.
const UP: [u8; 24] = [
    0x20, 0xe8, 3, 24, // version 1, no diagnostic; Up, P, C; multiplier 3; length 24
    0, 0, 0, 7, 0, 0, 0, 9, // discriminators
    0, 4, 0x93, 0xe0, 0, 4, 0x93, 0xe0, 0, 0, 0, 0, // 300 ms, 300 ms, no echo
];

fn up() -> Control {
    Control {
        diagnostic: Diagnostic::NONE,
        state: State::Up,
        poll: true,
        is_final: false,
        control_plane_independent: true,
        demand: false,
        detect_mult: 3,
        my_discriminator: 7,
        your_discriminator: 9,
        desired_min_tx_us: 300_000,
        required_min_rx_us: 300_000,
        required_min_echo_rx_us: 0,
        section: None,
    }
}

fn with(at: usize, octet: u8) -> Result<Control, ControlError> {
    let mut octets = UP;
    octets[at] = octet;
    Control::decode(&octets).map(|(control, _)| control)
}

/// RFC 5880 §4.1.
#[test]
fn the_figure() {
    assert_eq!(Control::decode(&UP), Ok((up(), 24)));
    let mut out = Vec::new();
    up().encode(&mut out);
    assert_eq!(out, UP);
}

/// RFC 5880 §6.8.6, rule by rule, and their order.
#[test]
fn what_is_discarded_and_why() {
    let rules: &[(&[(usize, u8)], ControlError)] = &[
        (&[(0, 0x00)], ControlError::Version),
        (&[(0, 0x40)], ControlError::Version),
        (&[(3, 23)], ControlError::Length),
        (&[(3, 25)], ControlError::Length),
        // With the A bit two more octets are the least.
        (&[(1, 0xec)], ControlError::Length),
        (&[(2, 0)], ControlError::DetectMult),
        (&[(1, 0xe9)], ControlError::Multipoint),
        (&[(7, 0)], ControlError::MyDiscriminator),
        (&[(11, 0)], ControlError::YourDiscriminator),
        (&[(11, 0), (1, 0x80)], ControlError::YourDiscriminator),
        // The first rule that is broken is the reason.
        (&[(0, 0), (3, 9), (2, 0)], ControlError::Version),
        (&[(3, 9), (2, 0)], ControlError::Length),
        (&[(2, 0), (1, 0xe9)], ControlError::DetectMult),
        (&[(1, 0xe9), (7, 0)], ControlError::Multipoint),
        (&[(7, 0), (11, 0)], ControlError::MyDiscriminator),
    ];
    for (changes, why) in rules {
        let mut octets = UP;
        for &(at, octet) in *changes {
            octets[at] = octet;
        }
        assert_eq!(Control::decode(&octets).unwrap_err(), *why, "{changes:?}");
    }
    // Without a discriminator of ours, only these two say anything.
    for (bits, state) in [(0x00, State::AdminDown), (0x40, State::Down)] {
        let mut octets = UP;
        (octets[1], octets[11]) = (bits, 0);
        assert_eq!(Control::decode(&octets).unwrap().0.state, state);
    }
}

#[test]
fn all_that_is_allowed_is_kept() {
    assert_eq!(with(0, 0x21).unwrap().diagnostic, Diagnostic::DETECTION_TIME_EXPIRED);
    assert_eq!(with(0, 0x3f).unwrap().diagnostic, Diagnostic(31));
    assert!(with(1, 0xd0).unwrap().is_final);
    assert!(with(1, 0xc2).unwrap().demand);
    assert_eq!(with(2, 255).unwrap().detect_mult, 255);
    let mut longer = UP.to_vec();
    longer.extend([1, 2, 3]);
    assert_eq!(Control::decode(&longer), Ok((up(), 24)), "octets behind the packet");
    assert_eq!(Diagnostic(9).to_string(), "diagnostic 9");
    assert_eq!(Diagnostic::PATH_DOWN.to_string(), "path down");
}

fn sections() -> Vec<Section> {
    let keyed = |meticulous, digest| Section::Keyed { key_id: 2, meticulous, sequence: 5, digest };
    vec![
        Section::Simple { key_id: 1, password: b"x".to_vec() },
        Section::Simple { key_id: 1, password: b"sixteen octets..".to_vec() },
        keyed(false, Digest::Md5([3; 16])),
        keyed(true, Digest::Md5([3; 16])),
        keyed(false, Digest::Sha1([4; 20])),
        keyed(true, Digest::Sha1([4; 20])),
    ]
}

/// RFC 5880 §4.2 to §4.4.
#[test]
fn sections_come_back_as_they_went_and_no_cut_or_length_passes() {
    for section in sections() {
        let packet = Control { section: Some(section), ..up() };
        let mut octets = Vec::new();
        packet.encode(&mut octets);
        assert_eq!(Control::decode(&octets), Ok((packet.clone(), octets.len())));
        assert!(octets.len() <= PACKET_LEN_MAX);
        for len in 0..octets.len() {
            let why = if len < 4 { ControlError::Truncated } else { ControlError::Length };
            assert_eq!(Control::decode(&octets[..len]), Err(why), "{packet:?} cut to {len}");
        }
        for len in 0..=255 {
            let mut changed = octets.clone();
            changed[25] = len;
            let same = usize::from(len) == octets.len() - HEAD_LEN;
            assert_eq!(Control::decode(&changed).is_ok(), same, "{packet:?}: length {len}");
        }
        for kind in (0..=255).filter(|kind| !(1..=5).contains(kind)) {
            let mut changed = octets.clone();
            changed[24] = kind;
            assert_eq!(Control::decode(&changed), Err(ControlError::Section), "type {kind}");
        }
    }
}
