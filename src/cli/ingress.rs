//! `ingress validate` and `ingress rule URL`.

use clap::Subcommand;

use super::{Outcome, complain, env, say, search};
use crate::config::{Flags, Loaded, explain, load};

#[derive(Debug, Subcommand)]
pub(super) enum IngressCommand {
    /// Check the configuration file
    Validate,
    /// Say which rule a URL matches
    Rule {
        /// With scheme: https://host/path
        url: String,
    },
}

pub(super) fn run(flags: &Flags, command: &IngressCommand) -> Outcome {
    let loaded = match load(flags, env, &search()) {
        Ok(loaded) => loaded,
        Err(mistakes) => {
            complain(&mistakes.to_string());
            return Outcome::Usage;
        }
    };
    let Loaded { config, warnings, file, ineffective_origin } = loaded;
    if let Some(file) = &file {
        say(&format!("Using rules from {}", file.display()));
    }
    for warning in warnings {
        complain(&format!("warning: {warning}"));
    }
    let Some(ingress) = config.ingress else {
        complain("no ingress rules");
        return Outcome::Usage;
    };
    match command {
        IngressCommand::Validate if !ineffective_origin.is_empty() => {
            complain(&format!("{} has no effect beside ingress rules", ineffective_origin.join(", ")));
            Outcome::Usage
        }
        IngressCommand::Validate => {
            say("OK");
            Outcome::Done
        }
        IngressCommand::Rule { url } => match explain(&ingress, url) {
            Ok(text) => {
                say(&text);
                Outcome::Done
            }
            Err(error) => {
                complain(&error.to_string());
                Outcome::Usage
            }
        },
    }
}
