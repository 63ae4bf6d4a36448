//! The file descriptors of a process, and what a router divides them into.
//!
//! A router that has none left cannot write its log. So it takes as many as it may at its start, keeps those that the log
//! needs, and bounds what others make it open.

use std::{fs, io};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What is not divided: the event log, which keeps up to 900 files open, the listeners, and what is opened in between.
const RESERVED: u64 = 1024;

/// The fewest with which a router starts.
const MIN_LIMIT: u64 = 2048;

/// The most connections of producers.
const MAX_INGRESS: u64 = 4096;

/// The fewest and the most connections of the admin endpoint.
const ADMIN: (u64, u64) = (16, 64);

/// The most sockets to Sinks.
const MAX_SINKS: u64 = 64 * 1024;

/// How many connections of each kind a router may have open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptors {
    /// Connections of producers.
    pub ingress: usize,
    /// Connections of the admin endpoint.
    pub admin: usize,
    /// Sockets to Sinks.
    pub sinks: usize,
}

/// What goes wrong with the limit.
#[derive(Debug, thiserror::Error)]
pub enum LimitError {
    /// It cannot be raised.
    #[error(
        "cannot raise the limit of open files from {soft} to {hard}: {source}; raise the soft limit, for example with \
         ulimit -n {hard}"
    )]
    Raise {
        /// As it is.
        soft: u64,
        /// As it may be.
        hard: u64,
        /// Why.
        source: io::Error,
    },
    /// There are too few for a router.
    #[error(
        "a router needs {MIN_LIMIT} file descriptors, and the process may have {limit}: raise the hard limit, for example \
         with LimitNOFILE= of systemd or --ulimit nofile={MIN_LIMIT} of the container engine"
    )]
    TooFew {
        /// As many as there may be.
        limit: u64,
    },
}

/// Divides this many.
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

/// Raises the limit of this process to the most that it may be, and divides it for a router.
///
/// # Errors
/// When it cannot be raised, or is too low.
pub fn for_router() -> Result<Descriptors, LimitError> {
    let limit = raise()?;
    if limit < MIN_LIMIT {
        return Err(LimitError::TooFew { limit });
    }
    Ok(plan(limit))
}

/// Raises the limit of this process to the most that it may be, and gives it.
///
/// # Errors
/// When it cannot be raised.
pub fn raise() -> Result<u64, LimitError> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // None means that there is no limit.
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

/// How many the process has open, if that can be found out.
pub fn open() -> Option<u64> {
    let entries = fs::read_dir("/proc/self/fd").ok()?;
    // Reading them takes one.
    Some((entries.count() as u64).saturating_sub(1))
}

/// How many it may have.
pub fn limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_leave_what_the_log_needs() {
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
    fn this_process_has_some_open() {
        let file = fs::File::open("/proc/self/status").unwrap();
        assert!(open().unwrap() >= 4 && open().unwrap() <= limit());
        drop(file);
    }
}
