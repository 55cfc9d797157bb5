//! Departure: a merged model goes on learning from labelled photos, if need be without the teachers that made it.
//!
//! Backbone, CLIP head and SAM head learn from the losses of stage 3; the text tower stands still. The CLIP teacher
//! rehearses as before where it is at hand. Else the model as it stood before takes its place: L_CLIP holds the image embeddings near
//! its own. With `losses.labelled` below 1 its masks are mixed into the labelled ones, in the SAM teacher's place. So a bundle can
//! be adapted to the photos of one's own cameras.

use crate::text::tokenizer::Tokenizer;
use crate::train::distill::{self, Steps, Teachers};
use crate::train::feed::Feed;
use crate::train::kernels::Kernels;
use crate::train::model::encoder;
use crate::train::recipe::{Finetune, Recipe, StageName};
use crate::train::session::{RunFolder, SessionError};
use crate::train::weights::Weights;

/// Stage number, for random streams.
const FINETUNE: u64 = 8;

/// Trains `before` as the recipe's `[finetune]` says, if it has that stage. The weights are those of a bundle of the recipe,
/// or of a model that does not have its detail path yet; `clip` is the CLIP teacher, if there is one.
///
/// # Errors
/// [`SessionError`] of the stage.
pub fn finetune<B: Kernels>(
    recipe: &Recipe,
    feed: &Feed,
    tokenizer: &Tokenizer,
    clip: Option<&Weights>,
    before: Weights,
    folder: &RunFolder<B>,
) -> Result<Weights, SessionError> {
    let Some(Finetune { own_prompts, stage }) = &recipe.finetune else {
        return Ok(before);
    };
    let sized = if encoder::has_detail(&before) {
        recipe.exported()
    } else {
        recipe.adapted()
    };
    let mut teachers = Teachers::of_before(&sized, &before, clip, tokenizer.clone(), folder.device.clone());
    let rate = |name: &str| match name {
        _ if name.starts_with("clip_head.") => 1.0,
        _ if name.starts_with("image_encoder.") || name.starts_with("mask_decoder.") => stage.backbone_rate,
        _ => 0.0,
    };
    let session = folder.session(recipe, StageName::Finetune, || before)?;
    let steps = Steps {
        stage,
        number: FINETUNE,
        masks: *own_prompts,
        own_points: true,
        features: None,
    };
    distill::run(session, &steps, &sized, feed, &mut teachers, &rate)
}
