//! Departure: the text tower learns the other words for the names of the labelled photos (`automobile`, `street`,
//! `trees`), after everything else has learnt.
//!
//! A text with another word is to get the embedding that the same text with the name had before. Captions and texts with
//! the names themselves keep theirs, so patches that were trained against them still find them; so do texts with the
//! labels of photos (`beagle`), or what the CLIP teacher knew of them is forgotten. Only the text
//! tower moves; it costs minutes, and the image side of the model stays what it was.

use std::collections::BTreeSet;

use rand::RngExt as _;
use rand::seq::IndexedRandom as _;
use rand_chacha::ChaCha8Rng;

use crate::text::tokenizer::Tokenizer;
use crate::train::autodiff::Graph;
use crate::train::dataset::names::{canonical, spoken};
use crate::train::dataset::{Split, split};
use crate::train::feed::{Feed, in_template};
use crate::train::kernels::Kernels;
use crate::train::loss;
use crate::train::model::inventory;
use crate::train::ops::Ops;
use crate::train::recipe::{Recipe, StageName};
use crate::train::session::{RunFolder, SessionError, StepLoss};
use crate::train::strangers::STRANGERS;
use crate::train::synth;
use crate::train::text_bank::{embed, tokenize};
use crate::train::weights::Weights;

/// Stage number, for random streams.
const WORDS: u64 = 6;

/// Longest text of a caption, in characters: what follows hardly fits the context.
const LONGEST: usize = 300;

/// Trains the text tower of `adapted` as the recipe's `[words]` says, if it has that stage; returns the weights of the
/// bundle.
///
/// # Errors
/// [`SessionError`] of the stage.
pub fn words<B: Kernels>(
    recipe: &Recipe,
    feed: &Feed,
    tokenizer: &Tokenizer,
    adapted: Weights,
    folder: &RunFolder<B>,
) -> Result<Weights, SessionError> {
    let Some(stage) = &recipe.words else {
        return Ok(adapted);
    };
    let config = recipe.merged();
    let tower = inventory::text(&config.text, config.clip_head.text_dim);
    let before = Graph::<B>::new(&adapted, folder.device.clone()).with_precision(recipe.precision);
    let texts = Texts::new(feed);
    let mut session = folder.session(recipe, StageName::Words, || adapted)?;
    let first = session.processes().rank() * stage.accumulate;
    let per_step = session.processes().count() * stage.accumulate;
    let batch = |step: u64| {
        let micro = (first..first + stage.accumulate).map(|index| {
            let mut rng = feed.rng(WORDS, step, index);
            let (said, meant): (Vec<String>, Vec<String>) = (0..stage.batch).map(|_| texts.draw(&mut rng)).unzip();
            let tokens = |texts: &[String]| tokenize(tokenizer, texts).expect("texts are cut to fit");
            (tokens(&said), tokens(&meant))
        });
        Ok(micro.collect())
    };
    let rate = |name: &str| f32::from(u8::from(tower.contains_key(name)));
    session.run(stage, &recipe.optimizer, rate, batch, |graph, (said, meant)| {
        let target = before.values(&embed(&before, &config, &meant));
        let target = graph.input(target, &[stage.batch, config.clip_head.text_dim]);
        let distances = loss::cosine(graph, &embed(graph, &config, &said), &target);
        let mean = graph.scale(&graph.sum(&distances, 0), 1.0 / stage.batch as f32);
        let mean = graph.reshape(&mean, &[1]);
        let parts = vec![("distance", graph.values(&mean)[0])];
        let total = graph.scale(&mean, 1.0 / per_step as f32);
        StepLoss { total, parts }
    })?;
    Ok(session.weights)
}

/// What the tower hears.
struct Texts {
    /// Names that have other words.
    reworded: Vec<String>,
    /// All names.
    names: Vec<String>,
    /// Labels of photos, but for other words for a name, which are to mean what the name means.
    labels: Vec<String>,
    captions: Vec<String>,
}

impl Texts {
    fn new(feed: &Feed) -> Self {
        let mut names = feed.names();
        names.extend(synth::names().iter().filter_map(canonical).map(str::to_owned));
        let reworded: Vec<String> = names.iter().filter(|name| spoken(name).count() > 1).cloned().collect();
        let learnt = feed.dataset().into_iter().flat_map(|dataset| dataset.samples());
        let learnt: Vec<_> = learnt.filter(|sample| split(&sample.key) == Split::Train).collect();
        let other_words: Vec<&str> = reworded.iter().flat_map(|name| spoken(name).skip(1)).collect();
        let labels = learnt.iter().flat_map(|sample| &sample.info.labels);
        let labels: BTreeSet<&String> = labels.filter(|label| !other_words.contains(&label.as_str())).collect();
        let captions = learnt.iter().flat_map(|sample| &sample.info.captions);
        Self {
            labels: labels.into_iter().cloned().collect(),
            reworded,
            names,
            captions: captions.map(|text| text.chars().take(LONGEST).collect()).collect(),
        }
    }

    /// A text, and the text whose embedding it is to get: half of them with another word for a name, the rest captions,
    /// names, labels, and nouns that name nothing in the photos.
    fn draw(&self, rng: &mut ChaCha8Rng) -> (String, String) {
        if let (true, Some(name)) = (rng.random_bool(0.5), self.reworded.choose(rng)) {
            let others: Vec<&str> = spoken(name).skip(1).collect();
            let template = in_template("{}", rng);
            let said = others.choose(rng).unwrap_or(&name.as_str()).to_string();
            return (template.replace("{}", &said), template.replace("{}", name));
        }
        let text = match self.captions.choose(rng) {
            Some(caption) if rng.random_bool(0.2) => caption.clone(),
            _ if rng.random_bool(0.2) => in_template(STRANGERS.choose(rng).expect("there are such nouns"), rng),
            _ => {
                let label = self.labels.choose(rng).filter(|_| rng.random_bool(0.5));
                let noun = label.or_else(|| self.names.choose(rng));
                in_template(noun.expect("drawn scenes have names"), rng)
            }
        };
        (text.clone(), text)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use rand::SeedableRng as _;

    use super::*;
    use crate::train::dataset::Dataset;
    use crate::train::dataset::tests::{folder, jpeg, key_of};

    #[test]
    fn half_of_the_texts_say_a_name_in_another_word_and_the_rest_stay() {
        let recipe = Recipe::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/nano/recipe.toml")).unwrap();
        let mut texts = Texts::new(&Feed::new(None, &recipe));
        texts.reworded = vec!["car".into()];
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let drawn: Vec<(String, String)> = (0..400).map(|_| texts.draw(&mut rng)).collect();
        let (same, other): (Vec<_>, Vec<_>) = drawn.iter().partition(|(said, meant)| said == meant);
        assert!((150..250).contains(&other.len()), "{}", other.len());
        let noun = |text: &str| STRANGERS.iter().any(|noun| text.contains(noun));
        assert!(same.iter().any(|(said, _)| noun(said)), "nouns that name nothing");
        for (said, meant) in other {
            let word = ["cars", "automobile", "vehicle"]
                .into_iter()
                .find(|word| said.contains(word))
                .expect("another word for car");
            assert_eq!(&said.replace(word, "car"), meant);
        }
    }

    #[test]
    fn labels_of_training_photos_stay_what_they_are_but_for_other_words_of_a_name() {
        let recipe = Recipe::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/nano/recipe.toml")).unwrap();
        let (learnt, held_out) = (key_of(Split::Train), key_of(Split::Validation));
        let (_dir, pattern) = folder(&[
            (&format!("{learnt}.jpg"), jpeg(8, 8)),
            (
                &format!("{learnt}.json"),
                br#"{"source":"x","labels":["siamese","kitten"]}"#.to_vec(),
            ),
            (&format!("{held_out}.jpg"), jpeg(8, 8)),
            (
                &format!("{held_out}.json"),
                br#"{"source":"x","labels":["pug"]}"#.to_vec(),
            ),
        ]);
        let dataset = Dataset::open(&[pattern]).unwrap();
        let texts = Texts::new(&Feed::new(Some(Arc::new(dataset)), &recipe));
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let drawn: Vec<(String, String)> = (0..400).map(|_| texts.draw(&mut rng)).collect();
        let with = |word: &str| drawn.iter().filter(|(said, _)| said.contains(word)).collect::<Vec<_>>();
        assert!(with("siamese").len() > 10 && with("siamese").iter().all(|(said, meant)| said == meant));
        assert!(!with("kitten").is_empty() && with("kitten").iter().all(|(_, meant)| meant.contains("cat")));
        assert!(with("pug").is_empty(), "the validation split is not learnt from");
    }
}
