//! Text clean-up before tokenizing, equal to open_clip's `clean="lower"` on text that was decoded correctly.
//!
//! The steps of `ftfy.fix_text` that change correctly decoded text are here: HTML entities, Latin ligatures, full-width
//! and half-width forms, curly quotes, control characters, NFC. Left out on purpose: `ftfy`'s repair of text decoded
//! with the wrong code page, which is a guess, and its removal of terminal colour codes.

use unicode_normalization::UnicodeNormalization as _;

/// Cleans one text: fixes, HTML entities resolved twice, white space collapsed to single spaces, lower case.
#[must_use]
pub fn clean(text: &str) -> String {
    let fixed = fix(text);
    let once = html_escape::decode_html_entities(&fixed);
    let twice = html_escape::decode_html_entities(&once);
    let mut spaced = String::with_capacity(twice.len());
    for word in twice.split_whitespace() {
        if !spaced.is_empty() {
            spaced.push(' ');
        }
        spaced.push_str(word);
    }
    spaced.to_lowercase()
}

/// The part of `ftfy.fix_text` described in the module text.
fn fix(text: &str) -> String {
    // ftfy leaves entities alone in text that looks like HTML source
    let unescaped = if text.contains('<') {
        text.into()
    } else {
        html_escape::decode_html_entities(text).into_owned()
    };
    let mut out = String::with_capacity(unescaped.len());
    for c in unescaped.chars() {
        match c {
            '\u{02bc}' | '\u{2018}'..='\u{201b}' => out.push('\''),
            '\u{201c}'..='\u{201f}' => out.push('"'),
            'ĳ' | 'Ĳ' | 'ŉ' | 'Ǆ'..='ǌ' | 'Ǳ'..='ǳ' | '\u{fb00}'..='\u{fb06}' => out.extend(ligature(c)),
            '\u{3000}' => out.push(' '),
            '\u{ff01}'..='\u{ffef}' => out.extend(std::iter::once(c).nfkc()),
            '\u{2028}' | '\u{2029}' | '\u{85}' => out.push('\n'),
            c if is_stray_control(c) => {}
            c => out.push(c),
        }
    }
    out.nfc().collect()
}

/// The letters of one ligature; `ŉ` is written with the quote that the clean-up uses.
fn ligature(c: char) -> impl Iterator<Item = char> {
    std::iter::once(c)
        .nfkc()
        .map(|c| if c == '\u{02bc}' { '\'' } else { c })
}

/// Control characters without a meaning in text: C0 except tab and line ends, delete, deprecated format characters,
/// the byte order mark and interlinear annotations.
fn is_stray_control(c: char) -> bool {
    matches!(c, '\0'..='\u{8}' | '\u{b}' | '\u{e}'..='\u{1f}' | '\u{7f}' | '\u{206a}'..='\u{206f}' | '\u{feff}'
        | '\u{fff9}'..='\u{fffc}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn clean_lowers_and_collapses_white_space() {
        assert_eq!(clean("  A \t Blue\n\nPallet\u{a0}"), "a blue pallet");
    }

    #[test]
    fn clean_resolves_entities_that_were_escaped_twice() {
        assert_eq!(clean("salt &amp;amp; pepper"), "salt & pepper");
        assert_eq!(clean("<b>&amp;lt;"), "<b><");
    }

    #[test]
    fn clean_writes_typographic_forms_plainly() {
        assert_eq!(clean("“dog’s” ﬁne１２３"), "\"dog's\" fine123");
        assert_eq!(clean("a\u{7}b\u{feff}c"), "abc");
    }

    proptest! {
        #[test]
        fn clean_accepts_any_text_and_leaves_single_spaces(text in any::<String>()) {
            let cleaned = clean(&text);
            prop_assert!(!cleaned.contains("  "));
            prop_assert_eq!(cleaned.trim(), cleaned.as_str());
        }
    }
}
