//! Where the token is that authenticates an operator to a router, and `weir operator-token`, which prints it.

use std::{
    env, fs,
    io::{self, Write as _},
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use http::Uri;

use crate::router::OPERATOR_TOKEN_FILE;

/// Arguments of `weir operator-token`.
#[derive(Debug, clap::Args)]
pub struct OperatorTokenArgs {
    /// Data directory of the router.
    #[arg(long, env = "WEIR_DATA", default_value = DATA, value_name = "DIRECTORY")]
    pub data: PathBuf,
}

/// Data directory of `weir run`.
pub const DATA: &str = ".weir";

/// Prints the token.
///
/// # Errors
/// If it cannot be read.
pub fn run(args: &OperatorTokenArgs) -> anyhow::Result<()> {
    let path = args.data.join(OPERATOR_TOKEN_FILE);
    let text = fs::read_to_string(&path);
    let text = text.with_context(|| {
        format!(
            "cannot read {}, which a router makes when it starts: name its data directory with --data",
            path.display()
        )
    })?;
    writeln!(io::stdout().lock(), "{}", text.trim())?;
    Ok(())
}

/// Returns the token for the router at an address: the one in `file`, or else, for a router on this machine, the one
/// that `weir port-forward` keeps for the address, or else that of the data directory in `WEIR_DATA` or `.weir`. `None`
/// if there is none.
///
/// # Errors
/// If the file cannot be read.
pub fn find(file: Option<&Path>, router: &Uri) -> anyhow::Result<Option<String>> {
    if let Some(file) = file {
        let text = fs::read_to_string(file)
            .with_context(|| format!("cannot read the token for the router from {}", file.display()))?;
        return Ok(Some(text.trim().to_owned()));
    }
    // A token that nobody named goes to no other machine.
    let Some(authority) = router
        .authority()
        .filter(|authority| is_loopback(authority.host()))
    else {
        return Ok(None);
    };
    let data = env::var_os("WEIR_DATA").map_or_else(|| PathBuf::from(DATA), PathBuf::from);
    let forwarded = forwarded_to(authority.port_u16().unwrap_or(80));
    for path in forwarded.into_iter().chain([data.join(OPERATOR_TOKEN_FILE)]) {
        match fs::read_to_string(&path) {
            Ok(text) => return Ok(Some(text.trim().to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                let context = format!("cannot read the token for the router from {}", path.display());
                return Err(anyhow::Error::new(error).context(context));
            }
        }
    }
    Ok(None)
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || address
            .parse::<IpAddr>()
            .is_ok_and(|address| address.to_canonical().is_loopback())
}

/// Returns the file in which `weir port-forward` keeps the token of the router behind a port of this machine; `None` if
/// the user has no directory for such files.
pub fn forwarded_to(port: u16) -> Option<PathBuf> {
    let absolute = |name: &str| {
        env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let directory = absolute("XDG_RUNTIME_DIR").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    Some(
        directory
            .join("weir")
            .join(format!("{OPERATOR_TOKEN_FILE}-{port}")),
    )
}
