//! The same container with runc and with Kata.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use kata_guest_tests::{LoopDevice, Output, run};

use crate::{Engine, Kind, Runtime, options::Case};

/// As many as there are processors where these tests usually run.
const AT_ONCE: usize = 2;

/// Options, and the comparison of what they do.
pub struct Cases<'a> {
    /// The engine.
    pub engine: &'a Engine,
}

impl Cases<'_> {
    /// Runs containers; returns what went wrong.
    pub fn run(&self, cases: &[Case]) -> Vec<String> {
        let next = AtomicUsize::new(0);
        let faults = Mutex::new(Vec::new());
        let work = || {
            while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                if let Err(fault) = self.case(case) {
                    faults.lock().unwrap().push(format!("{}: {fault}", case.name));
                }
            }
        };
        thread::scope(|scope| {
            for _ in 0..AT_ONCE {
                scope.spawn(work);
            }
        });
        faults.into_inner().unwrap()
    }

    fn case(&self, case: &Case) -> Result<(), String> {
        let disk = match case.args.iter().any(|word| word.contains("{disk}")) {
            true => match LoopDevice::new() {
                None => return Ok(()),
                disk => disk,
            },
            false => None,
        };
        let kata = self.container(Runtime::Kata, case, disk.as_ref());
        if let Some(words) = &case.refused {
            let told = kata.code != 0 && kata.stderr().contains(words.as_str());
            return told.then_some(()).ok_or_else(|| format!("not refused: {}", shown(&kata)));
        }
        if let Some(instead) = &case.instead {
            let same = (kata.code, kata.stdout()) == (instead.code, instead.stdout.clone());
            return same.then_some(()).ok_or_else(|| shown(&kata));
        }
        let runc = self.container(Runtime::Runc, case, disk.as_ref());
        let same = (kata.code, normal(&kata.stdout())) == (runc.code, normal(&runc.stdout()));
        same.then_some(())
            .ok_or_else(|| format!("\n runc: {}\n kata: {}", shown(&runc), shown(&kata)))
    }

    /// Runs commands in the containers `runc` and `kata`; returns what went wrong.
    pub fn exec(&self, cases: &[Case]) -> Vec<String> {
        let output = |runtime: Runtime, case: &Case| {
            let args = self.arguments(runtime, case, None);
            let mut words: Vec<&str> = args.iter().map(String::as_str).collect();
            words.extend([runtime.name(), "sh", "-c", &case.script]);
            let output = run(self.engine.with(runtime, "exec", &words), b"typed\n");
            (output.code, output.stdout(), output.stderr())
        };
        let fault = |case: &Case| {
            let kata = output(Runtime::Kata, case);
            let wanted = match &case.instead {
                Some(instead) => (instead.code, instead.stdout.clone(), String::new()),
                None => output(Runtime::Runc, case),
            };
            (kata != wanted).then(|| format!("{}: {kata:?} instead of {wanted:?}", case.name))
        };
        cases.iter().filter_map(fault).collect()
    }

    /// Changes containers that run, each a new one; returns what went wrong.
    pub fn update(&self, cases: &[Case]) -> Vec<String> {
        let changed = |runtime: Runtime, case: &Case| {
            let name = format!("update-{}-{}", case.name, runtime.name());
            let start = ["-d", "--network=none", "--name", &name, "busybox", "sleep", "600"];
            let started = self.engine.run(runtime, &start);
            assert_eq!(started.code, 0, "{}", started.stderr());
            let mut words: Vec<&str> = vec!["update"];
            words.extend(case.args.iter().map(String::as_str));
            words.push(&name);
            let updated = self.engine.call(&words);
            if updated.code != 0 {
                return updated;
            }
            self.engine.call(&["exec", &name, "sh", "-c", &case.script])
        };
        let fault = |case: &Case| {
            let kata = changed(Runtime::Kata, case);
            if let Some(words) = &case.refused {
                let told = kata.code != 0 && kata.stderr().contains(words.as_str());
                return (!told).then(|| format!("{}: not refused: {}", case.name, shown(&kata)));
            }
            let runc = changed(Runtime::Runc, case);
            ((kata.code, kata.stdout()) != (runc.code, runc.stdout())).then(|| {
                format!("{}:\n runc: {}\n kata: {}", case.name, shown(&runc), shown(&kata))
            })
        };
        cases.iter().filter_map(fault).collect()
    }

    fn arguments(&self, runtime: Runtime, case: &Case, disk: Option<&LoopDevice>) -> Vec<String> {
        let name = format!("{}-{}", case.name, runtime.name());
        let work = self.prepare(&name).display().to_string();
        let disk = disk.map(|disk| disk.path().display().to_string()).unwrap_or_default();
        case.args
            .iter()
            .map(|word| {
                word.replace("{work}", &work).replace("{name}", &name).replace("{disk}", &disk)
            })
            .collect()
    }

    fn container(&self, runtime: Runtime, case: &Case, disk: Option<&LoopDevice>) -> Output {
        let args = self.arguments(runtime, case, disk);
        let mut words: Vec<&str> = vec!["--rm"];
        words.extend(args.iter().map(String::as_str));
        words.extend(["busybox", "sh", "-c", &case.script]);
        run(self.engine.with(runtime, "run", &words), b"")
    }

    /// What the options of a case may name.
    fn prepare(&self, name: &str) -> PathBuf {
        let work = self.engine.scratch().join("work").join(name);
        for directory in ["dir/sub", "own", "lab"] {
            fs::create_dir_all(work.join(directory)).unwrap();
        }
        for (file, text) in [
            ("dir/one", "one\n"),
            ("dir/sub/deep", "deep\n"),
            ("dir/prog", "#!/bin/sh\necho prog\n"),
            ("lab/l", "l\n"),
            ("file", "file\n"),
            ("env", "FROM_FILE=yes it is\n"),
            ("labels", "com.example=x\n"),
            ("seccomp.json", SECCOMP),
        ] {
            fs::write(work.join(file), text).unwrap();
        }
        fs::set_permissions(work.join("dir/prog"), fs::Permissions::from_mode(0o755)).unwrap();
        if self.engine.kind() == Kind::Podman && name.starts_with("secret") {
            let secret = work.join("file").display().to_string();
            self.engine.ok(&["secret", "create", &format!("{name}-s"), &secret]);
        }
        work
    }
}

/// mkdir(2) fails with EACCES.
const SECCOMP: &str = r#"{"defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13}]}"#;

fn shown(output: &Output) -> String {
    format!("{} {:?} {:?}", output.code, output.stdout(), output.stderr())
}

/// Text without what differs from container to container: ids, and words that name the runtime.
pub fn normal(text: &str) -> String {
    // runc names a step of its own in errors.
    let text = text.replace("unable to start container process: ", "");
    let mut plain = String::new();
    let mut word = String::new();
    for character in text.chars().chain(['\0']) {
        if character.is_ascii_hexdigit() && !character.is_ascii_uppercase() {
            word.push(character);
            continue;
        }
        let id = [12, 64].contains(&word.len());
        plain.push_str(if id { "ID" } else { &word });
        word.clear();
        plain.extend((character != '\0').then_some(character));
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::normal;

    #[test]
    fn ids_are_all_the_same() {
        let id = "f".repeat(64);
        assert_eq!(
            normal(&format!("a {id} 0123456789ab x{} 12", "a".repeat(11))),
            format!("a ID ID x{} 12", "a".repeat(11))
        );
    }
}
