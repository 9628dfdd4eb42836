//! `scheduler`, `ioPriority` and `execCPUAffinity`: which of their fields go together.

use std::num::IntErrorKind;

use serde_json::Value;

use crate::{document::Document, error::SpecError, table::join};

/// As many CPUs as Linux can be built for.
const MOST_CPUS: u64 = 8192;

pub(super) fn check(document: &Document, guest: &Value, path: &str) -> Result<(), SpecError> {
    check_scheduler(document, &guest["scheduler"], &join(path, "scheduler"))?;
    for name in ["initial", "final"] {
        let list = guest["execCPUAffinity"][name].as_str().unwrap_or_default();
        let field = join(path, &format!("execCPUAffinity.{name}"));
        check_cpus(list).map_err(|why| document.wrong(field, why))?;
    }
    Ok(())
}

fn check_scheduler(document: &Document, scheduler: &Value, field: &str) -> Result<(), SpecError> {
    let policy = scheduler["policy"].as_str().unwrap_or_default();
    let set = |name: &str| {
        scheduler[name].as_i64().is_none_or(|number| number != 0) && !scheduler[name].is_null()
    };
    let needs = |name: &str, policies: &[&str]| {
        let wrong = set(name) && !policies.contains(&policy);
        let why = || format!("goes only with {}", policies.join(" or "));
        if wrong { Err(document.wrong(format!("{field}.{name}"), why())) } else { Ok(()) }
    };
    needs("priority", &["SCHED_FIFO", "SCHED_RR"])?;
    for name in ["runtime", "deadline", "period"] {
        needs(name, &["SCHED_DEADLINE"])?;
    }
    let priority = scheduler["priority"].as_i64().unwrap_or_default();
    if matches!(policy, "SCHED_FIFO" | "SCHED_RR") && !(1..=99).contains(&priority) {
        let why = format!("must be from 1 to 99 for {policy}, is {priority}");
        return Err(document.wrong(format!("{field}.priority"), why));
    }
    Ok(())
}

/// A list as in `0-3,6`; an empty one sets nothing.
fn check_cpus(list: &str) -> Result<(), String> {
    let number = |word: &str| match word.trim().parse::<u64>() {
        Ok(cpu) if cpu < MOST_CPUS => Ok(cpu),
        Err(error) if *error.kind() != IntErrorKind::PosOverflow => {
            Err(format!("must be a list of CPUs as in 0-3,6, is {list:?}"))
        }
        _ => Err(format!("names CPU {}, beyond the last, {}", word.trim(), MOST_CPUS - 1)),
    };
    for part in list.split(',').filter(|_| !list.trim().is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if number(first)? > number(last)? {
            return Err(format!("has a range that ends before it begins: {part}"));
        }
    }
    Ok(())
}
