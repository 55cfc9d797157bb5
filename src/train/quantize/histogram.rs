//! Distribution of a tensor's magnitudes, gathered in one pass and bounded memory, and the range it is quantized to.
//!
//! 2,048 bins over `[0, width)`; a value beyond doubles the width and merges bins in pairs, so nothing is kept but the
//! counts (16 KiB per tensor). Ranges are symmetric: TensorRT takes no other.

/// Bins of a histogram.
const BINS: usize = 2048;

/// Positive levels of a symmetric 8-bit range.
const LEVELS: usize = 128;

/// How a range is chosen from a histogram.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Method {
    /// The largest magnitude.
    Max,
    /// The magnitude that this share of the values, in percent, stays below.
    Percentile(f64),
    /// The range whose 128-level version has the smallest Kullback-Leibler divergence from the histogram, as TensorRT's
    /// calibrator chooses it.
    Entropy,
}

impl std::fmt::Display for Method {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Max => f.write_str("max"),
            Self::Percentile(p) => write!(f, "percentile:{p}"),
            Self::Entropy => f.write_str("entropy"),
        }
    }
}

impl std::str::FromStr for Method {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let share = text.strip_prefix("percentile:").and_then(|p| p.parse::<f64>().ok());
        match (text, share) {
            ("max", _) => Ok(Self::Max),
            ("entropy", _) => Ok(Self::Entropy),
            (_, Some(p)) if p > 0.0 && p <= 100.0 => Ok(Self::Percentile(p)),
            _ => Err(format!(
                "found {text:?}, expected max, entropy or percentile:P with P above 0, to 100"
            )),
        }
    }
}

/// Magnitudes of one tensor over all calibration inputs.
#[derive(Clone, Debug)]
pub struct Histogram {
    bins: Vec<u64>,
    /// End of the last bin; 0 until a value other than 0 came.
    width: f32,
    largest: f32,
    values: u64,
    finite: bool,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            bins: vec![0; BINS],
            width: 0.0,
            largest: 0.0,
            values: 0,
            finite: true,
        }
    }
}

impl Histogram {
    /// Counts values.
    pub fn add(&mut self, values: &[f32]) {
        let largest = values.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
        self.finite &= values.iter().all(|v| v.is_finite());
        if !self.finite {
            return;
        }
        self.widen_to(largest);
        self.values += values.len() as u64;
        if self.width == 0.0 {
            self.bins[0] += values.len() as u64;
            return;
        }
        let scale = BINS as f32 / self.width;
        for v in values {
            self.bins[((v.abs() * scale) as usize).min(BINS - 1)] += 1;
        }
    }

    fn widen_to(&mut self, largest: f32) {
        self.largest = self.largest.max(largest);
        if self.width == 0.0 {
            // what came before, if anything, was zeros, and lies in bin 0
            self.width = largest;
        }
        while self.width < largest {
            for i in 0..BINS / 2 {
                self.bins[i] = self.bins[2 * i] + self.bins[2 * i + 1];
            }
            self.bins[BINS / 2..].fill(0);
            self.width *= 2.0;
        }
    }

    /// Largest magnitude seen; infinite if a value was not finite.
    #[must_use]
    pub fn largest(&self) -> f32 {
        if self.finite { self.largest } else { f32::INFINITY }
    }

    /// Number of values counted.
    #[must_use]
    pub fn values(&self) -> u64 {
        self.values
    }

    /// The magnitude that becomes the largest 8-bit level; positive, for a tensor of zeros 1.
    #[must_use]
    pub fn range(&self, method: Method) -> f32 {
        if self.width == 0.0 {
            return 1.0;
        }
        let range = match method {
            Method::Max => self.largest,
            Method::Percentile(percent) => self.percentile(percent),
            Method::Entropy => self.entropy(),
        };
        range.min(self.largest).max(f32::MIN_POSITIVE)
    }

    fn edge(&self, bins: usize) -> f32 {
        self.width * bins as f32 / BINS as f32
    }

    fn percentile(&self, percent: f64) -> f32 {
        let wanted = self.values as f64 * percent / 100.0;
        let mut below = 0;
        for (i, &count) in self.bins.iter().enumerate() {
            below += count;
            if below as f64 >= wanted {
                return self.edge(i + 1);
            }
        }
        self.largest
    }

    fn entropy(&self) -> f32 {
        let mut bins = self.bins.clone();
        // exact zeros (rectified, padded) are right at any range and would outweigh everything else
        bins[0] = bins[1];
        let used = bins.iter().rposition(|&c| c > 0).map_or(1, |i| i + 1);
        let candidates = (LEVELS..=used.max(LEVELS))
            .step_by(LEVELS / 8)
            .chain([used.max(LEVELS)]);
        let best = candidates
            .map(|cut| (divergence(&bins, cut), cut))
            .min_by(|a, b| a.0.total_cmp(&b.0));
        self.edge(best.map_or(BINS, |(_, cut)| cut))
    }
}

/// Kullback-Leibler divergence of the 128-level version of the first `cut` bins from the whole, outliers moved into the
/// last bin.
fn divergence(bins: &[u64], cut: usize) -> f64 {
    let inside = &bins[..cut];
    let outliers: u64 = bins[cut..].iter().sum();
    let kept = inside.iter().sum::<u64>();
    let (total, kept) = ((kept + outliers).max(1) as f64, kept.max(1) as f64);
    let mut divergence = 0.0;
    for level in 0..LEVELS {
        let (start, end) = (level * cut / LEVELS, (level + 1) * cut / LEVELS);
        let bins = &inside[start..end];
        let filled = bins.iter().filter(|&&c| c > 0).count().max(1) as f64;
        let spread = bins.iter().sum::<u64>() as f64 / filled / kept;
        for (offset, &count) in bins.iter().enumerate() {
            let last = start + offset == cut - 1;
            let p = (count + if last { outliers } else { 0 }) as f64 / total;
            if p > 0.0 {
                // a bin that only the outliers fill has no mass in the 128-level version
                divergence += p * (p / spread.max(1e-9)).ln();
            }
        }
    }
    divergence
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bell of 100,000 values with standard deviation about 1 and a few outliers at 40.
    fn bell() -> Histogram {
        let mut h = Histogram::default();
        let mut state = 1_u64;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 40) as f32 / (1_u64 << 24) as f32
        };
        for _ in 0..100 {
            let values: Vec<f32> = (0..1000)
                .map(|_| (0..12).map(|_| uniform()).sum::<f32>() - 6.0)
                .collect();
            h.add(&values);
        }
        h.add(&[40.0, -39.0]);
        h
    }

    #[test]
    fn ranges_of_a_bell_with_outliers_are_ordered_as_the_methods_promise() {
        let h = bell();
        assert_eq!((h.largest(), h.values()), (40.0, 100_002));
        assert_eq!(h.range(Method::Max), 40.0);
        let (p99, p9999) = (h.range(Method::Percentile(99.0)), h.range(Method::Percentile(99.99)));
        assert!((p99 - 2.58).abs() < 0.1, "{p99}");
        assert!(p9999 > 3.3 && p9999 < 4.5, "{p9999}");
        let entropy = h.range(Method::Entropy);
        assert!(entropy > 2.0 && entropy < 12.0, "{entropy}");
    }

    #[test]
    fn the_order_of_the_values_does_not_matter_beyond_one_merged_bin() {
        let (mut up, mut down) = (Histogram::default(), Histogram::default());
        let values: Vec<f32> = (0..4096).map(|i| i as f32 / 100.0).collect();
        values.chunks(64).for_each(|c| up.add(c));
        values.chunks(64).rev().for_each(|c| down.add(c));
        for p in [50.0, 90.0, 99.0] {
            let (a, b) = (up.range(Method::Percentile(p)), down.range(Method::Percentile(p)));
            assert!((a - b).abs() < 0.1, "{p}: {a} {b}");
        }
    }

    #[test]
    fn zeros_alone_have_a_usable_range_and_what_is_not_finite_is_known() {
        let mut h = Histogram::default();
        h.add(&[0.0; 10]);
        assert_eq!(
            (h.range(Method::Entropy), h.range(Method::Max), h.largest()),
            (1.0, 1.0, 0.0)
        );
        h.add(&[3.0, f32::NAN]);
        assert_eq!(h.largest(), f32::INFINITY);
    }

    #[test]
    fn methods_are_read_as_they_are_written() {
        for m in [Method::Max, Method::Entropy, Method::Percentile(99.99)] {
            assert_eq!(m.to_string().parse::<Method>().unwrap(), m);
        }
        for bad in ["", "percentile:0", "percentile:101", "percentile:x", "minmax"] {
            assert!(bad.parse::<Method>().unwrap_err().contains("percentile:P"), "{bad}");
        }
    }
}
