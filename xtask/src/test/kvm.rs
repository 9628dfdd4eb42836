//! Tier `kvm`: the programs of the guest tier, and some of the engines', in the nested host: KVM, cgroup v2 alone, all
//! capabilities, every kind of link. Without `--full` a smoke of the former.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use super::skips::Skips;
use super::{ENGINE_TESTS, GUEST_TESTS, NOMINAL_RUN_SECONDS, SLOWNESS, dockers};
use crate::args::{Profile, TestOptions};
use crate::layout::{FILES, Workspace};
use crate::nested::{self, Calibration, JOB, Job, Outcome, Program, ROOTS};
use crate::process::Run;
use crate::setup::{self, Purpose};
use crate::{build, cache};

/// Run in each CI: run, exec, exit codes, 64 MiB both ways, the death of each process, links.
const SMOKE: &[(&str, &[&str])] = &[
    (
        "run",
        &[
            "the_container_has_a_kernel_of_its_own",
            "exit_codes_are_the_programs",
            "a_missing_program_is_127_and_one_that_may_not_run_126",
            "both_directions_at_once_lose_nothing",
        ],
    ),
    (
        "accelerator",
        &[
            "check_says_what_runs_guests_on_this_host",
            "without_a_device_check_says_so_and_tcg_is_used",
            "kvm_by_name_without_a_device_is_an_error",
            "a_device_that_may_not_be_opened_is_told_from_none",
            "packets_are_moved_by_the_hosts_kernel_where_it_can",
            "memory_is_of_huge_pages_when_that_is_asked_for",
        ],
    ),
    (
        "limits",
        &[
            "the_group_that_the_spec_names_shows_what_was_asked_for",
            "vmm_and_proxy_are_held_to_the_sum_and_what_a_vm_takes",
        ],
    ),
    (
        "lifecycle",
        &[
            "exec_has_an_exit_code_of_its_own",
            "exec_passes_its_input_and_both_outputs",
            "the_pid_is_in_the_cgroup_that_was_asked_for",
            "a_killed_vmm_is_told_as_such",
            "a_killed_proxy_is_told_as_such",
            "a_killed_shim_is_told_as_such",
            "a_killed_monitor_is_told_as_such",
            "an_agent_that_dies_is_told_as_such",
        ],
    ),
    (
        "network",
        &[
            "the_guest_has_what_is_in_the_namespace",
            "tcp_by_ipv4_carries_both_directions_at_once",
            "the_peer_reaches_a_server_in_the_guest",
        ],
    ),
    ("network_guard", &["the_hosts_own_namespace_is_refused_and_left_alone"]),
];

/// Those of the engines' tier to which it matters that runc has control groups of version 2 and all capabilities.
const ENGINES: &[&str] = &["cri", "docker_26", "pods"];

/// What must work there, so that no fall-back to TCG hides a failure.
const CONFIGURATION: &str = "[hypervisor]\naccelerator = \"kvm\"\n\n[boot]\ntimeout_kvm_s = 180\n";
/// In the only reason to skip a test there: it is about a host whose KVM does not work.
const NOT_FOR_THERE: &str = "no KVM that is there and does not work";
/// What a test says of a program of its own that does not end, or never says a word, and Kata of a guest that does not.
/// An emulated processor that goes wrong makes guests stand still (the note of the nested host has what was seen), so what
/// failed beside these words is tried in a second host.
const STOOD_STILL: [&str; 3] =
    ["a program did not end within", "the VM did not come up within", ", got \"\""];
/// For the container that tells how slow the host is.
const CALIBRATION_SECONDS: u64 = 180;
/// For one program of tests; only what hangs needs longer.
const SMOKE_SECONDS: u64 = 900;
const FULL_SECONDS: u64 = 2400;

/// A program of guest tests.
struct TestProgram {
    name: String,
    path: PathBuf,
}

/// Runs them.
pub fn run(workspace: &Workspace, options: &TestOptions, skips: &mut Skips) -> Result<()> {
    setup::prepare(Purpose::Everything)?;
    if !options.prebuilt {
        build::everything(workspace, Some(Profile::Lean))?;
        build::distro_guest(workspace)?;
    }
    let log = cache::root()?.join("logs/kvm.log");
    let mut log = File::create(&log).with_context(|| format!("write {}", log.display()))?;
    let job = describe(workspace, options)?;
    let wanted = job.programs.len();
    let (mut written, mut refused) = (Ok(()), Vec::new());
    let outcome = in_nested_host(workspace, job, |line| {
        if let Some(reason) = skips.line(line).filter(|reason| !reason.contains(NOT_FOR_THERE)) {
            refused.push(reason);
        }
        if written.is_ok() {
            written = writeln!(log, "{line}");
        }
    })?;
    written.context("write the log of the nested host")?;
    if !outcome.missing.is_empty() {
        let lines = outcome.missing.iter().map(|(name, why)| format!("\n  {name}: {why}"));
        bail!("the nested host lacks:{}", lines.collect::<String>());
    }
    for program in &outcome.programs {
        println!("{program}");
    }
    let names = outcome.programs.iter().map(|program| program.name.as_str());
    let failed: Vec<&str> = names.filter(|name| outcome.failed(name)).collect();
    ensure!(failed.is_empty(), "failed in the nested host: {}", failed.join(", "));
    ensure!(outcome.programs.len() > wanted, "not all programs were run");
    ensure!(refused.is_empty(), "skipped in the nested host, which has it: {}", refused.join("; "));
    Ok(())
}

/// Runs a job, and in a second host what failed of it when something stood still.
fn in_nested_host(
    workspace: &Workspace,
    job: Job,
    mut on_line: impl FnMut(&str),
) -> Result<Outcome> {
    let (mut again, mut stood_still) = (job.clone(), false);
    let mut outcome = nested::run(workspace, job, |line| {
        stood_still |= STOOD_STILL.iter().any(|words| line.contains(words));
        on_line(line);
    })?;
    again.programs.retain(|program| outcome.failed(&program.name));
    if stood_still && !again.programs.is_empty() {
        let names = again.programs.iter().map(|program| program.name.as_str());
        println!("    stood still, once more: {}", names.collect::<Vec<_>>().join(", "));
        outcome.replace(nested::run(workspace, again, on_line)?);
    }
    Ok(outcome)
}

fn describe(workspace: &Workspace, options: &TestOptions) -> Result<Job> {
    let mut job = Job::default();
    job.files.insert("/etc/kata/config.toml".into(), CONFIGURATION.to_owned());
    let runtime = stage_programs(workspace, &mut job);
    let roots = |name: &str| format!("{ROOTS}/{name}");
    job.variables.extend([
        ("KATA_PREFIX".to_owned(), format!("{JOB}/kata")),
        ("KATA_TEST_ROOT_BUSYBOX".to_owned(), roots("busybox")),
        ("KATA_TEST_ROOT_DEBIAN".to_owned(), roots("debian")),
        ("RUST_BACKTRACE".to_owned(), "1".to_owned()),
    ]);
    let words = [&runtime, "run", "--rootfs", &roots("busybox"), "--", "true"];
    job.calibration = Some(Calibration {
        program: Program {
            name: "calibration".to_owned(),
            words: words.map(str::to_owned).into(),
            deadline_seconds: CALIBRATION_SECONDS,
        },
        nominal_seconds: NOMINAL_RUN_SECONDS,
        variable: SLOWNESS.to_owned(),
    });
    let smoke = !options.full && options.names.is_empty();
    let mut programs = test_programs(workspace, GUEST_TESTS)?;
    if !smoke {
        programs.extend(engine_programs(workspace, &mut job)?);
    }
    let mut found = BTreeSet::new();
    for program in programs {
        let known = tests_of(&program.path)?;
        let Some(chosen) = choose(&program.name, &known, options, &mut found) else { continue };
        let file = job.take(&program.path, Path::new("tests").join(&program.name));
        let mut words = vec![file, "--show-output".to_owned()];
        words.extend(chosen);
        let deadline_seconds = if smoke { SMOKE_SECONDS } else { FULL_SECONDS };
        job.programs.push(Program { name: program.name, words, deadline_seconds });
    }
    let missing: Vec<&str> =
        wanted(options).into_iter().filter(|name| !found.contains(*name)).collect();
    ensure!(missing.is_empty(), "neither a test nor a program of tests: {}", missing.join(", "));
    Ok(job)
}

/// Takes the installed tree along and gives the runtime's path in the nested host.
fn stage_programs(workspace: &Workspace, job: &mut Job) -> String {
    let prefix = workspace.staged().0;
    let others = ["share/kata/distro/vmlinux", "share/kata/distro/initrd.img"];
    for name in FILES.iter().map(|(name, _)| *name).chain(others) {
        job.take(prefix.join(name), Path::new("kata").join(name));
    }
    format!("{JOB}/kata/bin/kata-runtime")
}

/// Programs of the engines' tests, and for the job the engine that the nested host itself does not have.
fn engine_programs(workspace: &Workspace, job: &mut Job) -> Result<Vec<TestProgram>> {
    let docker = dockers::later()?;
    for file in fs::read_dir(&docker).with_context(|| format!("read {}", docker.display()))? {
        let file = file.with_context(|| format!("read {}", docker.display()))?;
        job.take(file.path(), Path::new("docker").join(file.file_name()));
    }
    job.variables.insert("KATA_TEST_DOCKER".to_owned(), format!("{JOB}/docker"));
    let mut programs = test_programs(workspace, ENGINE_TESTS)?;
    programs.retain(|program| ENGINES.contains(&program.name.as_str()));
    Ok(programs)
}

/// The names that are asked for, each of which must find something.
fn wanted(options: &TestOptions) -> Vec<&str> {
    match (options.names.is_empty(), options.full) {
        (false, _) => options.names.iter().map(String::as_str).collect(),
        (true, true) => Vec::new(),
        (true, false) => SMOKE.iter().flat_map(|(_, tests)| tests.iter().copied()).collect(),
    }
}

/// The words for a program that select its tests, and in `found` the names that it has; `None` when it has none of those
/// that are wanted. A name is that of a program, or a part of a test's.
fn choose(
    program: &str,
    known: &[String],
    options: &TestOptions,
    found: &mut BTreeSet<String>,
) -> Option<Vec<String>> {
    if options.full && options.names.is_empty() {
        return Some(Vec::new());
    }
    let smoke = SMOKE.iter().find(|(name, _)| *name == program).map_or(&[][..], |(_, tests)| tests);
    let mut chosen = Vec::new();
    for test in known {
        let asked = |name: &&String| *name == program || test.contains(*name);
        let names: Vec<&str> = match options.names.is_empty() {
            true => smoke.iter().copied().filter(|name| name == test).collect(),
            false => options.names.iter().filter(asked).map(String::as_str).collect(),
        };
        if !names.is_empty() {
            chosen.push(test.clone());
        }
        found.extend(names.into_iter().map(str::to_owned));
    }
    (!chosen.is_empty()).then(|| exactly(chosen))
}

fn exactly(mut tests: Vec<String>) -> Vec<String> {
    tests.insert(0, "--exact".to_owned());
    tests
}

/// The names of the tests in a program.
fn tests_of(program: &Path) -> Result<Vec<String>> {
    let list = Run::new(program).args(["--list"]).quietly().output()?;
    Ok(list.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
}

#[derive(Deserialize)]
struct Message {
    reason: String,
    target: Option<Target>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

/// Builds the tests of a package and says where cargo put them.
fn test_programs(workspace: &Workspace, package: &str) -> Result<Vec<TestProgram>> {
    let messages = Run::new("cargo")
        .args(["test", "--quiet", "--locked", "--no-run", "--message-format", "json"])
        .args(["-p", package].map(OsStr::new))
        .cwd(workspace.root())
        .output()?;
    let mut programs = Vec::new();
    for line in messages.lines() {
        let message: Message = serde_json::from_str(line).context("understand cargo")?;
        let (Some(target), Some(path)) = (message.target, message.executable) else { continue };
        if message.reason == "compiler-artifact" && target.kind == ["test"] {
            programs.push(TestProgram { name: target.name, path });
        }
    }
    Ok(programs)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{SMOKE, choose, wanted};
    use crate::args::TestOptions;

    fn options(names: &[&str]) -> TestOptions {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        TestOptions { full: false, tiers: Vec::new(), kvm: true, prebuilt: true, names }
    }

    fn chosen(program: &str, known: &[&str], names: &[&str]) -> (Option<Vec<String>>, usize) {
        let known: Vec<String> = known.iter().map(|name| (*name).to_owned()).collect();
        let (options, mut found) = (options(names), BTreeSet::new());
        let chosen = choose(program, &known, &options, &mut found);
        (chosen, wanted(&options).into_iter().filter(|name| !found.contains(*name)).count())
    }

    #[test]
    fn a_name_is_a_programs_or_a_part_of_a_tests() {
        let words = |words: &[&str]| Some(words.iter().map(|word| (*word).to_owned()).collect());
        let known = ["one_is", "two_are"];
        assert_eq!(chosen("p", &known, &["p"]), (words(&["--exact", "one_is", "two_are"]), 0));
        assert_eq!(chosen("p", &known, &["two"]), (words(&["--exact", "two_are"]), 0));
        assert_eq!(chosen("p", &known, &["two", "six"]), (words(&["--exact", "two_are"]), 1));
        assert_eq!(chosen("p", &known, &["six"]), (None, 1));
    }

    #[test]
    fn a_test_of_the_smoke_that_is_gone_is_missed() {
        let (name, tests) = SMOKE[0];
        let all = wanted(&options(&[])).len();
        assert_eq!(chosen(name, tests, &[]).1, all - tests.len());
        assert_eq!(chosen(name, &tests[1..], &[]).1, all - tests.len() + 1);
        assert_eq!(chosen("gone", tests, &[]).1, all);
    }
}
