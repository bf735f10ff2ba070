//! Ranges of IP addresses, written like `10.0.0.0/8` or `fe80::/10`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// All addresses that begin with the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// A first address of the range, or any address in it.
    address: IpAddr,
    /// How many bits count.
    prefix: u32,
}

impl Range {
    /// Parses an address, or an address and a prefix length.
    ///
    /// # Errors
    /// What is wrong, as the end of a line for the user.
    pub fn parse(text: &str) -> Result<Range, String> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let parsed: IpAddr = address.parse().map_err(|_| format!("'{address}' is not an IP address"))?;
        let bits = if parsed.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => bits,
            Some(text) => decimal(text)
                .filter(|prefix| (1..=bits).contains(prefix))
                .ok_or_else(|| format!("the prefix length '{text}' is not from 1 to {bits}"))?,
        };
        Ok(Range { address: parsed, prefix }.plain())
    }

    /// A range of IPv4 addresses that was written as IPv6 (`::ffff:10.0.0.0/104`) as IPv4.
    fn plain(self) -> Range {
        match self.address {
            IpAddr::V6(address) if self.prefix > 96 => match address.to_ipv4_mapped() {
                Some(plain) => Range { address: plain.into(), prefix: self.prefix - 96 },
                None => self,
            },
            _ => self,
        }
    }

    /// Whether the address is in the range.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(range), IpAddr::V4(address)) => {
                (range.to_bits() ^ address.to_bits()).leading_zeros() >= self.prefix
            }
            (IpAddr::V6(range), IpAddr::V6(address)) => {
                (range.to_bits() ^ address.to_bits()).leading_zeros() >= self.prefix
            }
            _ => false,
        }
    }
}

/// A decimal number without a sign and without leading zeroes.
pub fn decimal(text: &str) -> Option<u32> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if plain { text.parse().ok() } else { None }
}

/// The address from its 4 or 16 bytes, and as IPv4 if it is an IPv4 address that IPv6 carries. A
/// server that listens on IPv6 sees IPv4 clients like that.
pub fn from_bytes(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(four).into());
    }
    let sixteen = <[u8; 16]>::try_from(bytes).ok()?;
    Some(Ipv6Addr::from(sixteen).to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn has(range: &str, address: &str) -> bool {
        Range::parse(range).unwrap().contains(address.parse().unwrap())
    }

    #[test]
    fn a_range_has_the_addresses_that_begin_like_it() {
        assert!(has("10.0.0.0/8", "10.255.1.2") && !has("10.0.0.0/8", "11.0.0.0"));
        assert!(has("10.9.8.7/8", "10.0.0.1"), "the bits beyond the prefix do not count");
        assert!(has("192.168.2.1", "192.168.2.1") && !has("192.168.2.1", "192.168.2.2"));
        assert!(has("128.0.0.0/1", "255.0.0.0") && !has("128.0.0.0/1", "127.0.0.1"));
        assert!(has("fe80::/10", "febf::1") && !has("fe80::/10", "fec0::1"));
        assert!(has("::1", "::1") && !has("::1", "::2") && !has("::1", "0.0.0.1"));
    }

    #[test]
    fn an_ipv4_address_that_ipv6_carries_is_an_ipv4_address() {
        let bytes = "::ffff:10.1.2.3".parse::<Ipv6Addr>().unwrap().octets();
        assert_eq!(from_bytes(&bytes), Some("10.1.2.3".parse().unwrap()));
        assert!(has("::ffff:10.0.0.0/104", "10.1.2.3") && has("::ffff:10.1.2.3", "10.1.2.3"));
        assert_eq!(from_bytes(&[10, 1, 2, 3]), Some("10.1.2.3".parse().unwrap()));
        assert_eq!(from_bytes(&[1, 2, 3]), None);
    }

    #[test]
    fn what_is_no_range_is_refused() {
        for text in ["", "1.2.3", "1.2.3.4/", "1.2.3.4/0", "1.2.3.4/33", "1.2.3.4/08", "1.2.3.4/+8", "::1/129", "::1/x"]
        {
            assert!(Range::parse(text).is_err(), "{text}");
        }
        assert_eq!(Range::parse("::1/0").unwrap_err(), "the prefix length '0' is not from 1 to 128");
        assert_eq!(Range::parse("foo").unwrap_err(), "'foo' is not an IP address");
    }
}
