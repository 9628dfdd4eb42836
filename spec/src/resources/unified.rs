//! What `linux.resources.unified` says of memory, processors and tasks, as the fields that say it otherwise.
//!
//! The size of the VM and the groups on the host go by these, and processors have other numbers in the guest. They hold
//! against what a field says beside them, as with runc, which writes `unified` last.

pub(super) mod devices;

use serde_json::{Map, Value, json};

use super::{Limits, UnifiedLimits, parse_list, set};

/// A file of a group, and the fields that say the same; none for what the guest's kernel may judge.
type Reading = (&'static str, fn(&str) -> Option<Fields>);

/// An object of `linux.resources`, with fields of it and their values.
type Fields = (&'static str, Vec<(&'static str, Value)>);

const READINGS: [Reading; 5] = [
    ("memory.max", |text| Some(("memory", vec![("limit", json!(bytes(text)?))]))),
    ("cpu.max", |text| Some(("cpu", bandwidth(text)?))),
    ("cpuset.cpus", |text| Some(("cpu", vec![("cpus", json!(list(text)?))]))),
    ("cpuset.mems", |text| Some(("cpu", vec![("mems", json!(list(text)?))]))),
    ("pids.max", |text| Some(("pids", vec![("limit", json!(maximum(text)?))]))),
];

/// Whether somebody has written a limit on swap.
pub(super) fn limits_swap(resources: &Value) -> bool {
    resources["unified"]["memory.swap.max"].is_string()
}

impl UnifiedLimits {
    pub(super) fn changed(&self, change: &Limits) -> Self {
        let memory = &change.memory;
        // A container without a limit on memory has none on swap either.
        let speaks_of_swap = set(memory.swap).is_some() || memory.limit == Some(-1);
        if change.unified.swap_max.is_some() {
            change.unified.clone()
        } else if self.swap_kept && speaks_of_swap {
            Self::default()
        } else {
            self.clone()
        }
    }
}

/// Puts what is in force of memory and swap beside a `memory.max` that a change brings: what it does not speak of stays.
pub(super) fn complete(change: &mut Value, in_force: &Limits) {
    if change["unified"]["memory.max"].is_string() {
        let memory = json!({"limit": in_force.memory.limit, "swap": in_force.memory.swap});
        let asked = change["memory"]["swap"].as_i64().is_some_and(|swap| swap != 0);
        let unified = Some(&in_force.unified).filter(|unified| !(unified.swap_kept && asked));
        fill(change, &json!({"memory": memory, "unified": unified}));
    }
}

/// Says what is not asked for.
fn fill(change: &mut Value, in_force: &Value) {
    match (change, in_force) {
        (Value::Object(change), Value::Object(in_force)) => {
            for (name, value) in in_force {
                fill(change.entry(name.clone()).or_insert(Value::Null), value);
            }
        }
        (change, value) if change.is_null() || *change == json!(0) => *change = value.clone(),
        _ => {}
    }
}

/// Moves them to their fields.
pub(crate) fn take(resources: &mut Value) {
    if !keep_swap(resources) {
        return;
    }
    for (file, read) in READINGS {
        let said = resources["unified"][file].as_str().and_then(read);
        let Some((object, fields)) = said else { continue };
        let Some(resources) = resources.as_object_mut() else { continue };
        let own = resources.entry(object).or_insert(Value::Null);
        if own.is_null() {
            *own = Map::new().into();
        }
        // What is no object is refused elsewhere.
        let Some(own) = own.as_object_mut() else { continue };
        own.extend(fields.into_iter().map(|(field, value)| (field.to_owned(), value)));
        if let Some(unified) = resources.get_mut("unified").and_then(Value::as_object_mut) {
            unified.remove(file);
        }
    }
    devices::take(resources);
}

/// Has a `memory.max` leave as much for swap as the fields do: runc takes `limit` off `swap` before it writes the file. False
/// where the fields make no sense, which is refused elsewhere.
fn keep_swap(resources: &mut Value) -> bool {
    let memory = &resources["memory"];
    let (limit, swap) = (memory["limit"].as_i64(), memory["swap"].as_i64());
    let max = resources["unified"]["memory.max"].as_str().and_then(bytes);
    let (Some(max), Some(swap @ 1..), Some(limit)) = (max, swap, limit.filter(|it| *it != 0))
    else {
        return true;
    };
    // Of no limit nothing can be taken off.
    let left = swap - limit.max(0);
    if left < 0 {
        return false;
    }
    let sum = Some(max).filter(|max| *max > 0).map(|max| max.saturating_add(left));
    resources["memory"]["swap"] = json!(sum);
    // Zero, which may be left, is no wish in the field.
    if sum.is_none() && resources["unified"]["memory.swap.max"].is_null() {
        resources["unified"]["memory.swap.max"] = left.to_string().into();
    }
    true
}

/// Zero is a limit in a file, and no wish in a field.
fn maximum(text: &str) -> Option<i64> {
    match text.trim() {
        "max" => Some(-1),
        number => number.parse().ok().filter(|number| *number > 0),
    }
}

/// With a suffix, as the kernel takes it. What else it takes for a number, as hexadecimal ones, limits in the guest alone.
fn bytes(text: &str) -> Option<i64> {
    let text = text.trim();
    let power = text
        .bytes()
        .last()
        .and_then(|last| b"kmgtpe".iter().position(|suffix| *suffix == last.to_ascii_lowercase()));
    let Some(power) = power else { return maximum(text) };
    let number = text.get(..text.len() - 1)?.parse::<i64>().ok().filter(|number| *number > 0)?;
    (0..=power).try_fold(number, |number, _| number.checked_mul(1024))
}

fn list(text: &str) -> Option<&str> {
    parse_list(text).filter(|numbers| !numbers.is_empty()).map(|_| text.trim())
}

/// What `memory.swap.max` says, where zero is a limit; none for no limit.
pub(super) fn swap(text: &str) -> Option<u64> {
    match text.trim() {
        "0" => Some(0),
        text => bytes(text).and_then(|bytes| u64::try_from(bytes).ok()),
    }
}

fn bandwidth(text: &str) -> Option<Vec<(&'static str, Value)>> {
    let mut words = text.split_whitespace();
    let mut fields = vec![("quota", json!(maximum(words.next()?)?))];
    if let Some(period) = words.next() {
        fields.push(("period", json!(period.parse::<u64>().ok().filter(|period| *period > 0)?)));
    }
    Some(fields)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::{check_change, check_resources};

    fn checked(unified: Value) -> (crate::Limits, Value) {
        let resources = json!({"memory": {"limit": 5}, "cpu": {"shares": 9}, "unified": unified});
        let checked = check_resources(resources.to_string().as_bytes()).unwrap();
        (checked.limits, serde_json::from_slice(&checked.guest).unwrap())
    }

    #[test]
    fn what_limits_the_vm_is_read_from_files_too() {
        let said = json!({"memory.max": "64M", "cpu.max": "250000 50000", "pids.max": "7"});
        let (limits, guest) = checked(said);
        assert_eq!((limits.memory_bytes(), limits.cpus()), (Some(64 << 20), Some(5)));
        assert_eq!((limits.cpu.shares, limits.pids.limit), (Some(9), Some(7)));
        assert_eq!(guest["memory"], json!({"limit": 64 << 20}));
        assert_eq!(guest["cpu"], json!({"shares": 9, "quota": 250_000, "period": 50_000}));
        assert_eq!(guest["unified"], json!({}));
    }

    #[test]
    fn processors_are_those_of_the_host() {
        let (limits, guest) = checked(json!({"cpuset.cpus": "2-3,6\n", "cpuset.mems": ""}));
        assert_eq!((limits.cpus(), limits.cpu.mems), (Some(3), None));
        assert_eq!(guest["cpu"], json!({"shares": 9, "cpus": "2-3,6"}));
        assert_eq!(guest["unified"], json!({"cpuset.mems": ""}));
    }

    #[test]
    fn no_limit_is_one_that_is_taken_away() {
        let (limits, _) = checked(json!({"memory.max": "max\n", "cpu.max": "max"}));
        assert_eq!((limits.memory.limit, limits.memory_bytes()), (Some(-1), None));
        assert_eq!((limits.cpu.quota, limits.cpu.period), (Some(-1), None));
    }

    #[test]
    fn swap_is_limited_without_a_limit_on_memory() {
        for (said, bytes) in [("0", Some(0)), ("1K\n", Some(1024)), ("max", None), ("x", None)] {
            let (limits, guest) = checked(json!({"memory.swap.max": said}));
            assert_eq!(limits.swap_bytes(), bytes, "{said}");
            assert_eq!(guest["unified"]["memory.swap.max"], said);
            // As it is recorded, and a change is checked.
            let again = check_resources(&serde_json::to_vec(&limits).unwrap()).unwrap().limits;
            assert_eq!(again, limits);
            assert_eq!(again.changed(&crate::Limits::default()), limits);
        }
        let (limits, _) = checked(json!({}));
        assert_eq!(serde_json::to_value(&limits).unwrap()["unified"], Value::Null);
        let pair = check_resources(br#"{"memory": {"limit": 5, "swap": 7}}"#).unwrap().limits;
        assert_eq!(pair.swap_bytes(), Some(2));
    }

    #[test]
    fn swap_is_what_the_fields_leave_for_it() {
        let checked = |limit: i64, unified: Value| {
            let resources = json!({"memory": {"limit": limit, "swap": 200}, "unified": unified});
            check_resources(resources.to_string().as_bytes()).unwrap()
        };
        for (limit, max, sum) in
            [(100, "300", 400), (100, "150", 250), (200, "9", 9), (-1, "9", 209)]
        {
            let limits = checked(limit, json!({"memory.max": max})).limits;
            assert_eq!(limits.memory_bytes(), max.parse().ok(), "{limit} {max}");
            assert_eq!(limits.memory.swap, Some(sum), "{limit} {max}");
        }
        for (limit, unified, left) in [
            (100, json!({"memory.max": "max"}), 100),
            (200, json!({"memory.max": "max"}), 0),
            (100, json!({"memory.max": "max", "memory.swap.max": "7"}), 7),
        ] {
            let both = checked(limit, unified);
            assert_eq!((both.limits.memory.limit, both.limits.memory.swap), (Some(-1), None));
            assert_eq!(both.limits.swap_bytes(), Some(left));
            let guest: Value = serde_json::from_slice(&both.guest).unwrap();
            assert_eq!(guest["unified"], json!({"memory.swap.max": left.to_string()}));
        }
        let wrong = json!({"memory": {"limit": 9, "swap": 5}, "unified": {"memory.max": "3"}});
        let wrong = check_resources(wrong.to_string().as_bytes()).unwrap_err();
        assert!(wrong.to_string().contains("memory.swap"), "{wrong}");
    }

    #[test]
    fn a_changed_file_leaves_swap_as_it_is() {
        let in_force = |limits: &str| check_resources(limits.as_bytes()).unwrap().limits;
        let pair = in_force(r#"{"memory": {"limit": 100, "swap": 200}}"#);
        let file = in_force(r#"{"memory": {"limit": 100}, "unified": {"memory.swap.max": "0"}}"#);
        let none = in_force(r#"{"memory": {"limit": 100}}"#);
        for (max, bytes) in [("300", Some(300)), ("150", Some(150)), ("max", None)] {
            let change = json!({"unified": {"memory.max": max}}).to_string();
            for (old, swap) in [(&pair, Some(100)), (&file, Some(0)), (&none, None)] {
                let new = old.changed(&check_change(change.as_bytes(), old).unwrap().limits);
                assert_eq!((new.memory_bytes(), new.swap_bytes()), (bytes, swap), "{max} {old:?}");
                assert!(check_resources(&serde_json::to_vec(&new).unwrap()).is_ok(), "{new:?}");
            }
        }
        let other = check_change(br#"{"pids": {"limit": 5}}"#, &pair).unwrap().limits;
        assert_eq!(other.memory, crate::MemoryLimits::default());
    }

    #[test]
    fn what_was_kept_of_swap_holds_until_fields_speak_of_it() {
        let resources = |swap: i64, unified: Value| {
            json!({"memory": {"limit": 100, "swap": swap}, "unified": unified}).to_string()
        };
        let checked = |resources: String| check_resources(resources.as_bytes()).unwrap().limits;
        let changed = |old: &crate::Limits, change: &Value| {
            let change = check_change(change.to_string().as_bytes(), old).unwrap();
            old.changed(&change.limits)
        };
        let max = json!({"unified": {"memory.max": "max"}});
        let written = json!({"memory.max": "max", "memory.swap.max": "7"});
        let written = checked(resources(200, written));
        for left in [100, 0] {
            let kept = checked(resources(100 + left, max["unified"].clone()));
            let by_change = changed(&checked(resources(100 + left, Value::Null)), &max);
            for kept in [kept, by_change] {
                for (change, swap, if_written) in [
                    (json!({"memory": {"limit": 100, "swap": 300}}), Some(200), 7),
                    (json!({"memory": {"limit": 100, "swap": -1}}), None, 7),
                    (json!({"memory": {"limit": -1}}), None, 7),
                    (json!({"memory": {"limit": 50}}), u64::try_from(left).ok(), 7),
                    (json!({"pids": {"limit": 50}}), u64::try_from(left).ok(), 7),
                    (json!({"unified": {"memory.swap.max": "9"}}), Some(9), 9),
                ] {
                    let again = changed(&kept, &max);
                    let other = changed(&again, &json!({"unified": {"memory.max": "300"}}));
                    for old in [&kept, &again, &other] {
                        assert_eq!(old.swap_bytes(), u64::try_from(left).ok(), "{old:?}");
                        assert_eq!(changed(old, &change).swap_bytes(), swap, "{change} {old:?}");
                    }
                    let new = changed(&changed(&written, &max), &change);
                    assert_eq!(new.swap_bytes(), Some(if_written), "{change}");
                }
                let mut both = max.clone();
                both["memory"] = json!({"limit": 100, "swap": 300});
                assert_eq!(changed(&kept, &both).swap_bytes(), Some(200));
            }
        }
    }

    #[test]
    fn what_is_not_understood_is_the_guests_to_judge() {
        let said =
            json!({"memory.max": "0", "memory.high": "1M", "pids.max": "x", "cpu.max": "5 x"});
        let (limits, guest) = checked(said.clone());
        assert_eq!((limits.memory.limit, limits.pids.limit), (Some(5), None));
        assert_eq!((limits.cpu.quota, guest["unified"].clone()), (None, said));
        for bad in ["8E8", "99999999999E", "M", "-5", "é"] {
            let (limits, guest) = checked(json!({"memory.max": bad}));
            assert_eq!(limits.memory.limit, Some(5), "{bad}");
            assert_eq!(guest["unified"]["memory.max"], bad);
        }
    }
}
