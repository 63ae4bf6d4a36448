//! The authorities that signed the certificate of the brokers' URL, read from a file, for producers.

use std::{io, path::PathBuf};

use crate::trust;

/// Maximum size of the authorities, in bytes. They become an environment variable, of which Linux takes 128 KiB.
const MAX_BYTES: usize = 64 * 1024;

/// The authorities, as last read.
#[derive(Debug, Default)]
pub(super) struct BrokerAuthority {
    file: Option<PathBuf>,
    text: Option<String>,
    /// Problem already logged.
    problem: Option<String>,
}

impl BrokerAuthority {
    /// Authorities in this file, if any.
    pub(super) fn in_file(file: Option<PathBuf>) -> Self {
        Self {
            file,
            ..Self::default()
        }
    }

    /// Whether the file must be read again from time to time.
    pub(super) fn may_change(&self) -> bool {
        self.file.is_some()
    }

    /// Returns the authorities in PEM; `None` if there is no file or it is missing.
    pub(super) fn text(&self) -> Option<&str> {
        self.text.as_deref()
    }

    /// Reads the file. Logs each problem once, and keeps the previous authorities while there is one.
    pub(super) async fn refresh(&mut self) {
        let Some(file) = &self.file else { return };
        let read = match tokio::fs::read_to_string(file).await {
            Ok(text) => check(&text).map(|()| Some(text)),
            // A Secret may have no ca.crt. One that is deleted, to be issued again, takes no authority back.
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.text.is_none() => Ok(None),
            Err(error) => Err(error.to_string()),
        };
        match read {
            Ok(text) => {
                self.text = text;
                self.problem = None;
            }
            Err(problem) => {
                if self.problem.as_ref() != Some(&problem) {
                    let file = file.display();
                    tracing::warn!(%file, problem, "cannot publish the authorities in --broker-ca");
                }
                self.problem = Some(problem);
            }
        }
    }
}

fn check(text: &str) -> Result<(), String> {
    if text.len() > MAX_BYTES {
        return Err(format!("it is larger than {MAX_BYTES} bytes"));
    }
    trust::authorities(text)
        .map(drop)
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[tokio::test]
    async fn keeps_the_last_usable_authorities() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("ca.crt");
        let mut authority = BrokerAuthority::in_file(Some(file.clone()));
        authority.refresh().await;
        assert_eq!(
            (authority.text(), &authority.problem),
            (None, &None),
            "it may be missing"
        );
        let made = rcgen::generate_simple_self_signed(["weir".to_owned()]).unwrap();
        let (good, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        fs::write(&file, &good).unwrap();
        authority.refresh().await;
        assert_eq!(authority.text(), Some(good.as_str()));
        for (bad, why) in [
            (format!("{good}{key}"), "only certificates"),
            (good.repeat(1 + MAX_BYTES / good.len()), "larger than"),
            (String::new(), "no certificate"),
        ] {
            fs::write(&file, bad).unwrap();
            authority.refresh().await;
            assert_eq!(authority.text(), Some(good.as_str()));
            let problem = authority.problem.as_deref().unwrap();
            assert!(problem.contains(why), "{problem}");
        }
        fs::remove_file(&file).unwrap();
        authority.refresh().await;
        assert_eq!(authority.text(), Some(good.as_str()));
    }
}
