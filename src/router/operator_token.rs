//! The router's own token, which admits operators: whoever can read the data directory is one.

use std::{
    fs,
    io::{self, Write as _},
    path::{self, Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::rand::{SecureRandom as _, SystemRandom};

use super::owner_file;
use crate::routing::CredentialDigest;

/// File in the data directory.
pub const OPERATOR_TOKEN_FILE: &str = "operator-token";

/// Random bytes of a token.
const BYTES: usize = 32;

/// The token, or none if the data directory cannot hold it. Keeps only its digest.
pub(super) struct OperatorToken {
    path: PathBuf,
    digest: Option<CredentialDigest>,
}

impl OperatorToken {
    /// Replaces the token in a data directory. If that fails, as on a full disk, the one of the last run stays.
    pub(super) fn renew(directory: &Path) -> Self {
        // Told to people, whose directory may be another one.
        let directory = path::absolute(directory).unwrap_or_else(|_| directory.to_owned());
        let path = directory.join(OPERATOR_TOKEN_FILE);
        let text = write(&directory, &path).or_else(|error| {
            tracing::error!(
                %error,
                path = %path.display(),
                "cannot replace the token for operators of the admin API; that of the last run holds, if there is one"
            );
            fs::read_to_string(&path)
        });
        let digest = text.ok().map(|text| CredentialDigest::of(text.trim().as_bytes()));
        Self { path, digest }
    }

    /// Returns where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether this is the token.
    pub(super) fn is(&self, token: &str) -> bool {
        let presented = CredentialDigest::of(token.as_bytes());
        self.digest.is_some_and(|digest| digest.matches(&presented))
    }
}

fn write(directory: &Path, path: &Path) -> io::Result<String> {
    let mut bytes = [0; BYTES];
    let filled = SystemRandom::new().fill(&mut bytes);
    filled.map_err(|_| io::Error::other("the system has no random numbers"))?;
    let token = URL_SAFE_NO_PAD.encode(bytes);
    let beside = directory.join(format!("{OPERATOR_TOKEN_FILE}.new"));
    let mut file = owner_file::create(&beside)?;
    writeln!(file, "{token}")?;
    fs::rename(&beside, path)?;
    Ok(token)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn each_start_replaces_the_token_and_only_the_owner_can_read_it() {
        let directory = tempfile::tempdir().unwrap();
        let first = OperatorToken::renew(directory.path());
        let path = directory.path().join(OPERATOR_TOKEN_FILE);
        assert_eq!(first.path(), path);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.len() > 40 && first.is(text.trim()), "{text}");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        for wrong in ["", "x", text.as_str()] {
            assert!(!first.is(wrong), "{wrong}");
        }
        let second = OperatorToken::renew(directory.path());
        assert!(!second.is(text.trim()));
    }

    #[test]
    fn token_of_the_last_run_holds_if_it_cannot_be_replaced() {
        let directory = tempfile::tempdir().unwrap();
        OperatorToken::renew(directory.path());
        let text = fs::read_to_string(directory.path().join(OPERATOR_TOKEN_FILE)).unwrap();
        let beside = directory.path().join(format!("{OPERATOR_TOKEN_FILE}.new"));
        fs::create_dir(&beside).unwrap();
        assert!(OperatorToken::renew(directory.path()).is(text.trim()));
        let missing = OperatorToken::renew(&directory.path().join("missing"));
        assert!(!missing.is(""));
    }
}
