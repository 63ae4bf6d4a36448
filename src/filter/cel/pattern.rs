//! Regular expressions with known compiled size and matching cost: there are no caches, and nothing is compiled
//! during matching.
//!
//! Most compile to a deterministic automaton, which takes one step per byte of the text. If that would be too
//! large, as for wide Unicode classes or counted repetitions, the nondeterministic automaton is simulated, and
//! every visited state is charged.

use regex_automata::{
    Anchored, Input,
    dfa::{Automaton as _, StartKind, dense},
    nfa::thompson::{Compiler, Config, NFA, State, WhichCaptures},
    util::{primitives::StateID, syntax},
};

use super::{Disallowed, limits::MAX_SIMULATED};
use crate::filter::fuel::{Fuel, Overrun};

/// Maximum size of a deterministic automaton, in bytes. Larger ones are simulated.
const MAX_DETERMINISTIC: usize = 32 * 1024;

/// Maximum nesting depth of groups.
const MAX_NESTING: u32 = 32;

/// Cost per byte of the text in a deterministic automaton.
const BYTE: u64 = 2;

/// Cost per visited state in a simulated one.
const VISIT: u64 = 4;

/// A compiled regular expression.
#[derive(Clone, Debug)]
pub(super) enum RegexPattern {
    Deterministic(Box<dense::DFA<Vec<u32>>>),
    Simulated(NFA),
}

impl RegexPattern {
    pub(super) fn new(text: &str) -> Result<Self, Disallowed> {
        let syntax = syntax::Config::new().nest_limit(MAX_NESTING);
        let nfa = Compiler::new()
            .syntax(syntax)
            .configure(
                Config::new()
                    .nfa_size_limit(Some(MAX_SIMULATED))
                    .which_captures(WhichCaptures::None),
            )
            .build(text)
            .map_err(|error| match error.size_limit() {
                Some(_) => Disallowed::PatternTooLarge,
                None => Disallowed::Pattern(reason(&error)),
            })?;
        let config = dense::Config::new()
            .start_kind(StartKind::Unanchored)
            .accelerate(false)
            .determinize_size_limit(Some(4 * MAX_DETERMINISTIC))
            .dfa_size_limit(Some(MAX_DETERMINISTIC));
        let dfa = dense::Builder::new().configure(config).build_from_nfa(&nfa);
        Ok(match dfa {
            Ok(dfa) => Self::Deterministic(Box::new(dfa)),
            Err(_) => Self::Simulated(nfa),
        })
    }

    /// Returns the size in bytes.
    pub(super) fn size(&self) -> usize {
        match self {
            Self::Deterministic(dfa) => dfa.memory_usage() + size_of::<dense::DFA<Vec<u32>>>(),
            Self::Simulated(nfa) => nfa.memory_usage(),
        }
    }

    /// Whether the text contains a match.
    pub(super) fn is_match(&self, text: &str, fuel: &Fuel) -> Result<bool, Overrun> {
        match self {
            Self::Deterministic(dfa) => {
                fuel.read(text.len() + 1, BYTE)?;
                let input = Input::new(text).anchored(Anchored::No).earliest(true);
                match dfa.try_search_fwd(&input) {
                    Ok(found) => Ok(found.is_some()),
                    // Cannot happen without quit bytes and with the configured start state.
                    Err(_) => Ok(false),
                }
            }
            Self::Simulated(nfa) => NfaSimulation::new(nfa, fuel)?.is_match(text, fuel),
        }
    }
}

/// Returns the first line that states the reason. The lines before it draw the position.
fn reason(error: &regex_automata::nfa::thompson::BuildError) -> String {
    let source = std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string);
    source.lines().last().unwrap_or_default().to_owned()
}

/// The set of states reached by the text so far.
struct NfaSimulation<'a> {
    nfa: &'a NFA,
    /// States that consume a byte.
    now: Vec<StateID>,
    next: Vec<StateID>,
    /// For each state, the step in which it was last visited.
    visited: Vec<u32>,
    pending: Vec<StateID>,
}

impl<'a> NfaSimulation<'a> {
    fn new(nfa: &'a NFA, fuel: &Fuel) -> Result<Self, Overrun> {
        let states = nfa.states().len();
        fuel.pass(states * size_of::<u32>())?;
        Ok(Self {
            nfa,
            now: Vec::new(),
            next: Vec::new(),
            visited: vec![0; states],
            pending: Vec::new(),
        })
    }

    fn is_match(&mut self, text: &str, fuel: &Fuel) -> Result<bool, Overrun> {
        // A text is a part of one event, so a step number cannot overflow.
        let mut step = 0_u32;
        for (at, byte) in text.bytes().map(Some).chain([None]).enumerate() {
            step += 1;
            // The states after the last byte, plus a match that starts here.
            let mut states = std::mem::take(&mut self.next);
            states.push(self.nfa.start_anchored());
            for state in states.drain(..) {
                if self.enter(state, text, at, step, fuel)? {
                    return Ok(true);
                }
            }
            self.next = states;
            let Some(byte) = byte else { break };
            for state in &self.now {
                let next = match self.nfa.state(*state) {
                    State::ByteRange { trans } if trans.matches_byte(byte) => Some(trans.next),
                    State::Sparse(transitions) => transitions.matches_byte(byte),
                    State::Dense(transitions) => transitions.matches_byte(byte),
                    _ => None,
                };
                self.next.extend(next);
            }
            self.now.clear();
        }
        Ok(false)
    }

    /// Visits a state and those reachable from it without consuming a byte. Returns whether a match ends here.
    fn enter(
        &mut self,
        from: StateID,
        text: &str,
        at: usize,
        step: u32,
        fuel: &Fuel,
    ) -> Result<bool, Overrun> {
        self.pending.push(from);
        while let Some(state) = self.pending.pop() {
            fuel.spend(VISIT)?;
            let visited = &mut self.visited[state.as_usize()];
            if *visited == step {
                continue;
            }
            *visited = step;
            match self.nfa.state(state) {
                State::ByteRange { .. } | State::Sparse(_) | State::Dense(_) => {
                    // Looking up a byte's class.
                    fuel.spend(VISIT)?;
                    self.now.push(state);
                }
                State::Look { look, next } => {
                    // A word boundary inspects the adjacent characters.
                    fuel.spend(4 * VISIT)?;
                    if self.nfa.look_matcher().matches(*look, text.as_bytes(), at) {
                        self.pending.push(*next);
                    }
                }
                State::Union { alternates } => self.pending.extend(alternates.iter().rev()),
                State::BinaryUnion { alt1, alt2 } => self.pending.extend([*alt2, *alt1]),
                State::Capture { next, .. } => self.pending.push(*next),
                State::Fail => {}
                // An empty match is invalid within a character.
                State::Match { .. } => {
                    if text.is_char_boundary(at) {
                        self.pending.clear();
                        return Ok(true);
                    }
                }
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, sample::select};

    use super::*;

    fn simulated(text: &str) -> RegexPattern {
        let compiler = Compiler::new()
            .configure(Config::new().which_captures(WhichCaptures::None))
            .build(text);
        RegexPattern::Simulated(compiler.unwrap())
    }

    #[test]
    fn simple_patterns_are_deterministic() {
        for (text, deterministic) in [
            ("^com[.][a-z]+[.]order[.]", true),
            ("(?i)error|warning|fatal", true),
            ("^[^@]+@example[.]com$", true),
            (r"^[0-9]{4}-[0-9]{2}$", true),
            (r"^\d+$", true),
            (r"^\d{4}-\d{2}$", false),
            (r"[ab]*a[ab]{12}c", false),
            (r"\bword\b", false),
        ] {
            let pattern = RegexPattern::new(text).unwrap();
            assert_eq!(
                matches!(pattern, RegexPattern::Deterministic(_)),
                deterministic,
                "{text}: {}",
                pattern.size()
            );
            assert!(pattern.size() <= MAX_SIMULATED, "{text}: {}", pattern.size());
        }
    }

    #[test]
    fn rejects_large_patterns() {
        for text in ["[ab]*a[ab]{3000}c0", "(a{1000}){1000}", r"\pL{100}"] {
            assert_eq!(
                RegexPattern::new(text).unwrap_err(),
                Disallowed::PatternTooLarge,
                "{text}"
            );
        }
        let nested = format!("{}a{}", "(".repeat(100), ")".repeat(100));
        assert!(matches!(RegexPattern::new(&nested), Err(Disallowed::Pattern(_))));
    }

    #[test]
    fn charges_every_visited_state() {
        let pattern = RegexPattern::new("[ab]*a[ab]{500}c0").unwrap();
        let text = "ab".repeat(125_000);
        let fuel = Fuel::new();
        assert_eq!(pattern.is_match(&text, &fuel), Err(Overrun));
        assert!(fuel.is_used_up());
    }

    proptest! {
        #[test]
        fn matches_like_the_regex_crate(
            pieces in proptest::collection::vec(
                select(vec![
                    "a", "b", "ä", ".", "[ab]", "[^a]", r"\w", r"\d", r"\b", r"\B", "^", "$", "(?:ab|b)", "a*", "b+", "(?:a?b)?",
                    "a{2}", "|", "(?i:A)", r"\pL", "(?m:^)", "(?s:.)", "(?-u:\\b)",
                ]),
                0..6,
            ),
            text in "[abA1ä\n ]{0,12}",
        ) {
            let pattern = pieces.concat();
            let expected = regex::Regex::new(&pattern).unwrap().is_match(&text);
            let compiled = match RegexPattern::new(&pattern) {
                // Several Unicode classes in a row.
                Err(Disallowed::PatternTooLarge) => return Ok(()),
                compiled => compiled.unwrap(),
            };
            prop_assert_eq!(compiled.is_match(&text, &Fuel::new()), Ok(expected), "{}", pattern);
            prop_assert_eq!(simulated(&pattern).is_match(&text, &Fuel::new()), Ok(expected), "{}", pattern);
        }
    }
}
