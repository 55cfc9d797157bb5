//! CLIP's tokenizer: lower-cased byte pair encoding into 77 ids.
//!
//! Equal to `SimpleTokenizer` of OpenAI CLIP (MIT) as open_clip 3.3 runs it with `clean="lower"`. The id of a symbol
//! follows from the merge list alone: 256 bytes, the same 256 bytes at the end of a word, one id per merge in order of
//! rank, start of text, end of text. A list cut after its first N merges is therefore a complete, smaller vocabulary
//! with the same ids for everything it kept; a narrow text tower uses one.

use std::collections::HashMap;
use std::io::Read as _;
use std::sync::LazyLock;

use flate2::read::GzDecoder;
use regex::Regex;

/// Tokens of one text, start and end included; CLIP's `context_length`.
pub const CONTEXT: usize = 77;

/// Longest accepted text in characters, before clean-up.
pub const MAX_CHARACTERS: usize = 1_000;

/// Merges of the standard CLIP vocabulary: 49,408 ids less 512 bytes and two marks.
pub const STANDARD_MERGES: usize = 48_894;

/// Ids of the byte symbols: 256 inside a word, 256 at its end.
const BYTE_SYMBOLS: u32 = 512;

const START_MARK: &str = "<start_of_text>";
const END_MARK: &str = "<end_of_text>";

/// `bpe_simple_vocab_16e6.txt.gz` of OpenAI CLIP (MIT, licence text beside it).
static STANDARD_VOCABULARY: &[u8] = include_bytes!("bpe_simple_vocab_16e6.txt.gz");

/// CLIP's word pattern; the text is lower case already, so letter case plays no part.
static WORDS: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+")
        .expect("the pattern is constant")
});

/// Why a text or a vocabulary was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// The text is longer than any query needs to be.
    #[error("text has {found} characters, at most {MAX_CHARACTERS} are accepted; shorten the query")]
    TooLong {
        /// Characters found.
        found: usize,
    },
    /// A vocabulary line is not two symbols.
    #[error("merge list line {line}: found {found:?}, expected two symbols with one space between them")]
    MergeSyntax {
        /// Line number, from 1.
        line: usize,
        /// The line.
        found: String,
    },
    /// A merge uses a symbol that no earlier line makes.
    #[error("merge list line {line}: symbol {symbol:?} is neither a byte symbol nor made by an earlier line")]
    UnknownSymbol {
        /// Line number, from 1.
        line: usize,
        /// The symbol.
        symbol: String,
    },
    /// Two lines make the same symbol.
    #[error("merge list line {line}: symbol {symbol:?} was already made by an earlier line")]
    RepeatedSymbol {
        /// Line number, from 1.
        line: usize,
        /// The symbol.
        symbol: String,
    },
    /// More merges were asked for than the standard vocabulary holds.
    #[error("{found} merges asked for, the standard vocabulary has {STANDARD_MERGES}")]
    TooManyMerges {
        /// Merges asked for.
        found: usize,
    },
}

/// Splits texts into token ids.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    /// Pair of ids → the id that replaces it; a lower id is a better rank.
    merges: HashMap<(u32, u32), u32>,
    /// Id of each byte inside a word; at the end of a word it is 256 higher.
    byte_ids: [u32; 256],
    vocab_size: usize,
}

impl Tokenizer {
    /// The tokenizer of all published CLIP models: 49,408 ids.
    #[must_use]
    pub fn standard() -> Self {
        Self::from_merges(&standard_text()).expect("the embedded vocabulary is well formed")
    }

    /// The standard tokenizer cut after its first `merges` merges; `merges + 514` ids.
    ///
    /// # Errors
    /// [`TextError::TooManyMerges`] above [`STANDARD_MERGES`].
    pub fn shortened(merges: usize) -> Result<Self, TextError> {
        Self::from_merges(&standard_merges(merges)?)
    }

    /// Reads a merge list: one `left right` per line, best rank first, `</w>` at the end of a word's last symbol. A
    /// first line with `#version` and blank lines are skipped.
    ///
    /// # Errors
    /// [`TextError`] names the line that is not a merge of known symbols.
    pub fn from_merges(text: &str) -> Result<Self, TextError> {
        let (byte_ids, mut ids) = byte_symbols();
        let mut merges = HashMap::new();
        let mut next = BYTE_SYMBOLS;
        for (index, content) in text.lines().enumerate() {
            let line = index + 1;
            if content.trim().is_empty() || (index == 0 && content.contains("#version")) {
                continue;
            }
            let mut symbols = content.split_whitespace();
            let (Some(left), Some(right), None) = (symbols.next(), symbols.next(), symbols.next()) else {
                return Err(TextError::MergeSyntax {
                    line,
                    found: content.chars().take(80).collect(),
                });
            };
            let find = |symbol: &str| {
                ids.get(symbol).copied().ok_or_else(|| TextError::UnknownSymbol {
                    line,
                    symbol: symbol.into(),
                })
            };
            let pair = (find(left)?, find(right)?);
            let symbol = format!("{left}{right}");
            if ids.contains_key(&symbol) {
                return Err(TextError::RepeatedSymbol { line, symbol });
            }
            merges.insert(pair, next);
            ids.insert(symbol, next);
            next += 1;
        }
        Ok(Self {
            merges,
            byte_ids,
            vocab_size: next as usize + 2,
        })
    }

    /// Number of ids, the two marks included.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Id of the start mark; always the second highest.
    #[must_use]
    pub fn start_of_text(&self) -> u32 {
        u32::try_from(self.vocab_size).expect("ids are u32") - 2
    }

    /// Id of the end mark; always the highest, so that its place is the maximum of a row.
    #[must_use]
    pub fn end_of_text(&self) -> u32 {
        u32::try_from(self.vocab_size).expect("ids are u32") - 1
    }

    /// Encodes one text: start mark, at most 75 tokens, end mark, zeros. A longer text keeps its beginning and the end
    /// mark. The empty text is the two marks.
    ///
    /// # Errors
    /// [`TextError::TooLong`] above [`MAX_CHARACTERS`].
    pub fn encode(&self, text: &str) -> Result<[u32; CONTEXT], TextError> {
        let found = text.chars().count();
        if found > MAX_CHARACTERS {
            return Err(TextError::TooLong { found });
        }
        let text = super::clean::clean(text);
        let mut ids = vec![self.start_of_text()];
        for word in WORDS.find_iter(&text) {
            match word.as_str() {
                START_MARK => ids.push(self.start_of_text()),
                END_MARK => ids.push(self.end_of_text()),
                word => ids.extend(self.merge(word)),
            }
            if ids.len() >= CONTEXT {
                break;
            }
        }
        ids.truncate(CONTEXT - 1);
        ids.push(self.end_of_text());
        let mut row = [0; CONTEXT];
        row[..ids.len()].copy_from_slice(&ids);
        Ok(row)
    }

    /// Merges one word's bytes, best rank first, all its occurrences at once.
    fn merge(&self, word: &str) -> Vec<u32> {
        let mut symbols: Vec<u32> = word.bytes().map(|byte| self.byte_ids[usize::from(byte)]).collect();
        if let Some(last) = symbols.last_mut() {
            *last += 256;
        }
        loop {
            let best = symbols
                .windows(2)
                .filter_map(|pair| {
                    self.merges
                        .get(&(pair[0], pair[1]))
                        .map(|&merged| (merged, (pair[0], pair[1])))
                })
                .min();
            let Some((merged, pair)) = best else { return symbols };
            let mut kept = Vec::with_capacity(symbols.len());
            let mut at = 0;
            while at < symbols.len() {
                if at + 1 < symbols.len() && (symbols[at], symbols[at + 1]) == pair {
                    kept.push(merged);
                    at += 2;
                } else {
                    kept.push(symbols[at]);
                    at += 1;
                }
            }
            symbols = kept;
        }
    }
}

/// The first `merges` lines of the standard merge list, as [`Tokenizer::from_merges`] reads them; what a bundle with a
/// shortened vocabulary stores.
///
/// # Errors
/// [`TextError::TooManyMerges`] above [`STANDARD_MERGES`].
pub fn standard_merges(merges: usize) -> Result<String, TextError> {
    if merges > STANDARD_MERGES {
        return Err(TextError::TooManyMerges { found: merges });
    }
    Ok(standard_text()
        .lines()
        .skip(1)
        .take(merges)
        .fold(String::new(), |text, line| text + line + "\n"))
}

/// The embedded list: its version line and [`STANDARD_MERGES`] merges; the file holds more, which CLIP does not use.
fn standard_text() -> String {
    let mut text = String::new();
    GzDecoder::new(STANDARD_VOCABULARY)
        .read_to_string(&mut text)
        .expect("the embedded vocabulary is valid gzip");
    text.lines()
        .take(STANDARD_MERGES + 1)
        .fold(String::new(), |text, line| text + line + "\n")
}

/// GPT-2's printable names of the 256 bytes, in the order of their ids: printable Latin-1 first, then the others under
/// code points from 256. Returns the id of each byte, and the ids by name, with and without `</w>`.
fn byte_symbols() -> ([u32; 256], HashMap<String, u32>) {
    let printable = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let named = (0..=255u8).filter(printable).map(|byte| (byte, char::from(byte)));
    let renamed = (0..=255u8).filter(|byte| !printable(byte)).zip('\u{100}'..);
    let mut byte_ids = [0; 256];
    let mut ids = HashMap::new();
    for (id, (byte, name)) in (0..).zip(named.chain(renamed)) {
        byte_ids[usize::from(byte)] = id;
        ids.insert(name.to_string(), id);
        ids.insert(format!("{name}</w>"), id + 256);
    }
    (byte_ids, ids)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    static STANDARD: LazyLock<Tokenizer> = LazyLock::new(Tokenizer::standard);

    #[derive(serde::Deserialize)]
    struct Golden {
        texts: Vec<String>,
        token_ids: Vec<Vec<u32>>,
    }

    #[test]
    fn token_ids_equal_open_clip_on_every_golden_text() {
        let golden: Golden = serde_json::from_str(include_str!("../../tests/data/golden/tokens.json")).unwrap();
        assert_eq!(golden.texts.len(), 28);
        assert_eq!(STANDARD.vocab_size(), 49_408);
        for (text, ids) in golden.texts.iter().zip(&golden.token_ids) {
            assert_eq!(STANDARD.encode(text).unwrap().as_slice(), ids.as_slice(), "{text:?}");
        }
    }

    #[test]
    fn a_truncated_text_keeps_the_end_mark() {
        let ids = STANDARD.encode(&"cat ".repeat(200)).unwrap();
        assert_eq!((ids[0], ids[75], ids[76]), (49_406, 2368, 49_407));
    }

    #[test]
    fn a_shortened_vocabulary_keeps_the_ids_it_has_and_splits_the_rest() {
        let short = Tokenizer::shortened(3_582).unwrap();
        assert_eq!(
            (short.vocab_size(), short.start_of_text(), short.end_of_text()),
            (4_096, 4_094, 4_095)
        );
        let full = STANDARD.encode("a photo of a cat.").unwrap();
        let cut = short.encode("a photo of a cat.").unwrap();
        assert_eq!(cut[1..7], full[1..7]); // all six ids are below 4,094
        let cut = short.encode("bicycle").unwrap();
        assert!(
            cut[2] != short.end_of_text(),
            "bicycle (11652) is not in the first 3,582 merges"
        );
        assert!(cut.iter().all(|&id| id < 4_096));
    }

    #[test]
    fn the_stored_merge_list_makes_the_same_tokenizer() {
        let stored = Tokenizer::from_merges(&standard_merges(STANDARD_MERGES).unwrap()).unwrap();
        let text = "semi-trailer truck, façade 日本";
        assert_eq!(stored.encode(text), STANDARD.encode(text));
        assert_eq!(Tokenizer::from_merges("").unwrap().vocab_size(), 514);
    }

    #[test]
    fn a_query_of_ten_thousand_characters_is_refused() {
        let error = STANDARD.encode(&"é".repeat(10_000)).unwrap_err();
        assert_eq!(error, TextError::TooLong { found: 10_000 });
        assert_eq!(
            error.to_string(),
            "text has 10000 characters, at most 1000 are accepted; shorten the query"
        );
        assert!(STANDARD.encode(&"é".repeat(1_000)).is_ok());
    }

    #[test]
    fn a_bad_merge_list_names_its_line() {
        let error = |text: &str| Tokenizer::from_merges(text).unwrap_err().to_string();
        assert!(error("#version\ni n\nin\n").starts_with("merge list line 3: found \"in\""));
        assert!(error("in g\n").starts_with("merge list line 1: symbol \"in\""));
        assert!(error("i n\ni n\n").contains("already made"));
        assert!(Tokenizer::shortened(STANDARD_MERGES + 1).is_err());
    }

    proptest! {
        #[test]
        fn any_text_gives_marks_and_known_ids(text in "\\PC{0,200}") {
            let ids = STANDARD.encode(&text).unwrap();
            prop_assert_eq!(ids[0], 49_406);
            prop_assert!(ids.contains(&49_407));
            prop_assert!(ids.iter().all(|&id| id < 49_408));
        }
    }
}
