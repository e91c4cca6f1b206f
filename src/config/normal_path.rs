//! The one form of a path in which it is held against `allow`.

/// A path that everybody reads alike.
///
/// Its normal form is the path, without the query, with every escape decoded once: UTF-8, letter case kept, a final
/// slash kept. Prefixes are written in that form. A path is ambiguous, and has none, if services are known to read it
/// in more than one way:
///
/// * an empty segment before the last (`//`), or one of nothing but dots, blanks behind them included (`.`, `..`);
/// * `;`, `\`, a control byte, or `?` and `#` inside it, as such or as an escape;
/// * an escaped `/` or `.`, and an escaped `%`, which a second decoding would make another escape of;
/// * `%` without two hexadecimal digits, and escapes that are no UTF-8 (an overlong `/` among them);
/// * no slash at its beginning; `*`, which asks for the whole server, is under no prefix.
///
/// Nothing is allocated, but for paths that are not ASCII.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NormalPath<'a>(&'a str);

/// A path that can be read in two ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the path can be read in two ways")]
pub struct AmbiguousPath;

impl<'a> NormalPath<'a> {
    /// Takes a path, percent-encoded as it came, without its query.
    ///
    /// # Errors
    ///
    /// [`AmbiguousPath`].
    pub fn new(path: &'a str) -> Result<Self, AmbiguousPath> {
        if path == "*" {
            return Ok(Self(path));
        }
        if !path.starts_with('/') {
            return Err(AmbiguousPath);
        }
        // Of the segment: whether it is empty so far, and whether it has a dot and nothing but dots and blanks.
        let (mut empty, mut dots, mut other) = (true, false, false);
        let mut ascii = true;
        for next in Decoded(&path.as_bytes()[1..]) {
            let (byte, escaped) = next?;
            match byte {
                b'/' if escaped || empty => return Err(AmbiguousPath),
                b'/' if dots && !other => return Err(AmbiguousPath),
                b'/' => (empty, dots, other) = (true, false, false),
                b'.' if escaped => return Err(AmbiguousPath),
                b'.' => (empty, dots) = (false, true),
                b' ' => empty = false,
                0..0x20 | 0x7f | b';' | b'\\' | b'?' | b'#' | b'%' => return Err(AmbiguousPath),
                _ => {
                    ascii &= byte.is_ascii();
                    (empty, other) = (false, true);
                }
            }
        }
        if (dots && !other) || !(ascii || is_utf8(path)) { Err(AmbiguousPath) } else { Ok(Self(path)) }
    }

    /// Whether the path is this one or below it: `/v1` is over `/v1`, `/v1/` and `/v1/a`, not over `/v10`; `/v1/` is
    /// over all of these but `/v1`. The prefix is in normal form.
    pub fn is_under(self, prefix: &str) -> bool {
        let mut rest = Decoded(self.0.as_bytes()).map_while(|next| next.map(|(byte, _)| byte).ok());
        prefix.starts_with('/')
            && prefix.bytes().all(|meant| rest.next() == Some(meant))
            && (prefix.ends_with('/') || matches!(rest.next(), None | Some(b'/')))
    }

    /// Whether this can be a prefix: a path in its normal form already.
    pub fn is_prefix(text: &str) -> bool {
        text.starts_with('/') && !text.contains('%') && NormalPath::new(text).is_ok()
    }
}

fn is_utf8(path: &str) -> bool {
    let decoded: Result<Vec<u8>, AmbiguousPath> =
        Decoded(path.as_bytes()).map(|next| next.map(|(byte, _)| byte)).collect();
    decoded.is_ok_and(|decoded| std::str::from_utf8(&decoded).is_ok())
}

/// Bytes with their escapes decoded once, and whether each came escaped.
struct Decoded<'a>(&'a [u8]);

impl Iterator for Decoded<'_> {
    type Item = Result<(u8, bool), AmbiguousPath>;

    fn next(&mut self) -> Option<Self::Item> {
        let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        Some(match self.0 {
            [] => return None,
            [b'%', high, low, rest @ ..] => match (digit(high), digit(low)) {
                (Some(high), Some(low)) => {
                    self.0 = rest;
                    Ok((high << 4 | low, true))
                }
                _ => Err(AmbiguousPath),
            },
            [b'%', ..] => Err(AmbiguousPath),
            [byte, rest @ ..] => {
                self.0 = rest;
                Ok((*byte, false))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_can_be_read_in_two_ways_has_no_normal_form() {
        for path in [
            "",
            "v1",
            "//",
            "/a//b",
            "//a",
            "/a//",
            "/.",
            "/..",
            "/a/.",
            "/a/..",
            "/./a",
            "/a/../b",
            "/...",
            "/a/.../b",
            "/..%20/a",
            "/.%20.",
            "/a;b",
            "/a/..;/b",
            "/a%3bb",
            "/a%3B",
            "/a\\b",
            "/a%5cb",
            "/a%5C..%5Cb",
            "/a%2fb",
            "/a%2Fb",
            "/%2e%2e/a",
            "/a/%2e",
            "/a%2ehtml",
            "/%252e%252e/",
            "/a%25b",
            "/a%00",
            "/a%0ab",
            "/a%7f",
            "/a\tb",
            "/a%3fb",
            "/a?b",
            "/a#b",
            "/a%23b",
            "/a%",
            "/a%2",
            "/a%zz",
            "/a%u002f",
            "/%c0%af",
            "/%c0%ae%c0%ae/",
            "/%ff",
            "/%e4",
            "/%ed%a0%80",
        ] {
            assert_eq!(NormalPath::new(path), Err(AmbiguousPath), "{path:?}");
        }
        for path in [
            "/",
            "/a",
            "/a/",
            "/a/b.c",
            "/.well-known/a",
            "/..a",
            "/a..",
            "/a..b/c",
            "/a%20b",
            "/%41",
            "/%e4%bd%a0",
            "/ä",
            "/a+b&c=d,e:f@g!$'()*~-_",
            "/%20",
            "*",
        ] {
            assert!(NormalPath::new(path).is_ok(), "{path:?}");
        }
    }

    #[test]
    fn a_prefix_ends_where_a_segment_ends() {
        let under = |path: &str, prefix: &str| NormalPath::new(path).unwrap().is_under(prefix);
        for (path, prefix) in [
            ("/v1", "/v1"),
            ("/v1/", "/v1"),
            ("/v1/a", "/v1"),
            ("/v1/", "/v1/"),
            ("/v1/a", "/v1/"),
            ("/v1", "/"),
            ("/", "/"),
            ("/%761/a", "/v1"),
            ("/a%20b/c", "/a b"),
            ("/%e4%bd%a0/x", "/你"),
            ("/你/x", "/你"),
        ] {
            assert!(under(path, prefix), "{path} {prefix}");
        }
        for (path, prefix) in [
            ("/v10", "/v1"),
            ("/v1", "/v1/"),
            ("/V1", "/v1"),
            ("/v", "/v1"),
            ("/", "/v1"),
            ("/a/v1", "/v1"),
            ("*", "/"),
            ("/v1.", "/v1"),
            ("/v1%20", "/v1"),
            ("/v1", ""),
            ("/v1", "v1"),
            ("/v1", "/%761"),
        ] {
            assert!(!under(path, prefix), "{path} {prefix}");
        }
        for (text, so) in [("/", true), ("/a b/ä", true), ("/a%20b", false), ("", false), ("*", false), ("/a//", false)]
        {
            assert_eq!(NormalPath::is_prefix(text), so, "{text:?}");
        }
    }

    /// How lax services read a path: decoded again and again, `\` as `/`, parameters cut off, empty and `.` segments
    /// gone, `..` taking one away, blanks and dots behind a segment's name gone.
    fn lax(path: &[u8]) -> Vec<Vec<u8>> {
        let mut bytes = path.to_vec();
        while let Some(at) = (0..bytes.len()).find(|&at| {
            bytes[at] == b'%' && bytes.get(at + 1..at + 3).is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit))
        }) {
            let hex = std::str::from_utf8(&bytes[at + 1..at + 3]).unwrap();
            let byte = u8::from_str_radix(hex, 16).unwrap();
            bytes.splice(at..at + 3, [byte]);
        }
        let mut segments: Vec<Vec<u8>> = Vec::new();
        for segment in bytes.split(|byte| matches!(byte, b'/' | b'\\')) {
            let name = segment.split(|byte| matches!(byte, b';' | 0)).next().unwrap_or_default();
            match name.trim_ascii_end() {
                b"" | b"." => {}
                b".." => {
                    segments.pop();
                }
                name => segments.push(name.to_vec()),
            }
        }
        segments
    }

    fn piece() -> impl Strategy<Value = &'static str> {
        prop::sample::select(vec![
            "/", "/", "a", "v1", "..", ".", "%2e", "%2f", "%5c", "\\", ";", "%3b", "%25", "2e", "2f", "%20", "%00",
            "%61", "ä", "%c3%a4", "%c0", "%af", "%", "//", "b",
        ])
    }

    proptest! {
        /// What is under a prefix here is under it for the laxest of services too.
        #[test]
        fn no_reading_of_a_path_leaves_its_prefix(pieces in prop::collection::vec(piece(), 0..12)) {
            let path = format!("/v1/{}", pieces.concat());
            if let Ok(normal) = NormalPath::new(&path) {
                prop_assert!(normal.is_under("/v1"));
                prop_assert_eq!(&lax(path.as_bytes())[0], b"v1", "{}", path);
            }
        }

        /// A reading with an allocation for everything agrees.
        #[test]
        fn a_prefix_is_a_row_of_whole_segments(pieces in prop::collection::vec(piece(), 0..8), prefix in "(/(a|v1|b|ä)){1,3}/?") {
            let path = format!("/{}", pieces.concat());
            if let Ok(normal) = NormalPath::new(&path) {
                let decoded = String::from_utf8(crate::config::decoded_path(&path).into_owned()).unwrap();
                let below = format!("{}/", prefix.trim_end_matches('/'));
                let naive = decoded == prefix || decoded.starts_with(&below);
                prop_assert_eq!(normal.is_under(&prefix), naive, "{} {}", path, prefix);
            }
        }

        #[test]
        fn nothing_panics(path in any::<String>(), prefix in any::<String>()) {
            if let Ok(normal) = NormalPath::new(&path) {
                let _ = normal.is_under(&prefix);
            }
        }
    }
}
