//! Which callers may do what: default deny once there is a list.

use super::MaybeCaller;
use crate::{code::Code, tls::callers::CallerError};

/// What one hop demands of its callers, in one generation of rules and trust.
#[derive(Debug, Default)]
pub struct Policy {
    _private: (),
}

/// Leave to open a service for one request; only a [`Policy`] gives it.
#[derive(Clone, Debug)]
pub struct Permit {
    caller: MaybeCaller,
}

impl Permit {
    /// Who asks, if that is known.
    pub fn caller(&self) -> &MaybeCaller {
        &self.caller
    }
}

/// Why there is no leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// What is allowed depends on the path, and that can be read in two ways.
    #[error("the path can be read in two ways")]
    Ambiguous,
    /// A certificate that proves nothing.
    #[error("the caller's certificate is not valid: {0}")]
    Invalid(CallerError),
    /// No certificate.
    #[error("the caller has no certificate")]
    Missing,
    /// A caller, a method or a path that is not on the list.
    #[error("the caller is not allowed to do this")]
    NotAllowed,
}

impl Denied {
    /// What the visitor is told.
    pub fn code(self) -> Code {
        match self {
            Self::Ambiguous => Code::PathAmbiguous,
            Self::Invalid(_) => Code::CallerInvalid,
            Self::Missing => Code::CallerMissing,
            Self::NotAllowed => Code::CallerNotAllowed,
        }
    }
}

impl Policy {
    /// Nobody is asked who he is.
    pub fn open() -> Self {
        Self::default()
    }

    /// Decides on one request.
    ///
    /// # Errors
    ///
    /// [`Denied`].
    pub fn admit(&self, caller: MaybeCaller) -> Result<Permit, Denied> {
        Ok(Permit { caller })
    }
}
