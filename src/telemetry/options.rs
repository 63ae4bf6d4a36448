//! Options of the export of traces, from a flag and OpenTelemetry's environment variables. Pure.

use std::{fmt, str::FromStr, time::Duration};

use http::Uri;

use crate::http_url::{self, HttpUrlError};

/// Options of the export.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// URL that spans are posted to.
    pub endpoint: Uri,
    /// Sampler.
    pub sampling: Sampling,
    /// Timeout of an export.
    pub timeout: Duration,
}

/// Sampler. A share is between 0 and 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sampling {
    /// All traces.
    AlwaysOn,
    /// No traces.
    AlwaysOff,
    /// A share of all traces, by trace id.
    Share(f64),
    /// Traces sampled by the sender of the event, and a share of those that start here.
    ParentBased(f64),
}

impl Default for Sampling {
    /// Traces sampled by producers, and a tenth of those that start here.
    fn default() -> Self {
        Self::ParentBased(0.1)
    }
}

/// Why the options are invalid. Names the variable or flag.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    /// Invalid endpoint.
    #[error("{name}: {value:?} {error}; use for example http://otel-collector:4318")]
    Endpoint {
        /// The flag or the variable.
        name: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it.
        error: HttpUrlError,
    },
    /// Unsupported protocol.
    #[error(
        "{name}: {value:?} is not supported; Weir exports by http/protobuf, which collectors usually accept on \
         port 4318"
    )]
    Protocol {
        /// The variable.
        name: &'static str,
        /// Its value.
        value: String,
    },
    /// Unsupported exporter.
    #[error("OTEL_TRACES_EXPORTER: {0:?} is not supported; use otlp or none")]
    Exporter(String),
    /// Unknown sampler.
    #[error(
        "OTEL_TRACES_SAMPLER: {0:?} is not supported; use always_on, always_off, traceidratio, \
         parentbased_always_on, parentbased_always_off or parentbased_traceidratio"
    )]
    Sampler(String),
    /// Invalid share.
    #[error("OTEL_TRACES_SAMPLER_ARG: {0:?} is not a share of traces; use a number from 0 to 1")]
    Share(String),
    /// Invalid time.
    #[error("{name}: {value:?} is not a positive number of milliseconds")]
    Timeout {
        /// The variable.
        name: &'static str,
        /// Its value.
        value: String,
    },
}

const FLAG: &str = "--otlp-endpoint";
const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const TRACES_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
const PROTOCOL: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
    "OTEL_EXPORTER_OTLP_PROTOCOL",
];
const TIMEOUT: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT"];

/// Default timeout of an export (OTLP exporter configuration).
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

impl Options {
    /// Reads the options. Returns `None` if traces are not exported. `flag` takes precedence over the environment,
    /// which `variable` looks up; an empty variable counts as unset. `/v1/traces` is appended to a base URL, given
    /// by the flag or `OTEL_EXPORTER_OTLP_ENDPOINT`.
    ///
    /// # Errors
    /// [`OptionsError`] if there is an endpoint and any option is invalid.
    pub fn read(
        flag: Option<&str>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, OptionsError> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        if variable("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return Ok(None);
        }
        let Some(endpoint) = endpoint(flag, &variable)? else {
            return Ok(None);
        };
        match variable("OTEL_TRACES_EXPORTER").as_deref() {
            None | Some("otlp") => {}
            Some("none") => return Ok(None),
            Some(other) => return Err(OptionsError::Exporter(other.to_owned())),
        }
        if let Some((name, value)) = first(PROTOCOL, &variable)
            && value != "http/protobuf"
        {
            return Err(OptionsError::Protocol { name, value });
        }
        Ok(Some(Self {
            endpoint,
            sampling: sampling(&variable)?,
            timeout: timeout(&variable)?,
        }))
    }
}

/// Returns the first variable that is set.
fn first<const N: usize>(
    names: [&'static str; N],
    variable: &impl Fn(&str) -> Option<String>,
) -> Option<(&'static str, String)> {
    names
        .into_iter()
        .find_map(|name| variable(name).map(|value| (name, value)))
}

fn endpoint(
    flag: Option<&str>,
    variable: &impl Fn(&str) -> Option<String>,
) -> Result<Option<Uri>, OptionsError> {
    let base = |url: String| format!("{}/v1/traces", url.trim_end_matches('/'));
    let (name, value, url) = if let Some(url) = flag {
        (FLAG, url.to_owned(), base(url.to_owned()))
    } else if let Some(url) = variable(TRACES_ENDPOINT) {
        (TRACES_ENDPOINT, url.clone(), url)
    } else if let Some(url) = variable(ENDPOINT) {
        (ENDPOINT, url.clone(), base(url))
    } else {
        return Ok(None);
    };
    http_url::parse(&url)
        .map(Some)
        .map_err(|error| OptionsError::Endpoint { name, value, error })
}

fn sampling(variable: &impl Fn(&str) -> Option<String>) -> Result<Sampling, OptionsError> {
    let share = || match variable("OTEL_TRACES_SAMPLER_ARG") {
        None => Ok(1.0),
        Some(text) => share(&text).ok_or(OptionsError::Share(text)),
    };
    let Some(sampler) = variable("OTEL_TRACES_SAMPLER") else {
        return Ok(Sampling::default());
    };
    Ok(match sampler.as_str() {
        "always_on" => Sampling::AlwaysOn,
        "always_off" => Sampling::AlwaysOff,
        "traceidratio" => Sampling::Share(share()?),
        "parentbased_always_on" => Sampling::ParentBased(1.0),
        "parentbased_always_off" => Sampling::ParentBased(0.0),
        "parentbased_traceidratio" => Sampling::ParentBased(share()?),
        _ => return Err(OptionsError::Sampler(sampler)),
    })
}

fn share(text: &str) -> Option<f64> {
    let share = f64::from_str(text.trim()).ok()?;
    (0.0..=1.0).contains(&share).then_some(share)
}

fn timeout(variable: &impl Fn(&str) -> Option<String>) -> Result<Duration, OptionsError> {
    let Some((name, value)) = first(TIMEOUT, variable) else {
        return Ok(DEFAULT_TIMEOUT);
    };
    match value.trim().parse() {
        Ok(milliseconds) if milliseconds > 0 => Ok(Duration::from_millis(milliseconds)),
        _ => Err(OptionsError::Timeout { name, value }),
    }
}

impl fmt::Display for Sampling {
    /// Describes the sampler, for a log line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AlwaysOn => write!(f, "all"),
            Self::AlwaysOff => write!(f, "none"),
            Self::Share(share) => write!(f, "{share} of all"),
            Self::ParentBased(share) => write!(f, "those sampled by producers, and {share} of the others"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(flag: Option<&str>, variables: &[(&str, &str)]) -> Result<Option<Options>, OptionsError> {
        Options::read(flag, |name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn flag_precedes_environment_and_base_url_gets_a_path() {
        type Variables = &'static [(&'static str, &'static str)];
        let table: &[(Option<&str>, Variables, Option<&str>)] = &[
            (None, &[], None),
            (None, &[(ENDPOINT, "")], None),
            (Some("http://c:4318"), &[], Some("http://c:4318/v1/traces")),
            (
                Some("http://c:4318/"),
                &[(ENDPOINT, "http://d")],
                Some("http://c:4318/v1/traces"),
            ),
            (
                None,
                &[(ENDPOINT, "https://d/otlp")],
                Some("https://d/otlp/v1/traces"),
            ),
            (
                None,
                &[(ENDPOINT, "http://d"), (TRACES_ENDPOINT, "http://e/x")],
                Some("http://e/x"),
            ),
            (Some("http://c"), &[("OTEL_SDK_DISABLED", "TRUE")], None),
            (Some("http://c"), &[("OTEL_TRACES_EXPORTER", "none")], None),
            (None, &[(PROTOCOL[1], "grpc"), ("OTEL_TRACES_SAMPLER", "x")], None),
        ];
        for (flag, variables, expected) in table {
            let options = read(*flag, variables).unwrap();
            let endpoint = options.map(|options| options.endpoint.to_string());
            assert_eq!(endpoint.as_deref(), *expected, "{flag:?} {variables:?}");
        }
    }

    #[test]
    fn supports_the_standard_samplers() {
        let table = [
            (None, None, Sampling::ParentBased(0.1)),
            (Some("always_on"), None, Sampling::AlwaysOn),
            (Some("always_off"), Some("0.5"), Sampling::AlwaysOff),
            (Some("traceidratio"), Some("0.25"), Sampling::Share(0.25)),
            (Some("parentbased_always_on"), None, Sampling::ParentBased(1.0)),
            (Some("parentbased_always_off"), None, Sampling::ParentBased(0.0)),
            (
                Some("parentbased_traceidratio"),
                Some("0.5"),
                Sampling::ParentBased(0.5),
            ),
            (Some("parentbased_traceidratio"), None, Sampling::ParentBased(1.0)),
        ];
        for (sampler, share, expected) in table {
            let named = [
                ("OTEL_TRACES_SAMPLER", sampler),
                ("OTEL_TRACES_SAMPLER_ARG", share),
            ];
            let variables: Vec<_> = named
                .iter()
                .filter_map(|&(name, value)| Some((name, value?)))
                .collect();
            let options = read(Some("http://c"), &variables).unwrap().unwrap();
            assert_eq!((options.sampling, options.timeout), (expected, DEFAULT_TIMEOUT));
        }
    }

    #[test]
    fn errors_name_the_invalid_option() {
        let table: &[(Option<&str>, (&str, &str), &str)] = &[
            (
                Some("collector:4318"),
                ("", ""),
                "--otlp-endpoint: \"collector:4318\"",
            ),
            (Some("ftp://c"), ("", ""), "--otlp-endpoint"),
            (
                Some("http://c"),
                (PROTOCOL[0], "grpc"),
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL: \"grpc\"",
            ),
            (
                Some("http://c"),
                (PROTOCOL[1], "http/json"),
                "OTEL_EXPORTER_OTLP_PROTOCOL",
            ),
            (
                Some("http://c"),
                ("OTEL_TRACES_EXPORTER", "console"),
                "OTEL_TRACES_EXPORTER",
            ),
            (
                Some("http://c"),
                ("OTEL_TRACES_SAMPLER", "xray"),
                "OTEL_TRACES_SAMPLER: \"xray\"",
            ),
            (
                Some("http://c"),
                (TIMEOUT[1], "0"),
                "OTEL_EXPORTER_OTLP_TIMEOUT: \"0\"",
            ),
            (
                None,
                (TRACES_ENDPOINT, "nowhere"),
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
            ),
        ];
        for (flag, variable, part) in table {
            let error = read(*flag, &[*variable]).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        for share in ["2", "-0.1", "half", "NaN"] {
            let variables = [
                ("OTEL_TRACES_SAMPLER", "traceidratio"),
                ("OTEL_TRACES_SAMPLER_ARG", share),
            ];
            assert_eq!(
                read(Some("http://c"), &variables),
                Err(OptionsError::Share(share.to_owned()))
            );
        }
    }
}
