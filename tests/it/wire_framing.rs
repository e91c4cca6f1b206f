//! Framed bodies: what is put into frames comes out of them however they were cut, and nothing else does.

use adit::wire::framing::{self, Decoder, Error, MAX_TRAILERS};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::prelude::*;

/// Data frames and an end.
fn frames(payloads: &[Vec<u8>], trailers: &HeaderMap) -> Vec<u8> {
    let data = payloads.iter().flat_map(|payload| [&framing::data(payload.len())[..], payload].concat());
    data.chain(framing::end(trailers).unwrap()).collect()
}

/// The body and the trailers of a stream that came in these chunks and then ended.
fn decode<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> Result<(Vec<u8>, Option<HeaderMap>), Error> {
    let (mut decoder, mut body) = (Decoder::default(), Vec::new());
    for chunk in chunks {
        let mut input = Bytes::copy_from_slice(chunk);
        while let Some(piece) = decoder.next(&mut input)? {
            assert!(!piece.is_empty());
            body.extend_from_slice(&piece);
        }
        assert!(input.is_empty(), "input is left");
    }
    decoder.ended()?;
    Ok((body, decoder.take_trailers()))
}

fn trailers() -> impl Strategy<Value = HeaderMap> {
    proptest::collection::vec(("[a-z][a-z0-9-]{0,20}", "[ -~\u{80}-\u{ff}]{0,60}"), 0..20).prop_map(|pairs| {
        let mut trailers = HeaderMap::new();
        for (name, value) in pairs {
            let value = HeaderValue::from_bytes(value.trim().as_bytes()).unwrap();
            trailers.append(HeaderName::try_from(name).unwrap(), value);
        }
        trailers
    })
}

proptest! {
    #[test]
    fn a_body_and_its_trailers_survive_frames_cut_anywhere(
        payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..300), 0..20),
        trailers in trailers(),
        cuts in proptest::collection::vec(1usize..50, 1..50),
    ) {
        let mut rest = &frames(&payloads, &trailers)[..];
        let mut chunks = Vec::new();
        for cut in cuts.into_iter().cycle() {
            let (chunk, more) = rest.split_at(cut.min(rest.len()));
            chunks.push(chunk);
            rest = more;
            if rest.is_empty() {
                break;
            }
        }
        let (body, found) = decode(chunks).unwrap();
        prop_assert_eq!(body, payloads.concat());
        prop_assert_eq!(found.unwrap_or_default(), trailers);
    }

    #[test]
    fn any_cut_off_body_is_noticed(
        payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..50), 0..5),
        trailers in trailers(),
        at in any::<proptest::sample::Index>(),
    ) {
        let whole = frames(&payloads, &trailers);
        let part = &whole[..at.index(whole.len())];
        prop_assert_eq!(decode([part]).unwrap_err(), Error::Cut);
    }

    #[test]
    fn arbitrary_bytes_never_panic_and_never_make_more_than_they_are(
        chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..100), 0..20),
    ) {
        if let Ok((body, _)) = decode(chunks.iter().map(Vec::as_slice)) {
            prop_assert!(body.len() <= chunks.concat().len());
        }
    }
}

#[test]
fn frames_that_nobody_should_send_are_named() {
    for (bytes, error) in [
        (&[2, 0, 0, 1, b'x'][..], Error::Type(2)),
        (&[0, 0, 0, 0], Error::Empty),
        (&[1, 0, 0, 0, 0], Error::AfterEnd),
        (&[1, 0, 0, 1, b'x'], Error::Trailers),
        // A pair of base64 with a name, or a value, that is none of HTTP's.
        (b"\x01\0\0\x07Cg:dmFs", Error::Trailers),
        (b"\x01\0\0\x08eA:DQphOg", Error::Trailers),
        (&[1, 0xff, 0xff, 0xff], Error::TooLarge(0xff_ffff)),
        (&[0, 0, 0, 2, b'x'], Error::Cut),
        (&[], Error::Cut),
    ] {
        assert_eq!(decode([bytes]).unwrap_err(), error, "{bytes:?}");
    }
}

#[test]
fn trailers_are_bounded_where_they_are_made_and_before_they_are_held() {
    let mut trailers = HeaderMap::new();
    trailers.insert("x", HeaderValue::from_bytes(&vec![b'v'; MAX_TRAILERS * 3 / 4 - 3]).unwrap());
    let frame = framing::end(&trailers).unwrap();
    assert_eq!(decode([&frame[..]]).unwrap().1, Some(trailers.clone()));
    trailers.insert("y", HeaderValue::from_static("one too many"));
    assert!(matches!(framing::end(&trailers), Err(Error::TooLarge(_))));
    let announced = (MAX_TRAILERS as u32 + 1).to_be_bytes();
    assert_eq!(
        decode([&[1, announced[1], announced[2], announced[3]][..]]).unwrap_err(),
        Error::TooLarge(MAX_TRAILERS + 1)
    );
}
