//! Figures from repetition: what is told is the median, with the extremes beside it.

use anyhow::{Context, Result};

use super::report::Report;

/// At least one figure, in order.
#[derive(Clone, Debug)]
pub struct Sample(Vec<f64>);

impl Sample {
    /// `None` without a figure.
    pub fn new(mut figures: Vec<f64>) -> Option<Self> {
        figures.sort_by(f64::total_cmp);
        (!figures.is_empty()).then_some(Self(figures))
    }

    pub fn one(figure: f64) -> Self {
        Self(vec![figure])
    }

    /// Each figure over the one that was taken in the same round: what slows a round down slows both.
    pub fn ratios(figures: &[f64], over: &[f64]) -> Option<Self> {
        Self::new(figures.iter().zip(over).map(|(figure, over)| figure / over).collect())
    }

    pub fn median(&self) -> f64 {
        let middle = self.0.len() / 2;
        match self.0.len() % 2 {
            0 => f64::midpoint(self.0[middle - 1], self.0[middle]),
            _ => self.0[middle],
        }
    }

    pub fn least(&self) -> f64 {
        self.0[0]
    }

    pub fn most(&self) -> f64 {
        self.0[self.0.len() - 1]
    }

    pub fn count(&self) -> usize {
        self.0.len()
    }
}

/// The same measured of a bare VM and of Kata, in turns.
#[derive(Debug)]
pub struct Pair {
    pub bare: Vec<f64>,
    pub kata: Vec<f64>,
    pub unit: &'static str,
}

impl Pair {
    /// Kata's figures over those of the bare VM of the same round.
    pub fn ratio(&self) -> Result<Sample> {
        Sample::ratios(&self.kata, &self.bare).context("no rounds")
    }

    /// Notes both, under their names.
    pub fn note(&self, [bare, kata]: [String; 2], report: &mut Report) -> Result<()> {
        let sample = |figures: &[f64]| Sample::new(figures.to_vec()).context("no rounds");
        report.add(bare, self.unit, &sample(&self.bare)?);
        report.add(kata, self.unit, &sample(&self.kata)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Sample;

    #[test]
    fn a_ratio_is_taken_within_its_round() {
        let ratios = Sample::ratios(&[2.0, 30.0, 4.0], &[1.0, 10.0, 2.0]).unwrap();
        assert_eq!((ratios.median(), ratios.most()), (2.0, 3.0));
    }

    #[test]
    fn the_median_of_an_even_count_lies_between() {
        assert_eq!(Sample::new(vec![4.0, 1.0, 2.0, 30.0]).unwrap().median(), 3.0);
        assert_eq!(Sample::new(vec![9.0, 1.0, 2.0]).unwrap().median(), 2.0);
        assert!(Sample::new(Vec::new()).is_none());
    }
}
