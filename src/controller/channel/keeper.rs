//! Maintains the certificates in a Secret and the authorities in a ConfigMap, and serves the stored certificate.
//!
//! Only the leader does so. If two controllers briefly consider themselves leader, or there is no Lease, the one
//! whose concurrent write conflicts reads again.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{
    TlsOptions,
    material::{AUTHORITIES, Material},
    plan::{RenewalStep, next_step},
    telling::Telling,
};
use crate::controller::{metrics::ControllerMetrics, status_writer::FIELD_MANAGER};

/// Interval at which the stored objects are checked. Bounds the time until a deleted Secret is recreated, or a
/// certificate renewed by another controller is served.
const CHECK_EVERY: Duration = Duration::from_secs(15);

/// Timeout of one check.
const CHECK_TIMEOUT: Duration = Duration::from_secs(30);

/// Maximum number of steps of one check: two, plus some for conflicts with another controller's writes.
const MAX_STEPS: usize = 5;

/// The certificate being served. Until there is one, handshakes fail.
#[derive(Debug, Default)]
pub(super) struct Served(ArcSwapOption<CertifiedKey>);

impl ResolvesServerCert for Served {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }
}

impl Served {
    pub(super) fn is_some(&self) -> bool {
        self.0.load().is_some()
    }

    /// Serves this certificate from the next handshake on. Returns whether it differs from the previous one.
    fn replace(&self, key: Arc<CertifiedKey>) -> bool {
        let before = self.0.swap(Some(key.clone()));
        before.is_none_or(|before| before.cert != key.cert)
    }
}

/// Maintains the stored objects.
pub(super) struct CertificateKeeper {
    secrets: Api<Secret>,
    config_maps: Api<ConfigMap>,
    namespace: String,
    secret: String,
    config_map: String,
    /// DNS names that routers use to reach the controller.
    names: Vec<String>,
    /// Field manager of the Secret. It is unique per controller, so that the API server reports a conflict if
    /// another controller creates the Secret at the same time.
    manager: String,
    served: Arc<Served>,
    metrics: Arc<ControllerMetrics>,
}

/// Why a check failed.
#[derive(Debug, thiserror::Error)]
enum KeepError {
    #[error("cannot {verb} {kind} {namespace}/{name}: {reason}")]
    Api {
        verb: &'static str,
        kind: &'static str,
        namespace: String,
        name: String,
        reason: String,
    },
    #[error(
        "cannot create a certificate for {names:?}: {source}; the names derive from --tls-service, the namespace \
         and --cluster-domain"
    )]
    Make {
        names: Vec<String>,
        source: rcgen::Error,
    },
    #[error("Secret {namespace}/{name} is repeatedly changed by another writer")]
    Contended { namespace: String, name: String },
    #[error("the API server did not respond within {CHECK_TIMEOUT:?}")]
    Timeout,
}

/// Outcome of a write.
#[derive(PartialEq, Eq)]
enum WriteOutcome {
    Done,
    /// Another writer was faster; read again.
    Conflict,
}

impl CertificateKeeper {
    pub(super) fn new(
        options: TlsOptions,
        client: Client,
        cluster_domain: &str,
        served: Arc<Served>,
        metrics: Arc<ControllerMetrics>,
    ) -> Self {
        let TlsOptions {
            secret,
            config_map,
            service,
        } = options;
        let namespace = client.default_namespace().to_owned();
        Self {
            secrets: Api::default_namespaced(client.clone()),
            config_maps: Api::default_namespaced(client),
            names: names(&service, &namespace, cluster_domain),
            manager: format!("weir-controller-{}", uuid::Uuid::new_v4()),
            namespace,
            secret,
            config_map,
            served,
            metrics,
        }
    }

    /// Checks periodically until told to stop.
    pub(super) async fn run(&self, stop: &CancellationToken) {
        stop.run_until_cancelled(self.keep()).await;
    }

    async fn keep(&self) {
        let mut telling = Telling::default();
        loop {
            let checked = tokio::time::timeout(CHECK_TIMEOUT, self.check())
                .await
                .unwrap_or(Err(KeepError::Timeout));
            if let Err(error) = checked
                && let Some(times) = telling.happened("failed", Instant::now())
            {
                tracing::warn!(%error, times, "cannot maintain the certificates for routers; retrying");
            }
            tokio::time::sleep(CHECK_EVERY).await;
        }
    }

    /// Performs one check and the resulting steps.
    async fn check(&self) -> Result<(), KeepError> {
        for _ in 0..MAX_STEPS {
            let secret = self.secrets.get_opt(&self.secret).await;
            let secret = secret.map_err(|error| self.secret_error("read", error))?;
            let data = secret.as_ref().and_then(|secret| secret.data.as_ref());
            let material = data.map(Material::from_data).unwrap_or_default();
            let now = Timestamp::now();
            // First of all, so that the stored certificate is served even if a later step fails.
            self.serve(&material);
            let step = next_step(&material.stored(), &self.names, now);
            let (why, made) = match step {
                RenewalStep::Keep => return self.give_out(&material).await,
                RenewalStep::MakeAll(why) => (why, Material::make(&self.names, now)),
                RenewalStep::RenewAuthority(why) => (why, material.with_new_authority(now)),
                RenewalStep::RenewServing(why) => {
                    // An authority must not sign before routers can know it.
                    self.give_out(&material).await?;
                    (why, material.with_new_certificate(&self.names, now))
                }
            };
            let made = made.map_err(|source| KeepError::Make {
                names: self.names.clone(),
                source,
            })?;
            if let RenewalStep::RenewAuthority(_) = step {
                // Published before it is stored, because its waiting time starts when it is stored.
                self.give_out(&made).await?;
            }
            let written = match secret {
                None => self.create(made).await,
                Some(secret) => self.replace(secret, made).await,
            };
            if written? == WriteOutcome::Done {
                let secret = &self.secret;
                tracing::info!(
                    secret,
                    namespace = self.namespace,
                    why,
                    "renewed the certificates for routers"
                );
            }
        }
        Err(KeepError::Contended {
            namespace: self.namespace.clone(),
            name: self.secret.clone(),
        })
    }

    fn serve(&self, material: &Material) {
        let stored = material.stored();
        let (Some(key), Some(serving)) = (material.certified_key(), stored.serving) else {
            return;
        };
        let until = serving.validity.until;
        self.metrics.serves_until(until.as_second());
        if self.served.replace(key) {
            let names = self.names.join(", ");
            tracing::info!(names, %until, "serving routers with this certificate");
        }
    }

    /// Creates the Secret. Uses server-side apply, because RBAC cannot restrict a plain create by name, and does
    /// not force, so that it fails if another controller has created the Secret in the meantime.
    async fn create(&self, material: Material) -> Result<WriteOutcome, KeepError> {
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": self.metadata(&self.secret), "data": material.into_data(),
        });
        let parameters = PatchParams::apply(&self.manager);
        let applied = self
            .secrets
            .patch(&self.secret, &parameters, &Patch::Apply(&secret))
            .await;
        self.written("make", applied)
    }

    /// Replaces the Secret that was read, unless it was changed since.
    async fn replace(&self, mut secret: Secret, material: Material) -> Result<WriteOutcome, KeepError> {
        secret.data = Some(material.into_data());
        let replaced = self
            .secrets
            .replace(&self.secret, &PostParams::default(), &secret)
            .await;
        self.written("renew", replaced)
    }

    fn written<T>(&self, verb: &'static str, result: kube::Result<T>) -> Result<WriteOutcome, KeepError> {
        match result {
            Ok(_) => Ok(WriteOutcome::Done),
            Err(kube::Error::Api(status)) if status.is_conflict() || status.is_not_found() => {
                Ok(WriteOutcome::Conflict)
            }
            Err(error) => Err(self.secret_error(verb, error)),
        }
    }

    /// Updates the ConfigMap.
    async fn give_out(&self, material: &Material) -> Result<(), KeepError> {
        let authorities = material.authorities();
        let failed = |verb, error| self.error(verb, "ConfigMap", &self.config_map, &error);
        let present = self.config_maps.get_opt(&self.config_map).await;
        let present = present.map_err(|error| failed("read", error))?;
        let data = present.as_ref().and_then(|present| present.data.as_ref());
        if data
            .and_then(|data| data.get(AUTHORITIES))
            .is_some_and(|present| present == authorities)
        {
            return Ok(());
        }
        let config_map = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": self.metadata(&self.config_map),
            "data": {AUTHORITIES: authorities},
        });
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        let applied = self
            .config_maps
            .patch(&self.config_map, &parameters, &Patch::Apply(&config_map))
            .await;
        applied.map_err(|error| failed("write", error))?;
        let config_map = &self.config_map;
        tracing::info!(
            config_map,
            namespace = self.namespace,
            "published the authorities to routers"
        );
        Ok(())
    }

    fn metadata(&self, name: &str) -> serde_json::Value {
        let labels =
            json!({"app.kubernetes.io/part-of": "weir", "app.kubernetes.io/managed-by": "weir-controller"});
        json!({"name": name, "namespace": self.namespace, "labels": labels})
    }

    fn secret_error(&self, verb: &'static str, error: kube::Error) -> KeepError {
        self.error(verb, "Secret", &self.secret, &error)
    }

    fn error(&self, verb: &'static str, kind: &'static str, name: &str, error: &kube::Error) -> KeepError {
        let reason = match error {
            kube::Error::Api(status) if status.is_forbidden() => {
                format!(
                    "{}; the controller's Role must allow get, create, update and patch on it",
                    status.message
                )
            }
            error => error.to_string(),
        };
        KeepError::Api {
            verb,
            kind,
            namespace: self.namespace.clone(),
            name: name.to_owned(),
            reason,
        }
    }
}

/// Returns the names of a Service, as used in its own namespace and elsewhere.
fn names(service: &str, namespace: &str, cluster_domain: &str) -> Vec<String> {
    let qualified = format!("{service}.{namespace}");
    vec![
        service.to_owned(),
        qualified.clone(),
        format!("{qualified}.svc"),
        format!("{qualified}.svc.{cluster_domain}"),
    ]
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use http::{Method, Request, Response, StatusCode};
    use jiff::SignedDuration;
    use kube::client::Body;

    use super::*;

    /// An API server with a Secret and without permission to write ConfigMaps.
    fn client(stored: &Material, writes: &Arc<Mutex<Vec<String>>>) -> Client {
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "namespace": "default"},
            "data": stored.clone().into_data(),
        });
        let writes = writes.clone();
        let answer = move |request: Request<Body>| {
            let is_secret = request.uri().path().contains("/secrets/");
            let (status, body) = match (is_secret, request.method() == Method::GET) {
                (true, true) => (StatusCode::OK, secret.clone()),
                (false, true) => refusal(StatusCode::NOT_FOUND, "NotFound"),
                (_, false) => {
                    let write = format!("{} {}", request.method(), request.uri().path());
                    writes.lock().unwrap().push(write);
                    refusal(StatusCode::FORBIDDEN, "Forbidden")
                }
            };
            let body = Body::from(body.to_string().into_bytes());
            let response = Response::builder().status(status).body(body).unwrap();
            std::future::ready(Ok::<_, kube::Error>(response))
        };
        Client::new(tower::service_fn(answer), "default")
    }

    fn refusal(status: StatusCode, reason: &str) -> (StatusCode, serde_json::Value) {
        let body = json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "", "reason": reason,
            "code": status.as_u16(),
        });
        (status, body)
    }

    #[tokio::test]
    async fn unpublished_authority_is_not_used_and_the_stored_certificate_is_served() {
        let days_ago = |days: i64| Timestamp::now() - SignedDuration::from_hours(24 * days);
        let names = names("weir-controller", "default", "cluster.local");
        let old = Material::make(&names, days_ago(70)).unwrap();
        let settled = old.with_new_authority(days_ago(2)).unwrap();
        let fresh = Material::make(&names, days_ago(250)).unwrap();
        let old_authority = fresh.with_new_certificate(&names, days_ago(1)).unwrap();
        for (case, stored) in [
            ("a certificate is to be renewed", old),
            ("and there is a new authority for it", settled),
            ("an authority is to be renewed", old_authority),
        ] {
            let (writes, served) = (Arc::default(), Arc::<Served>::default());
            let options = TlsOptions {
                secret: "s".into(),
                config_map: "c".into(),
                service: "weir-controller".into(),
            };
            let client = client(&stored, &writes);
            let keeper =
                CertificateKeeper::new(options, client, "cluster.local", served.clone(), Arc::default());
            let error = keeper.check().await.unwrap_err().to_string();
            assert!(
                error.contains("cannot write ConfigMap default/c"),
                "{case}: {error}"
            );
            let writes = writes.lock().unwrap();
            assert_eq!(
                *writes,
                ["PATCH /api/v1/namespaces/default/configmaps/c"],
                "{case}"
            );
            assert!(served.is_some(), "{case}");
        }
    }
}
