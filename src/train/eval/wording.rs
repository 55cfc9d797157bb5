//! Names → text embeddings, as the daemon computes them: templates averaged, re-normalised.

use std::collections::HashMap;

use super::EvalError;
use super::semantic::CLASSES;
use crate::contract::{Bundle, Manifest};
use crate::runtime::TextEncoder;
use crate::text::templates::TEMPLATES;
use crate::text::tokenizer::{TextError, Tokenizer};
use crate::vision::query::{Queries, mean_embedding};

/// Text embeddings of names: templates averaged and re-normalised, as the daemon does it.
pub(super) fn embed(
    text: &mut dyn TextEncoder,
    tokenizer: &Tokenizer,
    name: &str,
    width: usize,
    templates: &[&str],
) -> Result<Vec<f32>, EvalError> {
    let ids = templates
        .iter()
        .map(|t| Ok(tokenizer.encode(&t.replace("{}", name))?.to_vec()));
    let rows = text.embed(&ids.collect::<Result<Vec<_>, TextError>>()?)?;
    Ok(mean_embedding(&rows.concat(), width)?)
}

/// The tokenizer a bundle names.
///
/// # Errors
/// [`EvalError::Vocabulary`] or [`EvalError::Text`] if its merges cannot be read.
pub fn tokenizer(bundle: &Bundle) -> Result<Tokenizer, EvalError> {
    let Some(file) = bundle.manifest.vocabulary_file() else {
        return Ok(Tokenizer::standard());
    };
    let path = bundle.dir.join(file);
    let text = std::fs::read_to_string(&path).map_err(|source| EvalError::Vocabulary { path, source })?;
    Ok(Tokenizer::from_merges(&text)?)
}

/// Embeddings of [`CLASSES`] and of the bundle's background prompts, each the mean over `templates`.
///
/// # Errors
/// [`EvalError`] if the text encoder fails or a name does not fit its context.
pub fn queries(
    text: &mut dyn TextEncoder,
    tokenizer: &Tokenizer,
    manifest: &Manifest,
    templates: &[&str],
) -> Result<Queries, EvalError> {
    let width = manifest.encoder.embed_dim;
    let mut asked = Vec::new();
    for name in CLASSES {
        asked.push((embed(text, tokenizer, name, width, templates)?, 0.5));
    }
    let mut background = Vec::new();
    for name in competitors(manifest) {
        background.push(embed(text, tokenizer, name, width, templates)?);
    }
    Ok(Queries::new(width, &asked, &background)?)
}

/// The bundle's background prompts that are not asked about themselves.
pub fn competitors(manifest: &Manifest) -> impl Iterator<Item = &str> {
    let background = manifest.background.iter().map(String::as_str);
    background.filter(|b| !CLASSES.contains(b))
}

/// Text embeddings by name, each computed once.
pub(super) struct Words {
    tokenizer: Tokenizer,
    width: usize,
    known: HashMap<String, Vec<f32>>,
}

impl Words {
    /// No words yet; embeddings are `width` wide.
    pub(super) fn new(tokenizer: Tokenizer, width: usize) -> Self {
        Self {
            tokenizer,
            width,
            known: HashMap::new(),
        }
    }

    /// Embeds those of `names` that are new.
    ///
    /// # Errors
    /// [`EvalError`] if the text encoder fails or a name does not fit its context.
    pub(super) fn learn<'n>(
        &mut self,
        text: &mut dyn TextEncoder,
        names: impl Iterator<Item = &'n str>,
    ) -> Result<(), EvalError> {
        for name in names {
            if !self.known.contains_key(name) {
                let embedding = embed(text, &self.tokenizer, name, self.width, &TEMPLATES)?;
                self.known.insert(name.to_owned(), embedding);
            }
        }
        Ok(())
    }

    /// Unit-norm embedding `[D]` of a learnt name.
    ///
    /// # Panics
    /// If the name was never learnt.
    #[must_use]
    pub(super) fn get(&self, name: &str) -> &[f32] {
        &self.known[name]
    }
}
