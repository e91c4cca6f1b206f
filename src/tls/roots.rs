//! Roots that services are verified with where no secret takes their place: the system's, and those of `caPool`.

use std::{
    cell::{OnceCell, RefCell},
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::RootCertStore;

use super::{Error, keyring::Unusable, roots_from_file, system_roots};

/// Roots of files, by file.
pub type Pools = BTreeMap<PathBuf, Arc<RootCertStore>>;

/// Each is read when first needed: once for a generation of rules, however many speak TLS.
#[derive(Debug, Default)]
pub struct Roots {
    system: OnceCell<RootCertStore>,
    pools: RefCell<Pools>,
    /// `None`: a file that cannot be used is a mistake of whoever wrote the rules.
    before: Option<Pools>,
}

impl Roots {
    /// For rules that are in force already and are made again with other secrets. A file that cannot be used any more
    /// must not keep those out: its roots from `before` stay, and without any the services that need it are not dialled.
    pub fn after(before: &Pools) -> Self {
        Self { before: Some(before.clone()), ..Self::default() }
    }

    /// What was read of files, or taken over.
    pub fn into_pools(self) -> Pools {
        self.pools.into_inner()
    }

    /// The system's, and those of a file.
    pub(super) fn with(&self, file: Option<&Path>) -> Result<Result<RootCertStore, Unusable>, Error> {
        let pool = match file.map(|path| self.pool(path)).transpose()? {
            Some(Err(why)) => return Ok(Err(why)),
            Some(Ok(pool)) => Some(pool),
            None => None,
        };
        let mut roots = self.system.get_or_init(system_roots).clone();
        roots.roots.extend(pool.iter().flat_map(|pool| &pool.roots).cloned());
        Ok(Ok(roots))
    }

    fn pool(&self, path: &Path) -> Result<Result<Arc<RootCertStore>, Unusable>, Error> {
        if let Some(known) = self.pools.borrow().get(path) {
            return Ok(Ok(known.clone()));
        }
        let pool = match (roots_from_file(path), &self.before) {
            (Ok(read), _) => Arc::new(read),
            (Err(error), None) => return Err(error),
            (Err(error), Some(before)) => match before.get(path) {
                Some(old) => {
                    tracing::error!(%error, "caPool cannot be used, its roots from before stay");
                    old.clone()
                }
                None => {
                    tracing::error!(%error, "caPool cannot be used, nor can the services that need it");
                    return Ok(Err(Unusable::Unread(error.to_string().into())));
                }
            },
        };
        self.pools.borrow_mut().insert(path.to_owned(), pool.clone());
        Ok(Ok(pool))
    }
}

#[cfg(test)]
mod tests {
    use super::{super::EDGE_ROOTS, *};

    #[test]
    fn a_file_that_is_gone_is_a_mistake_of_new_rules_and_leaves_its_roots_to_old_ones() {
        let dir = tempfile::tempdir().unwrap();
        let pool = dir.path().join("roots.pem");
        std::fs::write(&pool, EDGE_ROOTS).unwrap();
        let first = Roots::default();
        let all = first.with(Some(&pool)).unwrap().unwrap().len();
        assert_eq!(all, first.with(None).unwrap().unwrap().len() + 3);
        std::fs::remove_file(&pool).unwrap();
        let mut before = first.into_pools();
        for generation in 1..=2 {
            let roots = Roots::after(&before);
            assert_eq!(roots.with(Some(&pool)).unwrap().unwrap().len(), all, "{generation}");
            before = roots.into_pools();
        }
        assert!(Roots::after(&Pools::new()).with(Some(&pool)).unwrap().is_err(), "not dialled");
        assert!(Roots::default().with(Some(&pool)).is_err(), "refused");
    }
}
