//! What was measured, as a table for a person and as JSON for a machine.

use std::fmt::Write as _;

use anyhow::{Context, Result};
use serde::Serialize;

use super::sample::Sample;

/// One line of the table.
#[derive(Debug, Serialize)]
pub struct Figure {
    name: String,
    unit: &'static str,
    median: f64,
    least: f64,
    most: f64,
    n: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<Target>,
    #[serde(skip_serializing_if = "Option::is_none")]
    met: Option<bool>,
}

/// What an issue asks for.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    AtMost(f64),
    AtLeast(f64),
}

impl Target {
    fn is_met(self, figure: f64) -> bool {
        match self {
            Self::AtMost(limit) => figure <= limit,
            Self::AtLeast(limit) => figure >= limit,
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtMost(limit) => format!("<= {limit}"),
            Self::AtLeast(limit) => format!(">= {limit}"),
        }
    }
}

/// All figures of one run.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    conditions: Vec<(&'static str, String)>,
    figures: Vec<Figure>,
}

impl Report {
    /// Notes a circumstance that the figures depend on.
    pub fn condition(&mut self, name: &'static str, value: impl Into<String>) {
        self.conditions.push((name, value.into()));
    }

    pub fn add(&mut self, name: impl Into<String>, unit: &'static str, sample: &Sample) {
        self.push(name.into(), unit, sample, None);
    }

    pub fn add_judged(
        &mut self,
        name: impl Into<String>,
        unit: &'static str,
        sample: &Sample,
        target: Target,
    ) {
        self.push(name.into(), unit, sample, Some(target));
    }

    fn push(&mut self, name: String, unit: &'static str, sample: &Sample, target: Option<Target>) {
        let median = sample.median();
        let (least, most, n) = (sample.least(), sample.most(), sample.count());
        let met = target.map(|target| target.is_met(median));
        self.figures.push(Figure { name, unit, median, least, most, n, target, met });
    }

    /// The table, with a line for what was measured where.
    pub fn table(&self) -> String {
        let mut text = String::new();
        for (name, value) in &self.conditions {
            // Writing to a string cannot fail.
            writeln!(text, "{name}: {value}").ok();
        }
        let width = self.figures.iter().map(|figure| figure.name.len()).max().unwrap_or_default();
        for figure in &self.figures {
            let Figure { name, unit, .. } = figure;
            write!(text, "{name:width$}  {:>9} {unit:4}", number(figure.median)).ok();
            if figure.n > 1 {
                let (least, most) = (number(figure.least), number(figure.most));
                write!(text, "  [{least}..{most}] n={}", figure.n).ok();
            }
            if let (Some(target), Some(met)) = (figure.target, figure.met) {
                let word = if met { "met" } else { "MISSED" };
                write!(text, "  target {} {word}", target.text()).ok();
            }
            text.push('\n');
        }
        text
    }

    pub fn json(&self) -> Result<Vec<u8>> {
        serde_json::to_vec_pretty(self).context("write the figures as JSON")
    }
}

/// Three digits say all that a noisy machine knows.
fn number(figure: f64) -> String {
    match figure.abs() {
        100.0.. => format!("{figure:.0}"),
        10.0.. => format!("{figure:.1}"),
        _ => format!("{figure:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::{Report, Sample, Target};

    #[test]
    fn a_target_is_judged_by_the_median() {
        let mut report = Report::default();
        let sample = Sample::new(vec![1.0, 1.4, 9.0]).unwrap();
        report.add_judged("ratio", "x", &sample, Target::AtMost(1.5));
        report.add_judged("rate", "MB/s", &sample, Target::AtLeast(1.5));
        let table = report.table();
        assert!(table.contains("target <= 1.5 met"), "{table}");
        assert!(table.contains("target >= 1.5 MISSED"), "{table}");
        assert!(table.contains("[1.00..9.00] n=3"), "{table}");
    }
}
