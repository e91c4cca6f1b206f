//! Stream heads that are cut, twisted, contradictory or far too large.

use adit::wire::{
    BodyLength, Error, Head, RequestHead,
    connect::{self, Collector, MAX_HEADERS, MAX_MESSAGE, PREAMBLE_LEN},
    headers,
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::{collection::vec, prelude::*};

use crate::{
    wire_craft::{far, on_a_stream, request, segments, to_list, to_struct},
    wire_vectors::{group, unhex},
};

const HOST: (&str, &str) = ("HttpHost", "h");

fn decode(metadata: &[(&str, &str)]) -> Result<RequestHead, Error> {
    match connect::decode_request(&request(0, "/", metadata))? {
        Head::Request(head) => Ok(head),
        Head::Tcp(_) => panic!("not TCP"),
    }
}

#[test]
fn a_head_is_never_taken_for_whole_while_a_byte_is_missing() {
    for vector in group("quic.connect_request") {
        let bytes = unhex(vector["hex"].as_str().unwrap());
        for cut in 0..bytes.len() {
            let mut collector = Collector::default();
            collector.push(Bytes::copy_from_slice(&bytes[..cut]));
            assert!(collector.message().unwrap().is_none(), "{} of {} bytes", cut, bytes.len());
            if cut > PREAMBLE_LEN {
                let part = Bytes::copy_from_slice(&bytes[PREAMBLE_LEN..cut]);
                assert!(connect::decode_request(&part).is_err(), "{} of {} bytes", cut, bytes.len());
            }
        }
    }
}

#[test]
fn bytes_after_the_head_are_the_body_wherever_the_chunks_were_cut() {
    let head = unhex(group("quic.connect_request")[2]["hex"].as_str().unwrap());
    let all = [&head[..], b"BODY"].concat();
    for cut in 0..=all.len() {
        let mut collector = Collector::default();
        collector.push(Bytes::copy_from_slice(&all[..cut]));
        let early = collector.message().unwrap();
        let (message, body) = match early {
            Some((message, body)) => (message, [&body[..], &all[cut..]].concat()),
            None => {
                collector.push(Bytes::copy_from_slice(&all[cut..]));
                let (message, body) = collector.message().unwrap().unwrap();
                (message, body.to_vec())
            }
        };
        assert_eq!(message, head[PREAMBLE_LEN..], "cut at {cut}");
        assert_eq!(body, b"BODY", "cut at {cut}");
    }
}

#[test]
fn a_signature_is_refused_at_its_first_wrong_byte() {
    for (bytes, known) in [(&connect::DATA_SIGNATURE, "data"), (&connect::RPC_SIGNATURE, "rpc")] {
        for at in 0..6 {
            assert!(connect::signature(&bytes[..at]).unwrap().is_none(), "{known} {at}");
            let mut wrong = bytes[..=at].to_vec();
            wrong[at] ^= 0x80;
            assert!(matches!(connect::signature(&wrong), Err(Error::Signature)), "{known} {at}");
        }
        assert!(connect::signature(bytes).unwrap().is_some(), "{known}");
    }
}

#[test]
fn only_messages_within_the_limit_are_waited_for() {
    let announced = |words: u32| [&[0; 4][..], &words.to_le_bytes()].concat();
    let most = (MAX_MESSAGE as u32 - 8) / 8;
    assert_eq!(connect::message_len(&announced(most)).unwrap(), Some(MAX_MESSAGE));
    assert!(matches!(connect::message_len(&announced(most + 1)), Err(Error::TooLarge(_))));
    // 63 MiB, 4 GiB, and the largest number of the largest segments, none of which may wrap round.
    for words in [63 << 17, 1 << 29, u32::MAX] {
        assert!(matches!(connect::message_len(&announced(words)), Err(Error::TooLarge(_))), "{words}");
    }
    for count in [513u32, 1 << 20, u32::MAX] {
        assert!(matches!(connect::message_len(&count.to_le_bytes()), Err(Error::TooLarge(_))), "{count} segments");
    }
    let many = [&512u32.to_le_bytes()[..], &[0xff; 4 * 513]].concat();
    assert!(matches!(connect::message_len(&many), Err(Error::TooLarge(_))));
}

#[test]
fn a_first_segment_without_a_word_is_malformed_whatever_follows() {
    for message in [segments(&[&[]]), segments(&[&[], &[to_struct(0, 1, 2), 0, 0, 0]])] {
        assert!(matches!(connect::message_len(&message), Err(Error::Message(_))));
        assert!(connect::decode_request(&message).is_err());
        assert!(connect::decode_response(&message).is_err());
    }
}

#[test]
fn far_pointers_lead_where_they_say_and_nowhere_else() {
    let there = [
        to_struct(0, 1, 2),
        2,
        to_list(1, 2, 13),
        0,
        u64::from_le_bytes(*b"127.0.0."),
        u64::from_le_bytes(*b"1:22\0\0\0\0"),
    ];
    let message = segments(&[&[far(1, 0)], &there]);
    let Head::Tcp(dest) = connect::decode_request(&message).unwrap() else { panic!("TCP") };
    assert_eq!(dest, "127.0.0.1:22".parse().unwrap());
    for (astray, why) in [
        (segments(&[&[far(0, 0)]]), "to itself"),
        (segments(&[&[far(1, 0)], &[far(0, 0)]]), "in a circle"),
        (segments(&[&[far(7, 0)]]), "to no segment"),
        (segments(&[&[far(1, 9)], &there]), "behind the segment"),
        (segments(&[&[far(1, 0) | 4], &there]), "over two words that are none"),
        (segments(&[&[to_struct(1 << 28, 1, 2)]]), "out of the message"),
        (segments(&[&[to_struct(-9, 1, 2)]]), "before the message"),
        (segments(&[&[to_struct(0, 1, 2), 0, to_list(99, 2, 4), 0]]), "a text out of the message"),
        (segments(&[&[to_struct(0, 1, 2), 0, 0, to_struct(-1, 0, 1)]]), "a struct for a list"),
        (segments(&[&[3]]), "a capability"),
    ] {
        assert!(connect::decode_request(&astray).is_err(), "{why}");
    }
}

/// A list of `count` entries that all name the same text of `words` words.
fn amplifying(count: u32, words: usize) -> Bytes {
    let mut all = vec![to_struct(0, 1, 2), 0, 0, to_list(0, 7, count * 2)];
    all.push(u64::from(count << 2) | 2 << 48);
    let text = 5 + count as usize * 2;
    for at in 5..text {
        all.push(to_list((text - at - 1) as i32, 2, words as u32 * 8));
    }
    // "HttpHeader:aaaa…", ended by a zero.
    let text = [b"HttpHeader:".to_vec(), vec![b'a'; words * 8 - 12], vec![0]].concat();
    all.extend(text.chunks(8).map(|chunk| u64::from_le_bytes(*chunk.first_chunk().unwrap())));
    segments(&[&all])
}

#[test]
fn a_message_that_repeats_itself_costs_no_more_than_its_size() {
    // Once is an odd but legal header; a thousand times over it would be 64 MiB out of 48 KiB.
    assert!(decode_len(&amplifying(1, 8)).is_ok());
    assert!(matches!(decode_len(&amplifying(1000, 4096)), Err(Error::Message(_))));
    // A list whose 2^28 elements have no size fits into five words.
    let endless = segments(&[&[to_struct(0, 1, 2), 0, 0, to_list(0, 7, 0), (1 << 30) - 4]]);
    assert!(decode_len(&endless).is_err());
    // A key whose text is the list it stands in: read once, as bytes, it speaks of no header.
    let cyclic = segments(&[&[to_struct(0, 1, 2), 0, 0, to_list(0, 7, 2), 4 | 2 << 48, to_list(-2, 2, 17), 0]]);
    assert_eq!(decode_len(&cyclic).unwrap(), 0);
}

fn decode_len(message: &Bytes) -> Result<usize, Error> {
    match connect::decode_request(message)? {
        Head::Request(head) => Ok(head.headers.len()),
        Head::Tcp(_) => Ok(0),
    }
}

#[test]
fn headers_are_counted_before_they_are_kept() {
    let entries = |count: usize| vec![("HttpHeader:X-A", "1"); count];
    assert_eq!(decode(&entries(MAX_HEADERS)).unwrap().headers.len(), MAX_HEADERS);
    assert!(matches!(decode(&entries(MAX_HEADERS + 1)), Err(Error::TooManyHeaders)));
}

#[test]
fn packed_headers_are_counted_before_they_are_kept() {
    let packed = |count: usize| vec!["WA:YQ"; count].join(";");
    assert_eq!(headers::unpack(packed(MAX_HEADERS).as_bytes()).unwrap().len(), MAX_HEADERS);
    assert!(matches!(headers::unpack(packed(MAX_HEADERS + 1).as_bytes()), Err(Error::TooManyHeaders)));
}

#[test]
fn a_body_has_one_length_or_the_stream_is_refused() {
    let with = |values: &[&str]| {
        let entries: Vec<_> = values.iter().map(|value| ("HttpHeader:Content-Length", *value)).collect();
        decode(&[&[HOST][..], &entries].concat()).map(|head| head.body)
    };
    assert_eq!(with(&[]).unwrap(), BodyLength::None);
    assert_eq!(with(&["7"]).unwrap(), BodyLength::Known(7));
    assert_eq!(with(&["7", "7"]).unwrap(), BodyLength::Known(7));
    for values in [&["7", "8"][..], &["7", ""], &["-1"], &["+7"], &["7, 7"], &["0x7"], &[" 7"], &[""], &["1e3"]] {
        assert!(matches!(with(values), Err(Error::Http("content-length"))), "{values:?}");
    }
    assert!(with(&["18446744073709551616"]).is_err(), "2^64");
}

#[test]
fn keys_that_speak_of_headers_must_name_exactly_one() {
    assert_eq!(decode(&[("HttpHeader:A", "x:y")]).unwrap().headers["a"], "x:y");
    // Keys that do not speak of headers are not ours.
    assert!(decode(&[("FlowID", "1"), ("", ""), (":", "x")]).unwrap().headers.is_empty());
    for key in ["HttpHeader:A:B", "HttpHeader::", "HttpHeader:A:", "HttpHeader", "a:HttpHeader:b"] {
        assert!(matches!(decode(&[(key, "v")]), Err(Error::HeaderKey)), "{key}");
    }
    for key in ["HttpHeader:", "HttpHeader:a b", "HttpHeader:a\r\nb", "HttpHeader:é"] {
        assert!(matches!(decode(&[(key, "v")]), Err(Error::Http("header name"))), "{key:?}");
    }
}

#[test]
fn nothing_that_ends_a_line_gets_into_a_request() {
    for end in ["\r", "\n", "\0", "\r\nX-Evil: 1"] {
        let (value, method) = (format!("v{end}"), format!("GET{end}"));
        assert!(decode(&[("HttpHeader:A", &value)]).is_err(), "{end:?} in a value");
        assert!(decode(&[("HttpHost", &value)]).is_err(), "{end:?} in the host");
        assert!(decode(&[("HttpMethod", &method)]).is_err(), "{end:?} in the method");
        let target = request(0, &format!("/a{end}"), &[HOST]);
        assert!(connect::decode_request(&target).is_err(), "{end:?} in the path");
    }
}

#[test]
fn types_that_nobody_knows_are_named() {
    for kind in [3, 4, 255, u16::MAX] {
        let refused = connect::decode_request(&request(kind, "/", &[HOST]));
        assert!(matches!(refused, Err(Error::ConnectionType(found)) if found == kind), "{kind}: {refused:?}");
    }
}

#[test]
fn a_tcp_destination_is_a_literal_address_with_a_port() {
    let dest = |dest: &str| connect::decode_request(&request(2, dest, &[]));
    assert!(matches!(dest("[::1]:22"), Ok(Head::Tcp(found)) if found == "[::1]:22".parse().unwrap()));
    for wrong in ["localhost:80", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "::1:22", "127.1:22", "", ":22", "é:1"]
    {
        assert!(matches!(dest(wrong), Err(Error::Destination)), "{wrong}");
    }
}

#[test]
fn a_url_gives_its_path_and_only_without_a_host_key_its_host() {
    for (dest, host, target) in [
        ("https://a.test/x?y", "a.test", "/x?y"),
        ("https://u:p@a.test/x", "a.test", "/x"),
        ("https://a.test", "a.test", "/"),
        ("https://a.test?q=/@b", "a.test", "/?q=/@b"),
        ("/x?u=http://b/", "", "/x?u=http://b/"),
        ("//b/x", "", "//b/x"),
        ("", "", "/"),
        ("?q", "", "/?q"),
    ] {
        let Head::Request(head) = connect::decode_request(&request(0, dest, &[])).unwrap() else { panic!("{dest}") };
        assert_eq!(head.host, host, "{dest}");
        assert_eq!(head.target.as_str(), target, "{dest}");
        let Head::Request(head) = connect::decode_request(&request(0, dest, &[HOST])).unwrap() else {
            panic!("{dest}")
        };
        assert_eq!(head.host, "h", "{dest}");
    }
}

fn name() -> impl Strategy<Value = String> {
    "[a-z][a-z0-9-]{0,12}".prop_filter("taken out on the way", |name| {
        !name.starts_with("cf-") && name != "content-length" && name != "transfer-encoding" && name != "te"
    })
}

fn value() -> impl Strategy<Value = Vec<u8>> {
    // Everything a header value may hold, bytes above 127 included; no white space at its ends.
    vec(prop_oneof![0x21u8..=0x7e, 0x80u8..=0xff], 0..40)
}

fn map(pairs: &[(String, Vec<u8>)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_bytes(value).unwrap());
    }
    headers
}

proptest! {
    #[test]
    fn any_headers_survive_packing(pairs in vec((name(), value()), 0..20)) {
        let headers = map(&pairs);
        let packed = headers::pack(headers.iter());
        prop_assert_eq!(headers::unpack(packed.as_bytes()).unwrap(), headers);
    }

    #[test]
    fn any_headers_survive_a_request_and_an_answer(pairs in vec((name(), value()), 0..20), status in 100u16..1000) {
        let head = RequestHead {
            websocket: false,
            method: http::Method::PATCH,
            host: HeaderValue::from_static("h"),
            target: connect::root_target(),
            headers: map(&pairs),
            body: BodyLength::Unknown,
        };
        let stream = connect::encode_request(&Head::Request(head.clone()));
        let Head::Request(mut found) = connect::decode_request(&stream.slice(PREAMBLE_LEN..)).unwrap() else { panic!() };
        prop_assert_eq!(found.headers.remove("transfer-encoding").unwrap(), "chunked");
        prop_assert_eq!(&found.headers, &head.headers);
        prop_assert_eq!(found.body, BodyLength::Unknown);
        let answer = adit::wire::ResponseHead {
            status: http::StatusCode::from_u16(status).unwrap(),
            headers: map(&pairs),
        };
        let stream = connect::encode_response(&answer);
        let connect::Answer::Response(found) = connect::decode_response(&stream.slice(PREAMBLE_LEN..)).unwrap() else {
            panic!()
        };
        prop_assert_eq!((found.status, found.headers), (answer.status, answer.headers));
    }

    #[test]
    fn the_way_a_stream_is_cut_makes_no_difference(
        which in 0usize..9,
        body in vec(any::<u8>(), 0..64),
        cuts in vec(1usize..97, 1..20),
    ) {
        let head = unhex(group("quic.connect_request")[which]["hex"].as_str().unwrap());
        let mut stream = Bytes::from([&head[..], &body].concat());
        let (mut collector, mut found) = (Collector::default(), None);
        let mut cuts = cuts.iter().cycle();
        while !stream.is_empty() && found.is_none() {
            let cut = *cuts.next().unwrap();
            collector.push(stream.split_to(cut.min(stream.len())));
            prop_assert_ne!(collector.signature().unwrap(), Some(connect::Signature::Rpc));
            found = collector.message().unwrap();
        }
        let (message, rest) = found.unwrap();
        prop_assert_eq!(&message[..], &head[PREAMBLE_LEN..]);
        prop_assert_eq!([&rest[..], &stream].concat(), body);
    }

    #[test]
    fn a_twisted_message_of_our_own_never_panics(words in vec(any::<u64>(), 1..40), flips in vec((0usize..320, any::<u8>()), 0..6)) {
        let mut bytes = segments(&[&words]).to_vec();
        for (at, byte) in flips {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        let mut collector = Collector::default();
        collector.push(on_a_stream(&bytes).into());
        if let Ok(Some((message, _))) = collector.message() {
            let _ = connect::decode_request(&message);
            let _ = connect::decode_response(&message);
        }
    }
}
