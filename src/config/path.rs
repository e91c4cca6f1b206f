//! Path patterns of rules: the regular expressions of Go, run by Rust's engine.
//!
//! The two dialects differ in places where a pattern keeps compiling but means something else
//! (`\d` in Go is ten digits, here it is every script's). A rule must not change its meaning when a
//! file moves from cloudflared to adit, so the pattern is translated first.

use std::borrow::Cow;
use std::fmt;

use regex::bytes::{Regex, RegexBuilder};

/// A compiled path pattern. Two are equal when they are spelled alike.
#[derive(Clone)]
pub struct PathPattern {
    text: String,
    regex: Regex,
}

impl PathPattern {
    /// Compiles a pattern in Go's syntax. `Ok(None)` for the empty text: any path.
    ///
    /// # Errors
    /// A text that says what is wrong with the pattern, on one line.
    pub fn parse(text: &str) -> Result<Option<Self>, String> {
        if text.is_empty() {
            return Ok(None);
        }
        if text.len() > MAX_PATTERN {
            return Err(format!("longer than {MAX_PATTERN} bytes"));
        }
        let translated = translate(text)?;
        let regex = RegexBuilder::new(&translated)
            .size_limit(SIZE_LIMIT)
            .dfa_size_limit(SIZE_LIMIT)
            .nest_limit(100)
            .build()
            .map_err(|error| match error {
                regex::Error::CompiledTooBig(limit) => {
                    format!("compiles to more than {limit} bytes")
                }
                other => {
                    let text = other.to_string();
                    let last = text.lines().last().unwrap_or("not a regular expression");
                    last.trim_start_matches("error: ").to_owned()
                }
            })?;
        Ok(Some(Self { text: text.to_owned(), regex }))
    }

    /// Whether the pattern occurs anywhere in the decoded path ([`decoded_path`]).
    pub fn is_match(&self, decoded_path: &[u8]) -> bool {
        self.regex.is_match(decoded_path)
    }

    /// The spelling in the configuration.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl PartialEq for PathPattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for PathPattern {}

impl fmt::Debug for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PathPattern({:?})", self.text)
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The path of a request target as patterns see it: without query, percent escapes decoded (RFC
/// 3986 section 2.1). What is no valid escape stays as it is, each broken byte of UTF-8 becomes
/// U+FFFD.
/// Borrowed when there is nothing to decode.
pub fn decoded_path(path: &str) -> Cow<'_, [u8]> {
    let bytes = path.as_bytes();
    let end = bytes.iter().position(|byte| *byte == b'?').unwrap_or(bytes.len());
    let bytes = &bytes[..end];
    if !bytes.contains(&b'%') {
        return Cow::Borrowed(bytes);
    }
    let digit = |at: usize| bytes.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        if let (b'%', Some(high), Some(low)) = (bytes[at], digit(at + 1), digit(at + 2)) {
            decoded.push((high * 16 + low) as u8);
            at += 3;
        } else {
            decoded.push(bytes[at]);
            at += 1;
        }
    }
    if std::str::from_utf8(&decoded).is_ok() {
        return Cow::Owned(decoded);
    }
    // Go's engine takes a broken byte for the replacement character, so that `.` and `[^/]` match it.
    let mut replaced = String::with_capacity(decoded.len() + 8);
    for chunk in decoded.utf8_chunks() {
        replaced.push_str(chunk.valid());
        replaced.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
    }
    Cow::Owned(replaced.into_bytes())
}

// A pushed configuration may hold many rules: what one pattern costs must be small and known.
const SIZE_LIMIT: usize = 1 << 20;
const MAX_PATTERN: usize = 4096;
// Go's own limit.
const MAX_REPEAT: u32 = 1000;

/// Go's syntax in Rust's spelling.
fn translate(pattern: &str) -> Result<String, String> {
    let mut out = String::with_capacity(pattern.len() + 16);
    let mut rest = pattern;
    // Whether the last element was a repetition, which in Go may not be repeated again.
    let mut repeated = false;
    while let Some(c) = rest.chars().next() {
        let after = &rest[c.len_utf8()..];
        match c {
            '\\' => {
                if let Some(quoted) = after.strip_prefix('Q') {
                    let (text, left) = quoted.split_once("\\E").unwrap_or((quoted, ""));
                    out.push_str(&regex::escape(text));
                    rest = left;
                } else {
                    let escaped = after.chars().next().ok_or("ends in a lone backslash")?;
                    push_escape(&mut out, escaped, false)?;
                    rest = &after[escaped.len_utf8()..];
                }
                repeated = false;
            }
            '[' => {
                rest = class(&mut out, after)?;
                repeated = false;
            }
            '*' | '+' | '?' | '{' => {
                let length = match c {
                    '{' => counted(rest)?,
                    _ => Some(1),
                };
                let Some(length) = length else {
                    // Not a count: Go takes the brace for itself, Rust calls it an error.
                    out.push_str("\\{");
                    rest = after;
                    repeated = false;
                    continue;
                };
                if repeated {
                    return Err("a repetition of a repetition, such as `**`".to_owned());
                }
                out.push_str(&rest[..length]);
                rest = &rest[length..];
                if let Some(left) = rest.strip_prefix('?') {
                    out.push('?');
                    rest = left;
                }
                repeated = true;
            }
            '(' => {
                // After `(?` come flags or a name; the question mark repeats nothing.
                out.push('(');
                rest = after;
                if let Some(left) = rest.strip_prefix('?') {
                    let flags = left.split([':', ')', '<']).next().unwrap_or_default();
                    if flags.contains(['x', 'u', 'R']) {
                        return Err("only the flags i, m, s and U exist".to_owned());
                    }
                    out.push('?');
                    rest = left;
                }
                repeated = false;
            }
            other => {
                out.push(other);
                rest = after;
                repeated = false;
            }
        }
    }
    Ok(out)
}

/// One escape. Perl's classes and word boundaries mean ASCII in Go.
fn push_escape(out: &mut String, escaped: char, in_class: bool) -> Result<(), String> {
    match escaped {
        // Nested classes are a union, so these stand inside a class as well as outside.
        'd' => out.push_str("[0-9]"),
        'w' => out.push_str("[0-9A-Za-z_]"),
        's' => out.push_str("[\\t\\n\\f\\r ]"),
        'D' => out.push_str("[^0-9]"),
        'W' => out.push_str("[^0-9A-Za-z_]"),
        'S' => out.push_str("[^\\t\\n\\f\\r ]"),
        'b' if !in_class => out.push_str("(?-u:\\b)"),
        'B' if !in_class => out.push_str("(?-u:\\B)"),
        // What Rust knows and Go refuses.
        'u' | 'U' | '<' | '>' => return Err(format!("invalid escape sequence `\\{escaped}`")),
        other => {
            out.push('\\');
            out.push(other);
        }
    }
    Ok(())
}

/// A bracketed class; `rest` starts behind the bracket, and so does what is returned.
fn class<'a>(out: &mut String, rest: &'a str) -> Result<&'a str, String> {
    out.push('[');
    let mut rest = rest;
    if let Some(left) = rest.strip_prefix('^') {
        out.push('^');
        rest = left;
    }
    if let Some(left) = rest.strip_prefix(']') {
        out.push_str("\\]");
        rest = left;
    }
    while let Some(c) = rest.chars().next() {
        let after = &rest[c.len_utf8()..];
        match c {
            ']' => {
                out.push(']');
                return Ok(after);
            }
            '\\' => {
                let escaped = after.chars().next().ok_or("ends in a lone backslash")?;
                push_escape(out, escaped, true)?;
                rest = &after[escaped.len_utf8()..];
            }
            '[' => match after.strip_prefix(':').and_then(|named| named.find(":]")) {
                Some(length) => {
                    let end = length + 4;
                    out.push_str(&rest[..end]);
                    rest = &rest[end..];
                }
                None => {
                    out.push_str("\\[");
                    rest = after;
                }
            },
            // Set operations of Rust (`&&`, `~~`) are plain characters in Go.
            '&' | '~' => {
                out.push('\\');
                out.push(c);
                rest = after;
            }
            other => {
                out.push(other);
                rest = after;
            }
        }
    }
    Err("missing closing ]".to_owned())
}

/// The length of `{n}`, `{n,}` or `{n,m}` at the start, if it is one.
fn counted(text: &str) -> Result<Option<usize>, String> {
    let Some(end) = text.find('}') else {
        return Ok(None);
    };
    let inside = &text[1..end];
    let (low, high) = inside.split_once(',').unwrap_or((inside, inside));
    let number = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit());
    if low.is_empty() || !number(low) || !number(high) {
        return Ok(None);
    }
    let over = |digits: &str| !digits.is_empty() && digits.parse::<u32>().map_or(true, |count| count > MAX_REPEAT);
    if over(low) || over(high) {
        return Err(format!("repeats more than {MAX_REPEAT} times"));
    }
    Ok(Some(end + 1))
}
