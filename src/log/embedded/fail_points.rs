//! Fail points: places where a test kills the process or makes a step of the log fail. They exist only with the
//! cargo feature `failpoints`; without it, as in a release, passing one does nothing.
//!
//! The environment variable `FAILPOINTS`, read at startup, configures them in the language of the crate
//! [`fail`](https://docs.rs/fail):
//!
//! - `log-after-write=7*off->return(kill)` is `kill -9` at the eighth pass;
//! - `return(late kill)` kills after the other threads went on for a moment, in which a premature acknowledgement
//!   reaches its producer;
//! - `log-before-fsync=return(no more)` is an fsync that fails with "no more";
//! - `log-read=2*return(EIO)` is a disk that fails to read twice, `log-read=return(wrong)` one that returns other
//!   bytes.
//!
//! | name | where |
//! | --- | --- |
//! | `log-before-write`, `log-after-write` | around the write of a commit with records |
//! | `log-before-cursor-save`, `log-after-cursor-save` | around the write of a commit with cursors |
//! | `log-before-trim`, `log-after-trim` | before the write of a commit that trims, after its fsync |
//! | `log-before-give-back`, `log-after-give-back` | around the write of a commit in which logs give back their places |
//! | `log-before-compaction`, `log-after-compaction` | around the rewriting of a shared keyspace |
//! | `log-before-fsync`, `log-after-fsync` | around the fsync; after it nothing is acknowledged yet |
//! | `log-before-acknowledgement` | records are durable and published, but not yet acknowledged |
//! | `log-before-drop`, `log-after-drop` | around the dropping of trimmed tables, before their files are removed |
//! | `log-read` | before records are read from the storage, for each attempt |
//!
//! A commit can have records, cursors and trims at once, and passes the points of each.

use std::io;

/// Content of a commit, which decides the points that it passes.
#[derive(Clone, Copy, Default)]
pub(super) struct Contents {
    pub(super) records: bool,
    pub(super) cursors: bool,
    pub(super) trims: bool,
    pub(super) given_back: bool,
}

impl Contents {
    pub(super) fn before_write(self) -> io::Result<()> {
        pass_if(self.records, "log-before-write")?;
        pass_if(self.cursors, "log-before-cursor-save")?;
        pass_if(self.trims, "log-before-trim")?;
        pass_if(self.given_back, "log-before-give-back")
    }

    pub(super) fn after_write(self) -> io::Result<()> {
        pass_if(self.records, "log-after-write")?;
        pass_if(self.cursors, "log-after-cursor-save")?;
        pass_if(self.given_back, "log-after-give-back")
    }

    pub(super) fn after_fsync(self) -> io::Result<()> {
        pass("log-after-fsync")?;
        pass_if(self.trims, "log-after-trim")
    }

    pub(super) fn before_acknowledgement(self) -> io::Result<()> {
        pass_if(self.records, "log-before-acknowledgement")
    }
}

fn pass_if(condition: bool, point: &str) -> io::Result<()> {
    if condition { pass(point) } else { Ok(()) }
}

/// Passes a point. An error is the one configured by the test, in place of an error of the step.
#[cfg(feature = "failpoints")]
pub(super) fn pass(point: &str) -> io::Result<()> {
    fail::fail_point!(point, happen);
    Ok(())
}

/// Does nothing: this build has no fail points.
#[cfg(not(feature = "failpoints"))]
#[inline]
pub(super) fn pass(_point: &str) -> io::Result<()> {
    Ok(())
}

#[cfg(feature = "failpoints")]
fn happen(action: Option<String>) -> io::Result<()> {
    match action.as_deref() {
        Some("kill") => kill(),
        Some("late kill") => {
            std::thread::sleep(std::time::Duration::from_millis(30));
            kill()
        }
        Some("EIO") => Err(rustix::io::Errno::IO.into()),
        Some(error) => Err(io::Error::other(error.to_owned())),
        None => Err(io::Error::other("a fail point")),
    }
}

/// Ends the process like `kill -9`.
#[cfg(feature = "failpoints")]
fn kill() -> ! {
    use rustix::process::{Signal, getpid, kill_process};
    // It cannot fail; if it did, aborting is the closest alternative.
    let _ = kill_process(getpid(), Signal::KILL);
    std::process::abort()
}
