//! SOCKS5 as a visitor's client speaks it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use adit::proxy::socks::{Handshake, Host, Reply, Step};
use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;

const GREETING: &[u8] = &[5, 1, 0];

fn send(bytes: &'static [u8]) -> Step {
    Step::Send(Bytes::from_static(bytes))
}

fn refuse(reply: Reply) -> Step {
    Step::Refuse(reply.encode())
}

fn name(text: &str) -> Host {
    Host::Name(text.to_owned())
}

/// A request for `host:port`: an address as such, anything else as a name.
fn request(command: u8, destination: &str) -> Vec<u8> {
    let (host, port) = destination.rsplit_once(':').unwrap();
    let port: u16 = port.parse().unwrap();
    let mut request = vec![5, command, 0];
    match host.parse() {
        Ok(IpAddr::V4(address)) => {
            request.push(1);
            request.extend(address.octets());
        }
        Ok(IpAddr::V6(address)) => {
            request.push(4);
            request.extend(address.octets());
        }
        Err(_) => {
            request.extend([3, u8::try_from(host.len()).unwrap()]);
            request.extend(host.as_bytes());
        }
    }
    request.extend(port.to_be_bytes());
    request
}

/// The step that answers a request, after the greeting.
fn answer(request: &[u8]) -> Step {
    let mut handshake = Handshake::new();
    assert_eq!(handshake.push(&mut Bytes::from_static(GREETING)), send(&[5, 0]));
    handshake.push(&mut Bytes::copy_from_slice(request))
}

/// Everything a handshake says about these pieces.
fn steps(pieces: &[&[u8]]) -> (Vec<Step>, Vec<u8>) {
    let mut handshake = Handshake::new();
    let mut steps = Vec::new();
    let mut rest = Vec::new();
    for piece in pieces {
        let mut input = Bytes::copy_from_slice(piece);
        if matches!(steps.last(), Some(Step::Connect { .. } | Step::Refuse(_))) {
            rest.extend_from_slice(&input);
            continue;
        }
        loop {
            let mut step = handshake.push(&mut input);
            assert!(handshake.held() <= 262);
            if let Step::Connect { rest: ahead, .. } = &mut step {
                rest.extend_from_slice(&std::mem::take(ahead));
            }
            match step {
                Step::NeedMore => break,
                Step::Send(_) => steps.push(step),
                Step::Connect { .. } | Step::Refuse(_) => {
                    rest.extend_from_slice(&input);
                    steps.push(step);
                    break;
                }
            }
        }
    }
    (steps, rest)
}

#[test]
fn no_authentication_is_found_among_other_methods() {
    assert_eq!(Handshake::new().push(&mut Bytes::from_static(&[5, 3, 2, 1, 0])), send(&[5, 0]));
    let none = Step::Refuse(Bytes::from_static(&[5, 0xff]));
    assert_eq!(Handshake::new().push(&mut Bytes::from_static(&[5, 0])), none);
}

#[test]
fn another_version_is_closed_without_an_answer_it_would_not_understand() {
    let mut handshake = Handshake::new();
    let mut input = Bytes::from_static(&[4, 1, 0, 80, 127, 0, 0, 1, 0]);
    assert_eq!(handshake.push(&mut input), Step::Refuse(Bytes::new()));
    assert_eq!(handshake.push(&mut input), Step::Refuse(Bytes::new()));
}

#[test]
fn another_version_in_the_request_is_a_general_failure() {
    assert_eq!(answer(&[4]), refuse(Reply::GeneralFailure));
}

#[test]
fn each_address_type_is_read() {
    let v6: Ipv6Addr = "2001:db8::1".parse().unwrap();
    for (destination, host) in [
        ("192.0.2.7:22", Host::Address(Ipv4Addr::new(192, 0, 2, 7).into())),
        ("2001:db8::1:22", Host::Address(v6.into())),
        ("example.com:22", name("example.com")),
        ("abcd:22", name("abcd")),
        ("sixteen-bytes.de:22", name("sixteen-bytes.de")),
    ] {
        assert_eq!(answer(&request(1, destination)), Step::Connect { host, port: 22, rest: Bytes::new() });
    }
}

#[test]
fn an_address_spelt_as_a_name_is_an_address_to_the_rules() {
    let sent = [&[5, 1, 0, 3, 9][..], b"127.0.0.1", &[0, 80]].concat();
    let host = Host::Address(Ipv4Addr::LOCALHOST.into());
    assert_eq!(answer(&sent), Step::Connect { host, port: 80, rest: Bytes::new() });
}

#[test]
fn an_unknown_address_type_is_refused_whatever_the_command() {
    for command in [1, 2, 9] {
        for kind in [0, 2, 5, 255] {
            assert_eq!(answer(&[5, command, 0, kind]), refuse(Reply::AddressTypeNotSupported));
        }
    }
}

#[test]
fn an_unsupported_command_is_refused_once_its_address_is_read() {
    for command in [0, 2, 3, 255] {
        let sent = request(command, "127.0.0.1:80");
        assert_eq!(answer(&sent[..sent.len() - 1]), Step::NeedMore);
        assert_eq!(answer(&sent), refuse(Reply::CommandNotSupported));
    }
}

#[test]
fn names_that_are_none_are_a_general_failure() {
    for text in [&b""[..], b"a b", b"a\0b", b"a\nb", &[0xc3, 0xa9]] {
        let sent = [&[5, 1, 0, 3, text.len() as u8], text, &[0, 80]].concat();
        assert_eq!(answer(&sent), refuse(Reply::GeneralFailure), "{text:?}");
    }
}

#[test]
fn what_is_sent_ahead_is_neither_lost_nor_held() {
    let ahead = vec![9; 1 << 20];
    let mut input = Bytes::from([GREETING, &request(1, "host:7"), &ahead].concat());
    let mut handshake = Handshake::new();
    assert_eq!(handshake.push(&mut input), send(&[5, 0]));
    assert_eq!(handshake.held(), 0);
    assert_eq!(handshake.push(&mut input), Step::Connect { host: name("host"), port: 7, rest: ahead.into() });
    assert!(input.is_empty());
}

#[test]
fn after_the_end_nothing_more_is_taken() {
    let mut handshake = Handshake::new();
    let mut input = Bytes::from([GREETING, &request(1, "host:7")].concat());
    handshake.push(&mut input);
    assert!(matches!(handshake.push(&mut input), Step::Connect { .. }));
    let mut more = Bytes::from_static(b"data");
    assert_eq!(handshake.push(&mut more), Step::Refuse(Bytes::new()));
    assert_eq!(more.len(), 4);
}

#[test]
fn the_longest_name_and_the_longest_greeting_fit() {
    let longest = "a".repeat(255);
    let host = name(&longest);
    assert_eq!(answer(&request(1, &format!("{longest}:1"))), Step::Connect { host, port: 1, rest: Bytes::new() });
    let methods = [&[5, 255][..], &[2; 254], &[0]].concat();
    assert_eq!(Handshake::new().push(&mut methods.into()), send(&[5, 0]));
}

#[test]
fn failures_of_a_dial_have_the_replies_of_the_rfc() {
    for (kind, reply) in [
        (io::ErrorKind::ConnectionRefused, 5),
        (io::ErrorKind::HostUnreachable, 4),
        (io::ErrorKind::TimedOut, 4),
        (io::ErrorKind::NetworkUnreachable, 3),
        (io::ErrorKind::NetworkDown, 3),
        (io::ErrorKind::PermissionDenied, 2),
        (io::ErrorKind::OutOfMemory, 1),
    ] {
        assert_eq!(Reply::from(kind).encode()[..4], [5, reply, 0, 1], "{kind}");
    }
}

proptest! {
    #[test]
    fn a_handshake_says_the_same_however_it_is_cut(
        host in "[a-z0-9.-]{1,80}",
        port in any::<u16>(),
        command in 1..4_u8,
        ahead in vec(any::<u8>(), 0..50),
        size in 1..100_usize,
    ) {
        let sent = [GREETING, &request(command, &format!("{host}:{port}")), &ahead].concat();
        let whole = steps(&[&sent]);
        prop_assert_eq!(&whole.1, &ahead);
        prop_assert_eq!(whole.0.len(), 2);
        let single: Vec<&[u8]> = sent.chunks(1).collect();
        prop_assert_eq!(&steps(&single), &whole);
        let pieces: Vec<&[u8]> = sent.chunks(size).collect();
        prop_assert_eq!(&steps(&pieces), &whole);
    }

    #[test]
    fn arbitrary_bytes_end_in_a_step_alike_however_they_are_cut(
        greeted in any::<bool>(),
        bytes in vec(any::<u8>(), 0..600),
        size in 1..100_usize,
    ) {
        let sent = if greeted { [GREETING, &[5, 1, 0], &bytes].concat() } else { bytes };
        let pieces: Vec<&[u8]> = sent.chunks(size).collect();
        let (cut, whole) = (steps(&pieces), steps(&[&sent]));
        prop_assert_eq!(&cut.0, &whole.0);
        // After a refusal nobody reads on, so how much was read with it is nobody's business.
        if !matches!(whole.0.last(), Some(Step::Refuse(_))) {
            prop_assert_eq!(cut.1, whole.1);
        }
    }
}
