//! The position of an event among those derived from one event. Used to stop loops.

use std::fmt;

use http::{HeaderMap, HeaderName, HeaderValue};

/// The origin of an event, and its distance from it. It is kept beside the event, but is not part of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lineage {
    /// Number of successive deliveries that led to the event.
    pub hops: u32,
    /// The event that the chain started with; `None` if unknown.
    pub origin: Option<ChainOrigin>,
}

/// Identifies the first event of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChainOrigin {
    /// Random id, assigned when that event was accepted.
    pub id: u64,
    /// Number of events derived from it so far, including this one; 0 for the origin itself.
    pub descendants: u32,
}

impl Lineage {
    /// The header that carries it: `HOPS;origin=ID;descendants=NUMBER`, with decimal hops and a hexadecimal id.
    pub const HEADER: HeaderName = HeaderName::from_static("weir-hops");

    /// Returns the lineage of an event at the start of a chain.
    #[must_use]
    pub fn of_origin(id: u64) -> Self {
        Self {
            hops: 0,
            origin: Some(ChainOrigin { id, descendants: 0 }),
        }
    }

    /// Parses the header. `None` if it is absent or invalid.
    #[must_use]
    pub fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let text = headers.get(Self::HEADER)?.to_str().ok()?;
        let mut parts = text.split(';').map(str::trim_ascii);
        let hops = parts.next()?.parse().ok()?;
        let (mut id, mut descendants) = (None, None);
        for part in parts {
            match part.split_once('=')? {
                ("origin", value) => id = Some(u64::from_str_radix(value, 16).ok()?),
                ("descendants", value) => descendants = Some(value.parse().ok()?),
                _ => {}
            }
        }
        let origin = id.map(|id| ChainOrigin {
            id,
            descendants: descendants.unwrap_or(0),
        });
        Some(Self { hops, origin })
    }

    /// Sets the header.
    pub fn set_header(&self, headers: &mut HeaderMap) {
        if let Ok(value) = HeaderValue::try_from(self.to_string()) {
            headers.insert(Self::HEADER, value);
        }
    }
}

impl fmt::Display for Lineage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.hops)?;
        if let Some(ChainOrigin { id, descendants }) = self.origin {
            write!(f, ";origin={id:016x};descendants={descendants}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &'static str) -> Option<Lineage> {
        let value = HeaderValue::from_static(text);
        Lineage::from_headers(&HeaderMap::from_iter([(Lineage::HEADER, value)]))
    }

    #[test]
    fn survives_a_round_trip() {
        let origin = |id, descendants| Some(ChainOrigin { id, descendants });
        let table = [
            (0, None),
            (3, origin(0, 0)),
            (u32::MAX, origin(u64::MAX, u32::MAX)),
            (7, origin(0x1f, 12)),
        ];
        for (hops, origin) in table {
            let lineage = Lineage { hops, origin };
            let mut headers = HeaderMap::new();
            lineage.set_header(&mut headers);
            assert_eq!(Lineage::from_headers(&headers), Some(lineage));
        }
    }

    #[test]
    fn ignores_unknown_parameters_and_rejects_invalid_headers() {
        let with_origin = Lineage {
            hops: 2,
            origin: Some(ChainOrigin {
                id: 255,
                descendants: 0,
            }),
        };
        assert_eq!(read(" 2; origin=ff ;later=x"), Some(with_origin));
        assert_eq!(
            read("2"),
            Some(Lineage {
                hops: 2,
                origin: None
            })
        );
        for text in [
            "",
            "x",
            "-1",
            "4294967296",
            "1;origin",
            "1;origin=x",
            "1;descendants=",
        ] {
            assert_eq!(read(text), None, "{text:?}");
        }
        assert_eq!(Lineage::from_headers(&HeaderMap::new()), None);
    }
}
