//! Kernel parameters as host and guest name them, and those of a single link.

/// Families and kinds of them.
pub const KINDS: [&str; 4] = ["ipv4/conf", "ipv4/neigh", "ipv6/conf", "ipv6/neigh"];

/// Most that are told of a link.
pub const MOST: usize = 256;

/// Bytes of the longest name, and of the longest value.
pub const LONGEST: usize = 128;

/// Path below `/proc/sys` of a link's parameter, whose name has not the link's (`ipv4/conf/rp_filter`); none if it is no such name.
pub fn path(link: &str, name: &str) -> Option<String> {
    let (kind, parameter) = name.rsplit_once('/')?;
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let is_one = KINDS.contains(&kind) && name.len() <= LONGEST && !parameter.is_empty();
    // The last two are no links, but what holds for all of them, and what new ones begin with.
    let is_link = !link.contains('/') && !["", ".", "..", "all", "default"].contains(&link);
    (is_one && is_link && parameter.bytes().all(is_plain))
        .then(|| format!("net/{kind}/{link}/{parameter}"))
}

/// Path below `/proc/sys` of a parameter by its name. What stands between the first two of its parts tells how it is written: with
/// dots, which are all slashes, or with slashes, beside which a dot means itself.
pub fn path_of_name(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(at) if name[at..].starts_with('/') => name.to_owned(),
        _ => name.replace('.', "/"),
    }
}

#[cfg(test)]
mod tests {
    use super::{path, path_of_name};

    #[test]
    fn names_are_written_in_two_ways() {
        for (name, path) in [
            ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
            ("net/ipv4/conf/eth0.7/rp_filter", "net/ipv4/conf/eth0.7/rp_filter"),
            ("net.ipv4.conf/all/rp_filter", "net/ipv4/conf/all/rp_filter"),
            ("", ""),
        ] {
            assert_eq!(path_of_name(name), path);
        }
    }

    #[test]
    fn a_name_leads_to_a_parameter_of_the_link_and_nowhere_else() {
        let expected = "net/ipv4/conf/eth0.7/rp_filter";
        assert_eq!(path("eth0.7", "ipv4/conf/rp_filter").as_deref(), Some(expected));
        for name in ["", "rp_filter", "ipv4/rp_filter", "ipv4/conf/", "ipv4/conf/../x", "core/x"] {
            assert_eq!(path("eth0", name), None, "{name}");
        }
        assert_eq!(path("eth0", &format!("ipv4/conf/{}", "x".repeat(200))), None);
        for link in ["", "..", "all", "default", "a/b"] {
            assert_eq!(path(link, "ipv4/conf/rp_filter"), None, "{link}");
        }
    }
}
