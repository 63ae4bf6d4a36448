//! Addresses that a `uri` may reach. Pure: the connector resolves and connects.
//!
//! The author of a Trigger chooses a `uri`, and the router connects from inside the cluster. So a `uri` may reach only
//! the internet; destinations in the cluster, on its nodes or in their network are referenced as Services.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// IPv4 addresses that are not on the internet, by IANA's registry of special-purpose addresses, plus Azure's
/// metadata and DNS, which has a public address.
const FORBIDDEN_V4: &[Ipv4Net] = &[
    v4([0, 0, 0, 0], 8),        // this network
    v4([10, 0, 0, 0], 8),       // private
    v4([100, 64, 0, 0], 10),    // carrier-grade NAT; pods of some clusters; Alibaba's metadata
    v4([127, 0, 0, 0], 8),      // loopback
    v4([168, 63, 129, 16], 32), // Azure's metadata and DNS
    v4([169, 254, 0, 0], 16),   // link-local, with most clouds' metadata
    v4([172, 16, 0, 0], 12),    // private
    v4([192, 0, 0, 0], 24),     // IETF protocols; Oracle's metadata
    v4([192, 0, 2, 0], 24),     // documentation
    v4([192, 88, 99, 0], 24),   // 6to4 relay anycast, deprecated
    v4([192, 168, 0, 0], 16),   // private
    v4([198, 18, 0, 0], 15),    // benchmarks
    v4([198, 51, 100, 0], 24),  // documentation
    v4([203, 0, 113, 0], 24),   // documentation
    v4([224, 0, 0, 0], 4),      // multicast
    v4([240, 0, 0, 0], 4),      // reserved, and broadcast
];

/// All public unicast addresses of IPv6.
const PUBLIC_V6: Ipv6Net = v6([0x2000, 0, 0, 0, 0, 0, 0, 0], 3);

/// Addresses in [`PUBLIC_V6`] that are not on the internet, by IANA's registry of special-purpose addresses.
const FORBIDDEN_V6: &[Ipv6Net] = &[
    v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 23), // IETF protocols, such as Teredo
    v6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32), // documentation
    v6([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20), // documentation
];

/// Addresses that no real Service has: the router's own machine, and cloud metadata.
const FORBIDDEN_TO_SERVICES: &[IpNet] = &[
    IpNet::V4(v4([0, 0, 0, 0], 8)),                            // this network
    IpNet::V4(v4([100, 100, 100, 200], 32)),                   // Alibaba's metadata
    IpNet::V4(v4([127, 0, 0, 0], 8)),                          // loopback
    IpNet::V4(v4([168, 63, 129, 16], 32)),                     // Azure's metadata and DNS
    IpNet::V4(v4([169, 254, 0, 0], 16)),                       // link-local, with most clouds' metadata
    IpNet::V4(v4([192, 0, 0, 192], 32)),                       // Oracle's metadata
    IpNet::V6(v6([0, 0, 0, 0, 0, 0, 0, 0], 128)),              // unspecified
    IpNet::V6(v6([0, 0, 0, 0, 0, 0, 0, 1], 128)),              // loopback
    IpNet::V6(v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254], 128)), // Amazon's metadata
    IpNet::V6(v6([0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254], 128)),  // Google's metadata
    IpNet::V6(v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10)),          // link-local
];

/// IPv6 ranges that embed an IPv4 address, and the byte at which it begins.
const EMBEDDING_V4: &[(Ipv6Net, usize)] = &[
    (v6([0, 0, 0, 0, 0, 0xffff, 0, 0], 96), 12),    // mapped
    (v6([0, 0, 0, 0, 0xffff, 0, 0, 0], 96), 12),    // translated, by SIIT
    (v6([0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 96), 12), // translated, by NAT64
    (v6([0x2002, 0, 0, 0, 0, 0, 0, 0], 16), 2),     // 6to4
];

/// Addresses that a `uri` may reach: never the denied ones, always the allowed ones, otherwise those on the
/// internet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UriAddresses {
    /// Permitted even if not on the internet.
    pub allow: Vec<IpNet>,
    /// Never permitted.
    pub deny: Vec<IpNet>,
}

impl UriAddresses {
    /// Permits every address, for a router whose user can reach them anyway.
    pub fn any() -> Self {
        Self {
            allow: vec![
                IpNet::V4(v4([0, 0, 0, 0], 0)),
                IpNet::V6(v6([0, 0, 0, 0, 0, 0, 0, 0], 0)),
            ],
            deny: Vec::new(),
        }
    }

    /// Addresses for Services: all but loopback, link-local and metadata addresses, so that nobody can direct the
    /// router there with a Service, for instance an `ExternalName`.
    pub fn of_services() -> Self {
        Self {
            deny: FORBIDDEN_TO_SERVICES.to_vec(),
            ..Self::any()
        }
    }

    /// Whether the address may be reached. One that embeds an IPv4 address is checked in both forms.
    pub fn permit(&self, address: IpAddr) -> bool {
        let Self { allow, deny } = self;
        let within_v4 = match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => embedded_v4(address),
        };
        let forms = [Some(address), within_v4.map(IpAddr::V4)];
        let is_in = |networks: &[IpNet]| {
            let mut forms = forms.iter().flatten();
            forms.any(|form| networks.iter().any(|network| network.contains(form)))
        };
        if is_in(deny) {
            return false;
        }
        is_in(allow)
            || match (address, within_v4) {
                (IpAddr::V4(address), _) | (_, Some(address)) => is_public_v4(address),
                (IpAddr::V6(address), None) => is_public_v6(address),
            }
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    !FORBIDDEN_V4.iter().any(|network| network.contains(&address))
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    PUBLIC_V6.contains(&address) && !FORBIDDEN_V6.iter().any(|network| network.contains(&address))
}

fn embedded_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let (_, at) = EMBEDDING_V4
        .iter()
        .find(|(network, _)| network.contains(&address))?;
    let octets = address.octets();
    let octets: [u8; 4] = octets.get(*at..at + 4)?.try_into().ok()?;
    Some(octets.into())
}

const fn v4([a, b, c, d]: [u8; 4], length: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length)
}

const fn v6([a, b, c, d, e, f, g, h]: [u16; 8], length: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, e, f, g, h), length)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn networks(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn permits_public_addresses() {
        let public = UriAddresses::default();
        for address in [
            "1.1.1.1",
            "8.8.8.8",
            "9.255.255.255",
            "11.0.0.0",
            "93.184.215.14",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.1",
            "168.63.129.15",
            "168.63.129.17",
            "169.253.255.255",
            "169.255.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "191.255.255.255",
            "192.0.1.0",
            "192.167.255.255",
            "192.169.0.0",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "2606:4700::1111",
            "2001:4860:4860::8888",
            "2a00::1",
            "2001:200::1",
            "::ffff:1.1.1.1",
            "64:ff9b::8.8.8.8",
            "::ffff:0:1.1.1.1",
            "2002:101:101::1",
            "3ffe::1",
        ] {
            assert!(public.permit(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn rejects_other_addresses_in_every_form() {
        let public = UriAddresses::default();
        for address in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.0",
            "10.255.255.255",
            "100.64.0.0",
            "100.100.100.200",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.255.255",
            "168.63.129.16",
            "169.254.0.0",
            "169.254.169.254",
            "169.254.170.2",
            "172.16.0.0",
            "172.31.255.255",
            "192.0.0.0",
            "192.0.0.192",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.0.0",
            "192.168.255.255",
            "198.18.0.0",
            "198.19.255.255",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
        ] {
            let address: Ipv4Addr = address.parse().unwrap();
            assert!(!public.permit(address.into()), "{address}");
            let [a, b, c, d] = address.octets();
            let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
            for form in [
                Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, high, low),
                Ipv6Addr::new(0, 0, 0, 0, 0xffff, 0, high, low),
                Ipv6Addr::new(0, 0, 0, 0, 0, 0, high, low),
                Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low),
                Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, high, low),
                Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1),
                Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, !high, !low),
            ] {
                assert!(!public.permit(form.into()), "{address} as {form}");
            }
        }
        for address in [
            "::",
            "::1",
            "::1.1.1.1",
            "100::1",
            "100:0:0:1::1",
            "64:ff9b:1::1.1.1.1",
            "2001::1",
            "2001:2::1",
            "2001:1ff:ffff::1",
            "2001:db8::1",
            "3fff::1",
            "4000::1",
            "5f00::1",
            "fc00::1",
            "fd00:ec2::254",
            "fd20:ce::254",
            "fe80::1",
            "fe80::a9fe:a9fe",
            "febf:ffff::1",
            "fec0::1",
            "ff02::1",
            "ff0e::1",
        ] {
            assert!(!public.permit(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn allow_overrides_the_built_in_list_and_deny_overrides_both() {
        let addresses = UriAddresses {
            allow: networks(&["10.1.0.0/16", "169.254.169.254/32", "fd00::/8", "64:ff9b:1::/48"]),
            deny: networks(&["10.1.2.0/24", "35.0.0.0/8", "2600::/16", "fd00:ec2::254/128"]),
        };
        let table = [
            ("10.1.0.1", true),
            ("10.1.2.1", false),
            ("10.2.0.1", false),
            ("169.254.169.254", true),
            ("169.254.169.253", false),
            ("34.1.1.1", true),
            ("35.1.1.1", false),
            ("::ffff:10.1.0.1", true),
            ("::ffff:10.1.2.1", false),
            ("64:ff9b::10.1.0.1", true),
            ("64:ff9b::35.1.1.1", false),
            ("2002:2301:101::1", false),
            ("64:ff9b:1::1.1.1.1", true),
            ("2600::1", false),
            ("2601::1", true),
            ("fd00::1", true),
            ("fd00:ec2::254", false),
            ("fc00::1", false),
        ];
        for (address, permitted) in table {
            assert_eq!(addresses.permit(address.parse().unwrap()), permitted, "{address}");
        }
    }

    #[test]
    fn services_may_be_anywhere_but_on_this_machine_and_at_metadata() {
        let services = UriAddresses::of_services();
        for (address, permitted) in [
            ("0.0.0.0", false),
            ("127.0.0.1", false),
            ("127.255.255.255", false),
            ("128.0.0.1", true),
            ("169.254.0.0", false),
            ("169.254.169.254", false),
            ("169.254.170.2", false),
            ("169.255.0.0", true),
            ("168.63.129.16", false),
            ("168.63.129.17", true),
            ("100.100.100.200", false),
            ("100.100.100.201", true),
            ("192.0.0.192", false),
            ("10.96.0.10", true),
            ("172.16.0.1", true),
            ("192.168.1.1", true),
            ("1.1.1.1", true),
            ("::", false),
            ("::1", false),
            ("fe80::1", false),
            ("febf::1", false),
            ("fd00:ec2::254", false),
            ("fd20:ce::254", false),
            ("fd00::1", true),
            ("2a00::1", true),
            ("::ffff:169.254.169.254", false),
            ("::ffff:10.96.0.10", true),
            ("64:ff9b::169.254.169.254", false),
            ("2002:a9fe:a9fe::1", false),
        ] {
            assert_eq!(services.permit(address.parse().unwrap()), permitted, "{address}");
        }
    }

    proptest! {
        #[test]
        fn any_permits_every_address(address in any::<IpAddr>()) {
            prop_assert!(UriAddresses::any().permit(address));
        }

        #[test]
        fn mapped_addresses_are_treated_like_ipv4(address in any::<Ipv4Addr>()) {
            let public = UriAddresses::default();
            prop_assert_eq!(public.permit(address.into()), public.permit(address.to_ipv6_mapped().into()));
        }
    }
}
