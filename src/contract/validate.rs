//! What a manifest must say before any file is opened.

use super::manifest::{FORMAT_VERSION, Manifest};
use super::size::listed;
use super::{BundleError, Calibration, GraphKind, GraphSpec};

/// Largest accepted value of any size in the manifest: keeps products of sizes far from overflow.
const LARGEST_SIZE: usize = 16_384;

impl Manifest {
    /// Checks every value that can be checked without opening a file.
    ///
    /// # Errors
    /// The first impossible value, with what was found and what is allowed.
    pub fn validate(&self) -> Result<(), BundleError> {
        if self.format_version != FORMAT_VERSION {
            return Err(BundleError::FormatVersion {
                found: self.format_version.into(),
            });
        }
        let e = &self.encoder;
        for (field, size) in [
            ("encoder.side", e.side),
            ("encoder.stride", e.stride),
            ("encoder.neck_channels", e.neck_channels),
            ("encoder.embed_dim", e.embed_dim),
            ("encoder.patch_grid", e.patch_grid),
            ("decoder.prompts", self.decoder.prompts),
            ("decoder.points", self.decoder.points),
            ("text.batch", self.text.batch),
            ("text.context", self.text.context),
        ] {
            check(field, size, (1..=LARGEST_SIZE).contains(&size), "1 to 16384")?;
        }
        check(
            "name",
            &self.name,
            !self.name.trim().is_empty() && self.name.len() <= 100,
            "1 to 100 characters",
        )?;
        check(
            "encoder.side",
            e.side,
            e.side.is_multiple_of(e.stride),
            "a multiple of the stride",
        )?;
        check(
            "encoder.patch_grid",
            e.patch_grid,
            e.side.is_multiple_of(e.patch_grid),
            "a divisor of the side",
        )?;
        let finite = |v: &[f32]| v.iter().all(|x| x.is_finite());
        check(
            "encoder.mean",
            format!("{:?}", e.mean),
            finite(&e.mean),
            "finite numbers",
        )?;
        let positive = finite(&e.std) && e.std.iter().all(|&x| x > 0.0);
        check("encoder.std", format!("{:?}", e.std), positive, "positive numbers")?;
        check(
            "logit_scale",
            self.logit_scale,
            self.logit_scale.is_finite() && self.logit_scale > 0.0,
            "above 0",
        )?;
        check_calibration("calibration", &self.calibration)?;
        check(
            "background",
            "no prompt",
            !self.background.is_empty(),
            "at least one prompt",
        )?;
        check(
            "precision",
            "no variant",
            !self.precision.is_empty(),
            "at least one variant",
        )?;
        self.check_precisions()?;
        self.check_sizes()?;
        self.check_graphs()?;
        for name in self.referenced_files() {
            check_file_name(&name)?;
        }
        Ok(())
    }

    /// Names that tell variants apart, and measured losses that a measurement can have.
    fn check_precisions(&self) -> Result<(), BundleError> {
        for (index, p) in self.precision.iter().enumerate() {
            let field = |name: &str| format!("precision {:?} {name}", p.name);
            let first = self.precision.iter().position(|other| other.name == p.name);
            check("precision", &p.name, first == Some(index), "a name used once")?;
            let errors = p.relative_error.values();
            for error in errors {
                let fits = error.is_finite() && *error >= 0.0;
                check(&field("relative_error"), error, fits, "0 or more")?;
            }
            let Some(m) = &p.measured else { continue };
            check(&field("measured.photos"), m.photos, m.photos > 0, "at least 1")?;
            for (name, share) in [
                ("measured.mask_agreement", m.mask_agreement),
                ("measured.ranking_changed", m.ranking_changed),
            ] {
                check(&field(name), share, (0.0..=1.0).contains(&share), "0 to 1")?;
            }
            let fits = m.size_ratio.is_finite() && m.size_ratio > 0.0;
            check(&field("measured.size_ratio"), m.size_ratio, fits, "above 0")?;
        }
        Ok(())
    }

    /// Sizes that the model can have, each once, and each with the graphs of at least one variant.
    fn check_sizes(&self) -> Result<(), BundleError> {
        let sides = self.sides();
        for (index, size) in self.size.iter().enumerate() {
            let (side, grid) = (size.side, size.patch_grid);
            let field = |name: &str| format!("size {side} {name}");
            let fits = (1..=LARGEST_SIZE).contains(&side) && side.is_multiple_of(self.encoder.stride);
            check(&field("side"), side, fits, "a multiple of the stride up to 16384")?;
            let first = sides.iter().position(|&other| other == side);
            check(&field("side"), side, first == Some(index + 1), "a side used once")?;
            let fits = grid > 0 && side.is_multiple_of(grid);
            check(&field("patch_grid"), grid, fits, "a divisor of the side")?;
            if let Some(calibration) = &size.calibration {
                check_calibration(&field("calibration"), calibration)?;
            }
            let there = self.precision.iter().any(|p| p.at(side).is_some());
            check(&field("graphs"), "none", there, "a [[precision.size]] of this side")?;
        }
        for p in &self.precision {
            for (index, files) in p.size.iter().enumerate() {
                let field = format!("precision {:?} size", p.name);
                let known = self.size.iter().any(|size| size.side == files.side);
                let expected = format!("the side of a [[size]], one of {}", listed(&sides[1..]));
                check(&field, files.side, known, &expected)?;
                let first = p.size.iter().position(|other| other.side == files.side);
                check(&field, files.side, first == Some(index), "a side used once")?;
            }
        }
        Ok(())
    }

    fn check_graphs(&self) -> Result<(), BundleError> {
        for kind in GraphKind::ALL {
            let field = format!("graph {}", kind.name());
            let tables: Vec<_> = self.graph.iter().filter(|g| g.graph == kind).collect();
            let [table] = tables[..] else {
                let expected = "exactly one table".to_owned();
                return Err(BundleError::Value {
                    field,
                    found: format!("{} tables", tables.len()),
                    expected,
                });
            };
            let standard = self.graph_spec(kind);
            let found = table.inputs.iter().chain(&table.outputs);
            let expected = standard.inputs.iter().chain(&standard.outputs);
            if let Some((f, e)) = found.zip(expected).find(|(f, e)| f != e) {
                return Err(BundleError::Value {
                    field,
                    found: format!("{f:?}"),
                    expected: format!("{e:?}"),
                });
            }
            let counts = |g: &GraphSpec| format!("{} inputs, {} outputs", g.inputs.len(), g.outputs.len());
            check(
                &field,
                counts(table),
                counts(table) == counts(&standard),
                &counts(&standard),
            )?;
        }
        Ok(())
    }
}

fn check_calibration(field: &str, c: &Calibration) -> Result<(), BundleError> {
    let field = |name: &str| format!("{field}.{name}");
    let fits = c.scale.is_finite() && c.scale > 0.0;
    check(&field("scale"), c.scale, fits, "above 0")?;
    check(&field("offset"), c.offset, c.offset.is_finite(), "a finite number")?;
    let fits = c.threshold > 0.0 && c.threshold < 1.0;
    check(&field("threshold"), c.threshold, fits, "between 0 and 1")
}

fn check(field: &str, found: impl std::fmt::Display, fits: bool, expected: &str) -> Result<(), BundleError> {
    if fits {
        return Ok(());
    }
    Err(BundleError::Value {
        field: field.into(),
        found: found.to_string(),
        expected: expected.into(),
    })
}

/// Accepts only a plain name in the bundle's own directory, and not the manifest's.
///
/// # Errors
/// [`BundleError::FileName`].
pub fn check_file_name(name: &str) -> Result<(), BundleError> {
    let plain = !name.is_empty()
        && name.len() <= 200
        && !name.starts_with('.')
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'));
    if plain && name != super::MANIFEST_FILE {
        Ok(())
    } else {
        Err(BundleError::FileName { found: name.into() })
    }
}
