//! Reads credentials, and signs the nonce of a server. The client calls this for each connection, so a replaced file
//! takes effect with the next connection.

use std::path::{Path, PathBuf};

use async_nats::Auth;
use nkeys::KeyPair;

use super::NatsAuth;

/// Why credentials cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum CredentialsError {
    #[error("cannot read {path}: {error}", path = .path.display())]
    Unreadable { path: PathBuf, error: std::io::Error },
    #[error("{path} is not {expected}", path = .path.display())]
    Invalid { path: PathBuf, expected: &'static str },
}

/// Returns the response to a server's request to authenticate. `nonce` is the value to sign.
pub(super) async fn sign_in(auth: &NatsAuth, nonce: &[u8]) -> Result<Auth, CredentialsError> {
    let mut signed = Auth::new();
    match auth {
        NatsAuth::None => {}
        NatsAuth::Credentials(path) => {
            let invalid = || CredentialsError::Invalid {
                path: path.clone(),
                expected: "a credentials file, with a JWT and the seed of its NKey",
            };
            let text = read(path).await?;
            let (jwt, seed) = sections(&text).ok_or_else(invalid)?;
            let key = KeyPair::from_seed(seed).map_err(|_| invalid())?;
            signed.jwt = Some(jwt.to_owned());
            signed.signature = Some(key.sign(nonce).map_err(|_| invalid())?);
        }
        NatsAuth::NkeySeed(path) => {
            let invalid = || CredentialsError::Invalid {
                path: path.clone(),
                expected: "the seed of an NKey, which begins with SU",
            };
            let key = KeyPair::from_seed(read(path).await?.trim()).map_err(|_| invalid())?;
            signed.nkey = Some(key.public_key());
            signed.signature = Some(key.sign(nonce).map_err(|_| invalid())?);
        }
        NatsAuth::User { name, password } => {
            signed.username = Some(name.clone());
            signed.password = Some(read(password).await?.trim_end_matches(['\r', '\n']).to_owned());
        }
    }
    Ok(signed)
}

async fn read(path: &Path) -> Result<String, CredentialsError> {
    let text = tokio::fs::read_to_string(path).await;
    text.map_err(|error| CredentialsError::Unreadable {
        path: path.to_owned(),
        error,
    })
}

/// Returns the content of the first two sections, which are enclosed by dashed lines.
fn sections(text: &str) -> Option<(&str, &str)> {
    let mut found = Vec::new();
    let mut is_inside = false;
    for line in text.lines().map(str::trim) {
        if line.starts_with("---") {
            is_inside = line.contains("BEGIN");
        } else if is_inside && !line.is_empty() {
            found.push(line);
            is_inside = false;
        }
    }
    match found[..] {
        [jwt, seed, ..] => Some((jwt, seed)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_credentials_file_is_read_again_each_time() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("user.creds");
        let auth = NatsAuth::Credentials(path.clone());
        let missing = sign_in(&auth, b"nonce").await.err().unwrap();
        assert!(
            missing.to_string().contains("cannot read") && missing.to_string().contains("user.creds"),
            "{missing}"
        );
        for jwt in ["eyJ0", "eyJ1"] {
            let key = KeyPair::new_user();
            let text = format!(
                "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
                 *** IMPORTANT ***\n-----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
                key.seed().unwrap()
            );
            std::fs::write(&path, text).unwrap();
            let signed = sign_in(&auth, b"nonce").await.unwrap();
            assert_eq!(signed.jwt.as_deref(), Some(jwt));
            key.verify(b"nonce", &signed.signature.unwrap()).unwrap();
        }
        std::fs::write(&path, "-----BEGIN NATS USER JWT-----\neyJ0\n").unwrap();
        let invalid = sign_in(&auth, b"nonce").await.err().unwrap();
        assert!(
            invalid.to_string().contains("is not a credentials file"),
            "{invalid}"
        );
    }
}
