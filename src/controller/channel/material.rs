//! The authorities, the serving certificate and their keys: parsed from a Secret, created, and renewed.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::ByteString;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData as _,
};
use rustls::{
    crypto::ring::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer as _};

use super::plan::{AUTHORITY_LIFE, SERVING_LIFE, ServingCertificate, StoredMaterial, Validity};

/// Key of the authorities' certificates in the ConfigMap and in the Secret. The first authority signs.
pub(super) const AUTHORITIES: &str = "ca.crt";
const AUTHORITY_KEY: &str = "ca.key";
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";

/// Content of the Secret, as PEM. May be unusable.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Material {
    /// The authorities that routers trust. The first signs.
    authorities: String,
    /// Key of the first authority.
    authority_key: String,
    certificate: String,
    key: String,
}

impl fmt::Debug for Material {
    /// Omits the keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Material")
            .field("authorities", &self.authorities)
            .field("certificate", &self.certificate)
            .finish_non_exhaustive()
    }
}

impl Material {
    /// Treats missing entries and those that are not text as empty.
    pub(super) fn from_data(data: &BTreeMap<String, ByteString>) -> Self {
        let text = |key: &str| {
            data.get(key)
                .and_then(|ByteString(bytes)| str::from_utf8(bytes).ok())
                .unwrap_or_default()
                .to_owned()
        };
        Self {
            authorities: text(AUTHORITIES),
            authority_key: text(AUTHORITY_KEY),
            certificate: text(CERTIFICATE),
            key: text(KEY),
        }
    }

    pub(super) fn into_data(self) -> BTreeMap<String, ByteString> {
        let Self {
            authorities,
            authority_key,
            certificate,
            key,
        } = self;
        [
            (AUTHORITIES, authorities),
            (AUTHORITY_KEY, authority_key),
            (CERTIFICATE, certificate),
            (KEY, key),
        ]
        .map(|(key, text)| (key.to_owned(), ByteString(text.into_bytes())))
        .into()
    }

    /// Returns the certificates that routers must trust.
    pub(super) fn authorities(&self) -> &str {
        &self.authorities
    }

    /// Returns the usable parts.
    pub(super) fn stored(&self) -> StoredMaterial {
        StoredMaterial {
            authority: self.authority(),
            serving: self.serving(),
        }
    }

    fn authority(&self) -> Option<Validity> {
        let der = CertificateDer::from_pem_slice(self.authorities.as_bytes()).ok()?;
        let certificate = parse(&der)?;
        let key = KeyPair::from_pem(&self.authority_key).ok()?;
        let fits = certificate.is_ca() && certificate.public_key().raw == key.subject_public_key_info();
        fits.then(|| validity(&certificate)).flatten()
    }

    fn serving(&self) -> Option<ServingCertificate> {
        let key = self.certified_key()?;
        let certificate = parse(key.cert.first()?)?;
        let is_signed = certificates(&self.authorities).iter().any(|authority| {
            parse(authority)
                .is_some_and(|authority| certificate.verify_signature(Some(authority.public_key())).is_ok())
        });
        if !is_signed {
            return None;
        }
        Some(ServingCertificate {
            validity: validity(&certificate)?,
            names: names(&certificate)?,
        })
    }

    /// Returns the serving certificate and its key for the TLS server; `None` if they are unusable or do not match.
    pub(super) fn certified_key(&self) -> Option<Arc<CertifiedKey>> {
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).ok()?;
        let key = CertifiedKey::from_der(certificates(&self.certificate), key, &default_provider()).ok()?;
        Some(Arc::new(key))
    }

    /// Creates a new authority and a new serving certificate.
    ///
    /// # Errors
    /// If a name is not a valid DNS name, or no randomness is available.
    pub(super) fn make(names: &[String], now: Timestamp) -> Result<Self, rcgen::Error> {
        Self::default()
            .with_new_authority(now)?
            .with_new_certificate(names, now)
    }

    /// Adds a new authority before those that are still valid.
    ///
    /// # Errors
    /// If no randomness is available.
    pub(super) fn with_new_authority(&self, now: Timestamp) -> Result<Self, rcgen::Error> {
        let key = KeyPair::generate()?;
        let mut parameters = parameters(&[], Validity::new(now, AUTHORITY_LIFE, None))?;
        // The name is unique, because issuers are looked up by name.
        let name = format!("weir controller, authority of {}", now.strftime("%FT%TZ"));
        parameters.distinguished_name.push(DnType::CommonName, name);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Ok(Self {
            authorities: parameters.self_signed(&key)?.pem() + &self.valid_authorities(now),
            authority_key: key.serialize_pem(),
            ..self.clone()
        })
    }

    /// Creates a new serving certificate, and removes expired authorities.
    ///
    /// # Errors
    /// If a name is not a valid DNS name, or there is no usable authority.
    pub(super) fn with_new_certificate(
        &self,
        names: &[String],
        now: Timestamp,
    ) -> Result<Self, rcgen::Error> {
        let issuer = Issuer::from_ca_cert_pem(&self.authorities, KeyPair::from_pem(&self.authority_key)?)?;
        let key = KeyPair::generate()?;
        let mut parameters = parameters(names, Validity::new(now, SERVING_LIFE, self.authority()))?;
        if let Some(name) = names.first() {
            parameters
                .distinguished_name
                .push(DnType::CommonName, name.as_str());
        }
        parameters.use_authority_key_identifier_extension = true;
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        Ok(Self {
            authorities: self.valid_authorities(now),
            certificate: parameters.signed_by(&key, &issuer)?.pem(),
            key: key.serialize_pem(),
            ..self.clone()
        })
    }

    fn valid_authorities(&self, now: Timestamp) -> String {
        let is_valid = |der: &CertificateDer<'_>| {
            parse(der)
                .and_then(|certificate| validity(&certificate))
                .is_some_and(|validity| validity.covers(now))
        };
        let lines = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
        certificates(&self.authorities)
            .into_iter()
            .filter(is_valid)
            .map(|der| pem::encode_config(&pem::Pem::new("CERTIFICATE", der.as_ref()), lines))
            .collect()
    }
}

fn parameters(names: &[String], validity: Validity) -> Result<CertificateParams, rcgen::Error> {
    let mut parameters = CertificateParams::new(names)?;
    parameters.distinguished_name = DistinguishedName::new();
    let time = |time: Timestamp| {
        let since = Duration::try_from(time.duration_since(Timestamp::UNIX_EPOCH)).unwrap_or_default();
        rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(since.as_secs())
    };
    (parameters.not_before, parameters.not_after) = (time(validity.from), time(validity.until));
    Ok(parameters)
}

/// Parses the certificates in a text, up to the first invalid one.
fn certificates(text: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(text.as_bytes())
        .map_while(Result::ok)
        .collect()
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Option<X509Certificate<'a>> {
    X509Certificate::from_der(der)
        .ok()
        .map(|(_, certificate)| certificate)
}

fn validity(certificate: &X509Certificate<'_>) -> Option<Validity> {
    let x509_parser::certificate::Validity {
        not_before,
        not_after,
    } = certificate.validity();
    Some(Validity {
        from: Timestamp::from_second(not_before.timestamp()).ok()?,
        until: Timestamp::from_second(not_after.timestamp()).ok()?,
    })
}

fn names(certificate: &X509Certificate<'_>) -> Option<Vec<String>> {
    let names = certificate.subject_alternative_name().ok()??;
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        _ => None,
    };
    names.value.general_names.iter().map(name).collect()
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use rustls::{
        RootCertStore,
        client::{WebPkiServerVerifier, danger::ServerCertVerifier as _},
        pki_types::{ServerName, UnixTime},
    };

    use super::*;
    use crate::controller::channel::plan::{RenewalStep, next_step};

    fn day(day: i64) -> Timestamp {
        let start: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        start + SignedDuration::from_hours(24 * day)
    }

    fn names() -> Vec<String> {
        vec!["weir-controller".into(), "weir-controller.weir-system.svc".into()]
    }

    /// Whether a router that trusts the authorities of `trusted` accepts the certificate of `served`.
    fn accepts(trusted: &Material, served: &Material, name: &str, now: Timestamp) -> bool {
        let mut roots = RootCertStore::empty();
        for authority in certificates(trusted.authorities()) {
            roots.add(authority).unwrap();
        }
        let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), default_provider().into())
            .build()
            .unwrap();
        let name = ServerName::try_from(name).unwrap();
        let time = UnixTime::since_unix_epoch(Duration::from_secs(now.as_second().try_into().unwrap()));
        let key = served.certified_key().unwrap();
        verifier
            .verify_server_cert(&key.cert[0], &[], &name, &[], time)
            .is_ok()
    }

    #[test]
    fn created_material_parses_and_is_accepted() {
        let made = Material::make(&names(), day(0)).unwrap();
        let stored = made.stored();
        let validity = |life| Some(Validity::new(day(0), life, None));
        assert_eq!(stored.authority, validity(AUTHORITY_LIFE));
        let serving = stored.serving.clone().unwrap();
        assert_eq!(Some(serving.validity), validity(SERVING_LIFE));
        assert_eq!(serving.names, names());
        assert_eq!(next_step(&stored, &names(), day(1)), RenewalStep::Keep);
        for (name, accepted) in [
            ("weir-controller", true),
            ("weir-controller.weir-system.svc", true),
            ("weir-controller.default.svc", false),
        ] {
            assert_eq!(accepts(&made, &made, name, day(1)), accepted, "{name}");
        }
        assert!(!accepts(&made, &made, "weir-controller", day(91)));
        let read = Material::from_data(&made.clone().into_data());
        assert!(read == made);
        let shown = format!("{made:?}");
        assert!(!shown.contains("PRIVATE"), "{shown}");
    }

    #[test]
    fn old_authority_stays_trusted_until_it_expires() {
        let first = Material::make(&names(), day(0)).unwrap();
        let second = first.with_new_authority(day(300)).unwrap();
        assert_eq!(certificates(second.authorities()).len(), 2);
        assert_eq!(second.stored().serving, first.stored().serving, "it is kept");
        let served = second.with_new_certificate(&names(), day(301)).unwrap();
        assert_eq!(served.authorities(), second.authorities());
        assert!(accepts(&second, &served, "weir-controller", day(302)));
        assert!(!accepts(&first, &served, "weir-controller", day(302)));
        let later = served.with_new_certificate(&names(), day(366)).unwrap();
        assert_eq!(certificates(later.authorities()).len(), 1);
        assert!(accepts(&later, &served, "weir-controller", day(366)));
    }

    #[test]
    fn mismatched_parts_are_unusable() {
        let one = Material::make(&names(), day(0)).unwrap();
        let other = Material::make(&names(), day(0)).unwrap();
        let nothing = StoredMaterial::default();
        assert_eq!(Material::default().stored(), nothing);
        let broken = Material {
            authorities: "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".into(),
            ..one.clone()
        };
        assert_eq!(broken.stored(), nothing);
        let of_another = Material {
            authority_key: other.authority_key.clone(),
            ..one.clone()
        };
        assert_eq!(of_another.stored().authority, None);
        assert!(of_another.stored().serving.is_some());
        for serving in [
            Material {
                key: other.key.clone(),
                ..one.clone()
            },
            Material {
                key: "no key".into(),
                ..one.clone()
            },
            Material {
                certificate: String::new(),
                ..one.clone()
            },
            Material {
                certificate: other.certificate.clone(),
                key: other.key.clone(),
                ..one.clone()
            },
            // An authority cannot serve, and a serving certificate cannot sign.
            Material {
                certificate: one.authorities.clone(),
                key: one.authority_key.clone(),
                ..one.clone()
            },
        ] {
            let stored = serving.stored();
            assert!(
                stored.authority.is_some() && stored.serving.is_none(),
                "{serving:?}"
            );
        }
        let swapped = Material {
            authorities: one.certificate.clone(),
            authority_key: one.key.clone(),
            ..one
        };
        assert_eq!(swapped.stored().authority, None);
    }

    #[test]
    fn rejects_invalid_names() {
        assert!(Material::make(&["ü".to_owned()], day(0)).is_err());
    }
}
