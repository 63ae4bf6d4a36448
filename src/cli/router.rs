//! stub
/// stub
#[derive(Debug, clap::Args)]
pub struct Args {}
/// stub
/// # Errors
/// stub
pub async fn run(_args: Args) -> anyhow::Result<()> {
    Ok(())
}
