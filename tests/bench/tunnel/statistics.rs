//! Medians, and ratios of what belongs together. Knows numbers only.

/// The repetitions come in the same order for both.
pub(crate) fn paired<T>(ours: &[&T], theirs: &[&T], value: impl Fn(&T) -> f64) -> Vec<f64> {
    ours.iter().zip(theirs).map(|(ours, theirs)| value(ours) / value(theirs)).collect()
}

/// The median and the extremes.
pub(crate) fn spread(ratios: &[f64]) -> String {
    let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
    let most = ratios.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    format!("{:.2} ({least:.2}-{most:.2})", median(ratios.iter().copied()))
}

pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    if values.is_empty() {
        return f64::NAN;
    }
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) }
}
