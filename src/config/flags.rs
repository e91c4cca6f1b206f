//! The flags of `run` and of `tunnel`, made from the table of settings. They work before and after
//! `run`, as nobody remembers which of the two cloudflared wants.

use std::collections::BTreeMap;
use std::fmt;

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use super::settings::{Kind, Role, SETTINGS, find};

/// Flags as given, unchecked: mistakes in them are reported together with those of the file.
///
/// Use it like a derived set of arguments: `#[command(flatten)] flags: Flags`.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Flags {
    given: BTreeMap<&'static str, Vec<String>>,
    /// The tunnel named as an argument of `run`; the caller puts it here.
    pub tunnel: Option<String>,
}

impl Flags {
    /// The same flags and one more, named without the dashes: what a test or `demo` uses instead
    /// of a command line. A name that no flag has is ignored.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        if let Some(setting) = find(name) {
            self.given.entry(setting.key).or_default().push(value.to_owned());
        }
        self
    }

    /// `--config`: the file to read instead of searching for one.
    pub fn config_file(&self) -> Option<&str> {
        self.values("config").last().map(String::as_str).filter(|path| !path.is_empty())
    }

    /// `--lenient`: unknown keys are warnings.
    pub fn lenient(&self) -> bool {
        let last = self.values("lenient").last();
        last.is_some_and(|text| super::settings::truth(text) == Some(true))
    }

    /// Every occurrence of a flag, in order.
    pub(crate) fn values(&self, key: &str) -> &[String] {
        self.given.get(key).map_or(&[], Vec::as_slice)
    }
}

/// Names and numbers of values: a token may stand among them.
impl fmt::Debug for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.given.keys().collect();
        f.debug_struct("Flags").field("given", &names).field("tunnel", &self.tunnel).finish()
    }
}

impl Args for Flags {
    fn augment_args(command: Command) -> Command {
        SETTINGS.iter().fold(command, |command, setting| {
            let mut arg = Arg::new(setting.key)
                .long(setting.key)
                .visible_aliases(setting.aliases.iter().copied())
                .action(ArgAction::Append)
                .global(true)
                .help(help(setting))
                .hide(setting.role == Role::NoEffect);
            if let Some(short) = setting.short {
                arg = arg.short(short);
            }
            arg = match setting.kind {
                // A value only behind `=`: `--pq run` must not swallow the command.
                Kind::Bool => arg.num_args(0..=1).require_equals(true).default_missing_value("true").value_name("BOOL"),
                // A negative duration is refused with a reason later on, not as an unknown flag.
                Kind::Duration => arg.value_name("DURATION").allow_hyphen_values(true),
                Kind::Int(..) => arg.value_name("N").allow_hyphen_values(true),
                Kind::List(_) => arg.value_name("VALUE"),
                Kind::Path => arg.value_name("PATH"),
                Kind::Secret => arg.value_name("SECRET").hide_env_values(true),
                Kind::Text(_) => arg.value_name("TEXT"),
            };
            command.arg(arg)
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = Self::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for setting in SETTINGS {
            if let Ok(Some(values)) = matches.try_get_many::<String>(setting.key) {
                self.given.insert(setting.key, values.cloned().collect());
            }
        }
        Ok(())
    }
}

fn help(setting: &super::settings::Setting) -> String {
    match setting.env {
        [] => setting.help.to_owned(),
        names => format!("{} [env: {}]", setting.help, names.join(", ")),
    }
}
