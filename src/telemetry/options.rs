//! Whether traces are exported, where to and how many: by a flag, and by OpenTelemetry's environment variables. Pure.

use std::{fmt, str::FromStr, time::Duration};

use http::Uri;

use crate::http_url::{self, HttpUrlError};

/// How traces are exported.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Where spans are posted to.
    pub endpoint: Uri,
    /// Which traces are recorded.
    pub sampling: Sampling,
    /// How long an export may take.
    pub timeout: Duration,
}

/// Which traces are recorded. A share is between 0 and 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sampling {
    /// All.
    AlwaysOn,
    /// None.
    AlwaysOff,
    /// A share of them, by their ids.
    Share(f64),
    /// Those that whoever sent the event records; of those that begin here a share.
    ParentBased(f64),
}

impl Default for Sampling {
    /// What the producers record, and a tenth of what begins here.
    fn default() -> Self {
        Self::ParentBased(0.1)
    }
}

/// Why the options cannot be used. Each tells the variable or flag that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    /// Spans cannot be posted there.
    #[error("{name}: {value:?} {error}; use for example http://otel-collector:4318")]
    Endpoint {
        /// The flag or the variable.
        name: &'static str,
        /// What it says.
        value: String,
        /// What is wrong with it.
        error: HttpUrlError,
    },
    /// Not what Weir speaks.
    #[error(
        "{name}: {value:?} is not spoken; Weir exports by http/protobuf, which collectors take at port 4318 as a rule"
    )]
    Protocol {
        /// The variable.
        name: &'static str,
        /// What it says.
        value: String,
    },
    /// There is only one exporter.
    #[error("OTEL_TRACES_EXPORTER: {0:?} is not there; use otlp or none")]
    Exporter(String),
    /// Not a sampler.
    #[error(
        "OTEL_TRACES_SAMPLER: {0:?} is not there; use always_on, always_off, traceidratio, parentbased_always_on, \
         parentbased_always_off or parentbased_traceidratio"
    )]
    Sampler(String),
    /// Not a share.
    #[error("OTEL_TRACES_SAMPLER_ARG: {0:?} is no share of the traces; use a number from 0 to 1")]
    Share(String),
    /// Not a time.
    #[error("{name}: {value:?} is no number of milliseconds above 0")]
    Timeout {
        /// The variable.
        name: &'static str,
        /// What it says.
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

/// How long an export may take if nothing else is said (OTLP exporter configuration).
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

impl Options {
    /// Reads the options; `None` if traces are not exported. `flag` goes before the environment, of which `variable`
    /// gives a variable's value; an empty one counts as not set. A base URL, as the flag and
    /// `OTEL_EXPORTER_OTLP_ENDPOINT` have it, is followed by `/v1/traces`.
    ///
    /// # Errors
    /// [`OptionsError`] when there is an endpoint and something else cannot be used.
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

/// The first of the variables that is set.
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
    /// What is recorded, for a log line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AlwaysOn => write!(f, "all"),
            Self::AlwaysOff => write!(f, "none"),
            Self::Share(share) => write!(f, "{share} of all"),
            Self::ParentBased(share) => write!(f, "those of the producers, and {share} of the others"),
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
    fn the_flag_goes_before_the_environment_and_a_base_url_gets_a_path() {
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
    fn samplers_are_the_standard_ones() {
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
    fn what_cannot_be_used_is_named() {
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
