//! Why a certificate proves nothing, and why there is no trust to hold it against.

/// Why a caller's certificate proves nothing: the strings that services know from load balancers, several causes to
/// one string where those have no better word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum CallerError {
    /// More than ten certificates were sent, or the chain is longer than eight, leaf and root included.
    #[error("client_cert_chain_exceeded_limit")]
    ChainTooLong,
    /// Another curve than P-256 and P-384.
    #[error("client_cert_unsupported_elliptic_curve_key")]
    Curve,
    /// Its time, or that of a certificate it depends on, is over.
    #[error("client_cert_validation_failed")]
    Expired,
    /// A certificate authority's own certificate, used as a caller's.
    #[error("client_cert_validation_failed")]
    IsAuthority,
    /// Neither RSA, ECDSA nor Ed25519.
    #[error("client_cert_unsupported_key_algorithm")]
    KeyAlgorithm,
    /// It cannot be read.
    #[error("client_cert_validation_failed")]
    Malformed,
    /// Its issuer may not issue for these names.
    #[error("client_cert_validation_failed")]
    NameConstraints,
    /// Its time is still to come.
    #[error("client_cert_validation_failed")]
    NotYetValid,
    /// There is no trust that it could be held against.
    #[error("client_cert_validation_not_performed")]
    NotPerformed,
    /// More than ten certificates of one authority.
    #[error("client_cert_pki_too_large")]
    PkiTooLarge,
    /// Neither the leaf nor its issuers may lack client authentication among their purposes.
    #[error("client_cert_chain_invalid_eku")]
    Purpose,
    /// It is on a list of revoked ones.
    #[error("client_cert_validation_failed")]
    Revoked,
    /// Its issuer's list of revoked certificates is no longer current, or not the issuer's.
    #[error("client_cert_validation_failed")]
    RevocationUnknown,
    /// RSA of less than 2,048 or more than 4,096 bits.
    #[error("client_cert_invalid_rsa_key_size")]
    RsaKeySize,
    /// A hundred certificates were looked at without an end.
    #[error("client_cert_validation_search_limit_exceeded")]
    SearchLimit,
    /// An issuer has more than ten name constraints.
    #[error("client_cert_chain_max_name_constraints_exceeded")]
    TooManyNameConstraints,
    /// No chain leads to an anchor.
    #[error("client_cert_validation_failed")]
    UnknownIssuer,
    /// No better word: a signature that does not fit, an unknown critical extension and their like.
    #[error("client_cert_validation_failed")]
    ValidationFailed,
}

impl CallerError {
    /// The cause in a word, for logs and metrics.
    pub fn cause(self) -> &'static str {
        match self {
            Self::ChainTooLong => "chain-too-long",
            Self::Curve => "curve",
            Self::Expired => "expired",
            Self::IsAuthority => "is-authority",
            Self::KeyAlgorithm => "key-algorithm",
            Self::Malformed => "malformed",
            Self::NameConstraints => "name-constraints",
            Self::NotYetValid => "not-yet-valid",
            Self::NotPerformed => "not-performed",
            Self::PkiTooLarge => "pki-too-large",
            Self::Purpose => "purpose",
            Self::Revoked => "revoked",
            Self::RevocationUnknown => "revocation-unknown",
            Self::RsaKeySize => "rsa-key-size",
            Self::SearchLimit => "search-limit",
            Self::TooManyNameConstraints => "too-many-name-constraints",
            Self::UnknownIssuer => "unknown-issuer",
            Self::ValidationFailed => "invalid",
        }
    }
}

/// Why there is no trust in callers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallerTrustError {
    /// A list that says only what changed, only some reasons, or speaks of other issuers' certificates.
    #[error("a revocation list is not a whole one of a single issuer: {0}")]
    Crl(&'static str),
    /// It bears the name of an anchor or an intermediate, and another key signed it: nobody would be revoked by it.
    #[error("a revocation list names an issuer that did not sign it")]
    CrlSignature,
    /// A key that nothing is accepted from.
    #[error("the key of a {0} is never accepted: {1}")]
    Key(&'static str, CallerError),
    /// It cannot be read.
    #[error("a {0} is malformed")]
    Malformed(&'static str),
    /// Only certificates of authorities can be issuers.
    #[error("a {0} is no certificate of an authority (CA:TRUE, and certificate signing if key usage is stated)")]
    NoAuthority(&'static str),
}
