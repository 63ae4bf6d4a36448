//! `weir crds`: the custom resource definitions as YAML.

use std::{
    fs,
    io::{self, Write as _},
    path::PathBuf,
};

use anyhow::Context as _;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;

use crate::api::custom_resource_definitions;

/// Arguments of `weir crds`.
#[derive(Debug, clap::Args)]
pub struct CrdsArgs {
    /// Directory to write one file per definition to, named PLURAL.weir.dev.yaml, instead of stdout.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Prints the definitions or writes them to files.
///
/// # Errors
/// If they cannot be written.
pub fn run(args: &CrdsArgs) -> anyhow::Result<()> {
    let CrdsArgs { out } = args;
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

/// Returns the file name and content of each definition.
///
/// # Errors
/// If a definition cannot be serialized as YAML.
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
    // No folding: folded text is hard to diff, and the descriptions are already wrapped.
    let options = serde_saphyr::ser_options! { folded_wrap_chars: usize::MAX };
    serde_saphyr::to_string_with_options(definition, options)
        .with_context(|| format!("cannot write {} as YAML", name(definition)))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn crds_directory_matches_the_types() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("crds");
        let files = files().unwrap();
        for (name, yaml) in &files {
            let written = fs::read_to_string(directory.join(name)).unwrap_or_default();
            assert!(
                written == *yaml,
                "crds/{name} does not match src/api: run `make crds`"
            );
        }
        let known: Vec<_> = files.iter().map(|(name, _)| name.as_str()).collect();
        for entry in fs::read_dir(&directory).unwrap() {
            let name = entry.unwrap().file_name();
            assert!(
                known.iter().any(|known| name == **known),
                "crds/{} belongs to no type",
                name.display()
            );
        }
    }

    #[test]
    fn definitions_survive_a_yaml_round_trip() {
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
