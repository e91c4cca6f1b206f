//! A name of a certificate as text (RFC 4514), last part first.

use std::fmt::Write as _;

use x509_parser::{
    prelude::FromDer,
    x509::{AttributeTypeAndValue, X509Name},
};

/// Short names of RFC 4514 §3; another type stands in dotted form, and its value in hexadecimal.
const TYPES: [(&str, &str); 9] = [
    ("2.5.4.3", "CN"),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("2.5.4.6", "C"),
    ("2.5.4.9", "STREET"),
    ("0.9.2342.19200300.100.1.25", "DC"),
    ("0.9.2342.19200300.100.1.1", "UID"),
];

/// `None` if it is no name. All of it is visible ASCII without quotes: whatever else there is becomes `\` and two
/// digits for each byte (§2.4).
pub(super) fn rfc4514(der: &[u8]) -> Option<String> {
    let Ok(([], name)) = X509Name::from_der(der) else { return None };
    let mut text = String::new();
    let parts: Vec<_> = name.iter_rdn().collect();
    for part in parts.iter().rev() {
        if !text.is_empty() {
            text.push(',');
        }
        for (at, attribute) in part.iter().enumerate() {
            if at > 0 {
                text.push('+');
            }
            write_attribute(attribute, &mut text);
        }
    }
    Some(text)
}

fn write_attribute(attribute: &AttributeTypeAndValue<'_>, text: &mut String) {
    let oid = attribute.attr_type().to_id_string();
    let short = TYPES.iter().find(|(known, _)| *known == oid).map(|(_, short)| *short);
    let (Some(short), Ok(value)) = (short, attribute.as_str()) else {
        let value = attribute.attr_value();
        let _ = write!(text, "{oid}=#");
        // The value's DER: tag, length, content.
        let mut der = vec![u8::try_from(value.tag().0).unwrap_or(0)];
        match value.data.len() {
            short @ 0..0x80 => der.push(short as u8),
            long => {
                let digits = long.to_be_bytes();
                let digits = &digits[digits.iter().take_while(|byte| **byte == 0).count()..];
                der.push(0x80 | digits.len() as u8);
                der.extend_from_slice(digits);
            }
        }
        der.extend_from_slice(value.data);
        for byte in der {
            let _ = write!(text, "{byte:02x}");
        }
        return;
    };
    let _ = write!(text, "{short}=");
    for (at, byte) in value.bytes().enumerate() {
        let edge = at == 0 || at + 1 == value.len();
        let plain = (0x21..=0x7e).contains(&byte) && !b"\"\\,+;<>=".contains(&byte) && !(at == 0 && byte == b'#');
        if plain || byte == b' ' && !edge {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "\\{byte:02X}");
        }
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};

    use super::*;
    use crate::identity::Certificate;

    fn text(parts: &[(DnType, &str)]) -> String {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        for (kind, value) in parts {
            params.distinguished_name.push(kind.clone(), *value);
        }
        let der = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        rfc4514(&Certificate::parse(der.der()).unwrap().subject).unwrap()
    }

    #[test]
    fn a_name_is_written_last_part_first_and_nothing_in_it_can_end_a_quote_or_a_line() {
        use DnType::{CommonName, CountryName, OrganizationName};
        assert_eq!(text(&[]), "");
        assert_eq!(
            text(&[(CountryName, "UK"), (OrganizationName, "Zoo"), (CommonName, "A Lion")]),
            "CN=A Lion,O=Zoo,C=UK"
        );
        assert_eq!(text(&[(CommonName, "a\",CN=\\b\r\nX: y")]), "CN=a\\22\\2CCN\\3D\\5Cb\\0D\\0AX: y");
        assert_eq!(text(&[(CommonName, "#é ")]), "CN=\\23\\C3\\A9\\20");
        assert_eq!(text(&[(DnType::CustomDnType(vec![1, 2, 3]), "ab")]), "1.2.3=#0c026162");
        assert_eq!(text(&[(DnType::CustomDnType(vec![1, 2, 3]), &"a".repeat(200))]).len(), "1.2.3=#".len() + 6 + 400);
    }

    #[test]
    fn bytes_that_are_no_name_are_none() {
        assert_eq!(rfc4514(b""), None);
        assert_eq!(rfc4514(b"\x30\x05no"), None);
    }
}
