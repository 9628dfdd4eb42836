//! Kernel parameters of links.

use std::collections::BTreeMap;

use kata_protocol::{
    agent::Link,
    sysctl::{self, LONGEST, MOST},
};

use crate::{helper::set_sysctl, order::Failure};

/// Sets what was not told before of the link, and returns what was not set, by paths below `/proc/sys`.
pub fn set(link: &Link, before: Option<&Link>) -> Vec<(String, Failure)> {
    let is_news = |(name, value): &(&String, &String)| {
        before.is_none_or(|before| before.sysctls.get(*name) != Some(*value))
    };
    // In an order: some set others along.
    let news: BTreeMap<_, _> = link.sysctls.iter().take(MOST).filter(is_news).collect();
    let set = |(name, value): (&String, &String)| {
        let Some(path) = sysctl::path(&link.name, name).filter(|_| value.len() <= LONGEST) else {
            return Some((name.clone(), Failure::invalid(format!("sysctl {name:?} is no link's"))));
        };
        set_sysctl(&path, value).err().map(|failure| (path, failure))
    };
    news.into_iter().filter_map(set).collect()
}

#[cfg(test)]
mod tests {
    use super::{Link, set};

    fn link(sysctls: &[(&str, &str)]) -> Link {
        let sysctls = sysctls.iter().map(|(name, value)| ((*name).into(), (*value).into()));
        Link { name: "none".into(), sysctls: sysctls.collect(), ..Link::default() }
    }

    #[test]
    fn what_is_new_is_set_and_what_can_not_be_is_told() {
        let long = "1".repeat(200);
        let now = link(&[
            ("ipv4/conf/rp_filter", "2"),
            ("ipv4/conf/tag", "1"),
            ("ipv4/conf/../../../x", "1"),
            ("ipv6/conf/forwarding", &long),
        ]);
        let paths = |before: Option<&Link>| -> Vec<String> {
            set(&now, before).into_iter().map(|(path, _)| path).collect()
        };
        let all = [
            "ipv4/conf/../../../x",
            "net/ipv4/conf/none/rp_filter",
            "net/ipv4/conf/none/tag",
            "ipv6/conf/forwarding",
        ];
        assert_eq!(paths(None), all);
        let before = link(&[("ipv4/conf/rp_filter", "2"), ("ipv4/conf/tag", "0")]);
        assert_eq!(paths(Some(&before)), [all[0], all[2], all[3]]);
        assert!(paths(Some(&now)).is_empty());
    }
}
