//! What a model costs: bytes of its graphs, parameters and multiply-accumulates, and the median time of a run.

use std::time::Instant;

use super::EvalError;
use super::clip_tower::ClipTower;
use super::report::Entry;
use super::segmenter::{Prompt, Segmenter};
use crate::contract::GraphKind;
use crate::train::cost::{self, Cost};
use crate::train::dataset::Sample;
use crate::train::dataset::augment::Region;
use crate::train::recipe::Recipe;
use crate::vision::geometry::FramePoint;

/// Runs whose median is the figure.
pub const RUNS: usize = 15;

/// Median of [`RUNS`] runs in milliseconds, after one that does not count.
pub(super) fn median_ms(mut run: impl FnMut() -> Result<(), EvalError>) -> Result<f64, EvalError> {
    medians_ms([&mut run]).map(|[median]| median)
}

/// Something whose time is taken.
pub(super) type Timed<'a> = &'a mut dyn FnMut() -> Result<(), EvalError>;

/// Medians of several things to be compared, as by [`median_ms`]. They run by turns, so that what else the machine does
/// slows all of them.
pub(super) fn medians_ms<const N: usize>(mut runs: [Timed<'_>; N]) -> Result<[f64; N], EvalError> {
    let mut times: [Vec<f64>; N] = std::array::from_fn(|_| Vec::with_capacity(RUNS));
    for counts in std::iter::once(false).chain([true; RUNS]) {
        for (run, times) in runs.iter_mut().zip(&mut times) {
            let start = Instant::now();
            run()?;
            if counts {
                times.push(1e3 * start.elapsed().as_secs_f64());
            }
        }
    }
    Ok(times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[RUNS / 2]
    }))
}

/// Cost of a bundle on `photo`; parameters and multiply-accumulates where its recipe is known.
///
/// # Errors
/// [`EvalError`] if the model does not run.
pub fn segmenter(model: &mut Segmenter, photo: &Sample, recipe: Option<&Recipe>) -> Result<Vec<Entry>, EvalError> {
    let mut entries = Vec::new();
    for kind in GraphKind::ALL {
        let path = model.bundle.graph_path(kind, Some(&model.engine.precision))?;
        let bytes = std::fs::metadata(&path).map_or(0, |m| m.len());
        entries.push(Entry::new(format!("{} file, MB", kind.name()), bytes as f64 / 1e6, 2));
    }
    for part in recipe.iter().flat_map(|r| cost::parts(r)) {
        entries.extend(of_part(part.name, part.cost));
    }
    entries.push(Entry::new(
        "frame to features, ms",
        median_ms(|| model.encode(photo).map(drop))?,
        2,
    ));
    let letterbox = model.encode(photo)?;
    let prompts = model.bundle.manifest.decoder.prompts;
    let centre = FramePoint {
        x: photo.photo.width as f32 / 2.0,
        y: photo.photo.height as f32 / 2.0,
    };
    let asked = vec![Prompt::Point(centre); prompts];
    let decoder = median_ms(|| model.decode(&letterbox, &asked).map(drop))?;
    entries.push(Entry::new(format!("SAM head, {prompts} prompts, ms"), decoder, 2));
    Ok(entries)
}

/// Cost of a CLIP teacher's image tower on `photo`.
///
/// # Errors
/// [`EvalError`] if the model does not run.
pub fn clip_tower(model: &mut ClipTower, photo: &Sample) -> Result<Vec<Entry>, EvalError> {
    let mut entries = vec![Entry::new("encoder file, MB", model.bytes as f64 / 1e6, 2)];
    entries.extend(of_part("image encoder", cost::image_tower(&model.config)));
    let whole = Region::whole(&photo.photo);
    let time = median_ms(|| model.region(photo, whole).map(drop))?;
    entries.push(Entry::new("frame to features, ms", time, 2));
    Ok(entries)
}

fn of_part(name: &str, cost: Cost) -> [Entry; 2] {
    [
        Entry::new(format!("{name}, million parameters"), cost.parameters as f64 / 1e6, 3),
        Entry::new(format!("{name}, GMAC"), cost.multiply_accumulates as f64 / 1e9, 3),
    ]
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn what_is_compared_runs_by_turns() {
        let order = RefCell::new(String::new());
        let run = |name| {
            order.borrow_mut().push(name);
            Ok(())
        };
        medians_ms([&mut || run('a'), &mut || run('b')]).unwrap();
        assert_eq!(order.into_inner(), "ab".repeat(RUNS + 1));
    }
}
