//! `weir validate`: checks manifests in files like the API server and the controller would.

use std::{
    collections::BTreeSet,
    io::{self, Write as _},
    path::PathBuf,
};

use anyhow::bail;
use serde::Serialize;

use super::{
    Usage,
    manifests::{
        Loaded, Manifest, ManifestProblem, Manifests, Resolution, Resource, Surroundings, UnresolvedField,
        named_services, resolve,
    },
    misspelt,
};
use crate::{
    api::SourceSpec,
    resolve::{ADDRESS_MISSING, ADDRESS_NOT_ALLOWED, ADDRESS_UNSUPPORTED},
    routing::Configuration,
};

/// Arguments of `weir validate`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit codes: 0 no errors, 1 errors, 2 invalid command line or unreadable path.\n\n\
                  A Service or an addressable object that is not among the files is assumed to exist; a Service that is must \
                  have the referenced port. A Service of type ExternalName, which needs the operator's permission, a missing \
                  Secret, or a missing Sink in another namespace, is a warning."
)]
pub struct ValidateArgs {
    /// Manifests of Brokers, Sources, Triggers and Sinks: files, directories with such files (*.yaml, *.yml, *.json, except
    /// *.test.yaml), or - for stdin. Services, Namespaces, Secrets and addressable objects in them are taken into
    /// account; other resources are ignored.
    #[arg(required = true, value_name = "DIR|FILE|-")]
    pub paths: Vec<PathBuf>,

    /// Read subdirectories too.
    #[arg(short = 'R', long)]
    pub recursive: bool,

    /// Require every referenced resource to be among the files, including Services, and treat warnings as errors.
    #[arg(long)]
    pub strict: bool,

    /// Output format.
    #[arg(short, long, default_value = "text", value_enum, value_name = "FORMAT")]
    pub output: ValidateOutput,
}

/// Output format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ValidateOutput {
    /// file:line:column: message.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Result of checking a set of files.
#[derive(Debug, Default)]
pub struct Checked {
    /// The resulting routing configuration.
    pub configuration: Configuration,
    /// The Sources, of which the configuration has only what routers need.
    pub sources: Vec<CheckedSource>,
    /// Number of Weir resources.
    pub resources: usize,
    /// Problems that would be rejected, or keep a resource from working.
    pub errors: Vec<ManifestProblem>,
    /// Problems that the files alone cannot confirm.
    pub warnings: Vec<ManifestProblem>,
}

/// A Source in the files, which may have errors.
#[derive(Debug)]
pub struct CheckedSource {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Specification.
    pub spec: SourceSpec,
}

#[derive(Serialize)]
struct ProblemLine<'a> {
    file: String,
    line: u64,
    column: u64,
    severity: &'static str,
    message: &'a str,
}

/// Prints every problem.
///
/// # Errors
/// If any problem is an error, or there are no resources at all.
pub fn run(args: ValidateArgs) -> anyhow::Result<()> {
    let ValidateArgs {
        paths,
        recursive,
        strict,
        output,
    } = args;
    let Checked {
        configuration: _,
        sources: _,
        resources,
        errors,
        warnings,
    } = check(paths, recursive, strict)?;
    let mut out = io::stdout().lock();
    let mut all: Vec<_> = errors.iter().map(|problem| (problem, "error")).collect();
    all.extend(warnings.iter().map(|problem| (problem, "warning")));
    all.sort();
    for (problem, severity) in all {
        write_problem(&mut out, problem, severity, output)?;
    }
    match (errors.len(), resources) {
        (0, 0) => bail!("no Source, Trigger or Sink found in these files"),
        (0, _) if output == ValidateOutput::Text => writeln!(
            out,
            "{}: no errors{}",
            counted(resources, "resource"),
            match warnings.len() {
                0 => String::new(),
                count => format!(", {}", counted(count, "warning")),
            }
        )?,
        (0, _) => {}
        (count, _) => bail!(counted(count, "error")),
    }
    Ok(())
}

/// Prints a problem on one line.
///
/// # Errors
/// If the output cannot be written.
pub fn write_problem(
    out: &mut impl io::Write,
    problem: &ManifestProblem,
    severity: &'static str,
    output: ValidateOutput,
) -> anyhow::Result<()> {
    match output {
        ValidateOutput::Text => writeln!(out, "{}", shown(problem, severity))?,
        ValidateOutput::Json => writeln!(out, "{}", serde_json::to_string(&line(problem, severity))?)?,
    }
    Ok(())
}

fn shown(problem: &ManifestProblem, severity: &str) -> String {
    match severity {
        "warning" => ManifestProblem {
            message: format!("warning: {}", problem.message),
            ..problem.clone()
        }
        .to_string(),
        _ => problem.to_string(),
    }
}

fn line<'a>(problem: &'a ManifestProblem, severity: &'static str) -> ProblemLine<'a> {
    let ManifestProblem {
        file,
        position,
        message,
    } = problem;
    ProblemLine {
        file: file.display().to_string(),
        line: position.line,
        column: position.column,
        severity,
        message,
    }
}

/// Formats a count with its noun, in the plural where needed.
pub fn counted(count: usize, thing: &str) -> String {
    match count {
        1 => format!("1 {thing}"),
        count => format!("{count} {thing}s"),
    }
}

/// Checks files against schemas and rules, compiles their filters, and resolves references among them. Unless
/// `strict`, Services that are not among the files are assumed to exist.
///
/// # Errors
/// [`Usage`] if a path cannot be read.
pub fn check(paths: Vec<PathBuf>, recursive: bool, strict: bool) -> anyhow::Result<Checked> {
    let mut manifests = Manifests::new(paths)
        .map_err(|(path, error)| Usage(format!("cannot read {}: {error}", path.display())))?
        .recursive(recursive);
    let Loaded {
        manifests,
        surroundings,
        problems: mut errors,
        unusable,
    } = manifests.load();
    let mut assumed = Surroundings {
        issues_tokens: true,
        ..surroundings.clone()
    };
    if !strict {
        let mut elsewhere = named_services(&manifests);
        elsewhere.retain(|service| !surroundings.has_service(service));
        assumed.extend(Surroundings::of_services(elsewhere));
    }
    let Resolution {
        configuration,
        unresolved,
    } = resolve(&manifests, &unusable, assumed);
    let mut warnings: Vec<_> = manifests.iter().flat_map(misspelt::warnings).collect();
    if strict {
        errors.append(&mut warnings);
    }
    for unresolved in unresolved {
        if is_address_of_cluster(unresolved.finding.reason, strict) {
            continue;
        }
        match untold(&manifests, &surroundings, &unresolved) {
            Some(message) if strict => errors.push(unresolved.problem(&message)),
            Some(message) => warnings.push(unresolved.problem(&message)),
            None => errors.push(unresolved.problem(&unresolved.finding.message)),
        }
    }
    for problems in [&mut errors, &mut warnings] {
        let each: BTreeSet<_> = std::mem::take(problems).into_iter().collect();
        problems.extend(each);
    }
    let resources = manifests.len();
    Ok(Checked {
        configuration,
        sources: manifests.into_iter().filter_map(source).collect(),
        resources,
        errors,
        warnings,
    })
}

fn source(manifest: Manifest) -> Option<CheckedSource> {
    let (_, namespace, name) = manifest.key();
    match manifest.resource {
        Resource::Source(source) => Some(CheckedSource {
            namespace,
            name,
            spec: source.spec,
        }),
        Resource::Broker(_) | Resource::Trigger(_) | Resource::Sink(_) => None,
    }
}

/// Whether something is unresolved because the cluster sets the URL of an object. Unless `strict`, an object that is not
/// among the files is assumed to exist.
fn is_address_of_cluster(reason: &str, strict: bool) -> bool {
    match reason {
        ADDRESS_MISSING | ADDRESS_NOT_ALLOWED => true,
        ADDRESS_UNSUPPORTED => !strict,
        _ => false,
    }
}

/// Returns a warning if something is unresolved only because the files do not contain it.
fn untold(
    manifests: &[Manifest],
    surroundings: &Surroundings,
    unresolved: &UnresolvedField<'_>,
) -> Option<String> {
    if let Some(service) = &unresolved.missing_service {
        return Some(format!(
            "Service {}/{} is not among the files",
            service.namespace, service.name
        ));
    }
    if unresolved.finding.reason == "SecretNotFound" {
        let whose = match &unresolved.manifest.resource {
            Resource::Sink(_) | Resource::Broker(_) => unresolved.path.as_str(),
            Resource::Source(_) | Resource::Trigger(_) => "its Sink",
        };
        return Some(format!("{whose} references a Secret that is not among the files"));
    }
    if unresolved.finding.reason == ADDRESS_UNSUPPORTED {
        return Some("the addressable object in ref is not among the files".to_owned());
    }
    if unresolved.finding.reason == "ServiceExternal" {
        return Some(unresolved.finding.message.clone());
    }
    if unresolved.finding.reason != "SinkNotAllowed" {
        return None;
    }
    let (namespace, reference) = unresolved.named_sink()?;
    let key = ("Sink", reference.namespace.clone()?, reference.name.clone());
    let shown = format!("Sink {}/{}", key.1, key.2);
    let manifest = manifests.iter().find(|manifest| manifest.key() == key);
    let Some(Resource::Sink(sink)) = manifest.map(|manifest| &manifest.resource) else {
        return Some(format!(
            "{shown} is not among the files, so it is unknown whether it allows namespace {namespace}"
        ));
    };
    let selector = sink.spec.allowed_namespaces.as_ref()?;
    let by_label = !selector.match_labels.is_empty() && !surroundings.has_namespace(&namespace);
    by_label.then(|| {
        format!("{shown} allows namespaces by label, and Namespace {namespace} is not among the files")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRIGGER: &str =
        "apiVersion: weir.dev/v1alpha1\nkind: Trigger\nmetadata: {name: t, namespace: shop}\nspec:\n";
    const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {ports: [{name: http, port: 80}]}\n";

    fn sink(spec: &str) -> String {
        format!(
            "apiVersion: weir.dev/v1alpha1\nkind: Sink\nmetadata: {{name: audit, namespace: platform}}\nspec: {{uri: 'http://x', {spec}}}\n"
        )
    }

    fn told(documents: &[&str], strict: bool) -> (Vec<String>, Vec<String>) {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("m.yaml"), documents.join("---\n")).unwrap();
        let Checked { errors, warnings, .. } =
            check(vec![directory.path().to_owned()], false, strict).unwrap();
        let prefix = format!("{}/", directory.path().display());
        let shown = |problems: Vec<ManifestProblem>| {
            let lines = problems
                .iter()
                .map(|problem| problem.to_string().replace(&prefix, ""));
            lines.collect()
        };
        (shown(errors), shown(warnings))
    }

    #[test]
    fn reports_errors_and_warnings_and_assumes_missing_services_exist() {
        let by_service = format!("{TRIGGER}  sink: {{service: {{name: web, port: http}}}}\n");
        let by_ref = format!("{TRIGGER}  sink: {{ref: {{name: audit, namespace: platform}}}}\n");
        let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {audited: 'yes'}}\n";
        let (open, labels, closed) = (
            sink("allowedNamespaces: {names: [shop]}"),
            sink("allowedNamespaces: {matchLabels: {audited: 'yes'}}"),
            sink(""),
        );
        let table: &[(&str, &[&str], &str, &str)] = &[
            ("a Service elsewhere", &[&by_service], "", ""),
            ("a Service beside it", &[&by_service, SERVICE], "", ""),
            (
                "a Service without the port",
                &[&by_service.replace("port: http", "port: grpc"), SERVICE],
                "m.yaml:5:3: Trigger shop/t: Service \"web\" has no port \"grpc\"; it has 80 (http)",
                "",
            ),
            (
                "a Sink of another namespace elsewhere",
                &[&by_ref],
                "",
                "Sink platform/audit is not among the files",
            ),
            ("one that lets it in", &[&by_ref, &open], "", ""),
            (
                "one that does not",
                &[&by_ref, &closed],
                "no Sink \"audit\" in namespace \"platform\" allows",
                "",
            ),
            (
                "one that does by labels",
                &[&by_ref, &labels],
                "",
                "Namespace shop is not among the files",
            ),
            (
                "one that does by these labels",
                &[&by_ref, &labels, namespace],
                "",
                "",
            ),
            (
                "one that does by other labels",
                &[&by_ref, &labels, &namespace.replace("yes", "no")],
                "allows namespace \"shop\"",
                "",
            ),
            (
                "a Sink of the same namespace that is not there",
                &[&by_ref.replace(", namespace: platform", "")],
                "m.yaml:5:3: Trigger shop/t: there is no Sink \"audit\" in namespace \"shop\"",
                "",
            ),
            (
                "a dead-letter Sink that is not there",
                &[&format!(
                    "{by_service}  delivery:\n    deadLetterSink: {{ref: {{name: grave}}}}\n"
                )],
                "m.yaml:7:5: Trigger shop/t: deadLetterSink: there is no Sink \"grave\"",
                "",
            ),
            (
                "a filter",
                &[&format!(
                    "{by_service}  filters:\n  - exact: {{type: a}}\n  - sql: type =\n"
                )],
                "m.yaml:8:5: Trigger shop/t: spec.filters[1].sql: column 7",
                "",
            ),
            (
                "an attribute with a mistake in its name",
                &[&format!(
                    "{by_service}  filters:\n  - any: [{{exact: {{tpye: a}}}}, {{exact: {{tenant: a}}}}]\n"
                )],
                "",
                "m.yaml:7:5: Trigger shop/t: the filter uses the attribute tpye, which is not a known \
                 attribute; did you mean type?",
            ),
            (
                "an unknown field",
                &[&format!("{by_service}  filter: []\n")],
                "m.yaml:6:3: spec.filter: unknown field; did you mean filters?",
                "",
            ),
        ];
        for (case, documents, error, warning) in table {
            let (errors, warnings) = told(documents, false);
            for (found, expected) in [(&errors, error), (&warnings, warning)] {
                assert_eq!(
                    found.len(),
                    usize::from(!expected.is_empty()),
                    "{case}: {errors:?} {warnings:?}"
                );
                assert!(
                    found.iter().all(|line| line.contains(expected)),
                    "{case}: {found:?}"
                );
            }
            let (errors, warnings) = told(documents, true);
            assert_eq!(warnings, Vec::<String>::new(), "{case}");
            let missing = *case == "a Service elsewhere";
            assert!(
                !errors.is_empty() || (error.is_empty() && warning.is_empty() && !missing),
                "{case}: {errors:?}"
            );
        }
        let (errors, _) = told(&[&by_service], true);
        assert_eq!(
            errors,
            ["m.yaml:5:3: Trigger shop/t: Service shop/web is not among the files"]
        );
    }

    #[test]
    fn sink_with_errors_still_exists() {
        let trigger = format!("{TRIGGER}  sink: {{ref: {{name: audit}}}}\n");
        let foreign = trigger.replace("{name: audit}", "{name: audit, namespace: platform}");
        for (trigger, namespace) in [(trigger, "shop"), (foreign, "platform")] {
            let sink = sink("")
                .replace("platform", namespace)
                .replace("http://x", "http://x:99999");
            let (errors, warnings) = told(&[&trigger, &sink], false);
            assert_eq!((errors.len(), warnings), (2, vec![]), "{errors:?}");
            let expected = format!("Sink {namespace}/audit has errors; fix them first");
            assert!(errors[0].contains(&expected), "{errors:?}");
        }
    }

    #[test]
    fn how_the_event_of_a_change_is_made_is_checked() {
        let source = |value: &str| {
            format!(
                "apiVersion: weir.dev/v1alpha1\nkind: Source\nmetadata: {{name: web, namespace: shop}}\nspec:\n  kubernetes:\n    \
                 serviceAccountName: viewer\n    resources: [{{apiVersion: v1, kind: Pod}}]\n    event:\n      \
                 attributes: {{phase: '{value}'}}\n"
            )
        };
        let good = source("${change}-${object.status.phase}");
        assert_eq!(told(&[&good], false), (vec![], vec![]));
        let (errors, _) = told(&[&source("${pod.status.phase}")], false);
        let expected = "m.yaml:9:20: Source shop/web: spec.kubernetes.event.attributes.phase: column 3: there is no pod: the \
                        variables are object";
        assert!(errors.len() == 1 && errors[0].starts_with(expected), "{errors:?}");
    }

    #[test]
    fn tokens_of_service_accounts_count_as_issued() {
        let spec = "authorization: {serviceAccountToken: {serviceAccountName: audit, audience: a}}";
        let sink = sink(spec).replace("http://x", "https://x");
        for strict in [false, true] {
            assert_eq!(told(&[&sink], strict), (vec![], vec![]));
        }
    }

    #[test]
    fn missing_secret_is_a_warning_and_present_one_is_checked() {
        let sink = |more: &str| {
            let spec = "authorization: {bearerToken: {secretKeyRef: {name: audit, key: token}}}";
            format!("{}{more}", sink(spec).replace("http://x", "https://x"))
        };
        let named = "m.yaml:4:56: Sink platform/audit: spec.authorization.bearerToken.secretKeyRef";
        let untold = format!("{named} references a Secret that is not among the files");
        assert_eq!(told(&[&sink("")], false), (vec![], vec![untold.clone()]));
        assert_eq!(told(&[&sink("")], true), (vec![untold], vec![]));

        let secret = "kind: Secret\napiVersion: v1\nmetadata: {name: audit, namespace: platform}\n";
        let with = |data: &str| told(&[&sink(&format!("---\n{secret}stringData: {data}\n"))], false);
        assert_eq!(with("{token: x}"), (vec![], vec![]));
        let (errors, _) = with("{other: x}");
        assert!(
            errors[0].contains("Secret \"audit\" in namespace \"platform\" has no key \"token\""),
            "{errors:?}"
        );
        let (errors, _) = with("{token: two words}");
        assert!(
            errors[0].contains("has a space") && !errors[0].contains("words"),
            "{errors:?}"
        );
    }
}
