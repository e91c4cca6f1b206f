//! Token sources: whatever people, templates and secret stores make of a token.

use adit::credentials::{Credentials, Secret, Token, TokenError};
use proptest::prelude::*;

/// {"a":"abc","s":"c2VjcmV0","t":"df5ed608-b8b4-4109-89f3-9f2cf199df64"}
const TOKEN: &str = "eyJhIjoiYWJjIiwicyI6ImMyVmpjbVYwIiwidCI6ImRmNWVkNjA4LWI4YjQtNDEwOS04OWYzLTlmMmNmMTk5ZGY2NCJ9";

fn reads(content: &str) {
    let token = Token::from_source(content).unwrap_or_else(|error| panic!("{content:?}: {error}"));
    assert_eq!(*token.encode(), TOKEN, "{content:?}");
}

#[test]
fn a_bare_token_is_read_through_blanks_quotes_and_a_byte_order_mark() {
    reads(TOKEN);
    reads(&format!("\u{feff}{TOKEN}\r\n"));
    reads(&format!("  \"{TOKEN}\"  \n"));
    reads(&format!("'{TOKEN}'"));
    let (left, right) = TOKEN.split_at(40);
    reads(&format!("{left}\n  {right}\n"));
}

#[test]
fn a_json_object_holds_the_token_under_either_name() {
    reads(&format!(r#"{{"tunnel_token":"{TOKEN}"}}"#));
    reads(&format!("{{\n\t\"other\": {{\"token\": \"no\"}}, \"token\": \"{TOKEN}\"\n}}"));
}

#[test]
fn the_longer_name_wins_over_the_shorter() {
    reads(&format!(r#"{{"token":"something else","tunnel_token":"{TOKEN}"}}"#));
}

#[test]
fn a_yaml_object_holds_the_token() {
    reads(&format!("tunnel_token: {TOKEN}\n"));
    reads(&format!("user: x\ntoken: \"{TOKEN}\"\n"));
    reads(&format!("token: >-\n  {TOKEN}\n"));
}

#[test]
fn a_whole_rendered_configuration_holds_the_token() {
    reads(&format!(
        "tunnel: lab\ntoken: {TOKEN}\noriginRequest:\n  connectTimeout: 5s\ningress:\n  - hostname: \"*.example.com\"\n    service: http://localhost\n  - service: http_status:404\n"
    ));
}

#[test]
fn a_token_deeper_in_an_object_is_not_taken() {
    let nested = format!("data:\n  token: {TOKEN}\n");
    assert_eq!(Token::from_source(&nested), Err(TokenError::KeyAbsent));
    let under_a_complex_key = format!("? {{a: b}}\n: token\nx: {TOKEN}\n");
    assert_eq!(Token::from_source(&under_a_complex_key), Err(TokenError::KeyAbsent));
}

#[test]
fn the_injectors_default_rendering_is_answered_with_the_right_template() {
    let rendered = format!("data: map[tunnel_token:{TOKEN}]\nmetadata: map[version:1]\n");
    let message = Token::from_source(&rendered).unwrap_err().to_string();
    assert!(message.contains("{{ .Data.data.tunnel_token }}"), "{message}");
    let rendered = format!("metadata: map[version:1]\ndata: map[token:{TOKEN}]\n");
    let message = Token::from_source(&rendered).unwrap_err().to_string();
    assert!(message.contains("{{ .Data.data.token }}"), "{message}");
    assert!(!message.contains("eyJ"));
}

#[test]
fn an_empty_source_says_so() {
    for empty in ["", "\n", "\u{feff}", "\"\"", "token: \"\"\n"] {
        assert_eq!(Token::from_source(empty), Err(TokenError::Empty), "{empty:?}");
    }
    assert_eq!(Token::from_source("token:\n"), Err(TokenError::KeyAbsent));
}

#[test]
fn a_credentials_file_in_place_of_a_token_is_recognised() {
    let file = r#"{"AccountTag":"abc","TunnelSecret":"c2VjcmV0"}"#;
    assert_eq!(Token::from_source(file), Err(TokenError::CredentialsFile));
}

#[test]
fn a_huge_source_is_refused_before_it_is_read() {
    let huge = "a".repeat(2 << 20);
    assert!(matches!(Token::from_source(&huge), Err(TokenError::TooLarge { .. })));
}

#[test]
fn a_secret_is_never_shown() {
    let token = Token::parse(TOKEN).unwrap();
    assert_eq!(token.secret, Secret::new("secret"));
    let shown = format!("{token:?} {:?}", Secret::new("secret"));
    assert!(!shown.contains("secret\"") && !shown.contains("c2VjcmV0"), "{shown}");
    assert!(shown.contains("[redacted]"));
}

#[test]
fn secrets_compare_by_content_and_length() {
    assert_ne!(Secret::new("secret"), Secret::new("Secret"));
    assert_ne!(Secret::new("secret"), Secret::new("secret1"));
    assert_eq!(Secret::new(vec![1, 2]).expose(), [1, 2]);
    assert!(Secret::new(vec![0xff]).expose_text().is_err());
}

#[test]
fn errors_repeat_nothing_of_what_was_read() {
    // {"a":"abc","s":"***hush***","t":"x"} and {"a":["hush"],...}
    for bad in [
        "hush hush!",
        "{\"token\": [\"hush\"]}",
        "{\"token\": \"hush!\"}",
        "token: {hush",
        "eyJhIjoiYWJjIiwicyI6IioqKmh1c2gqKioiLCJ0IjoiZGY1ZWQ2MDgtYjhiNC00MTA5LTg5ZjMtOWYyY2YxOTlkZjY0In0=",
        "eyJhIjpbImh1c2giXSwicyI6ImMyVmpjbVYwIiwidCI6Imh1c2gifQ==",
    ] {
        let error = Token::from_source(bad).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hush"), "{error:?}");
    }
}

proptest! {
    #[test]
    fn every_token_survives_encoding(
        account in "[ -~]{1,40}",
        id in any::<u128>(),
        secret in proptest::collection::vec(any::<u8>(), 1..64),
        endpoint in proptest::option::of("[a-z]{1,8}"),
    ) {
        let token = Token {
            account,
            tunnel: uuid::Uuid::from_u128(id),
            secret: Secret::new(secret),
            endpoint,
        };
        prop_assert_eq!(&Token::parse(&token.encode()).unwrap(), &token);
        let unpadded = token.encode().trim_end_matches('=').replace('+', "-").replace('/', "_");
        prop_assert_eq!(&Token::from_source(&format!("token: {unpadded}\n")).unwrap(), &token);
    }

    #[test]
    fn no_text_makes_the_readers_panic(text in "\\PC{0,80}") {
        let _ = Token::parse(&text);
        let _ = Token::from_source(&text);
        let _ = Credentials::parse(&text);
    }

    #[test]
    fn no_yaml_like_text_makes_the_reader_panic(text in "[-?:,\\[\\]{}#&*!|>'\"%@` \t\n~a0.<]{0,60}") {
        let _ = Token::from_source(&format!("token: {text}"));
        let _ = Token::from_source(&text);
    }
}
