//! Where secrets come from: files, keys of files, systemd's credentials, variables. The only reader of secret files.
//!
//! What a secret means is for others to say; here it is bytes that are wiped when they are dropped.

mod read;
mod token;

pub use read::{MOST_BYTES, ReadError, file_of, read, settled};
pub use token::{Error, token};
