//! Which rules are in force: the file's, until the edge pushes others (protocol.md §5.6).
//!
//! One task takes every push of every connection and every change of the file, so that this is decided in one place.
//! Documents are read and services made ready beside the runtime: ten thousand rules must not hold up requests.
//!
//! Versions and pushed rules belong to one tunnel: a connector that changes its tunnel starts a new [`Rules`], at −1.

mod maker;

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    config::{Config, Ingress, InnerHop, Limits, PushedBy, RemoteConfigMode, WarpRouting},
    metrics::Outcome,
    proxy::{self, Ground, Routes},
    shutdown::Tasks,
    tls::keyring::Keyring,
    wire::calls::{Applied, Push},
};
use maker::{Maker, Refusal, aside};

/// What the file, flags and environment say about rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    ingress: Option<Ingress>,
    warp: WarpRouting,
    mode: RemoteConfigMode,
    /// Of rules that have none of their own, pushed ones too; the file's already have them.
    limits: Limits,
    max_active_flows: Option<u64>,
    inner_hop: Arc<InnerHop>,
}

impl From<&Config> for Local {
    fn from(config: &Config) -> Self {
        Self {
            ingress: config.ingress.clone(),
            warp: config.warp_routing.clone().limited(config.max_active_flows),
            mode: config.remote_config.clone(),
            limits: config.limits,
            max_active_flows: config.max_active_flows,
            inner_hop: config.inner_hop.clone(),
        }
    }
}

/// A change of the file or of secrets, and who waits to hear whether the rules can be used.
#[derive(Debug)]
pub struct Reload {
    /// What the file says now, if it has changed.
    pub local: Option<Local>,
    /// Identities and trust, if they have changed.
    pub keyring: Option<Arc<Keyring>>,
    /// Takes the reason when the rules cannot be used; then nothing has changed.
    pub reply: oneshot::Sender<Result<(), String>>,
}

/// Where the task takes its work from.
#[derive(Clone, Debug)]
pub struct Inbox {
    /// Takes pushes; one of each connection fits.
    pub pushes: mpsc::Sender<Push>,
    /// Takes changes of the file and of secrets.
    pub reloads: mpsc::Sender<Reload>,
}

/// A document of the edge.
#[derive(Clone, Debug)]
struct Pushed {
    version: i32,
    json: Bytes,
    by: PushedBy,
}

/// Decides which rules are in force and publishes them.
#[derive(Debug)]
pub struct Rules {
    routes: watch::Sender<Arc<Routes>>,
    local: Arc<Local>,
    maker: Maker,
    /// What was in force last, kept for when `remoteConfig` lets it be so again.
    accepted: Option<Pushed>,
    /// A later one that only `remoteConfig` held back; changing that brings it into force.
    held: Option<Pushed>,
    /// Every connection brings the same push; it is refused once in the log.
    told: Option<(i32, String)>,
}

impl Rules {
    /// The file's rules are in force.
    ///
    /// # Errors
    ///
    /// When they cannot be used, with every reason.
    pub fn new(local: Local, ground: Ground) -> Result<Self, String> {
        let maker = Maker(ground);
        let (routes, _) = watch::channel(Arc::new(maker.of_file(&local, None)?));
        Ok(Self { routes, local: Arc::new(local), maker, accepted: None, held: None, told: None })
    }

    /// The rules in force.
    pub fn routes(&self) -> watch::Receiver<Arc<Routes>> {
        self.routes.subscribe()
    }

    /// Starts the task; it answers until it is killed, since a draining connector still gets pushes.
    pub fn start(mut self, tasks: &Tasks) -> Inbox {
        let (pushes, mut pushed) = mpsc::channel::<Push>(8);
        let (reloads, mut changed) = mpsc::channel::<Reload>(1);
        tasks.attend(proxy::upkeep(self.routes.subscribe(), self.maker.0.metrics.clone()));
        tasks.attend(async move {
            loop {
                tokio::select! {
                    Some(Push { version, config, own_edge, reply }) = pushed.recv() => {
                        let by = if own_edge { PushedBy::AditEdge } else { PushedBy::AnyEdge };
                        let _ = reply.send(self.push(Pushed { version, json: config, by }).await);
                    }
                    // Outlives the connector, since guards beside it may take longer to drain.
                    Some(Reload { local, keyring, reply }) = changed.recv() => {
                        let _ = reply.send(self.change(local, keyring).await);
                    }
                    else => return,
                }
            }
        });
        Inbox { pushes, reloads }
    }

    fn version(&self) -> i32 {
        self.routes.borrow().version
    }

    /// Applies a push, or refuses it whole.
    async fn push(&mut self, pushed: Pushed) -> Applied {
        let (version, current) = (pushed.version, self.version());
        let metrics = &self.maker.0.metrics.configuration;
        if version <= current {
            metrics.pushed(Outcome::Unchanged);
            return Applied { version: current, error: String::new() };
        }
        let (maker, local, pushed_) = (self.maker.clone(), self.local.clone(), pushed.clone());
        match aside(move || maker.of_edge(&local, &pushed_, None)).await {
            Ok((routes, ignored_keys)) => {
                metrics.pushed(Outcome::Applied);
                metrics.ignored_keys(ignored_keys);
                tracing::info!(version, ignored_keys, "rules of the edge are in force");
                self.put_in_force(routes);
                // What is held and newer may still come into force.
                self.held.take_if(|held| held.version <= version);
                (self.accepted, self.told) = (Some(pushed), None);
                Applied { version, error: String::new() }
            }
            Err(Refusal { held, error }) => {
                metrics.pushed(Outcome::Refused);
                // Connections bring pushes in any order; the edge's last word is the one with the highest version.
                if held && self.held.as_ref().is_none_or(|held| held.version <= version) {
                    self.held = Some(pushed);
                }
                if self.told.as_ref().is_none_or(|(told, reasons)| (*told, reasons) != (version, &error)) {
                    tracing::error!(version, current, error, "the edge's rules are refused");
                    self.told = Some((version, error.clone()));
                }
                Applied { version: current, error }
            }
        }
    }

    /// Takes over what the file says now, and the secrets. The file's rules must be usable even where the edge's stay in
    /// force: they are what `remoteConfig: ignore` falls back to.
    async fn change(&mut self, local: Option<Local>, keyring: Option<Arc<Keyring>>) -> Result<(), String> {
        let only_secrets = local.is_none();
        let local = local.map_or_else(|| self.local.clone(), Arc::new);
        let mut maker = self.maker.clone();
        if let Some(keyring) = keyring {
            maker.0.keyring = keyring;
        }
        let candidates: Vec<Pushed> = self.held.iter().chain(&self.accepted).cloned().collect();
        let (maker_, local_, in_force) = (maker.clone(), local.clone(), self.routes.borrow().clone());
        let (of_file, of_edge) = aside(move || {
            let before = only_secrets.then_some(&*in_force);
            let of_file = maker_.of_file(&local_, before).map_err(|error| Refusal { held: false, error })?;
            // The edge's rules are the same after a change of the file.
            let same = |pushed: &Pushed| (pushed.version == in_force.version).then_some(&*in_force);
            let judge = |pushed: Pushed| match maker_.of_edge(&local_, &pushed, same(&pushed)) {
                Ok((routes, _)) => Some((pushed, routes)),
                Err(Refusal { error, .. }) => {
                    tracing::debug!(version = pushed.version, error, "the edge's rules stay out of force");
                    None
                }
            };
            Ok((of_file, candidates.into_iter().find_map(judge)))
        })
        .await
        .map_err(|refusal: Refusal| refusal.error)?;
        let (before, file_changed) = (self.version(), self.local.ingress != local.ingress);
        // Other secrets are no reason to change whose rules are in force.
        if only_secrets && before >= 0 && of_edge.is_none() {
            return Err(format!("the edge's rules, version {before}, cannot be used with the changed secrets"));
        }
        let mode = local.mode.to_string();
        (self.local, self.maker) = (local, maker);
        self.told = None;
        match of_edge {
            Some((pushed, routes)) => {
                let version = pushed.version;
                if self.accepted.as_ref().is_none_or(|accepted| accepted.version != version) {
                    (self.accepted, self.held) = (Some(pushed), None);
                }
                if version != before {
                    tracing::info!(version, mode, "rules of the edge are in force");
                } else if file_changed {
                    tracing::warn!(version, "the file's rules have changed, but those of the edge are in force");
                }
                self.put_in_force(routes);
            }
            None => {
                if before >= 0 {
                    tracing::warn!(
                        before,
                        mode,
                        "the file keeps the edge's rules out (remoteConfig, innerHop): its own are in force"
                    );
                }
                self.put_in_force(of_file);
            }
        }
        Ok(())
    }

    /// Rules that serve the same are left alone, with the connections to their services.
    fn put_in_force(&self, routes: Routes) {
        self.maker.0.metrics.configuration.in_force(routes.version);
        self.routes.send_if_modified(|current| {
            let differs = !current.same_as(&routes);
            if differs {
                *current = Arc::new(routes);
            }
            differs
        });
    }
}

#[cfg(test)]
mod tests {
    use super::{maker::MOST_REASONS, *};
    use crate::config::{Flags, parse_file};

    fn local(yaml: &str) -> Local {
        Local::from(&parse_file("config.yml", yaml, &Flags::default(), |_| None).unwrap().config)
    }

    fn rules(yaml: &str) -> Rules {
        Rules::new(local(yaml), Ground::bare(Arc::new(crate::metrics::Metrics::new()))).unwrap()
    }

    impl Rules {
        async fn reload(&mut self, local: Local) -> Result<(), String> {
            self.change(Some(local), None).await
        }
    }

    fn to(service: &str) -> String {
        format!("ingress: [{{ service: '{service}' }}]\n")
    }

    async fn push(rules: &mut Rules, version: i32, service: &str) -> Applied {
        let json = format!("{{\"ingress\":[{{\"service\":\"{service}\"}}]}}").into();
        rules.push(Pushed { version, json, by: PushedBy::AnyEdge }).await
    }

    fn in_force(rules: &Rules) -> (i32, String) {
        let routes = rules.routes.borrow();
        (routes.version, routes.ingress.rules[0].spelling.clone())
    }

    fn is(version: i32, service: &str) -> (i32, String) {
        (version, service.to_owned())
    }

    #[tokio::test]
    async fn a_changed_file_waits_behind_the_edges_rules_until_they_are_ignored() {
        let mut rules = rules(&to("http_status:201"));
        push(&mut rules, 7, "http_status:207").await;
        rules.reload(local(&to("http_status:202"))).await.unwrap();
        assert_eq!(in_force(&rules), is(7, "http_status:207"));
        rules.reload(local(&format!("remoteConfig: ignore\n{}", to("http_status:202")))).await.unwrap();
        assert_eq!(in_force(&rules), is(-1, "http_status:202"));
        let applied = push(&mut rules, 8, "http_status:208").await;
        assert_eq!((applied.version, applied.error.contains("ignore")), (-1, true));
        // What the edge said last is heard when it may speak again.
        rules.reload(local(&to("http_status:202"))).await.unwrap();
        assert_eq!(in_force(&rules), is(8, "http_status:208"));
    }

    #[tokio::test]
    async fn a_push_held_back_by_the_allowlist_comes_into_force_with_a_wider_one() {
        let list =
            |names: &str| format!("remoteConfig: {{ mode: allowlist, services: [{names}] }}\n{}", to("http://f"));
        let mut rules = rules(&list("'http://a'"));
        assert_eq!(push(&mut rules, 1, "http://a").await.version, 1);
        assert_eq!(push(&mut rules, 2, "http://b").await.version, 1);
        assert_eq!(push(&mut rules, 3, "nonsense").await.version, 1);
        rules.reload(local(&list("'http://b'"))).await.unwrap();
        assert_eq!(in_force(&rules), is(2, "http://b"));
        // Nothing of the edge's is allowed, then the earlier of its rules alone.
        rules.reload(local(&list("'http://c'"))).await.unwrap();
        assert_eq!(in_force(&rules), is(-1, "http://f"));
        rules.reload(local(&list("'http://b'"))).await.unwrap();
        assert_eq!(in_force(&rules), is(2, "http://b"));
    }

    #[tokio::test]
    async fn an_older_push_takes_no_place_of_a_newer_one_that_is_held() {
        let list =
            |names: &str| format!("remoteConfig: {{ mode: allowlist, services: [{names}] }}\n{}", to("http://f"));
        let mut rules = rules(&list("'http://a'"));
        assert_eq!(push(&mut rules, 9, "http://c").await.version, -1);
        assert_eq!(push(&mut rules, 8, "http://b").await.version, -1);
        // Nor does one that is let through.
        assert_eq!(push(&mut rules, 7, "http://a").await.version, 7);
        rules.reload(local(&list("'http://a', 'http://b', 'http://c'"))).await.unwrap();
        assert_eq!(in_force(&rules), is(9, "http://c"));
    }

    #[tokio::test]
    async fn a_list_of_services_counts_from_our_own_edge_alone_and_each_must_be_allowed() {
        let allowed = "remoteConfig: { mode: allowlist, services: ['http://a', 'http://b'] }";
        let mut rules = rules(&format!("{allowed}\n{}", to("http://f")));
        for (by, list, expected) in [
            (PushedBy::AnyEdge, r#""http://a","http://b""#, "service"),
            (PushedBy::AditEdge, r#""http://a","http://evil""#, "http://evil is not among the services"),
            (PushedBy::AditEdge, r#""http://a","http://b""#, ""),
        ] {
            let json = format!(r#"{{"ingress":[{{"service":[{list}]}}]}}"#).into();
            let applied = rules.push(Pushed { version: 1, json, by }).await;
            assert!(applied.error.contains(expected) && applied.error.is_empty() == expected.is_empty(), "{applied:?}");
        }
        assert_eq!(rules.version(), 1);
    }

    #[tokio::test]
    async fn a_file_whose_rules_cannot_be_used_changes_nothing() {
        let mut rules = rules(&to("http_status:201"));
        let bad =
            "ingress: [{ service: 'https://a', originRequest: { caPool: /nowhere.pem } }]\nremoteConfig: ignore\n";
        assert!(rules.reload(local(bad)).await.unwrap_err().contains("rule 0"));
        assert_eq!(in_force(&rules), is(-1, "http_status:201"));
        assert_eq!(push(&mut rules, 0, "http_status:200").await.version, 0, "remoteConfig is what it was");
        let outcome = rules.reload(local(bad)).await;
        assert!(outcome.is_err(), "also while the edge's rules are in force");
        assert_eq!(in_force(&rules), is(0, "http_status:200"));
    }

    #[tokio::test]
    async fn rules_that_serve_the_same_are_left_alone() {
        let mut rules = rules(&to("http_status:201"));
        let seen = rules.routes();
        rules.reload(local(&format!("remoteConfig: ignore\n{}", to("http_status:201")))).await.unwrap();
        assert!(!seen.has_changed().unwrap());
        rules
            .reload(local(&format!("warp-routing: {{ maxActiveFlows: 3 }}\n{}", to("http_status:201"))))
            .await
            .unwrap();
        assert!(seen.has_changed().unwrap());
    }

    #[tokio::test]
    async fn other_secrets_make_the_same_rules_anew_whoever_they_are_from() {
        let mut rules = rules(&to("http_status:201"));
        let ring = |generation| Some(Arc::new(Keyring::of_generation(generation)));
        for (generation, version, service) in [(1, -1, "http_status:201"), (2, 3, "http_status:203")] {
            if version >= 0 {
                push(&mut rules, version, service).await;
            }
            let mut seen = rules.routes();
            seen.borrow_and_update();
            rules.change(None, ring(generation)).await.unwrap();
            assert!(seen.has_changed().unwrap());
            assert_eq!(in_force(&rules), is(version, service));
            seen.borrow_and_update();
            rules.change(None, ring(generation)).await.unwrap();
            assert!(!seen.has_changed().unwrap(), "the same generation changes nothing");
        }
        // They are there for what comes later, too.
        push(&mut rules, 9, "http_status:209").await;
        assert_eq!(rules.routes.borrow().secrets(), 2);
    }

    #[tokio::test]
    async fn a_file_of_roots_that_is_gone_keeps_no_secrets_out() {
        let dir = tempfile::tempdir().unwrap();
        let pool = dir.path().join("roots.pem");
        let write = || std::fs::write(&pool, include_str!("../tls/cloudflare-edge-roots.pem")).unwrap();
        let remove = || std::fs::remove_file(&pool).unwrap();
        let rule = format!("{{ \"service\": \"https://a\", \"originRequest\": {{ \"caPool\": {pool:?} }} }}");
        let file = format!("ingress: [{rule}]\n");
        let ring = |generation| Some(Arc::new(Keyring::of_generation(generation)));
        let secrets = |rules: &Rules| rules.routes.borrow().secrets();
        write();
        let mut rules = rules(&file);
        remove();
        rules.change(None, ring(1)).await.unwrap();
        assert_eq!(secrets(&rules), 1);
        // A changed file is refused, and so is a push.
        assert!(rules.reload(local(&format!("limits: {{ maxConcurrent: 3 }}\n{file}"))).await.is_err());
        let json = Bytes::from(format!("{{ \"ingress\": [{rule}] }}"));
        let pushed = |version| Pushed { version, json: json.clone(), by: PushedBy::AnyEdge };
        assert_eq!(rules.push(pushed(1)).await.version, -1);
        write();
        assert_eq!(rules.push(pushed(2)).await.version, 2);
        remove();
        rules.change(None, ring(2)).await.unwrap();
        assert_eq!((rules.version(), secrets(&rules)), (2, 2));
        // Another file does not change the edge's rules.
        rules.reload(local(&to("http_status:201"))).await.unwrap();
        assert_eq!(rules.version(), 2);
        // Nobody has read the roots of rules that are not in force, and those that are do not suffer for it.
        push(&mut rules, 3, "http_status:203").await;
        rules.change(None, ring(3)).await.unwrap();
        assert_eq!((rules.version(), secrets(&rules)), (3, 3));
    }

    #[tokio::test]
    async fn changed_limits_are_in_force_for_pushed_rules_too() {
        let limited = |most| local(&format!("limits: {{ maxConcurrent: {most} }}\n{}", to("http://f")));
        let most = |rules: &Rules| rules.routes.borrow().ingress.rules[0].limits.max_concurrent;
        let mut rules = rules(&to("http://f"));
        push(&mut rules, 1, "http://a").await;
        for expected in [3, 4] {
            rules.reload(limited(expected)).await.unwrap();
            assert_eq!((in_force(&rules), most(&rules)), (is(1, "http://a"), Some(expected)));
        }
        push(&mut rules, 2, "http://a").await;
        assert_eq!(most(&rules), Some(4));
    }

    #[tokio::test]
    async fn an_answer_is_bounded() {
        let mut rules = rules(&to("http_status:201"));
        let rule = format!("{{\"service\":\"http://{}.{}\"}},", "a".repeat(63), "ä".repeat(100_000));
        let json = format!("{{\"ingress\":[{}{{\"service\":\"http_status:404\"}}]}}", rule.repeat(10));
        let applied = rules.push(Pushed { version: 1, json: json.into(), by: PushedBy::AnyEdge }).await;
        assert!(applied.version == -1 && !applied.error.is_empty());
        assert!(applied.error.len() < MOST_REASONS + 100, "{} bytes", applied.error.len());
    }
}
