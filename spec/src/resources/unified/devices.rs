//! Lines of `linux.resources.unified` about single block devices, which have other numbers in the guest: what they say holds on
//! the host, as the fields that say the same.

use serde_json::{Map, Value, json};

/// A list of `blockIO`, and what is to be added to it.
type Entry = (&'static str, Value);

/// The number of a device.
type Number = (i64, i64);

/// A file of a group, and how a line of it is read, after the device; none for what no field can say.
type Reading = (&'static str, fn(Number, &str) -> Option<Vec<Entry>>);

const READINGS: [Reading; 2] = [("io.max", rates), ("io.weight", weight)];

/// Moves them to their fields, behind what these say: the last one counts, as with runc, which writes `unified` last.
pub(super) fn take(resources: &mut Value) {
    for (file, read) in READINGS {
        let Some(text) = resources["unified"][file].as_str() else { continue };
        let (mut entries, mut left) = (Vec::new(), Vec::new());
        for line in text.lines() {
            let said = device(line).and_then(|(number, rest)| read(number, rest));
            match said {
                Some(said) => entries.extend(said),
                None => left.push(line),
            }
        }
        let left = left.join("\n");
        if entries.is_empty() || !add(resources, entries) {
            continue;
        }
        if let Some(unified) = resources.get_mut("unified").and_then(Value::as_object_mut) {
            match left.is_empty() {
                true => drop(unified.remove(file)),
                false => drop(unified.insert(file.to_owned(), left.into())),
            }
        }
    }
}

/// The first line about a device that is not moved, and its file.
pub(in crate::resources) fn left_over(resources: &Value) -> Option<(&str, &str)> {
    let files = resources["unified"].as_object()?.iter();
    let mut lines = files.flat_map(|(file, text)| {
        let lines = text.as_str().unwrap_or_default().lines();
        lines.map(move |line| (file.as_str(), line))
    });
    lines.find(|(_, line)| device(line).is_some())
}

/// The first word of such a line that keeps it from being moved; none where the file is none of those that are.
pub(in crate::resources) fn not_understood<'a>(file: &str, line: &'a str) -> Option<&'a str> {
    let (_, read) = READINGS.into_iter().find(|(name, _)| *name == file)?;
    let (number, rest) = device(line)?;
    rest.split_whitespace().find(|word| read(number, word).is_none())
}

/// False where the fields are no lists, which is refused elsewhere.
fn add(resources: &mut Value, entries: Vec<Entry>) -> bool {
    let Some(resources) = resources.as_object_mut() else { return false };
    let block_io = resources.entry("blockIO").or_insert(Value::Null);
    if block_io.is_null() {
        *block_io = Map::new().into();
    }
    let Some(block_io) = block_io.as_object_mut() else { return false };
    entries.into_iter().all(|(field, value)| {
        let list = block_io.entry(field).or_insert(Value::Null);
        if list.is_null() {
            *list = json!([]);
        }
        list.as_array_mut().map(|list| list.push(value)).is_some()
    })
}

/// The device that a line is about, and what it says of it.
fn device(line: &str) -> Option<(Number, &str)> {
    let line = line.trim();
    let (number, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let (major, minor) = number.split_once(':')?;
    Some(((major.parse().ok()?, minor.parse().ok()?), rest.trim()))
}

fn rates((major, minor): Number, text: &str) -> Option<Vec<Entry>> {
    let rate = |word: &str| {
        let (key, rate) = word.split_once('=')?;
        let field = match key {
            "rbps" => "throttleReadBpsDevice",
            "wbps" => "throttleWriteBpsDevice",
            "riops" => "throttleReadIOPSDevice",
            "wiops" => "throttleWriteIOPSDevice",
            _ => return None,
        };
        // In a field zero takes a rate away; the file knows no such rate.
        let rate = match rate {
            "max" => 0,
            rate => rate.parse::<u64>().ok().filter(|rate| *rate > 0)?,
        };
        Some((field, json!({"major": major, "minor": minor, "rate": rate})))
    };
    text.split_whitespace().map(rate).collect()
}

/// 1 to 10000 as the nearest of 10 to 1000, which is what the field has.
fn weight((major, minor): Number, text: &str) -> Option<Vec<Entry>> {
    let weight = text.parse::<u64>().ok().filter(|weight| (1..=10_000).contains(weight))?;
    let weight = 10 + ((weight - 1) * 990 + 4_999) / 9_999;
    Some(vec![("weightDevice", json!({"major": major, "minor": minor, "weight": weight}))])
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::{ThrottleDevice, check_resources};

    fn checked(resources: &Value) -> (crate::Limits, Value) {
        let checked = check_resources(resources.to_string().as_bytes()).unwrap();
        (checked.limits, serde_json::from_slice(&checked.guest).unwrap())
    }

    #[test]
    fn rates_of_devices_are_those_of_the_hosts() {
        let field = json!([{"major": 8, "minor": 0, "rate": 7}]);
        let (limits, guest) = checked(&json!({
            "blockIO": {"throttleReadBpsDevice": field},
            "unified": {"io.max": "8:0 rbps=1048576 wiops=max\n259:1 wbps=5 riops=6\n"},
        }));
        let rate = |major, minor, rate| ThrottleDevice { major, minor, rate };
        let io = &limits.block_io;
        assert_eq!(io.throttle_read_bps_device, [rate(8, 0, 7), rate(8, 0, 1 << 20)]);
        assert_eq!(io.throttle_write_iops_device, [rate(8, 0, 0)]);
        assert_eq!(io.throttle_write_bps_device, [rate(259, 1, 5)]);
        assert_eq!(io.throttle_read_iops_device, [rate(259, 1, 6)]);
        assert_eq!(guest["unified"], json!({}));
    }

    #[test]
    fn weights_of_devices_are_the_hosts_and_the_default_is_the_guests() {
        let weights = "default 50\n8:0 5000\n8:16 1\n8:32 10000";
        let (limits, guest) = checked(&json!({"unified": {"io.weight": weights}}));
        let weights: Vec<_> =
            limits.block_io.weight_device.iter().map(|of| (of.minor, of.weight)).collect();
        assert_eq!(weights, [(0, Some(505)), (16, Some(10)), (32, Some(1000))]);
        assert_eq!(guest["unified"], json!({"io.weight": "default 50"}));
    }

    #[test]
    fn what_no_field_says_of_a_device_is_refused_by_name() {
        for (file, line) in [
            ("io.latency", "8:0 target=5"),
            ("io.cost.qos", "8:0 enable=1"),
            ("io.bfq.weight", "default 10\n8:0 50"),
            ("io.max", "8:0 rbps=5 nosuch=6"),
            ("io.weight", "8:0 default"),
        ] {
            let resources = json!({"unified": {file: line}});
            let refused = check_resources(resources.to_string().as_bytes()).unwrap_err();
            let refused = refused.to_string();
            assert!(refused.contains(file) && refused.contains("8:0 "), "{refused}");
        }
        for (file, line, word) in [
            ("io.max", "8:0 wbps=7 rbps=0", r#""rbps=0" of"#),
            ("io.max", "8:0 rbps=1M", r#""rbps=1M" of"#),
            ("io.max", "8:0 rbps=5 nosuch=6", r#""nosuch=6" of"#),
            ("io.weight", "8:0 20000", r#""20000" of"#),
            ("io.latency", "8:0 target=5", "not the guest's"),
        ] {
            let resources = json!({"unified": {file: line}});
            let refused = check_resources(resources.to_string().as_bytes()).unwrap_err();
            assert!(refused.to_string().contains(word), "{refused}");
        }
        let (_, guest) = checked(&json!({"unified": {"io.weight": "60", "io.max": "nonsense"}}));
        assert_eq!(guest["unified"], json!({"io.weight": "60", "io.max": "nonsense"}));
    }
}
