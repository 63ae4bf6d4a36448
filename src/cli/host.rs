//! The name of this machine.

use anyhow::Context as _;

/// Returns the host name, which in a pod is the pod's name.
pub(super) fn host_name() -> anyhow::Result<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").context("cannot read the host name")?;
    Ok(name.trim().to_owned())
}
