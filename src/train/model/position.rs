//! Resizing of position tables as matrix products, so that they train and export like any other weight.

/// Matrix `[to, from]` of one-dimensional linear interpolation (PyTorch `mode="linear"`,
/// `align_corners=False`): SAM's `get_rel_pos` resizes relative positions so.
#[must_use]
pub fn linear_matrix(from: usize, to: usize) -> Vec<f32> {
    let mut matrix = vec![0.0; to * from];
    let scale = from as f32 / to as f32;
    for i in 0..to {
        let x = ((i as f32 + 0.5) * scale - 0.5).max(0.0);
        let low = (x as usize).min(from - 1);
        let high = (low + 1).min(from - 1);
        let fraction = x - low as f32;
        matrix[i * from + low] += 1.0 - fraction;
        matrix[i * from + high] += fraction;
    }
    matrix
}

/// Matrix `[to, from]` of one-dimensional bicubic interpolation (PyTorch `mode="bicubic"`, a = −0.75,
/// `align_corners=False`): the absolute position table is resized so (paper.md section 10).
#[must_use]
pub fn bicubic_matrix(from: usize, to: usize) -> Vec<f32> {
    const A: f32 = -0.75;
    let near = |t: f32| ((A + 2.0) * t - (A + 3.0)) * t * t + 1.0;
    let far = |t: f32| ((A * t - 5.0 * A) * t + 8.0 * A) * t - 4.0 * A;
    let mut matrix = vec![0.0; to * from];
    let scale = from as f32 / to as f32;
    for i in 0..to {
        let x = (i as f32 + 0.5) * scale - 0.5;
        let floor = x.floor();
        let t = x - floor;
        let weights = [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)];
        for (k, weight) in weights.iter().enumerate() {
            let column = (floor as isize + k as isize - 1).clamp(0, from as isize - 1) as usize;
            matrix[i * from + column] += weight;
        }
    }
    matrix
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_size_is_the_identity() {
        for matrix in [linear_matrix(5, 5), bicubic_matrix(5, 5)] {
            for (i, value) in matrix.iter().enumerate() {
                assert!((value - f32::from(i / 5 == i % 5)).abs() < 1e-6, "entry {i} is {value}");
            }
        }
    }

    #[test]
    fn rows_sum_to_one() {
        for matrix in [linear_matrix(27, 9), bicubic_matrix(12, 7), bicubic_matrix(4, 13)] {
            let columns = match matrix.len() {
                243 => 27,
                84 => 12,
                _ => 4,
            };
            for row in matrix.chunks(columns) {
                assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-5);
            }
        }
    }
}
