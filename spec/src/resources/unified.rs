//! What `linux.resources.unified` says of memory, processors and tasks, as the fields that say it otherwise.
//!
//! The size of the VM and the groups on the host go by these, and processors have other numbers in the guest. They hold
//! against what a field says beside them, as with runc, which writes `unified` last.

pub(super) mod devices;

use serde_json::{Map, Value, json};

use super::parse_list;

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

/// Moves them to their fields.
pub(crate) fn take(resources: &mut Value) {
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

/// Zero is a limit in a file, and no wish in a field.
fn maximum(text: &str) -> Option<i64> {
    match text.trim() {
        "max" => Some(-1),
        number => number.parse().ok().filter(|number| *number > 0),
    }
}

/// With a suffix, as the kernel takes it.
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

    use crate::check_resources;

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
