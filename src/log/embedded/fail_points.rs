//! Fail points: where a test ends the process, or has a step of the log fail. They are there only with the cargo
//! feature `failpoints`; without it, as in a release, passing one does nothing.
//!
//! The environment variable `FAILPOINTS`, read when the process starts, says what happens, in the language of the
//! crate [`fail`](https://docs.rs/fail):
//!
//! - `log-after-write=7*off->return(kill)` is `kill -9` at the eighth pass;
//! - `return(late kill)` is one after the other threads went on for a moment, in which an acknowledgement that came too
//!   early reaches its producer;
//! - `log-before-fsync=return(no more)` is an fsync that fails with "no more";
//! - `log-read=2*return(EIO)` is a disk that fails to read twice, `log-read=return(wrong)` one that has other bytes.
//!
//! | name | where |
//! | --- | --- |
//! | `log-before-write`, `log-after-write` | around the write of a commit with records |
//! | `log-before-cursor-save`, `log-after-cursor-save` | around the write of a commit with cursors |
//! | `log-before-trim`, `log-after-trim` | before the write of a commit that trims, after its fsync |
//! | `log-before-fsync`, `log-after-fsync` | around the fsync; after it nothing is acknowledged yet |
//! | `log-before-acknowledgement` | records are durable and published, those who appended do not know it yet |
//! | `log-before-drop`, `log-after-drop` | around the dropping of trimmed tables, before their files are removed |
//! | `log-read` | before records are read from the storage, for each attempt |
//!
//! A commit can have records, cursors and trims at once, and passes the points of each.

use std::io;

/// What a commit has in it, and so which points it passes.
#[derive(Clone, Copy, Default)]
pub(super) struct Contents {
    pub(super) records: bool,
    pub(super) cursors: bool,
    pub(super) trims: bool,
}

impl Contents {
    pub(super) fn before_write(self) -> io::Result<()> {
        pass_if(self.records, "log-before-write")?;
        pass_if(self.cursors, "log-before-cursor-save")?;
        pass_if(self.trims, "log-before-trim")
    }

    pub(super) fn after_write(self) -> io::Result<()> {
        pass_if(self.records, "log-after-write")?;
        pass_if(self.cursors, "log-after-cursor-save")
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

/// Passes a point. An error is what the test asked for, and stands for an error of the step there.
#[cfg(feature = "failpoints")]
pub(super) fn pass(point: &str) -> io::Result<()> {
    fail::fail_point!(point, happen);
    Ok(())
}

/// Passes a point, of which there are none in this build.
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

/// Ends the process as `kill -9` does.
#[cfg(feature = "failpoints")]
fn kill() -> ! {
    use rustix::process::{Signal, getpid, kill_process};
    // It cannot fail; if it did, aborting would come next to it.
    let _ = kill_process(getpid(), Signal::KILL);
    std::process::abort()
}
