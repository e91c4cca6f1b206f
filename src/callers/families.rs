//! Headers that speak of certificates: what a stranger must not be able to tell a service.
//!
//! A service may read a header under another spelling than it was sent: CGI, WSGI and their like make one name of
//! `-`, `_` and every other sign. So all signs are one here, in families and in what is held against them.

use http::HeaderMap;

/// Whole names, folded.
const NAMES: &[&str] = &[
    // Azure App Service.
    "x-arr-clientcert",
    // WebSphere's plug-in: `$WSCC`.
    "-wscc",
    // nginx, as its users write it.
    "x-client-dn",
    "x-client-i-dn",
    "x-client-s-dn",
    "x-client-verify",
];

/// Beginnings of names, folded: whatever vendors add later belongs to the same family.
const PREFIXES: &[&str] = &[
    // RFC 9440: Client-Cert, Client-Cert-Chain.
    "client-cert",
    // Application servers behind Apache, HAProxy or nginx: CERT_CHAIN, CERT_CHAIN_0, …
    "cert-chain",
    // Cloudflare.
    "cf-cert-",
    "cf-client-cert",
    // Amazon CloudFront and load balancers.
    "cloudfront-viewer-cert",
    "x-amzn-mtls-",
    // Google's load balancers, Apigee, Kong and many more: X-Client-Cert, X-Client-Cert-Present, X-Client-Certificate.
    "x-client-cert",
    "x-client-runway-cc-",
    // Envoy, Istio.
    "x-forwarded-client-cert",
    // Traefik: X-Forwarded-Tls-Client-Cert, X-Forwarded-Tls-Client-Cert-Info.
    "x-forwarded-ssl-client-cert",
    "x-forwarded-tls-client-cert",
    // nginx, ingress-nginx, Apache, Tomcat: ssl-client-verify, SSL_CLIENT_CERT.
    "ssl-client-",
    // HAProxy and nginx: X-SSL-Client-DN, X-SSL-Issuer, X-SSL-CERT.
    "x-ssl-",
    // Caddy.
    "tls-client-",
    "x-tls-client-",
    // WebLogic.
    "wl-proxy-client-cert",
];

/// Headers that make another request of a request, folded: methods (Rails, Symfony, Express and their like) and targets
/// (IIS, Symfony, nginx with auth_request).
const OVERRIDES: &[&str] = &[
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-original-uri",
    "x-original-url",
    "x-rewrite-url",
];

/// Takes away what would make another request of this one, in every spelling: for rules that decide by method or path.
pub fn strip_overrides(headers: &mut HeaderMap) {
    let is_one = |name: &str| OVERRIDES.iter().any(|known| name.len() == known.len() && begins(name, known));
    let found: Vec<_> = headers.keys().filter(|name| is_one(name.as_str())).cloned().collect();
    for name in found {
        headers.remove(name);
    }
}

/// Which headers speak of certificates.
#[derive(Clone, Debug, Default)]
pub struct Families {
    /// Beyond the known ones; folded.
    prefixes: Vec<Box<str>>,
}

/// Lower case, and every sign a hyphen.
fn fold(byte: u8) -> u8 {
    if byte.is_ascii_alphanumeric() { byte.to_ascii_lowercase() } else { b'-' }
}

/// Whether `name` begins with what is folded already.
fn begins(name: &str, folded: &str) -> bool {
    name.len() >= folded.len() && name.bytes().zip(folded.bytes()).all(|(byte, meant)| fold(byte) == meant)
}

impl Families {
    /// All known families, and whatever begins with one of `prefixes`.
    pub fn new<'a>(prefixes: impl Iterator<Item = &'a str>) -> Self {
        let fold =
            |prefix: &str| prefix.bytes().map(|byte| char::from(fold(byte))).collect::<String>().into_boxed_str();
        let known = |prefix: &str| PREFIXES.iter().any(|known| prefix.starts_with(known));
        let mut prefixes: Vec<_> = prefixes.map(fold).filter(|new| !new.is_empty() && !known(new)).collect();
        prefixes.sort_unstable();
        prefixes.dedup();
        Self { prefixes }
    }

    /// Whether a header of this name speaks of certificates.
    pub fn contain(&self, name: &str) -> bool {
        // Every name in the table begins with one of these, and most headers of a request with none.
        let likely =
            name.bytes().next().is_some_and(|first| matches!(fold(first), b'c' | b's' | b't' | b'w' | b'x' | b'-'));
        likely
            && (PREFIXES.iter().any(|prefix| begins(name, prefix))
                || NAMES.iter().any(|known| name.len() == known.len() && begins(name, known)))
            || self.prefixes.iter().any(|prefix| begins(name, prefix))
    }

    /// Takes all of them away, each in every spelling and however often it is there. Nothing is allocated if there is
    /// none.
    pub fn strip(&self, headers: &mut HeaderMap) {
        let spoken: Vec<_> = headers.keys().filter(|name| self.contain(name.as_str())).cloned().collect();
        for name in spoken {
            headers.remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_family_is_known_in_every_spelling() {
        let families = Families::new(["X-Client-Runway-Cc-", "Who_Is.It-"].into_iter());
        for name in [
            "Client-Cert",
            "Client-Cert-Chain",
            "client_cert",
            "CLIENT.CERT-chain",
            "X-Client-Cert-Present",
            "x_client_cert_spiffe_id",
            "X-Client-Cert",
            "X-Client-Runway-Cc-Present",
            "x-client-runway_cc_present",
            "X-Forwarded-Client-Cert",
            "X-Forwarded-Tls-Client-Cert",
            "X-Forwarded-Tls-Client-Cert-Info",
            "X-Amzn-Mtls-Clientcert",
            "X-Amzn-Mtls-Clientcert-Serial-Number",
            "CloudFront-Viewer-Cert-Present",
            "Cf-Client-Cert-Der-Base64",
            "cf-cert-revoked",
            "ssl-client-verify",
            "SSL_CLIENT_CERT",
            "X-SSL-Client-DN",
            "X-SSL-Issuer",
            "X-ARR-ClientCert",
            "X-Client-Verify",
            "$WSCC",
            "WL-Proxy-Client-Cert",
            "CERT_CHAIN_0",
            "who-is_it-really",
        ] {
            assert!(families.contain(name), "{name}");
            assert!(families.contain(&name.to_lowercase()), "{name}");
            assert!(families.contain(&name.replace('-', "_").to_uppercase()), "{name}");
        }
        for name in ["Cookie", "Content-Type", "cf-ray", "cf-connecting-ip", "x-forwarded-for", "x-client-ip", "Accept"]
        {
            assert!(!families.contain(name), "{name}");
        }
        assert!(!Families::default().contain("who-is-it-really"));
        assert!(!Families::new([""].into_iter()).contain("cookie"));
    }

    #[test]
    fn the_quick_look_at_the_first_sign_misses_no_family() {
        for name in NAMES.iter().chain(PREFIXES) {
            assert!(Families::default().contain(name), "{name}");
            assert_eq!(name.bytes().map(fold).collect::<Vec<_>>(), name.as_bytes(), "{name} is not folded");
        }
    }

    #[test]
    fn duplicates_go_and_everything_else_stays() {
        let mut headers = HeaderMap::new();
        for (name, value) in
            [("client-cert", "a"), ("client-cert", "b"), ("client_cert", "c"), ("cookie", "d"), ("cookie", "e")]
        {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        Families::default().strip(&mut headers);
        assert_eq!(headers.keys().collect::<Vec<_>>(), ["cookie"]);
        assert_eq!(headers.get_all("cookie").iter().count(), 2);
    }

    proptest! {
        #[test]
        fn no_spelling_of_a_family_slips_through(
            family in proptest::sample::select([PREFIXES, NAMES].concat()),
            more in "[a-z0-9-]{0,12}",
            upper in proptest::collection::vec(any::<bool>(), 64),
            signs in proptest::collection::vec(proptest::sample::select(b"-_.!#$%&'*+^`|~".to_vec()), 64),
        ) {
            let more = if NAMES.contains(&family) { "" } else { &more };
            let spelled: Vec<u8> = format!("{family}{more}")
                .bytes()
                .zip(upper.iter().zip(signs))
                .map(|(byte, (upper, sign))| match byte {
                    b'-' => sign,
                    byte if *upper => byte.to_ascii_uppercase(),
                    byte => byte,
                })
                .collect();
            let mut headers = HeaderMap::new();
            headers.append(HeaderName::from_bytes(&spelled).unwrap(), HeaderValue::from_static("spoofed"));
            Families::default().strip(&mut headers);
            prop_assert!(headers.is_empty(), "{:?}", String::from_utf8(spelled));
        }
    }
}
