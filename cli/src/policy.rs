//! `vmbus policy`: files of rules, and logs of what was decided by them.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use vmbus_channels::Guid;
use vmbus_channels::policy::{Decision, Rules, replay};
use vmbus_core::{network, storage};

/// Names for classes of devices in a file of rules.
const CLASSES: [(&str, Guid); 4] = [
    ("scsi", storage::SCSI_CLASS),
    ("ide", storage::IDE_CLASS),
    ("fibre-channel", storage::FIBRE_CHANNEL_CLASS),
    ("network", network::CLASS),
];

/// Arguments of `vmbus policy`.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  vmbus policy check rules.toml
  vmbus root --socket bus.sock --disk disk.img --policy rules.toml --policy-log decisions.jsonl
  kill -HUP $(pidof vmbus)                              read rules.toml again
  vmbus policy replay decisions.jsonl --policy new.toml what would new.toml have decided?

A file of rules; the first that fits decides:
  default = \"deny\"

  [[rule]]
  partition = \"backup-*\"
  when = { from = \"22:00\", to = \"06:00\", zone = \"local\" }
  limits.rate = { bytes = \"50M\" }";

#[derive(Subcommand)]
enum Command {
    /// Tell what is wrong with a file of rules, and where
    Check {
        /// The file
        file: PathBuf,
    },
    /// Decide again what a log says was asked, and list what comes out differently
    Replay {
        /// JSON lines, as `vmbus root --policy-log` writes them
        log: PathBuf,
        /// The rules that decide now
        #[arg(long, value_name = "FILE")]
        policy: PathBuf,
    },
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    match &arguments.command {
        Command::Check { file } => {
            println!("{}: {}", file.display(), load(file)?);
            Ok(())
        }
        Command::Replay { log, policy } => {
            let rules = load(policy)?;
            let file = File::open(log).with_context(|| format!("cannot read {}", log.display()))?;
            let runtime = tokio::runtime::Builder::new_current_thread().build()?;
            let replayed = runtime.block_on(replay(BufReader::new(file), &rules))?;
            for difference in &replayed.differences {
                println!("line {}: {}", difference.line, difference.logged);
                println!("  now {}", show(&difference.now));
            }
            for (line, why) in &replayed.unreadable {
                println!("line {line} is no decision: {why}");
            }
            println!(
                "{} decisions are the same, {} differ; {} were made by no agent, {} are missing",
                replayed.same, replayed.differ, replayed.others, replayed.missed
            );
            if !replayed.is_same() {
                bail!("{} does not decide as {} says", policy.display(), log.display());
            }
            Ok(())
        }
    }
}

/// Reads a file of rules.
pub(crate) fn load(path: &Path) -> Result<Rules> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Rules::parse(&text, &CLASSES).with_context(|| path.display().to_string())
}

fn show(decision: &Decision) -> String {
    match decision {
        Decision::Allow => "allowed".into(),
        Decision::Deny(refusal) => format!("denied, {refusal}"),
        Decision::Change(limits) => {
            let limits = serde_json::to_string(limits).unwrap_or_default();
            format!("allowed within {limits}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_in_the_help_is_a_policy() {
        let (_, example) = EXAMPLES.split_once("decides:\n").unwrap();
        assert_eq!(Rules::parse(example, &CLASSES).unwrap().len(), 1);
    }

    #[test]
    fn the_example_of_the_book_is_a_policy() {
        let book = include_str!("../../docs/src/policy.md");
        let (_, example) = book.split_once("```toml\n").unwrap();
        let (example, _) = example.split_once("```").unwrap();
        assert!(Rules::parse(example, &CLASSES).unwrap().len() >= 4);
    }
}
