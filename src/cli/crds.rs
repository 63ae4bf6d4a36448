//! `weir crds`: the custom resource definitions as YAML.

use std::{
    fs,
    io::{self, Write as _},
    path::PathBuf,
};

use anyhow::Context as _;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;

use crate::api::custom_resource_definitions;

/// What `weir crds` takes.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Write one file each, PLURAL.weir.dev.yaml, to this directory instead of stdout.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Prints the definitions or writes them to files.
///
/// # Errors
/// When they cannot be written.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let Args { out } = args;
    let files = files()?;
    let Some(directory) = out else {
        let mut stdout = io::stdout().lock();
        for (_, yaml) in files {
            write!(stdout, "---\n{yaml}").context("cannot write to stdout")?;
        }
        return stdout.flush().context("cannot write to stdout");
    };
    fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
    for (name, yaml) in files {
        let path = directory.join(name);
        fs::write(&path, yaml).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Each definition's file name and content.
///
/// # Errors
/// When a definition cannot be written as YAML.
pub fn files() -> anyhow::Result<Vec<(String, String)>> {
    custom_resource_definitions()
        .iter()
        .map(|definition| Ok((format!("{}.yaml", name(definition)), yaml(definition)?)))
        .collect()
}

fn name(definition: &CustomResourceDefinition) -> &str {
    definition.metadata.name.as_deref().unwrap_or_default()
}

fn yaml(definition: &CustomResourceDefinition) -> anyhow::Result<String> {
    // Folded text is hard to compare line by line, and the descriptions have lines of their own.
    let options = serde_saphyr::ser_options! { folded_wrap_chars: usize::MAX };
    serde_saphyr::to_string_with_options(definition, options)
        .with_context(|| format!("cannot write {} as YAML", name(definition)))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_directory_crds_is_what_the_types_say() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("crds");
        let files = files().unwrap();
        for (name, yaml) in &files {
            let written = fs::read_to_string(directory.join(name)).unwrap_or_default();
            assert!(
                written == *yaml,
                "crds/{name} is not what src/api says: run `make crds`"
            );
        }
        let known: Vec<_> = files.iter().map(|(name, _)| name.as_str()).collect();
        for entry in fs::read_dir(&directory).unwrap() {
            let name = entry.unwrap().file_name();
            assert!(
                known.iter().any(|known| name == **known),
                "crds/{} is of no type",
                name.display()
            );
        }
    }

    #[test]
    fn what_is_written_reads_back_the_same() {
        for (definition, (_, yaml)) in custom_resource_definitions().iter().zip(files().unwrap()) {
            assert_eq!(
                &serde_saphyr::from_str::<CustomResourceDefinition>(&yaml).unwrap(),
                definition
            );
            assert!(yaml.starts_with(
                "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata:\n"
            ));
        }
    }
}
