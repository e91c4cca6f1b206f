//! `ipRules`: which addresses a SOCKS proxy may reach.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An ordered list. The first rule that fits address and port decides; without one the answer is no.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IpRules(pub Vec<IpRule>);

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpRule {
    /// The addresses.
    pub prefix: Prefix,
    /// The ports, none of them 0. Empty: all.
    pub ports: Vec<u16>,
    /// The decision.
    pub allow: bool,
}

/// An address block in CIDR notation (RFC 4632), as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefix {
    text: String,
    network: IpAddr,
    bits: u8,
}

impl IpRules {
    /// Whether the destination may be reached. An IPv4 address in IPv6 clothes
    /// (`::ffff:10.0.0.1`) is judged as the IPv4 address it is; blocks of one family never cover
    /// the other.
    pub fn decide(&self, ip: IpAddr, port: u16) -> bool {
        let ip = ip.to_canonical();
        self.0
            .iter()
            .find(|rule| (rule.ports.is_empty() || rule.ports.contains(&port)) && rule.prefix.contains(ip))
            .is_some_and(|rule| rule.allow)
    }
}

impl Prefix {
    /// Reads `10.0.0.0/8` or `fc00::/7`. Bits beyond the length are ignored.
    pub fn parse(text: &str) -> Option<Self> {
        let (address, bits) = text.split_once('/')?;
        let address: IpAddr = address.parse().ok()?;
        if bits.is_empty() || bits.len() > 3 || !bits.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let bits: u8 = bits.parse().ok()?;
        let (network, bits) = match (address, address.to_canonical()) {
            (IpAddr::V6(_), IpAddr::V4(mapped)) if (96..=128).contains(&bits) => (IpAddr::V4(mapped), bits - 96),
            (IpAddr::V4(_), _) if bits > 32 => return None,
            (IpAddr::V6(_), _) if bits > 128 => return None,
            _ => (address, bits),
        };
        Some(Self { text: text.to_owned(), network: masked(network, bits), bits })
    }

    /// Whether an address in canonical form lies within.
    pub fn contains(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.network.is_ipv4() && masked(ip, self.bits) == self.network
    }

    /// The spelling in the configuration.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

fn masked(ip: IpAddr, bits: u8) -> IpAddr {
    let cut = |width: u32| width.saturating_sub(u32::from(bits));
    match ip {
        IpAddr::V4(ip) => {
            let mask = u32::MAX.checked_shl(cut(32)).unwrap_or(0);
            Ipv4Addr::from_bits(ip.to_bits() & mask).into()
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(cut(128)).unwrap_or(0);
            Ipv6Addr::from_bits(ip.to_bits() & mask).into()
        }
    }
}
