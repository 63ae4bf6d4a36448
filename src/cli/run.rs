//! stub
/// stub
#[derive(Debug, clap::Args)]
pub struct Args {}
/// stub
/// # Errors
/// stub
pub async fn run(_args: Args, _f: super::logging::Format) -> anyhow::Result<()> {
    Ok(())
}
