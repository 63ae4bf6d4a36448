//! A nameserver that takes questions and answers none.

use std::net::{Ipv4Addr, UdpSocket};

use super::Scratch;

/// Takes every question, and never answers.
#[derive(Debug)]
pub(crate) struct Nameserver {
    _socket: UdpSocket,
    directory: Scratch,
}

impl Nameserver {
    /// One on an address of its own. An error says why that is not possible here: its port takes root, as a rule.
    pub(crate) fn silent() -> Result<Self, String> {
        let [a, b] = u16::try_from(std::process::id() % 60_000)
            .unwrap_or_default()
            .to_be_bytes();
        let address = Ipv4Addr::new(127, 1, a, b.max(1));
        let socket = UdpSocket::bind((address, 53)).map_err(|error| format!("{address}:53: {error}"))?;
        let directory = Scratch::new();
        directory.write("resolv.conf", format!("nameserver {address}\n"));
        Ok(Self {
            _socket: socket,
            directory,
        })
    }

    /// The command by which a program is started to use this nameserver and no other: it gets a view of the files of its own.
    pub(crate) fn command(&self) -> Vec<String> {
        let file = self.directory.path().join("resolv.conf");
        let script = format!(
            "mount --bind '{}' /etc/resolv.conf && exec \"$@\"",
            file.display()
        );
        ["unshare", "--mount", "--", "sh", "-c", &script, "sh"]
            .map(str::to_owned)
            .to_vec()
    }
}
