//! Tables of measurements with their protocol, models side by side; as Markdown and as JSON.

use std::fmt::Write as _;

use serde::Serialize;

/// One number of one model.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// What it is, with its unit.
    pub name: String,
    /// The number.
    pub value: f64,
    /// Digits behind the point in Markdown.
    pub decimals: usize,
}

impl Entry {
    /// A share as percent with one digit.
    #[must_use]
    pub fn percent(name: impl Into<String>, share: f64) -> Self {
        Self {
            name: name.into(),
            value: 100.0 * share,
            decimals: 1,
        }
    }

    /// A number with `decimals` digits.
    #[must_use]
    pub fn new(name: impl Into<String>, value: f64, decimals: usize) -> Self {
        Self {
            name: name.into(),
            value,
            decimals,
        }
    }
}

/// One row of a table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// What it is, with its unit.
    pub name: String,
    /// One value per column; nothing where the model cannot be asked this.
    pub values: Vec<Option<f64>>,
    #[serde(skip)]
    decimals: usize,
}

/// One measurement of all models.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Section {
    /// Its name.
    pub title: String,
    /// What was done, sentence by sentence.
    pub protocol: String,
    /// Models.
    pub columns: Vec<String>,
    /// Numbers.
    pub rows: Vec<Row>,
}

impl Section {
    /// Puts the entries of several models side by side; rows keep the order in which they first occur.
    #[must_use]
    pub fn new(title: &str, protocol: &str, columns: Vec<(String, Vec<Entry>)>) -> Self {
        let mut rows: Vec<Row> = Vec::new();
        for (column, (_, entries)) in columns.iter().enumerate() {
            for entry in entries {
                let at = rows.iter().position(|r| r.name == entry.name).unwrap_or_else(|| {
                    rows.push(Row {
                        name: entry.name.clone(),
                        values: vec![None; columns.len()],
                        decimals: entry.decimals,
                    });
                    rows.len() - 1
                });
                rows[at].values[column] = Some(entry.value);
            }
        }
        Self {
            title: title.into(),
            protocol: protocol.into(),
            columns: columns.into_iter().map(|(name, _)| name).collect(),
            rows,
        }
    }

    /// The table in Markdown, under its title and protocol.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut out = format!("## {}\n\n{}\n\n|  |", self.title, self.protocol);
        self.columns.iter().for_each(|c| out.push_str(&format!(" {c} |")));
        out.push_str(&format!("\n|---|{}\n", "---:|".repeat(self.columns.len())));
        for row in &self.rows {
            out.push_str(&format!("| {} |", row.name));
            for value in &row.values {
                match value {
                    Some(value) => write!(out, " {value:.*} |", row.decimals).expect("a string grows"),
                    None => out.push_str(" - |"),
                }
            }
            out.push('\n');
        }
        out
    }
}

/// What a column stands for.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelFacts {
    /// Head of the column.
    pub column: String,
    /// Where it comes from.
    pub origin: String,
    /// Side of the input in pixels, and how a photo becomes one.
    pub input: String,
    /// Id of the bundle that ran; nothing for a teacher that is no bundle.
    pub bundle: Option<String>,
    /// Back end, provider and precision.
    pub provider: String,
}

/// Everything one `train eval` measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Version of this program.
    pub version: String,
    /// What was read.
    pub data: Vec<String>,
    /// Which part of it, and how many samples that has.
    pub part: String,
    /// Samples that could not be used, each with its reason.
    pub skipped: Vec<String>,
    /// The columns.
    pub models: Vec<ModelFacts>,
    /// The measurements.
    pub sections: Vec<Section>,
}

impl Report {
    /// The report in Markdown.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut out = format!(
            "# Measured by samclip {}\n\nData: {}; {}; {} samples skipped.\n\n\
             | model | origin | input | bundle | provider |\n|---|---|---|---|---|\n",
            self.version,
            self.data.join(" "),
            self.part,
            self.skipped.len()
        );
        for model in &self.models {
            let bundle = model.bundle.as_deref().unwrap_or("-");
            let facts = [&model.column, &model.origin, &model.input, bundle, &model.provider];
            out.push_str(&format!("| {} |\n", facts.join(" | ")));
        }
        for section in &self.sections {
            out.push('\n');
            out.push_str(&section.markdown());
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_model_cannot_be_asked_is_a_gap_in_its_column() {
        let section = Section::new(
            "Masks",
            "Boxes.",
            vec![
                (
                    "student".into(),
                    vec![Entry::percent("box", 0.512), Entry::new("ms", 3.25, 2)],
                ),
                (
                    "SAM".into(),
                    vec![Entry::percent("point", 0.4), Entry::percent("box", 0.5)],
                ),
            ],
        );
        assert_eq!(
            section.markdown(),
            "## Masks\n\nBoxes.\n\n|  | student | SAM |\n|---|---:|---:|\n| box | 51.2 | 50.0 |\n| ms | 3.25 | - |\n\
             | point | - | 40.0 |\n"
        );
        let json = serde_json::to_value(&section).unwrap();
        assert_eq!(json["rows"][2]["values"], serde_json::json!([null, 40.0]));
    }
}
