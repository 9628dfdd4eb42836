//! What an engine tells of a pod when it makes it: what its containers are going to ask for together.

use std::collections::BTreeMap;

use kata_spec::Limits;
use serde_json::Value;

/// CRI-O's annotations, the newer name first: CRI's `LinuxContainerResources` as JSON, `null` where a kubelet says nothing.
const CRI_O: [&str; 2] = ["pod-linux-resources.crio.io", "io.kubernetes.cri-o.PodLinuxResources"];

/// The sum of the pod's limits, by containerd's annotations, of which each is a number, or by CRI-O's.
pub fn pod_limits(annotations: &BTreeMap<String, String>) -> Limits {
    let text = CRI_O.iter().find_map(|name| annotations.get(*name));
    let resources: Value =
        text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let number = |containerd: &str, cri: &str| {
        let told = annotations.get(&format!("io.kubernetes.cri.sandbox-{containerd}"));
        let told = told.and_then(|value| value.trim().parse::<i64>().ok());
        told.or_else(|| resources[cri].as_i64()).filter(|value| *value > 0)
    };
    let mut limits = Limits::default();
    limits.memory.limit = number("memory", "memory_limit_in_bytes");
    limits.cpu.quota = number("cpu-quota", "cpu_quota");
    let period = number("cpu-period", "cpu_period");
    limits.cpu.period = period.and_then(|period| u64::try_from(period).ok());
    limits
}

#[cfg(test)]
mod tests {
    use super::pod_limits;

    #[test]
    fn engines_tell_the_sum_in_their_own_ways() {
        let told = |pairs: &[(&str, &str)]| {
            let pairs = pairs.iter().map(|(name, value)| ((*name).into(), (*value).into()));
            let limits = pod_limits(&pairs.collect());
            (limits.memory.limit, limits.cpu.quota, limits.cpu.period)
        };
        let all = (Some(536_870_912), Some(150_000), Some(100_000));
        let containerd = [
            ("io.kubernetes.cri.sandbox-memory", "536870912"),
            ("io.kubernetes.cri.sandbox-cpu-quota", "150000"),
            ("io.kubernetes.cri.sandbox-cpu-period", "100000"),
        ];
        assert_eq!(told(&containerd), all);
        let json = r#"{"cpu_period":100000,"cpu_quota":150000,"cpu_shares":2,
            "memory_limit_in_bytes":536870912,"unified":{"memory.oom.group":"1"}}"#;
        for name in super::CRI_O {
            assert_eq!(told(&[(name, json)]), all, "{name}");
            for nothing in ["null", "{}", "", "[1]", r#"{"cpu_quota":-1}"#] {
                assert_eq!(told(&[(name, nothing)]), (None, None, None), "{name} {nothing}");
            }
        }
        assert_eq!(told(&[("io.kubernetes.cri.sandbox-memory", "0")]), (None, None, None));
    }
}
