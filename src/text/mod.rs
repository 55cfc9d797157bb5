//! Text in: from a query's words to the token ids that a text tower reads.
//!
//! * [`clean`]: what happens to the characters before they are split
//! * [`tokenizer`]: CLIP's byte pair encoding, with the standard or a shortened vocabulary
//! * [`templates`]: the 80 sentences a query is put into
//!
//! No embedding happens here; the text tower belongs to the bundle.

pub mod clean;
pub mod templates;
pub mod tokenizer;
