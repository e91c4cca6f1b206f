//! Why there is no TLS to a service, or none that proves enough.

use std::{borrow::Cow, io};

use rustls::{AlertDescription, CertificateError, Error, PeerIncompatible};

use super::verify::NotExpected;
use crate::{code::Code, metrics::HopFailure, tls::keyring::Unusable};

/// Why there is no TLS to a service, or none that proves enough.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The service's certificate was not accepted.
    #[error("{0}")]
    Certificate(CertificateError),
    /// No TLS, or no proper one.
    #[error("{0}")]
    Handshake(#[source] io::Error),
    /// The service asked, and takes no signature that the identity's key can make.
    #[error("the service takes no signature that the key of our identity can make")]
    NoCommonScheme,
    /// The service did not ask for a certificate where it has to.
    #[error("the service did not ask for a certificate")]
    NotAsking,
    /// Our own identity cannot be presented; nothing was dialled.
    #[error("identity {name:?} {why}")]
    OwnIdentity {
        /// Its name in the configuration.
        name: String,
        /// What is wrong with it.
        why: Unusable,
    },
    /// Our own trust in services cannot be used; nothing was dialled.
    #[error("trust in services: {0}")]
    OwnTrust(Unusable),
    /// The service sent an alert, in the handshake or instead of any answer.
    #[error("the service refused the handshake: {}", alert_name(*.0))]
    Refused(AlertDescription),
}

impl Failure {
    /// Of a handshake that was not completed.
    pub(super) fn of_handshake(error: io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            Some(Error::InvalidCertificate(why)) => Self::Certificate(why.clone()),
            Some(Error::AlertReceived(alert)) => Self::Refused(*alert),
            Some(Error::PeerIncompatible(PeerIncompatible::NoCertificateRequestSignatureSchemesInCommon)) => {
                Self::NoCommonScheme
            }
            _ => Self::Handshake(error),
        }
    }

    /// What the visitor is told.
    pub fn code(&self) -> Code {
        match self {
            Self::Certificate(_) => match self.cause() {
                HopFailure::Expired => Code::OriginExpired,
                HopFailure::WrongIdentity => Code::OriginIdentity,
                _ => Code::OriginUntrusted,
            },
            Self::NotAsking => Code::OriginNotAsking,
            Self::OwnTrust(_) => Code::OriginUntrusted,
            Self::Handshake(_) | Self::NoCommonScheme | Self::OwnIdentity { .. } | Self::Refused(_) => {
                Code::OriginTlsRefused
            }
        }
    }

    /// What is counted.
    pub fn cause(&self) -> HopFailure {
        match self {
            Self::Certificate(why) => match why {
                CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. } => HopFailure::Expired,
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                    HopFailure::WrongIdentity
                }
                CertificateError::Other(other) if other.0.is::<NotExpected>() => HopFailure::WrongIdentity,
                // The second is another authority of a trusted one's name.
                CertificateError::UnknownIssuer | CertificateError::BadSignature => HopFailure::UnknownIssuer,
                _ => HopFailure::BadCertificate,
            },
            Self::Handshake(_) => HopFailure::Handshake,
            Self::NoCommonScheme => HopFailure::NoCommonScheme,
            Self::NotAsking => HopFailure::NotAsking,
            Self::OwnIdentity { .. } => HopFailure::OwnIdentity,
            Self::OwnTrust(_) => HopFailure::OwnTrust,
            Self::Refused(_) => HopFailure::RefusedByService,
        }
    }

    /// Whether the service is to blame, and not what we have ourselves.
    pub fn is_of_service(&self) -> bool {
        !matches!(self, Self::OwnIdentity { .. } | Self::OwnTrust(_))
    }
}

/// Whether an alert that comes instead of an answer speaks of the handshake: in TLS 1.3 a service looks at our
/// certificate when we hold the handshake to be over.
pub fn refuses(alert: AlertDescription) -> bool {
    use AlertDescription as A;
    matches!(
        alert,
        A::AccessDenied
            | A::BadCertificate
            | A::BadCertificateHashValue
            | A::BadCertificateStatusResponse
            | A::CertificateExpired
            | A::CertificateRequired
            | A::CertificateRevoked
            | A::CertificateUnknown
            | A::CertificateUnobtainable
            | A::DecryptError
            | A::HandshakeFailure
            | A::InsufficientSecurity
            | A::NoCertificate
            | A::UnknownCA
            | A::UnsupportedCertificate
    )
}

/// The name of an alert as its registry spells it (RFC 8446 §6).
pub fn alert_name(alert: AlertDescription) -> Cow<'static, str> {
    use AlertDescription as A;
    Cow::Borrowed(match alert {
        A::CloseNotify => "close_notify",
        A::UnexpectedMessage => "unexpected_message",
        A::BadRecordMac => "bad_record_mac",
        A::DecryptionFailed => "decryption_failed",
        A::RecordOverflow => "record_overflow",
        A::DecompressionFailure => "decompression_failure",
        A::HandshakeFailure => "handshake_failure",
        A::NoCertificate => "no_certificate",
        A::BadCertificate => "bad_certificate",
        A::UnsupportedCertificate => "unsupported_certificate",
        A::CertificateRevoked => "certificate_revoked",
        A::CertificateExpired => "certificate_expired",
        A::CertificateUnknown => "certificate_unknown",
        A::IllegalParameter => "illegal_parameter",
        A::UnknownCA => "unknown_ca",
        A::AccessDenied => "access_denied",
        A::DecodeError => "decode_error",
        A::DecryptError => "decrypt_error",
        A::ExportRestriction => "export_restriction",
        A::ProtocolVersion => "protocol_version",
        A::InsufficientSecurity => "insufficient_security",
        A::InternalError => "internal_error",
        A::InappropriateFallback => "inappropriate_fallback",
        A::UserCanceled => "user_canceled",
        A::NoRenegotiation => "no_renegotiation",
        A::MissingExtension => "missing_extension",
        A::UnsupportedExtension => "unsupported_extension",
        A::CertificateUnobtainable => "certificate_unobtainable",
        A::UnrecognisedName => "unrecognized_name",
        A::BadCertificateStatusResponse => "bad_certificate_status_response",
        A::BadCertificateHashValue => "bad_certificate_hash_value",
        A::UnknownPSKIdentity => "unknown_psk_identity",
        A::CertificateRequired => "certificate_required",
        A::NoApplicationProtocol => "no_application_protocol",
        A::EncryptedClientHelloRequired => "ech_required",
        other => return Cow::Owned(format!("alert {}", u8::from(other))),
    })
}
