//! Tokens and credentials files as cloudflared reads them, and where adit reads more or less.

use adit::credentials::{Credentials, Token, TokenError, tunnel_id};
use serde_json::Value;

fn vectors(group: &str) -> Vec<Value> {
    let vectors: Value = serde_json::from_str(include_str!("../data/protocol_vectors.json")).unwrap();
    vectors[group].as_array().unwrap().clone()
}

fn text<'a>(case: &'a Value, key: &str) -> &'a str {
    case[key].as_str().unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What cloudflared refuses and adit reads: white space at the ends, missing padding and the
/// URL-safe alphabet are forgiven, since templates and secret stores cause all three.
const FORGIVEN: [&str; 4] = ["leading_space", "trailing_space", "unpadded", "url_alphabet"];

/// What cloudflared reads and adit refuses: a token without account, tunnel or secret makes
/// cloudflared start with an all-zero tunnel id.
const INCOMPLETE: [&str; 3] = ["missing_fields", "missing_secret", "null"];

#[test]
fn tokens_decode_as_in_the_vectors() {
    for case in vectors("token.parse") {
        let name = text(&case, "name");
        let accepted = case["accepted"].as_bool().unwrap();
        let parsed = Token::parse(text(&case, "token"));
        if INCOMPLETE.contains(&name) {
            assert!(matches!(parsed, Err(TokenError::Missing { .. })), "{name}: {parsed:?}");
            continue;
        }
        assert_eq!(parsed.is_ok(), accepted || FORGIVEN.contains(&name), "{name}: {parsed:?}");
        if accepted {
            let (token, wanted) = (parsed.unwrap(), &case["decoded"]);
            assert_eq!(token.account, text(wanted, "accountTag"), "{name}");
            assert_eq!(token.tunnel.to_string(), text(wanted, "tunnelId"), "{name}");
            assert_eq!(hex(token.secret.expose()), text(wanted, "tunnelSecret_hex"), "{name}");
            assert_eq!(token.endpoint.unwrap_or_default(), text(wanted, "endpoint"), "{name}");
        }
    }
}

#[test]
fn forgiven_spellings_decode_to_the_same_token() {
    let vectors = vectors("token.parse");
    let find = |name: &str| vectors.iter().find(|case| case["name"] == name).unwrap();
    let parse = |name: &str| Token::parse(text(find(name), "token")).unwrap();
    assert_eq!(parse("leading_space"), parse("ok"));
    assert_eq!(parse("trailing_space"), parse("ok"));
    assert_eq!(parse("unpadded"), parse("padded_same"));
    assert_eq!(parse("url_alphabet"), parse("std_alphabet_same_json"));
}

#[test]
fn tokens_encode_byte_for_byte_like_cloudflared() {
    for case in vectors("token.valid") {
        let token = Token::parse(text(&case, "token")).unwrap();
        assert_eq!(*token.encode(), text(&case, "token"), "{}", case["name"]);
    }
}

#[test]
fn a_token_without_parts_names_every_missing_key() {
    let missing = |token: &str| Token::parse(token).unwrap_err().to_string();
    assert_eq!(missing("e30="), "the token lacks `a`, `s`, `t`");
    // {"a":"abc","s":"c2VjcmV0"}
    assert_eq!(missing("eyJhIjogImFiYyIsICJzIjogImMyVmpjbVYwIn0="), "the token lacks `t`");
}

#[test]
fn tunnel_ids_keep_their_network_byte_order() {
    for case in vectors("uuid") {
        let id = tunnel_id(text(&case, "text")).unwrap();
        assert_eq!(hex(id.as_bytes()), text(&case, "hex"));
    }
}

#[test]
fn tunnel_ids_are_read_in_the_forms_that_cloudflared_reads() {
    let wanted = tunnel_id("12345678-9abc-def0-1122-334455667788");
    assert!(wanted.is_some());
    for form in [
        "123456789abcdef01122334455667788",
        "{12345678-9abc-def0-1122-334455667788}",
        "urn:uuid:12345678-9abc-def0-1122-334455667788",
        "URN:UUID:12345678-9ABC-DEF0-1122-334455667788",
    ] {
        assert_eq!(tunnel_id(form), wanted, "{form}");
    }
    for wrong in
        ["", "x", "{}", "urn:uuid:", "12345678-9abc-def0-1122-33445566778g", "{{12345678-9abc-def0-1122-334455667788}}"]
    {
        assert_eq!(tunnel_id(wrong), None, "{wrong}");
    }
}

#[test]
fn a_credentials_file_and_a_token_of_the_same_tunnel_are_equal() {
    let file = &vectors("token.credentials_file")[0];
    let token = &vectors("token.valid")[0];
    let from_file = Credentials::parse(text(file, "json")).unwrap().into_token(None).unwrap();
    assert_eq!(from_file, Token::parse(text(token, "token")).unwrap());
}

#[test]
fn an_id_from_outside_wins_over_the_credentials_files() {
    let file = &vectors("token.credentials_file")[0];
    let other = tunnel_id("ffffffff-ffff-ffff-ffff-ffffffffffff");
    let token = Credentials::parse(text(file, "json")).unwrap().into_token(other).unwrap();
    assert_eq!(Some(token.tunnel), other);
}

#[test]
fn old_credentials_without_an_id_need_one_from_outside() {
    let old = r#"{"AccountTag":"abc","TunnelSecret":"c2VjcmV0"}"#;
    let error = Credentials::parse(old).unwrap().into_token(None).unwrap_err();
    assert_eq!(error.to_string(), "the credentials file lacks `TunnelID`");
}

#[test]
fn missing_parts_of_credentials_are_named() {
    let error = Credentials::parse(r#"{"a":"abc","s":"c2VjcmV0"}"#).unwrap_err();
    assert_eq!(error.to_string(), "the credentials file lacks `AccountTag`, `TunnelSecret`");
}
