//! From values to what is told of them. Pure.

use crate::record::{Measured, Metric};

/// Several values in three.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The middle one; of an even number, the mean of the two in the middle.
    pub median: f64,
    /// The least.
    pub least: f64,
    /// The most.
    pub most: f64,
}

/// The spread of some values; `None` of none.
pub fn spread(values: &[f64]) -> Option<Spread> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (least, most) = (*sorted.first()?, *sorted.last()?);
    let middle = sorted.len() / 2;
    let upper = *sorted.get(middle)?;
    let lower = if sorted.len().is_multiple_of(2) {
        *sorted.get(middle.checked_sub(1)?)?
    } else {
        upper
    };
    Some(Spread {
        median: f64::midpoint(lower, upper),
        least,
        most,
    })
}

/// Ours over theirs, run by run: the runs of a pair were one after the other, on a machine in the same mood.
pub fn ratios(ours: &Metric, theirs: &Metric) -> Option<Spread> {
    let pairs = ours.values.iter().zip(&theirs.values);
    let ratios: Vec<f64> = pairs
        .filter(|(_, theirs)| **theirs != 0.0)
        .map(|(ours, theirs)| ours / theirs)
        .collect();
    spread(&ratios)
}

/// Names of the metrics of a measure, in order: the first monitor's, then what others have besides.
pub fn metrics(measured: &Measured) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for metric in measured.peers.iter().flat_map(|peer| &peer.metrics) {
        if !names.contains(&metric.name) {
            names.push(metric.name.clone());
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Unit;

    #[test]
    fn the_median_does_not_follow_one_bad_run() {
        let of = |values: &[f64]| spread(values).map(|s| (s.median, s.least, s.most));
        assert_eq!(of(&[3.0, 1.0, 100.0]), Some((3.0, 1.0, 100.0)));
        assert_eq!(of(&[4.0, 2.0]), Some((3.0, 2.0, 4.0)));
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn ratios_are_those_of_pairs_not_of_medians() {
        let metric = |values: &[f64]| Metric {
            name: "x".into(),
            unit: Unit::Count,
            values: values.to_vec(),
        };
        // The machine was ten times slower in the second round, for both.
        let ratio = ratios(&metric(&[1.0, 10.0, 1.0]), &metric(&[2.0, 20.0, 2.0])).unwrap();
        assert_eq!((ratio.median, ratio.least, ratio.most), (0.5, 0.5, 0.5));
        assert_eq!(ratios(&metric(&[1.0]), &metric(&[0.0])), None);
    }
}
