//! Configuration that all watches share.

use kube::runtime::watcher;

/// Restarts each watch every minute, which costs little, because a dead connection looks like an idle one.
pub(super) fn watched() -> watcher::Config {
    watcher::Config::default().timeout(60)
}
