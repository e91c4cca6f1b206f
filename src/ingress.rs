//! The ordered table that a request is looked up in: the first rule whose host and path match wins.
//!
//! Pure: no origin, no clock, no I/O. What a rule leads to is the caller's `T`.

use std::collections::HashMap;
use std::fmt;

use crate::config::{Hostname, PathPattern, Rule, decoded_path, normal_host};

/// What a rule matches. `None` is anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pattern {
    /// The hosts.
    pub hostname: Option<Hostname>,
    /// The paths.
    pub path: Option<PathPattern>,
}

impl From<&Rule> for Pattern {
    fn from(rule: &Rule) -> Self {
        Self { hostname: rule.hostname.clone(), path: rule.path.clone() }
    }
}

/// Rules in order, each with what it leads to. Never empty, so that every look-up has an answer.
pub struct Table<T> {
    rows: Vec<(Pattern, T)>,
    /// Rows with an exact name, by that name, in order. Thousands of them cost one look-up.
    exact: HashMap<String, Vec<usize>>,
    /// Rows with a wildcard or without a name, in order.
    open: Vec<usize>,
}

impl<T> Table<T> {
    /// A table of the rows in this order; `None` without any.
    pub fn new(rows: impl IntoIterator<Item = (Pattern, T)>) -> Option<Self> {
        let rows: Vec<_> = rows.into_iter().collect();
        if rows.is_empty() {
            return None;
        }
        let mut exact: HashMap<String, Vec<usize>> = HashMap::new();
        let mut open = Vec::new();
        for (index, (pattern, _)) in rows.iter().enumerate() {
            match pattern.hostname.as_ref().and_then(Hostname::exact) {
                Some(name) => exact.entry(name.to_owned()).or_default().push(index),
                None => open.push(index),
            }
        }
        Some(Self { rows, exact, open })
    }

    /// The first row that matches, with its index; the last row when none does, as with cloudflared.
    ///
    /// `host` is a request's host in any letter case, with or without port and brackets; `path` is
    /// its path, percent-encoded as it came, a query ignored. Without escapes in the path and upper
    /// case in the host nothing is allocated.
    ///
    /// The path is matched decoded but otherwise as it is: `..` and `//` are not resolved, so path
    /// patterns choose a service and do not protect one.
    pub fn find(&self, host: &str, path: &str) -> (usize, &T) {
        let host = normal_host(host);
        let path = decoded_path(path);
        let named = self.exact.get(&*host).map_or(&[][..], Vec::as_slice);
        let matches = |index: &&usize| {
            let pattern = &self.rows[**index].0;
            pattern.path.as_ref().is_none_or(|pattern| pattern.is_match(&path))
        };
        let named = named.iter().find(matches).copied();
        let limit = named.unwrap_or(self.rows.len());
        let index = self
            .open
            .iter()
            .take_while(|index| **index < limit)
            .filter(|index| {
                let pattern = &self.rows[**index].0;
                pattern.hostname.as_ref().is_none_or(|hostname| hostname.matches(&host))
            })
            .find(matches)
            .copied()
            .or(named)
            .unwrap_or(self.rows.len() - 1);
        (index, &self.rows[index].1)
    }

    /// The pattern of a row.
    pub fn pattern(&self, index: usize) -> Option<&Pattern> {
        self.rows.get(index).map(|(pattern, _)| pattern)
    }

    /// What the first row with the same pattern leads to.
    pub fn same(&self, pattern: &Pattern) -> Option<&T> {
        let exact = pattern.hostname.as_ref().and_then(Hostname::exact);
        let candidates = match exact {
            Some(name) => self.exact.get(name)?,
            None => &self.open,
        };
        let mut candidates = candidates.iter().filter_map(|index| self.rows.get(*index));
        candidates.find(|(candidate, _)| candidate == pattern).map(|(_, target)| target)
    }

    /// The rows in order.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = (&Pattern, &T)> {
        self.rows.iter().map(|(pattern, target)| (pattern, target))
    }
}

impl<T: fmt::Debug> fmt::Debug for Table<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.rows).finish()
    }
}
