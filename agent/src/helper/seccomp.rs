//! The specification's seccomp object as a libseccomp filter.

use std::{collections::BTreeSet, str::FromStr};

use kata_sys::syscall_filter::Flags;
use libseccomp::{
    ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall,
};

use crate::{
    order::{Failure, Step},
    spec::{Seccomp, SyscallArgument, SyscallRule},
};

/// What an action without a number means: EPERM.
const DEFAULT_ERRNO: u32 = 1;

/// Those whose calls this kernel takes.
#[cfg(target_arch = "x86_64")]
const NATIVE: [ScmpArch; 3] = [ScmpArch::X8664, ScmpArch::X86, ScmpArch::X32];
#[cfg(target_arch = "aarch64")]
const NATIVE: [ScmpArch; 2] = [ScmpArch::Aarch64, ScmpArch::Arm];

/// How the filter is to be loaded.
pub fn flags(seccomp: &Seccomp) -> Result<Flags, Failure> {
    let mut flags = Flags::default();
    for flag in &seccomp.flags {
        match flag.as_str() {
            "SECCOMP_FILTER_FLAG_TSYNC" => flags.all_threads = true,
            "SECCOMP_FILTER_FLAG_LOG" => flags.log = true,
            "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => flags.allow_speculation = true,
            // About how long a listener may take; there is none.
            "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" => {}
            _ => return Err(Failure::invalid(format!("seccomp: unknown flag {flag:?}"))),
        }
    }
    Ok(flags)
}

/// A filter, built but not loaded.
pub fn build(seccomp: &Seccomp) -> Result<ScmpFilterContext, Failure> {
    let default = action(&seccomp.default_action, seccomp.default_errno_ret)?;
    let mut filter = ScmpFilterContext::new(default).step(|| "make a seccomp filter")?;
    for name in &seccomp.architectures {
        if !name.starts_with("SCMP_ARCH_") {
            return Err(Failure::invalid(format!("seccomp: unknown architecture {name:?}")));
        }
        // Of an architecture whose programs this kernel can't run there are no calls to filter.
        let known = ScmpArch::from_str(name).ok().filter(|it| NATIVE.contains(it));
        if let Some(architecture) = known {
            filter.add_arch(architecture).step(|| format!("seccomp: add {name}"))?;
        }
    }
    for rule in &seccomp.syscalls {
        add(&mut filter, rule, default)?;
    }
    Ok(filter)
}

fn add(
    filter: &mut ScmpFilterContext,
    rule: &SyscallRule,
    default: ScmpAction,
) -> Result<(), Failure> {
    let action = action(&rule.action, rule.errno_ret)?;
    if action == default {
        // The library refuses rules that say nothing.
        return Ok(());
    }
    let comparisons: Vec<ScmpArgCompare> =
        rule.args.iter().map(comparison).collect::<Result<_, _>>()?;
    let indices: BTreeSet<u32> = rule.args.iter().map(|argument| argument.index).collect();
    for name in &rule.names {
        // Profiles name the calls of all architectures and of kernels to come.
        let Ok(call) = ScmpSyscall::from_name(name) else { continue };
        if call.is_undef() {
            continue;
        }
        let added = if comparisons.is_empty() {
            filter.add_rule(action, call).map(drop)
        } else if indices.len() == comparisons.len() {
            filter.add_rule_conditional(action, call, &comparisons).map(drop)
        } else {
            // Two comparisons of one argument can't be joined by "and": each is a rule, as with runc.
            comparisons.iter().try_for_each(|one| {
                filter.add_rule_conditional(action, call, std::slice::from_ref(one)).map(drop)
            })
        };
        added.step(|| format!("seccomp: add rule for {name}"))?;
    }
    Ok(())
}

fn action(name: &str, number: Option<u32>) -> Result<ScmpAction, Failure> {
    if name == "SCMP_ACT_NOTIFY" {
        return Err(Failure::invalid("seccomp: SCMP_ACT_NOTIFY is not supported in the guest"));
    }
    let number = i32::try_from(number.unwrap_or(DEFAULT_ERRNO)).ok();
    ScmpAction::from_str(name, number)
        .map_err(|_| Failure::invalid(format!("seccomp: unknown action {name:?}")))
}

fn comparison(argument: &SyscallArgument) -> Result<ScmpArgCompare, Failure> {
    if argument.index > 5 {
        return Err(Failure::invalid("seccomp: a system call has six arguments"));
    }
    let operator = ScmpCompareOp::from_str(&argument.op)
        .map_err(|_| Failure::invalid(format!("seccomp: unknown operator {:?}", argument.op)))?;
    Ok(match operator {
        // Here `value` is the mask, and `valueTwo` what the masked argument is compared to.
        ScmpCompareOp::MaskedEqual(_) => ScmpArgCompare::new(
            argument.index,
            ScmpCompareOp::MaskedEqual(argument.value),
            argument.value_two,
        ),
        operator => ScmpArgCompare::new(argument.index, operator, argument.value),
    })
}

#[cfg(test)]
mod tests;
