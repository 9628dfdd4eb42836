use std::{
    fs::File,
    io::{Read, Seek},
};

use super::{build, flags};
use crate::spec::Seccomp;

/// The filter in the library's own readable form.
fn readable(document: &str) -> String {
    let seccomp: Seccomp = serde_json::from_str(document).unwrap();
    let mut file: File = tempfile::tempfile().unwrap();
    build(&seccomp).unwrap().export_pfc(&file).unwrap();
    let mut text = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn the_first_value_of_masked_equal_is_the_mask() {
    let text = readable(
        r#"{"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": [
            {"names": ["clone"], "action": "SCMP_ACT_ALLOW",
             "args": [{"index": 0, "value": 2114060288, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]}]}"#,
    );
    assert!(text.contains("$a0.lo32 & 0x7e020000 == 0"), "{text}");
}

#[test]
fn unknown_calls_are_skipped_and_unknown_words_are_not() {
    let text = readable(
        r#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["no_such_call", "read"], "action": "SCMP_ACT_ALLOW"}]}"#,
    );
    assert!(text.contains("\"read\""), "{text}");
    for document in [
        r#"{"defaultAction": "SCMP_ACT_MAYBE"}"#,
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "flags": ["X"]}"#,
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["X"]}"#,
        r#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#,
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 0, "value": 1, "op": "="}]}]}"#,
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 6, "value": 1, "op": "SCMP_CMP_EQ"}]}]}"#,
    ] {
        let seccomp: Seccomp = serde_json::from_str(document).unwrap();
        assert!(build(&seccomp).is_err() || flags(&seccomp).is_err(), "{document}");
    }
}

#[test]
fn what_this_kernel_never_meets_needs_no_filter() {
    let text = readable(
        r#"{"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_S390X", "SCMP_ARCH_LOONGARCH64"],
            "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"],
            "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}]}"#,
    );
    assert!(text.contains("\"read\"") && !text.contains("s390"), "{text}");
}

#[test]
fn a_rule_that_repeats_the_default_is_no_error() {
    readable(
        r#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ERRNO"}]}"#,
    );
}

#[test]
fn the_errno_of_a_rule_is_its_own() {
    let text = readable(
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mount"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}]}"#,
    );
    assert!(text.contains("ERRNO(38)"), "{text}");
}

#[test]
fn two_comparisons_of_one_argument_are_alternatives() {
    let text = readable(
        r#"{"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": [
            {"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [
              {"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 9, "op": "SCMP_CMP_EQ"}]}]}"#,
    );
    assert!(text.contains("$a0.lo32 == 8") && text.contains("$a0.lo32 == 9"), "{text}");
}
