//! `events`: what a container uses, now or again and again, in runc's form.

use std::{ops::ControlFlow, time::Duration};

use kata_engine_api::{
    containerd::{any::Any, cgroups_v1 as v1, cgroups_v2 as v2},
    record::Ended,
};
use protobuf::Message;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{Context, NOT_RUNNING, print_on};
use crate::{
    args::Events,
    counters,
    failure::Failure,
    shim_client::{ShimClient, Turn},
};

/// What cgroup v1 says where there is no limit; engines compare with it.
const UNLIMITED: u64 = 0x7fff_ffff_ffff_f000;

impl Context<'_> {
    pub(super) fn events(&self, typed: &Events) -> Result<(), Failure> {
        let id = typed.id.as_str();
        self.with_shim(&typed.id, NOT_RUNNING, async |shim| {
            if typed.stats {
                return tell(id, "stats", Some(statistics(shim).await?)).map(drop);
            }
            follow(shim, id, typed.interval).await
        })
    }
}

/// Tells statistics at each interval, at once each time that the OOM killer has struck, and last of all the end. Without a
/// reader it has nobody to tell, and is done.
async fn follow(shim: &ShimClient, id: &str, interval: Duration) -> Result<(), Failure> {
    let mut ticks = tokio::time::interval(interval);
    // The first is at once, and runc waits for its first, too.
    ticks.tick().await;
    let mut told = 0;
    loop {
        let turn = shim.wait_beyond_oom_kills(told);
        tokio::pin!(turn);
        let turn = loop {
            tokio::select! {
                turn = &mut turn => break turn?,
                _ = ticks.tick() => {
                    let answer = shim.statistics().await?;
                    if tell(id, "stats", Some(complete(shim, &answer).await?))?.is_break() {
                        return Ok(());
                    }
                }
            }
        };
        let ended = match turn {
            Turn::OomKills(kills) => {
                if tell_oom(id, &mut told, kills)?.is_break() {
                    return Ok(());
                }
                continue;
            }
            Turn::Ended(ended) => ended,
        };
        // Its last statistics have the strike that ended it.
        if let Ok(answer) = shim.statistics().await {
            tell_oom(id, &mut told, oom_kills(&answer)).map(drop)?;
        }
        return ended.map_or(Ok(()), |ended| tell(id, "exit", Some(exit_view(&ended))).map(drop));
    }
}

/// One event for whatever the OOM killer has done since the last: the count is a guest's, who may say what it likes.
fn tell_oom(id: &str, told: &mut u64, kills: u64) -> Result<ControlFlow<()>, Failure> {
    if kills <= *told {
        return Ok(ControlFlow::Continue(()));
    }
    *told = kills;
    tell(id, "oom", None)
}

async fn statistics(shim: &ShimClient) -> Result<Value, Failure> {
    complete(shim, &shim.statistics().await?).await
}

/// Adds what the links have carried, of which the shim's form knows nothing.
async fn complete(shim: &ShimClient, answer: &Any) -> Result<Value, Failure> {
    let mut data = view(answer)?;
    data["network_interfaces"] = counters::of_links(shim.pid().await?);
    Ok(data)
}

/// The end as `state` has it, too, but for the console. runc's events end without a word.
fn exit_view(ended: &Ended) -> Value {
    json!({
        "code": ended.code,
        "cause": ended.cause,
        "detail": ended.detail,
        "step": ended.step,
        "at": ended.at,
    })
}

/// A line; runc's has its members in this order, and there are readers that look for no other.
#[derive(Serialize)]
struct Event<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Value>,
}

fn tell(id: &str, kind: &str, data: Option<Value>) -> Result<ControlFlow<()>, Failure> {
    print_on(&line(&Event { kind, id, data })?)
}

fn line(event: &Event<'_>) -> Result<String, Failure> {
    let text = serde_json::to_string(event);
    text.map(|text| text + "\n").map_err(|source| Failure::host("write an event")(source.into()))
}

fn not_understood(source: protobuf::Error) -> Failure {
    Failure::host("understand the statistics")(source.into())
}

fn oom_kills(answer: &Any) -> u64 {
    if answer.type_url.ends_with("cgroups.v2.Metrics") {
        let metrics = v2::Metrics::parse_from_bytes(&answer.value);
        metrics.map_or(0, |metrics| metrics.memory_events.oom_kill)
    } else {
        let metrics = v1::Metrics::parse_from_bytes(&answer.value);
        metrics.map_or(0, |metrics| metrics.memory_oom_control.oom_kill)
    }
}

/// runc's structure of either form.
fn view(answer: &Any) -> Result<Value, Failure> {
    let parsed = if answer.type_url.ends_with("cgroups.v2.Metrics") {
        v2::Metrics::parse_from_bytes(&answer.value).map(|metrics| of_v2(&metrics))
    } else {
        v1::Metrics::parse_from_bytes(&answer.value).map(|metrics| of_v1(&metrics))
    };
    parsed.map_err(not_understood)
}

fn of_v1(metrics: &v1::Metrics) -> Value {
    let memory = &metrics.memory;
    let entry =
        |entry: &v1::MemoryEntry| entry_view([entry.limit, entry.usage, entry.max], entry.failcnt);
    let raw = raw([
        ("cache", memory.cache),
        ("rss", memory.rss),
        ("mapped_file", memory.mapped_file),
        ("dirty", memory.dirty),
        ("writeback", memory.writeback),
        ("pgfault", memory.pg_fault),
        ("pgmajfault", memory.pg_maj_fault),
        ("inactive_anon", memory.inactive_anon),
        ("active_anon", memory.active_anon),
        ("inactive_file", memory.inactive_file),
        ("active_file", memory.active_file),
        ("unevictable", memory.unevictable),
        ("total_cache", memory.total_cache),
        ("total_rss", memory.total_rss),
        ("total_inactive_file", memory.total_inactive_file),
        ("total_active_file", memory.total_active_file),
    ]);
    let io = |entries: &[v1::BlkIOEntry]| {
        let line = |entry: &v1::BlkIOEntry| json!({"major": entry.major, "minor": entry.minor, "op": entry.op, "value": entry.value});
        entries.iter().map(line).collect::<Vec<_>>()
    };
    let blkio = json!({
        "ioServiceBytesRecursive": io(&metrics.blkio.io_service_bytes_recursive),
        "ioServicedRecursive": io(&metrics.blkio.io_serviced_recursive),
    });
    let huge = metrics.hugetlb.iter();
    let huge = huge.map(|huge| (huge.pagesize.clone(), huge_view(huge.usage, huge.max)));
    let (usage, throttle) = (&metrics.cpu.usage, &metrics.cpu.throttling);
    json!({
        "cpu": cpu_view(
            [usage.total, usage.kernel, usage.user],
            [throttle.periods, throttle.throttled_periods, throttle.throttled_time],
        ),
        "cpuset": {},
        "memory": {
            "cache": memory.cache,
            "usage": entry(&memory.usage),
            "swap": entry(&memory.swap),
            "kernel": entry(&memory.kernel),
            "kernelTCP": entry(&memory.kernel_tcp),
            "raw": raw,
        },
        "pids": pids_view(metrics.pids.current, metrics.pids.limit),
        "blkio": blkio,
        "hugetlb": huge.collect::<Map<_, _>>(),
        "intel_rdt": {},
        "network_interfaces": null,
    })
}

fn of_v2(metrics: &v2::Metrics) -> Value {
    // The guest may say any number.
    let nanoseconds = |microseconds: u64| microseconds.saturating_mul(1000);
    let (memory, cpu) = (&metrics.memory, &metrics.cpu);
    let raw = raw([
        ("anon", memory.anon),
        ("file", memory.file),
        ("kernel_stack", memory.kernel_stack),
        ("slab", memory.slab),
        ("sock", memory.sock),
        ("shmem", memory.shmem),
        ("file_mapped", memory.file_mapped),
        ("file_dirty", memory.file_dirty),
        ("file_writeback", memory.file_writeback),
        ("inactive_anon", memory.inactive_anon),
        ("active_anon", memory.active_anon),
        ("inactive_file", memory.inactive_file),
        ("active_file", memory.active_file),
        ("unevictable", memory.unevictable),
        ("pgfault", memory.pgfault),
        ("pgmajfault", memory.pgmajfault),
    ]);
    let io = |value: fn(&v2::IOEntry) -> [(&'static str, u64); 2]| {
        let lines = |entry: &v2::IOEntry| {
            let (major, minor) = (entry.major, entry.minor);
            value(entry).map(
                |(op, value)| json!({"major": major, "minor": minor, "op": op, "value": value}),
            )
        };
        metrics.io.usage.iter().flat_map(lines).collect::<Vec<_>>()
    };
    let huge = metrics.hugetlb.iter();
    let huge = huge.map(|huge| (huge.pagesize.clone(), huge_view(huge.current, huge.max)));
    let failures = metrics.memory_events.max;
    let mut view = json!({
        "cpu": cpu_view(
            [cpu.usage_usec, cpu.system_usec, cpu.user_usec].map(nanoseconds),
            [cpu.nr_periods, cpu.nr_throttled, nanoseconds(cpu.throttled_usec)],
        ),
        "cpuset": {},
        "memory": {
            "cache": memory.file,
            "usage": entry_view([memory.usage_limit, memory.usage, memory.max_usage], failures),
            "swap": entry_view([memory.swap_limit, memory.swap_usage, memory.swap_max_usage], 0),
            "kernel": entry_view([UNLIMITED, memory.slab, 0], 0),
            "kernelTCP": entry_view([UNLIMITED, memory.sock, 0], 0),
            "raw": raw,
        },
        "pids": pids_view(metrics.pids.current, metrics.pids.limit),
        "blkio": {
            "ioServiceBytesRecursive": io(|io| [("Read", io.rbytes), ("Write", io.wbytes)]),
            "ioServicedRecursive": io(|io| [("Read", io.rios), ("Write", io.wios)]),
        },
        "hugetlb": huge.collect::<Map<_, _>>(),
        "intel_rdt": {},
        "network_interfaces": null,
    });
    let pressures =
        [("cpu", &metrics.cpu.psi), ("memory", &memory.psi), ("blkio", &metrics.io.psi)];
    for (resource, pressure) in pressures {
        // A guest whose kernel does not tell has none, as with runc.
        if let Some(pressure) = pressure.as_ref() {
            view[resource]["psi"] = pressure_view(pressure);
        }
    }
    view
}

fn pressure_view(pressure: &v2::PSIStats) -> Value {
    let part = |data: &v2::PSIData| json!({"avg10": data.avg10, "avg60": data.avg60, "avg300": data.avg300, "total": data.total});
    json!({"some": part(&pressure.some), "full": part(&pressure.full)})
}

fn raw<const N: usize>(values: [(&str, u64); N]) -> Map<String, Value> {
    values.into_iter().map(|(name, value)| (name.to_owned(), json!(value))).collect()
}

fn entry_view([limit, usage, max]: [u64; 3], failcnt: u64) -> Value {
    json!({"limit": limit, "usage": usage, "max": max, "failcnt": failcnt})
}

fn cpu_view([total, kernel, user]: [u64; 3], [periods, throttled, time]: [u64; 3]) -> Value {
    json!({
        "usage": {"total": total, "kernel": kernel, "user": user},
        "throttling": {"periods": periods, "throttledPeriods": throttled, "throttledTime": time},
    })
}

/// runc leaves a limit out that there is not.
fn pids_view(current: u64, limit: u64) -> Value {
    if limit == 0 {
        json!({"current": current})
    } else {
        json!({"current": current, "limit": limit})
    }
}

fn huge_view(usage: u64, max: u64) -> Value {
    json!({"usage": usage, "max": max, "failcnt": 0})
}

#[cfg(test)]
mod tests {
    use kata_engine_api::containerd::{any::Any, cgroups_v1 as v1, cgroups_v2 as v2};
    use protobuf::Message;

    use super::{Event, line, of_v2, oom_kills, view};

    #[test]
    fn a_line_begins_as_runcs_does() {
        let event = |kind, data| line(&Event { kind, id: "c1", data }).unwrap();
        assert_eq!(event("oom", None), "{\"type\":\"oom\",\"id\":\"c1\"}\n");
        let stats = event("stats", Some(serde_json::json!({"cpu": {}})));
        assert_eq!(stats, "{\"type\":\"stats\",\"id\":\"c1\",\"data\":{\"cpu\":{}}}\n");
    }

    #[test]
    fn pressure_is_told_where_the_guest_tells_it() {
        let mut metrics = v2::Metrics::new();
        let psi = metrics.cpu.mut_or_insert_default().psi.mut_or_insert_default();
        let some = psi.some.mut_or_insert_default();
        (some.avg10, some.total) = (1.5, 7);
        let view = of_v2(&metrics);
        let none = serde_json::json!({"avg10": 0.0, "avg60": 0.0, "avg300": 0.0, "total": 0});
        assert_eq!(view["cpu"]["psi"]["some"]["avg10"], 1.5);
        assert_eq!(view["cpu"]["psi"]["some"]["total"], 7);
        assert_eq!(view["cpu"]["psi"]["full"], none);
        for silent in ["memory", "blkio"] {
            assert!(view[silent].get("psi").is_none(), "{silent}");
        }
    }

    #[test]
    fn both_forms_say_the_same_in_runcs_words() {
        let (mut old, mut new) = (v1::Metrics::new(), v2::Metrics::new());
        old.cpu.mut_or_insert_default().usage.mut_or_insert_default().total = 3_000;
        new.cpu.mut_or_insert_default().usage_usec = 3;
        new.cpu.mut_or_insert_default().user_usec = u64::MAX;
        old.memory.mut_or_insert_default().usage.mut_or_insert_default().usage = 7;
        new.memory.mut_or_insert_default().usage = 7;
        old.memory_oom_control.mut_or_insert_default().oom_kill = 2;
        new.memory_events.mut_or_insert_default().oom_kill = 2;
        let any = |version: &str, value: Vec<u8>| Any {
            type_url: format!("io.containerd.cgroups.{version}.Metrics"),
            value,
            ..Any::default()
        };
        let old = any("v1", old.write_to_bytes().unwrap());
        let new = any("v2", new.write_to_bytes().unwrap());
        for answer in [old, new] {
            let view = view(&answer).unwrap();
            assert_eq!(view["cpu"]["usage"]["total"], 3_000);
            assert_eq!(view["memory"]["usage"]["usage"], 7);
            assert_eq!(view["pids"], serde_json::json!({"current": 0}));
            assert_eq!(oom_kills(&answer), 2);
        }
    }
}
