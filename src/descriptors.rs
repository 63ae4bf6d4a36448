//! The file descriptors of a process, and their division in a router.
//!
//! A router without free descriptors cannot write its log. So it raises its limit at the start, reserves what the
//! log needs, and limits what others can make it open.

use std::{fs, io};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Reserved for the event log, for listeners, and for files opened briefly.
const RESERVED: u64 = 1024;

/// Minimum limit for a router.
const MIN_LIMIT: u64 = 2048;

/// Maximum number of connections from producers.
const MAX_INGRESS: u64 = 4096;

/// Minimum and maximum number of connections to the admin endpoint.
const ADMIN: (u64, u64) = (16, 64);

/// Maximum number of sockets to Sinks.
const MAX_SINKS: u64 = 64 * 1024;

/// Limits of a router's connections by kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptors {
    /// Connections from producers.
    pub ingress: usize,
    /// Connections to the admin endpoint.
    pub admin: usize,
    /// Sockets to Sinks.
    pub sinks: usize,
}

/// Why the limit of descriptors cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LimitError {
    /// It cannot be raised.
    #[error(
        "cannot raise the limit of open files from {soft} to {hard}: {source}; raise the soft limit, for example with \
         ulimit -n {hard}"
    )]
    Raise {
        /// Current limit.
        soft: u64,
        /// Maximum limit.
        hard: u64,
        /// Cause.
        source: io::Error,
    },
    /// It is too low for a router.
    #[error(
        "a router needs {MIN_LIMIT} file descriptors, but the process is limited to {limit}: raise the hard limit, \
         for example with LimitNOFILE= of systemd or --ulimit nofile={MIN_LIMIT} of the container engine"
    )]
    TooFew {
        /// The limit.
        limit: u64,
    },
}

/// Divides this limit.
pub fn plan(limit: u64) -> Descriptors {
    let left = limit.saturating_sub(RESERVED);
    let admin = (left / 16).clamp(ADMIN.0, ADMIN.1);
    let ingress = (left / 16 * 7).min(MAX_INGRESS);
    let sinks = left.saturating_sub(admin + ingress).min(MAX_SINKS);
    let count = |number| usize::try_from(number).unwrap_or(usize::MAX);
    Descriptors {
        ingress: count(ingress),
        admin: count(admin),
        sinks: count(sinks),
    }
}

/// Raises this process's limit to its maximum, and divides it for a router.
///
/// # Errors
/// If it cannot be raised, or is too low.
pub fn for_router() -> Result<Descriptors, LimitError> {
    let limit = raise()?;
    if limit < MIN_LIMIT {
        return Err(LimitError::TooFew { limit });
    }
    Ok(plan(limit))
}

/// Raises this process's limit to its maximum, and returns it.
///
/// # Errors
/// If it cannot be raised.
pub fn raise() -> Result<u64, LimitError> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // `None` means unlimited.
    let (soft, hard) = (current.unwrap_or(u64::MAX), maximum.unwrap_or(u64::MAX));
    if soft < hard {
        let raised = Rlimit {
            current: maximum,
            maximum,
        };
        setrlimit(Resource::Nofile, raised).map_err(|error| LimitError::Raise {
            soft,
            hard,
            source: error.into(),
        })?;
    }
    Ok(hard)
}

/// Returns the number of open descriptors, if it can be determined.
pub fn open() -> Option<u64> {
    let entries = fs::read_dir("/proc/self/fd").ok()?;
    // Reading the directory takes one.
    Some((entries.count() as u64).saturating_sub(1))
}

/// Returns the current limit.
pub fn limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn division_leaves_what_the_log_needs() {
        for (limit, expected) in [
            (MIN_LIMIT, (448, 64, 512)),
            (4096, (1344, 64, 1664)),
            (20_000, (4096, 64, 14_816)),
            (1 << 20, (4096, 64, 65_536)),
            (u64::MAX, (4096, 64, 65_536)),
            (0, (0, 16, 0)),
        ] {
            let Descriptors {
                ingress,
                admin,
                sinks,
            } = plan(limit);
            assert_eq!((ingress, admin, sinks), expected, "{limit}");
            let sum = (ingress + admin + sinks) as u64;
            assert!(limit < MIN_LIMIT || sum + RESERVED <= limit, "{limit}");
        }
    }

    #[test]
    fn counts_open_descriptors() {
        let file = fs::File::open("/proc/self/status").unwrap();
        assert!(open().unwrap() >= 4 && open().unwrap() <= limit());
        drop(file);
    }
}
