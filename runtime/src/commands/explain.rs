//! `explain`: what becomes of each field of a bundle.

use std::fmt::Write;

use kata_spec::{Explained, Explanation, explain};
use serde_json::{Value, json};

use super::print_json;
use crate::{
    args::{Explain, ReportFormat},
    bundle::BundleError,
    failure::Failure,
};

/// Prints the answers. A bundle that can't be run is an answer, too, and no failure of this command.
pub(super) fn print(typed: &Explain) -> Result<(), Failure> {
    let bundle = &typed.bundle;
    let explanation =
        explain(bundle).map_err(|source| BundleError::Spec { path: bundle.to_owned(), source })?;
    match typed.format {
        ReportFormat::Text => super::print(&text(&explanation)),
        ReportFormat::Json => print_json(&as_json(&explanation)),
    }
}

fn text(explanation: &Explanation) -> String {
    let answers = &explanation.answers;
    let width = answers.iter().map(|line| line.field.len()).max().unwrap_or_default();
    let mut text = String::new();
    for Explained { field, treatment, detail } in answers {
        let line = format!("{field:width$}  {treatment:<10}  {detail}");
        // A String takes everything that is written to it.
        writeln!(text, "{}", line.trim_end()).ok();
    }
    let verdict = match answers.iter().filter(|line| line.is_fatal()).count() {
        0 => "runs: no field stands against it".to_owned(),
        1 => "does not run: one field stands against it".to_owned(),
        count => format!("does not run: {count} fields stand against it"),
    };
    writeln!(text, "{verdict}").ok();
    text
}

fn as_json(explanation: &Explanation) -> Value {
    let fields: Vec<Value> = explanation
        .answers
        .iter()
        .map(|line| json!({ "field": line.field, "answer": line.treatment, "detail": line.detail }))
        .collect();
    json!({ "runs": explanation.runs(), "fields": fields })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use kata_spec::{default_for, explain};
    use serde_json::{Value, json};

    use super::{as_json, text};

    fn of(change: impl FnOnce(&mut Value)) -> (String, Value) {
        let bundle = tempfile::tempdir().unwrap();
        let mut config = default_for("/", &["sh".to_owned()], false);
        change(&mut config);
        fs::write(bundle.path().join("config.json"), config.to_string()).unwrap();
        let explanation = explain(bundle.path()).unwrap();
        (text(&explanation), as_json(&explanation))
    }

    fn answer<'a>(report: &'a Value, field: &str) -> &'a str {
        let fields = report["fields"].as_array().unwrap();
        let line = fields.iter().find(|line| line["field"] == field);
        line.unwrap_or_else(|| panic!("{field} in {report}"))["answer"].as_str().unwrap()
    }

    #[test]
    fn a_bundle_that_runs_has_an_answer_for_each_field() {
        let (text, report) = of(|config| config["x-mine"] = json!(1));
        assert!(text.ends_with("\nruns: no field stands against it\n"), "{text}");
        assert_eq!(report["runs"], true);
        assert_eq!(answer(&report, "process.cwd"), "applied");
        assert_eq!(answer(&report, "root.path"), "host only");
        assert_eq!(answer(&report, "x-mine"), "unknown");
    }

    #[test]
    fn all_that_stands_against_a_bundle_is_told_at_once() {
        let (text, report) = of(|config| {
            config["ociVersion"] = json!("2.0");
            config["process"]["cwd"] = json!("relative");
            config["process"]["user"]["uid"] = json!("root");
            config["linux"]["intelRdt"] = json!({"closID": "x"});
            config["linux"]["namespaces"][2]["path"] = json!("/proc/1/ns/ipc");
            config["mounts"][0]["type"] = json!("nfs");
            config["mounts"][1]["type"] = json!("ext4");
        });
        assert!(text.ends_with("\ndoes not run: 7 fields stand against it\n"), "{text}");
        assert_eq!(answer(&report, "linux.intelRdt"), "refused");
        assert_eq!(answer(&report, "mounts[1].type"), "refused");
        assert_eq!(answer(&report, "process.user.uid"), "wrong");
        assert_eq!(report["runs"], false);
    }
}
