//! Where adit differs from what was recorded, and by what right.

use std::{collections::BTreeSet, path::Path};

use serde::Deserialize;
use serde_json::Value;

use super::{RUNNERS, groups, text};

/// Why a case is amended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Right {
    /// The contract says otherwise.
    Contract(String),
    /// The record itself says that it could be better, or another case's does about the same thing.
    Better(String),
}

/// An entry of one of the two files.
#[derive(Debug)]
pub(crate) struct Amendment {
    group: String,
    ids: BTreeSet<String>,
    right: Right,
    /// The test that shows what adit does instead; the group's own one if none is named.
    test: Option<String>,
    /// Merged into the case (RFC 7396).
    pub(crate) expect: Value,
}

impl Amendment {
    pub(crate) fn names(&self, group: &str, id: &str) -> bool {
        self.group == group && self.ids.contains(id)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    group: String,
    ids: Vec<String>,
    /// Of a deviation: the sentence that overrules the record.
    contract: Option<String>,
    /// Of a deviation: what adit does.
    instead: Option<String>,
    /// Of an improvement: what adit does.
    better: Option<String>,
    /// Of an improvement whose record asks for it in another case.
    as_in: Option<String>,
    test: Option<String>,
    /// JSON. Absent where adit does what was recorded although the record asks for something better.
    expect: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    deviation: Vec<Entry>,
    #[serde(default)]
    improvement: Vec<Entry>,
}

fn entries() -> (Vec<Entry>, Vec<Entry>) {
    let deviations: File = toml::from_str(include_str!("../../deviations.toml")).unwrap();
    let improvements: File = toml::from_str(include_str!("../../improvements.toml")).unwrap();
    assert!(deviations.improvement.is_empty() && improvements.deviation.is_empty(), "an entry in the wrong file");
    (deviations.deviation, improvements.improvement)
}

fn amendment(entry: Entry) -> Amendment {
    let Entry { group, ids, contract, instead, better, as_in: _, test, expect } = entry;
    let right = match (contract, instead, better) {
        (Some(sentence), Some(_), None) => Right::Contract(sentence),
        (None, None, Some(what)) => Right::Better(what),
        _ => panic!("{group} {ids:?}: `contract` and `instead`, or `better`"),
    };
    let expect = expect.map_or(Value::Object(Default::default()), |patch| {
        serde_json::from_str(&patch).unwrap_or_else(|error| panic!("{group} {ids:?}: {error}"))
    });
    let count = ids.len();
    let ids: BTreeSet<_> = ids.into_iter().collect();
    assert_eq!(ids.len(), count, "{group}: an id twice in one entry");
    Amendment { group, ids, right, test, expect }
}

/// Improvements first, so that the contract has the last word.
pub(crate) fn amendments() -> Vec<Amendment> {
    let (deviations, improvements) = entries();
    improvements.into_iter().chain(deviations).map(amendment).collect()
}

/// The sources of the tests and of the crate, whose unit tests count too.
fn sources(folder: &Path, into: &mut String) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push_str(&std::fs::read_to_string(path).unwrap());
        }
    }
}

#[test]
fn every_case_is_a_test_or_a_deviation_with_a_sentence_of_the_contract() {
    let groups = groups();
    let with_runner: BTreeSet<_> = RUNNERS.iter().copied().collect();
    assert_eq!(with_runner.len(), RUNNERS.len(), "a group has two runners");
    assert_eq!(with_runner, groups.iter().map(|(name, _)| name.as_str()).collect(), "each group needs its runner");

    let mut all = BTreeSet::new();
    let mut asks_for_better = BTreeSet::new();
    for (group, cases) in &groups {
        for case in cases {
            let key = (group.clone(), text(case, "id").to_owned());
            if case["improve"] == true {
                asks_for_better.insert(key.clone());
            }
            assert!(all.insert(key), "{group}: an id twice: {}", case["id"]);
        }
    }

    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut code = String::new();
    sources(&root.join("tests/it"), &mut code);
    sources(&root.join("src"), &mut code);
    let (mut deviating, mut better) = (BTreeSet::new(), BTreeSet::new());
    for amendment in amendments() {
        let keys = amendment.ids.iter().map(|id| (amendment.group.clone(), id.clone()));
        let keys: BTreeSet<_> = keys.collect();
        assert!(!keys.is_empty() && keys.is_subset(&all), "an entry about no case: {amendment:?}");
        let named = amendment.test.as_deref().unwrap_or(&amendment.group);
        let is_test = [format!("fn {named}("), format!(" {named} => "), format!("mod {named} ")];
        assert!(is_test.iter().any(|form| code.contains(form)), "no test has the name {named}");
        match &amendment.right {
            Right::Contract(sentence) => {
                assert!(sentence.split(' ').count() >= 4 && sentence.ends_with('.'), "no sentence: {sentence:?}");
                deviating.extend(keys);
            }
            Right::Better(what) => {
                assert!(what.split(' ').count() >= 3, "not named: {what:?}");
                better.extend(keys);
            }
        }
    }
    // Only what the record itself asks for counts as better; the rest has to be covered by the contract.
    for entry in entries().1 {
        for id in &entry.ids {
            let asked = entry.as_in.as_ref().unwrap_or(id);
            let asked = asks_for_better.iter().any(|(_, asking)| asking == asked);
            assert!(asked, "{}: nothing in the record asks for {id} to be better", entry.group);
        }
    }
    let unanswered: Vec<_> =
        asks_for_better.iter().filter(|key| !better.contains(*key) && !deviating.contains(*key)).collect();
    assert!(unanswered.is_empty(), "the record asks for better, and nothing says what adit does: {unanswered:?}");

    better.retain(|key| !deviating.contains(key));
    let as_recorded = all.len() - deviating.len() - better.len();
    println!(
        "{} cases in {} groups: {as_recorded} as recorded, {} better and named, {} deviate by the contract; all of them run",
        all.len(),
        groups.len(),
        better.len(),
        deviating.len(),
    );
    assert!(as_recorded > deviating.len() + better.len(), "parity is the rule");
}
