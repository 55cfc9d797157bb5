//! Names → text embeddings, as the daemon computes them: templates averaged, re-normalised.

use std::collections::HashMap;

use super::EvalError;
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

/// Embeddings of `names` and of the bundle's background prompts, each the mean over `templates`.
///
/// # Errors
/// [`EvalError`] if the text encoder fails or a name does not fit its context.
pub fn queries<N: AsRef<str>>(
    text: &mut dyn TextEncoder,
    tokenizer: &Tokenizer,
    manifest: &Manifest,
    templates: &[&str],
    names: &[N],
) -> Result<Queries, EvalError> {
    let width = manifest.encoder.embed_dim;
    let asked = asked(text, tokenizer, manifest, templates, names)?;
    let mut background = Vec::new();
    for name in competitors(manifest, names) {
        background.push(embed(text, tokenizer, name, width, templates)?);
    }
    Ok(Queries::new(width, &asked, &background)?)
}

/// As [`queries`] without background: the names compete among themselves.
pub(super) fn among_themselves<N: AsRef<str>>(
    text: &mut dyn TextEncoder,
    tokenizer: &Tokenizer,
    manifest: &Manifest,
    templates: &[&str],
    names: &[N],
) -> Result<Queries, EvalError> {
    let asked = asked(text, tokenizer, manifest, templates, names)?;
    Ok(Queries::among_themselves(manifest.encoder.embed_dim, &asked)?)
}

/// Embedding and threshold of a name.
type Asked = (Vec<f32>, Option<f32>);

/// Each of `names` as a query.
fn asked<N: AsRef<str>>(
    text: &mut dyn TextEncoder,
    tokenizer: &Tokenizer,
    manifest: &Manifest,
    templates: &[&str],
    names: &[N],
) -> Result<Vec<Asked>, EvalError> {
    let mut embedded = |name: &N| embed(text, tokenizer, name.as_ref(), manifest.encoder.embed_dim, templates);
    names.iter().map(|name| Ok((embedded(name)?, Some(0.5)))).collect()
}

/// The bundle's background prompts that are not asked about themselves; all of them if none is left.
pub fn competitors<'m, N: AsRef<str>>(manifest: &'m Manifest, asked: &[N]) -> Vec<&'m str> {
    let background = manifest.background.iter().map(String::as_str);
    let kept: Vec<&str> = background
        .clone()
        .filter(|b| !asked.iter().any(|a| a.as_ref() == *b))
        .collect();
    if kept.is_empty() { background.collect() } else { kept }
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

    /// Unit-norm embedding `[D]` of each name, templates averaged.
    ///
    /// # Errors
    /// As [`Self::learn`].
    pub(super) fn names(&mut self, text: &mut dyn TextEncoder, names: &[String]) -> Result<Vec<Vec<f32>>, EvalError> {
        self.learn(text, names.iter().map(String::as_str))?;
        Ok(names.iter().map(|n| self.known[n].clone()).collect())
    }

    /// Unit-norm embedding `[D]` of each sentence as it is; nothing for one that is longer than the model's context.
    ///
    /// # Errors
    /// [`EvalError`] if the text encoder fails.
    pub(super) fn sentences(
        &self,
        text: &mut dyn TextEncoder,
        sentences: &[String],
    ) -> Result<Vec<Option<Vec<f32>>>, EvalError> {
        let ids: Vec<Option<Vec<u32>>> = sentences
            .iter()
            .map(|s| self.tokenizer.encode(s).ok().map(|ids| ids.to_vec()))
            .collect();
        let mut rows = text
            .embed(&ids.iter().flatten().cloned().collect::<Vec<_>>())?
            .into_iter();
        Ok(ids.iter().map(|ids| ids.as_ref().and_then(|_| rows.next())).collect())
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
