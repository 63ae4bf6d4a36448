//! Where an event stands among those that followed from one event, so that loops end.

use std::fmt;

use http::{HeaderMap, HeaderName, HeaderValue};

/// The origin of an event, and its distance from it. It is kept beside the event and is no part of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lineage {
    /// Deliveries that led to the event, one from another.
    pub hops: u32,
    /// The event that all began with; absent where it is not known.
    pub origin: Option<Origin>,
}

/// Identifies an event that others followed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Chosen at random when that event was accepted.
    pub id: u64,
    /// How many events had followed from it when this one did, itself included; 0 of the origin itself.
    pub descendants: u32,
}

impl Lineage {
    /// The header that carries it: `HOPS;origin=ID;descendants=NUMBER`, the hops in decimal and the id in hexadecimal.
    pub const HEADER: HeaderName = HeaderName::from_static("weir-hops");

    /// The lineage of an event that nothing led to.
    #[must_use]
    pub fn of_origin(id: u64) -> Self {
        Self {
            hops: 0,
            origin: Some(Origin { id, descendants: 0 }),
        }
    }

    /// Reads the header. `None` if it is absent or unreadable.
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
        let origin = id.map(|id| Origin {
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
        if let Some(Origin { id, descendants }) = self.origin {
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
    fn is_read_as_it_was_written() {
        let origin = |id, descendants| Some(Origin { id, descendants });
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
    fn what_is_added_to_it_later_is_passed_over_and_what_is_unreadable_is_none() {
        let with_origin = Lineage {
            hops: 2,
            origin: Some(Origin {
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
