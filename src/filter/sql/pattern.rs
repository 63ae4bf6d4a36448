//! `LIKE` patterns (section 3.4.3).

use std::{borrow::Cow, collections::HashMap, iter};

/// A pattern: pieces separated by `%`.
///
/// Matches each piece as far left as possible, and never backtracks past the last `%`, so the time is linear in the
/// text. A piece between two `%` that contains `_` takes time proportional to the text's length for every 64
/// characters of the piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LikePattern {
    first: Piece,
    middle: Vec<Piece>,
    /// `None` without a `%`, in which case `first` must match the whole text.
    last: Option<Piece>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(Box<str>),
    Wild(Box<Wild>),
}

/// Characters including at least one `_`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wild {
    /// `None` stands for `_`.
    characters: Vec<Option<char>>,
    /// Bit mask of the positions that match any character.
    any: Vec<u64>,
    /// For each character, bit masks of the positions that match it, by word.
    only: HashMap<char, Vec<(usize, u64)>>,
}

impl LikePattern {
    /// Every text is a valid pattern.
    pub(super) fn new(text: &str) -> Self {
        let mut pieces = Vec::new();
        let mut piece = Vec::new();
        let mut characters = text.chars().peekable();
        while let Some(character) = characters.next() {
            match character {
                '%' => pieces.push(Piece::new(std::mem::take(&mut piece))),
                '_' => piece.push(None),
                '\\' => piece.push(Some(
                    characters
                        .next_if(|next| matches!(next, '%' | '_'))
                        .unwrap_or('\\'),
                )),
                other => piece.push(Some(other)),
            }
        }
        let end = Piece::new(piece);
        let mut pieces = pieces.into_iter();
        match pieces.next() {
            None => Self {
                first: end,
                middle: Vec::new(),
                last: None,
            },
            Some(first) => Self {
                first,
                middle: pieces.filter(|piece| *piece != Piece::Text("".into())).collect(),
                last: Some(end),
            },
        }
    }

    /// Returns the only matching text, if there is no `%` and no `_`.
    pub(super) fn only(&self) -> Option<&str> {
        match (&self.first, &self.last) {
            (Piece::Text(text), None) => Some(text),
            _ => None,
        }
    }

    /// Returns the literal prefix of every match, up to the first `%` or `_`. May be empty.
    pub(super) fn beginning(&self) -> Cow<'_, str> {
        match &self.first {
            Piece::Text(text) => Cow::Borrowed(text),
            Piece::Wild(wild) => wild.characters.iter().map_while(|wanted| *wanted).collect(),
        }
    }

    /// Returns the maximum cost of a match, in steps.
    pub(super) fn cost(&self, text: &str) -> u64 {
        /// Cost factor of a search: for a piece with `_`, per word of 64 positions, plus a look-up.
        const SEARCH: u64 = 3;
        const WORD: u64 = 3;
        const LOOK_UP: u64 = 25;
        let of_byte = self.middle.iter().map(|piece| match piece {
            Piece::Text(_) => SEARCH,
            Piece::Wild(wild) => LOOK_UP + WORD * wild.any.len() as u64,
        });
        let pieces = self.pieces().map(Piece::length).sum::<usize>() as u64;
        (text.len() as u64).saturating_mul(of_byte.max().unwrap_or_default()) + SEARCH * pieces
    }

    /// Approximate size in bytes.
    pub(super) fn size(&self) -> usize {
        self.pieces().map(Piece::size).sum()
    }

    fn pieces(&self) -> impl Iterator<Item = &Piece> {
        [&self.first].into_iter().chain(&self.middle).chain(&self.last)
    }

    pub(super) fn matches(&self, text: &str) -> bool {
        let Some(rest) = self.first.strip_prefix(text) else {
            return false;
        };
        let Some(last) = &self.last else {
            return rest.is_empty();
        };
        self.middle
            .iter()
            .try_fold(rest, |rest, piece| piece.find(rest))
            .is_some_and(|rest| last.is_suffix(rest))
    }
}

impl Piece {
    fn new(characters: Vec<Option<char>>) -> Self {
        match characters.iter().copied().collect::<Option<String>>() {
            Some(text) => Self::Text(text.into()),
            None => Self::Wild(Box::new(Wild::new(characters))),
        }
    }

    fn length(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Wild(wild) => wild.characters.len(),
        }
    }

    fn size(&self) -> usize {
        let content = match self {
            Self::Text(text) => text.len(),
            // Each distinct character has an entry in the map and a list of words.
            Self::Wild(wild) => {
                let words: usize = wild.only.values().map(Vec::len).sum();
                wild.characters.len() * size_of::<Option<char>>()
                    + wild.any.len() * 8
                    + wild.only.len() * 64
                    + words * 16
            }
        };
        size_of::<Self>() + content
    }

    /// Returns the rest of the text, if it starts with this piece.
    fn strip_prefix<'a>(&self, text: &'a str) -> Option<&'a str> {
        match self {
            Self::Text(piece) => text.strip_prefix(&**piece),
            Self::Wild(piece) => {
                let mut characters = text.chars();
                let begins = piece
                    .characters
                    .iter()
                    .all(|wanted| fits(*wanted, characters.next()));
                begins.then_some(characters.as_str())
            }
        }
    }

    /// Returns the rest of the text after the first occurrence of this piece.
    fn find<'a>(&self, text: &'a str) -> Option<&'a str> {
        match self {
            Self::Text(piece) => text.split_once(&**piece).map(|(_, rest)| rest),
            Self::Wild(piece) => piece.find(text),
        }
    }

    fn is_suffix(&self, text: &str) -> bool {
        match self {
            Self::Text(piece) => text.ends_with(&**piece),
            Self::Wild(piece) => {
                let mut characters = text.chars().rev();
                piece
                    .characters
                    .iter()
                    .rev()
                    .all(|wanted| fits(*wanted, characters.next()))
            }
        }
    }
}

impl Wild {
    fn new(characters: Vec<Option<char>>) -> Self {
        let mut any = vec![0; characters.len().div_ceil(64)];
        let mut only: HashMap<char, Vec<(usize, u64)>> = HashMap::new();
        for (position, wanted) in characters.iter().enumerate() {
            let (word, bit) = (position / 64, 1 << (position % 64));
            let Some(character) = wanted else {
                any[word] |= bit;
                continue;
            };
            let words = only.entry(*character).or_default();
            match words.last_mut() {
                Some((last, bits)) if *last == word => *bits |= bit,
                _ => words.push((word, bit)),
            }
        }
        Self {
            characters,
            any,
            only,
        }
    }

    /// Returns the rest of the text after the first occurrence, by the Shift-And algorithm: bit i of the state
    /// tells whether the piece up to position i matches the text up to here.
    fn find<'a>(&self, text: &'a str) -> Option<&'a str> {
        let words = self.any.len();
        let end = 1 << ((self.characters.len() - 1) % 64);
        let (mut matched, mut longer) = (vec![0_u64; words], vec![0_u64; words]);
        let mut characters = text.chars();
        while let Some(character) = characters.next() {
            let mut carry = 1;
            for (longer, matched) in iter::zip(&mut longer, &matched) {
                *longer = matched << 1 | carry;
                carry = matched >> 63;
            }
            for ((matched, longer), any) in iter::zip(iter::zip(&mut matched, &longer), &self.any) {
                *matched = longer & any;
            }
            for &(word, bits) in self.only.get(&character).into_iter().flatten() {
                matched[word] |= longer[word] & bits;
            }
            if matched[words - 1] & end != 0 {
                return Some(characters.as_str());
            }
        }
        None
    }
}

fn fits(wanted: Option<char>, character: Option<char>) -> bool {
    character.is_some_and(|character| wanted.is_none_or(|wanted| wanted == character))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn matches_patterns() {
        for (pattern, text, expected) in [
            ("", "", true),
            ("", "a", false),
            ("abc", "abc", true),
            ("abc", "aBc", false),
            ("abc", "abcd", false),
            ("%", "", true),
            ("%", "abc", true),
            ("%%", "abc", true),
            ("_", "", false),
            ("_", "ü", true),
            ("_", "ab", false),
            ("%_", "", false),
            ("%_", "😀", true),
            ("_%_", "a", false),
            ("_%_", "ab", true),
            ("a%b%c", "abc", true),
            ("a%b%c", "azbc", true),
            ("a%b%c", "azzzbzzzc", true),
            ("a%b%c", "a%b%c", true),
            ("a%a", "a", false),
            ("ab%ba", "aba", false),
            ("abc", "ac", false),
            (".%.%.", ".ab.cde.", true),
            (".%.%.", "ab.cde", false),
            ("%a%b", "ab_ab", true),
            ("%ab_", "abcabd", true),
            ("%b_d%", "abcbxd!", true),
            ("%b_d%", "abcbxe!", false),
            ("%a_%_b%", "aab", false),
            ("%a_%_b%", "aaabb", true),
            ("a_b_c", "abc", false),
            ("a_b_c", "azbzc", true),
            ("a_b_c", "a_b_c", true),
            ("._._.", ".a.b.", true),
            ("._._.", "abcd.", false),
            ("_b*", "ab*", true),
            ("_b*", "abcd1", false),
            (r"abc\%", "abc%", true),
            (r"abc\%", "abcd", false),
            (r"a\_b\_c", "a_b_c", true),
            (r"a\_b\_c", "azbzc", false),
            (r"a\%b\%c", "a%b%c", true),
            (r"a\%b\%c", "azbzc", false),
            (r"abc%123\%456\_d_f", "abc123123%456_dzf", true),
            (r"ab\c", r"ab\c", true),
            (r"ab\", r"ab\", true),
            (r"a\\%", r"a\%", true),
            (r"a\\%", r"a\b", false),
        ] {
            assert_eq!(
                LikePattern::new(pattern).matches(text),
                expected,
                "{text} LIKE {pattern}"
            );
        }
    }

    /// Reference implementation, by brute force.
    fn by_definition(pattern: &[char], text: &[char]) -> bool {
        match (pattern, text) {
            ([], []) => true,
            (['%', rest @ ..], _) => (0..=text.len()).any(|skipped| by_definition(rest, &text[skipped..])),
            (['\\', wanted @ ('%' | '_'), rest @ ..], [first, after @ ..]) => {
                wanted == first && by_definition(rest, after)
            }
            (['\\', '%' | '_', ..], []) => false,
            (['_', rest @ ..], [_, after @ ..]) => by_definition(rest, after),
            ([wanted, rest @ ..], [first, after @ ..]) => wanted == first && by_definition(rest, after),
            _ => false,
        }
    }

    #[test]
    fn matches_pieces_of_any_length() {
        for length in [1, 2, 63, 64, 65, 127, 128, 129, 1000] {
            let piece = |last: &str| format!("{}{last}", "_".repeat(length - 1));
            let text = format!("{}c{}", "ü".repeat(length), "d".repeat(length));
            for (pattern, expected) in [
                (format!("%{}%", piece("c")), true),
                (format!("%{}%", piece("e")), false),
                (format!("%{}%{}", piece("c"), piece("d")), true),
                (format!("%{}%{}%", piece("_"), piece("_")), true),
                (format!("%{}%{}%d_%", piece("d"), piece("d")), false),
            ] {
                assert_eq!(
                    LikePattern::new(&pattern).matches(&text),
                    expected,
                    "{length}: {pattern}"
                );
            }
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_reference_implementation(pattern in r"[ab%_\\ü]{0,8}", text in r"[ab%_\\ü]{0,10}") {
            let characters = |text: &str| text.chars().collect::<Vec<_>>();
            prop_assert_eq!(
                LikePattern::new(&pattern).matches(&text),
                by_definition(&characters(&pattern), &characters(&text))
            );
        }
    }
}
